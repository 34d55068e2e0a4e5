"""One training run: reconstruction and KL, averaged weights, exact resume.

The reconstruction loss of a window is half the logarithm of its mean squared error, so that the mean of
decibels is what falls, and a dark or smooth window counts as much as a busy one. A run stopped at any time
continues from its last checkpoint as if it had not been: windows and noise are functions of (seed, step).
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.errors import UsageError
from cvvae_cli.posterior import DiagonalGaussian
from cvvae_cli.provenance import source_commit
from cvvae_cli.training.data import WindowDataset, prepare
from cvvae_cli.training.linear_code import warm_start
from cvvae_cli.training.recipe import OptimConfig, Recipe, recipe_to_dict

Report = Callable[[str], None]


def reconstruction_loss(y: Tensor, x: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Half the mean over windows of log(mse + floor), and the windows' mean PSNR in dB (of [-1, 1] floats)."""
    mse = (y.float() - x).square().mean(dim=(1, 2, 3, 4))
    return 0.5 * (mse + floor).log().mean(), 10 * (4 / mse.detach()).log10().mean()


def rate_factor(step: int, optim: OptimConfig) -> float:
    """Learning rate at `step` relative to its peak: linear rise, constant, linear fall to 0 at the end."""
    rise = (step + 1) / optim.warmup if step < optim.warmup else 1.0
    return min(rise, max(0.0, (optim.steps - step) / max(1, optim.cooldown)), 1.0)


def parameter_groups(model: Autoencoder, optim: OptimConfig) -> list[dict]:
    """The residual networks at the full rate, the linear code's maps at their own, without weight decay."""
    linear = [p for n, p in model.named_parameters() if ".analysis." in n or ".synthesis." in n]
    rest = [p for n, p in model.named_parameters() if ".analysis." not in n and ".synthesis." not in n]
    return [
        {"params": rest, "peak": optim.learning_rate, "weight_decay": optim.weight_decay},
        {"params": linear, "peak": optim.linear_rate, "weight_decay": 0.0},
    ]


class _StepSampler(Sampler):
    """Window numbers from `first` on, in order."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last

    def __iter__(self):
        return iter(range(self.first, self.last))

    def __len__(self) -> int:
        return self.last - self.first


class Trainer:
    """The state of a run and its steps.

    Args:
        recipe: the run.
        folder: where `checkpoint.pt` and `log.jsonl` go.
        device: torch device.
        report: called with a line of progress.
    """

    def __init__(self, recipe: Recipe, folder: str | Path, device: str, report: Report) -> None:
        self.recipe, self.folder, self.device, self.report = recipe, Path(folder), torch.device(device), report
        self.folder.mkdir(parents=True, exist_ok=True)
        self.dataset = WindowDataset(recipe.data, prepare(recipe.data, report), recipe.run.seed, recipe.optim.steps * recipe.optim.batch)
        torch.manual_seed(recipe.run.seed)
        self.model = Autoencoder(recipe.model)
        self.step = 0
        self.last_loss: float | None = None
        checkpoint = self.folder / "checkpoint.pt"
        state = torch.load(checkpoint, map_location="cpu", weights_only=True) if checkpoint.exists() else None
        if state is None and recipe.run.warm_windows:
            self._warm_start()
        self.model.to(self.device, memory_format=torch.channels_last_3d).train()
        optim = recipe.optim
        self.optimiser = torch.optim.AdamW(parameter_groups(self.model, optim), lr=0.0, betas=optim.betas, fused=True)
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        if state is not None:
            self._restore(state)

    def _warm_start(self) -> None:
        self.report(f"fitting the linear code on {self.recipe.run.warm_windows} windows")
        own = self.dataset.with_seed(self.recipe.run.seed + 1_000_003)  # not the windows of the run itself
        windows = torch.stack([own[i] for i in range(self.recipe.run.warm_windows)]).split(20)
        warm_start(self.model, list(windows), self.recipe.run.warm_noise, self.recipe.optim.mse_floor)

    def _restore(self, state: dict) -> None:
        saved, now = dict(json.loads(state["recipe"])), recipe_to_dict(self.recipe)
        for table in (saved["optim"], now["optim"]):
            table.pop("steps"), table.pop("cooldown")  # a run may be prolonged
        for table in (saved["run"], now["run"]):
            for key in ("checkpoint_every", "log_every", "workers"):
                table.pop(key)
        saved["data"]["cache"] = now["data"]["cache"]
        if json.loads(json.dumps(now)) != saved or state["windows"] != self.dataset.fingerprint():
            raise UsageError(f"Run folder {self.folder} holds another recipe or other clips; name a new --run-dir or restore the recipe.")
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average = {k: v.to(self.device) for k, v in state["average"].items()}
        self.step = state["step"]
        self.report(f"resumed at step {self.step}")

    def save(self) -> None:
        """Write `checkpoint.pt` beside and rename it."""
        state = {
            "step": self.step, "model": self.model.state_dict(), "average": self.average, "optimiser": self.optimiser.state_dict(),
            "recipe": json.dumps(recipe_to_dict(self.recipe)), "windows": self.dataset.fingerprint(), "commit": source_commit() or "unknown",
        }  # fmt: skip
        part = self.folder / "checkpoint.part"
        torch.save(state, part)
        os.replace(part, self.folder / "checkpoint.pt")

    def train_step(self, x: Tensor) -> dict[str, float]:
        """One optimiser step on windows (B, 3, T, H, W) in [-1, 1]; returns the loss terms."""
        optim = self.recipe.optim
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * rate_factor(self.step, optim)
        noise = torch.Generator(device=self.device).manual_seed(self.recipe.run.seed * 1_000_000_007 + self.step)
        x = x.to(self.device, non_blocking=True, memory_format=torch.channels_last_3d)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.run.precision == "bf16"):
            posterior = DiagonalGaussian(self.model.encode(x).float())
            y = self.model.decode(posterior.sample(noise))
        reconstruction, psnr = reconstruction_loss(y, x, optim.mse_floor)
        kl = posterior.kl().mean()
        loss = reconstruction + optim.kl_weight * kl
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        # Group by group: the linear maps' gradients are so much larger that they would decide for the networks.
        norms = [torch.nn.utils.clip_grad_norm_(group["params"], optim.clip) for group in self.optimiser.param_groups]
        self.optimiser.step()
        self.step += 1
        decay = min(optim.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                self.average[key].lerp_(value, 1 - decay)
        return {"loss": loss.item(), "psnr_db": psnr.item(), "kl": kl.item(), "gradient_norm": norms[0].item()}

    def provenance(self) -> dict[str, str]:
        """What the exported weights say about their making."""
        return {"recipe": json.dumps(recipe_to_dict(self.recipe)), "steps": str(self.step), "commit": source_commit() or "unknown", "windows": self.dataset.fingerprint()}

    def averaged_model(self) -> Autoencoder:
        """A copy of the model with the averaged weights, in eval mode on the CPU."""
        model = Autoencoder(self.recipe.model)
        model.load_state_dict({k: v.cpu() for k, v in self.average.items()})
        return model.eval()

    def run(self) -> None:
        """Train to the last step, logging and saving on the way; a checkpoint is kept on Ctrl-C too."""
        recipe, batch = self.recipe, self.recipe.optim.batch
        windows = _StepSampler(self.step * batch, recipe.optim.steps * batch)
        loader = DataLoader(self.dataset, batch_size=batch, sampler=windows, num_workers=recipe.run.workers, pin_memory=self.device.type == "cuda")
        started, first = time.monotonic(), self.step
        try:
            with open(self.folder / "log.jsonl", "a", encoding="utf-8") as log:
                for x in loader:
                    terms = self.train_step(x)
                    self.last_loss = terms["loss"]
                    if self.step % recipe.run.log_every == 0:
                        rate = (self.step - first) / (time.monotonic() - started)
                        log.write(json.dumps({"step": self.step, **terms}) + "\n")
                        log.flush()
                        left = (recipe.optim.steps - self.step) / rate / 60
                        values = " ".join(f"{k} {v:.4g}" for k, v in terms.items())
                        self.report(f"step {self.step}/{recipe.optim.steps} {values} | {rate * batch:.2f} windows/s, {left:.0f} min left")
                    if self.step % recipe.run.checkpoint_every == 0:
                        self.save()
        finally:
            if self.step > first:
                self.save()

