"""The training loop: windows in, a model out, exactly resumable.

A run is a folder with `checkpoint.pt` (all state, written beside and renamed) and the journal. Data order and
noise depend on seed, step and window number only, so a run that was stopped goes on as if it had not been, and
several devices do what one would do with their batches together. The objective is the recipe's; this module
knows no terms.
"""

import contextlib
import json
import os
from collections.abc import Callable
from math import cos, pi
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from cvvae_cli import compact, layers
from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.errors import UsageError
from cvvae_cli.image_model import load_image_model
from cvvae_cli.provenance import source_commit
from cvvae_cli.training.discriminator import PatchDiscriminator3d, discriminator_step
from cvvae_cli.training.distributed import join_processes, leave_processes
from cvvae_cli.training.journal import Journal
from cvvae_cli.training.objective import Objective, Outcome
from cvvae_cli.training.recipe import OptimConfig, Recipe, recipe_to_dict
from cvvae_cli.training.start import starting_model
from cvvae_cli.training.windows import MixedWindows, StepSampler, WindowStream

Report = Callable[[str], None]

PROLONGABLE = {
    "optim": ("steps",),
    "run": ("checkpoint_every", "log_every", "pictures_every", "workers", "recompute"),
}
"""What may change between the sittings of a run."""
_SEEDS_APART = 1000
"""Streams have seeds of their own, and those of another run's seed are others."""


def rate_factor(step: int, optim: OptimConfig) -> float:
    """Learning rate at `step` relative to its peak: linear rise, constant, then half a cosine down to the last step."""
    if step < optim.warmup:
        return (step + 1) / optim.warmup
    begin = max(optim.hold, optim.warmup)
    if step < begin:
        return 1.0
    share = min(1.0, (step - begin) / max(1, optim.steps - 1 - begin))
    return optim.final_rate + (1 - optim.final_rate) * (1 + cos(pi * share)) / 2


def parameter_groups(objective: Objective, optim: OptimConfig) -> list[dict]:
    """Networks at the full rate; the compact family's linear maps at their own and learned variances, both undecayed."""
    trained = list(objective.model.named_parameters())
    linear = [p for name, p in trained if ".analysis." in name or ".synthesis." in name]
    rest = [p for name, p in trained if ".analysis." not in name and ".synthesis." not in name]
    groups = [
        {"params": rest, "peak": optim.learning_rate, "weight_decay": optim.weight_decay},
        {"params": linear, "peak": optim.linear_rate, "weight_decay": 0.0},
        {"params": list(objective.variances.parameters()), "peak": optim.learning_rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def recompute_blocks(model: nn.Module) -> None:
    """Let every residual block keep its input only and compute the rest again on the way back."""
    for module in model.modules():
        if isinstance(module, (layers.ResidualBlock, compact.ResidualBlock)):
            module.forward = _recomputed(module.forward)


def _recomputed(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: checkpoint(forward, x, use_reentrant=False)


class Trainer:
    """The state of a run and its steps.

    Args:
        recipe: the run.
        folder: where `checkpoint.pt` and the journal go.
        device: torch device; under `torchrun` each process takes its own card.
        report: called with a line of progress, by the leading process only.
    """

    def __init__(self, recipe: Recipe, folder: str | Path, device: str | torch.device, report: Report) -> None:
        self.recipe, self.folder = recipe, Path(folder)
        self.processes = join_processes(torch.device(device))
        self.device = self.processes.device
        self.report: Report = report if self.processes.leads else _silent
        self.folder.mkdir(parents=True, exist_ok=True)
        self.streams = self._open_streams()
        self.step = 0
        self.last_terms: dict[str, float] = {}
        path = self.folder / "checkpoint.pt"
        state = torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None
        if state is not None:
            self._check(state)
        # A resumed run takes its weights from the checkpoint, so it need not fit or load its start again.
        self.model = Autoencoder(recipe.model) if state is not None else starting_model(recipe, self.streams, self.report)
        self.model.to(self.device, memory_format=torch.channels_last_3d).train()
        if recipe.run.recompute:
            recompute_blocks(self.model)
        rule = recipe.regularisation
        frozen = load_image_model(rule.image_model, self.device, torch.float32) if rule.side != "none" else None
        self.objective = Objective(recipe, self.model, frozen).to(self.device)
        self.optimiser = _adamw(parameter_groups(self.objective, recipe.optim), recipe.optim)
        self.critic = self.critic_optimiser = None
        if recipe.adversarial.weight:
            torch.manual_seed(recipe.run.seed)
            self.critic = PatchDiscriminator3d(recipe.adversarial.channels, recipe.adversarial.layers).to(self.device)
            group = {"params": list(self.critic.parameters()), "peak": recipe.adversarial.learning_rate, "weight_decay": recipe.optim.weight_decay}
            self.critic_optimiser = _adamw([group], recipe.optim)
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        if state is not None:
            self._restore(state)
        several = self.processes.count > 1
        self._objective = DistributedDataParallel(self.objective) if several else self.objective
        self._critic = DistributedDataParallel(self.critic) if several and self.critic else self.critic

    def _open_streams(self) -> list[WindowStream]:
        """The leading process decodes into the caches first; the others find them filled."""
        for turn in (True, False):
            if self.processes.leads == turn:
                seeds = range(self.recipe.run.seed * _SEEDS_APART, (self.recipe.run.seed + 1) * _SEEDS_APART)
                streams = [WindowStream(config, seed, self.report) for config, seed in zip(self.recipe.streams, seeds)]
            self.processes.wait()
        return streams

    @property
    def windows(self) -> str:
        """Fingerprint of all the data."""
        return " ".join(stream.fingerprint() for stream in self.streams)

    def _check(self, state: dict) -> None:
        saved, now = json.loads(state["recipe"]), json.loads(json.dumps(recipe_to_dict(self.recipe)))
        for tables in (saved, now):
            for name, keys in PROLONGABLE.items():
                for key in keys:
                    tables[name].pop(key)
            for stream in tables["streams"]:
                stream.pop("cache")
        different = [name for name in now if now[name] != saved[name]]
        if different or state["windows"] != self.windows:
            what = f"another recipe ({', '.join(different)} differ)" if different else "other clips"
            raise UsageError(f"Run folder {self.folder} holds {what}; name a new --run-dir or restore the recipe.")

    def _restore(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.objective.variances.load_state_dict(state["variances"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
            self.critic_optimiser.load_state_dict(state["critic_optimiser"])
        self.average = {k: v.to(self.device) for k, v in state["average"].items()}
        self.step = state["step"]
        self.report(f"resumed at step {self.step}")

    def save(self) -> None:
        """Write `checkpoint.pt` beside and rename it; the leading process does it for all."""
        if not self.processes.leads:
            return
        state = {
            "step": self.step, "model": self.model.state_dict(), "average": self.average, "optimiser": self.optimiser.state_dict(),
            "variances": self.objective.variances.state_dict(), **self.provenance(),
        }  # fmt: skip
        if self.critic is not None:
            state |= {"critic": self.critic.state_dict(), "critic_optimiser": self.critic_optimiser.state_dict()}
        part = self.folder / "checkpoint.part"
        torch.save(state, part)
        os.replace(part, self.folder / "checkpoint.pt")

    def provenance(self) -> dict[str, str]:
        """What a checkpoint and the exported weights say about their making."""
        recipe = json.dumps(recipe_to_dict(self.recipe))
        return {"recipe": recipe, "steps": str(self.step), "commit": source_commit() or "unknown", "windows": self.windows}

    def averaged_model(self) -> Autoencoder:
        """A copy of the model with the averaged weights, in eval mode on the CPU."""
        model = Autoencoder(self.recipe.model)
        model.load_state_dict({k: v.cpu() for k, v in self.average.items()})
        return model.eval()

    def train_step(self, x: Tensor, numbers: list[int]) -> dict[str, float]:
        """One step of the optimisers.

        Args:
            x: this process' windows (B, 3, T, H, W) in [-1, 1].
            numbers: theirs; with the seed they draw each window's noise.

        Returns:
            The terms, means over all processes.
        """
        recipe, processes = self.recipe, self.processes
        x = x.to(self.device, non_blocking=True, memory_format=torch.channels_last_3d)
        critic = self.critic if self.step >= recipe.adversarial.start_step else None
        if critic is not None:
            critic.requires_grad_(False)
        self.optimiser.zero_grad(set_to_none=True)
        pieces = list(zip(x.chunk(recipe.optim.accumulate), _chunks(self._seeds(numbers), recipe.optim.accumulate), strict=True))
        outcomes: list[Outcome] = []
        for i, (piece, seeds) in enumerate(pieces):
            waits = processes.count > 1 and i < len(pieces) - 1
            with self._objective.no_sync() if waits else contextlib.nullcontext():
                outcome = self._objective(piece, seeds, self._seeds([-1])[0], critic, processes.average)
                (outcome.loss * (len(piece) / len(x))).backward()
            outcome.loss = outcome.loss.detach()
            outcomes.append(outcome)
        norm = self._update(self.optimiser)
        terms = _mean_terms(outcomes, [len(piece) / len(x) for piece, _ in pieces]) | {"gradient_norm": norm}
        if critic is not None:
            terms["critic"] = self._critic_step(x, torch.cat([outcome.y for outcome in outcomes]))
        self.step += 1
        self._update_average()
        values = processes.average(torch.stack([value.float().reshape(()).to(self.device) for value in terms.values()]))
        return dict(zip(terms, values.tolist()))

    def _seeds(self, numbers: list[int]) -> list[int]:
        base = self.recipe.run.seed * 1_000_003 + self.step
        return [(base * 1_000_003 + number + 1) % 2**63 for number in numbers]

    def _critic_step(self, x: Tensor, y: Tensor) -> Tensor:
        """One step of the discriminator on what the step before it made: the networks do not run again."""
        self.critic.requires_grad_(True)
        self.critic_optimiser.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.recipe.run.precision == "bf16"):
            loss = discriminator_step(self._critic, x, y)
        loss.backward()
        self._update(self.critic_optimiser)
        return loss.detach()

    def _update(self, optimiser: torch.optim.Optimizer) -> Tensor:
        """Clip, set the rate and step; returns the first group's gradient norm before clipping."""
        factor = rate_factor(self.step, self.recipe.optim)
        # Group by group: the linear maps' gradients are so much larger that they would decide for the networks.
        norms = [torch.nn.utils.clip_grad_norm_(group["params"], self.recipe.optim.clip) for group in optimiser.param_groups]
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * factor
        optimiser.step()
        return norms[0]

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.recipe.optim.ema, (1 + self.step) / (10 + self.step))
        for key, value in self.model.state_dict().items():
            self.average[key].lerp_(value, 1 - decay)

    def run(self) -> None:
        """Train to the last step, logging and saving on the way; a checkpoint is kept on Ctrl-C too."""
        recipe, processes = self.recipe, self.processes
        shares = [(stream.share, stream.batch) for stream in recipe.streams]
        sampler = StepSampler(shares, recipe.run.seed, self.step, recipe.optim.steps, processes.rank, processes.count)
        loader = DataLoader(
            MixedWindows(self.streams), batch_sampler=sampler, num_workers=recipe.run.workers, pin_memory=self.device.type == "cuda"
        )
        journal = Journal(self.folder, self.step, recipe.optim.steps, self.report) if processes.leads else None
        first = self.step
        try:
            for (index, numbers), x in zip(sampler, loader, strict=True):
                stream = recipe.streams[index]
                self.last_terms = self.train_step(x, numbers)
                if journal is not None:
                    self._note(journal, f"{stream.kind}_{stream.frames}x{stream.crop}", x)
                if self.step % recipe.run.checkpoint_every == 0:
                    self.save()
        finally:
            if self.step > first:
                self.save()
            if journal is not None:
                journal.close()
        processes.wait()

    def _note(self, journal: Journal, stream: str, x: Tensor) -> None:
        run = self.recipe.run
        journal.count(len(x) * self.processes.count)
        if self.step % run.log_every == 0:
            journal.scalars(self.step, self.last_terms, stream)
        if run.pictures_every and self.step % run.pictures_every == 0:
            with torch.no_grad():
                x = x[:1].to(self.device)
                y = self.model.decode(self.model.encode(x).chunk(2, dim=1)[0])
            journal.strip(self.step, x, y, stream)

    def close(self) -> None:
        """Take leave of the other processes."""
        leave_processes(self.processes)


def _silent(line: str) -> None:
    """Processes that do not lead say nothing."""


def _adamw(groups: list[dict], optim: OptimConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=0.0, betas=optim.betas, eps=optim.eps, fused=True)


def _chunks(values: list[int], pieces: int) -> list[list[int]]:
    """Cut a list as `torch.chunk` cuts a batch."""
    size = -(-len(values) // pieces)
    return [values[i : i + size] for i in range(0, len(values), size)]


def _mean_terms(outcomes: list[Outcome], weights: list[float]) -> dict[str, Tensor]:
    """Means over the pieces of a batch, the loss first."""
    terms = {"loss": sum(o.loss * w for o, w in zip(outcomes, weights))}
    return terms | {name: sum(o.terms[name] * w for o, w in zip(outcomes, weights)) for name in outcomes[0].terms}
