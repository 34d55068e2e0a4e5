"""The training loop: windows in, a model out, exactly resumable.

A run is a folder with `checkpoint.pt` (all state, written beside and renamed) and the journal. Data order and
noise depend on seed, step and window number only, so a run that was stopped goes on as if it had not been, and
several devices do what one would do with their batches together. The objective is the recipe's; this module
knows no terms.
"""

import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from math import cos, pi
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from cvvae_cli import compact, layers
from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.errors import CvvaeError, DeviceError, UsageError, VideoError
from cvvae_cli.image_model import ImageModel, load_image_model
from cvvae_cli.provenance import source_commit
from cvvae_cli.training.discriminator import PatchDiscriminator3d, discriminator_step
from cvvae_cli.training.distributed import join_processes, leave_processes
from cvvae_cli.training.journal import Journal
from cvvae_cli.training.objective import Objective, Outcome
from cvvae_cli.training.recipe import OptimConfig, Recipe, recipe_to_dict
from cvvae_cli.training.run_folder import RunFolder
from cvvae_cli.training.start import starting_model
from cvvae_cli.training.windows import MixedWindows, StepSampler, WindowStream

Report = Callable[[str], None]

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
    return lambda x: checkpoint(forward, x, use_reentrant=False, preserve_rng_state=False)  # blocks draw nothing


class Trainer:
    """The state of a run and its steps.

    Args:
        recipe: the run.
        folder: where `checkpoint.pt` and the journal go.
        device: torch device; under `torchrun` each process takes its own card.
        report: called with a line of progress, by the leading process only.
    """

    def __init__(self, recipe: Recipe, folder: str | Path, device: str | torch.device, report: Report) -> None:
        self.recipe, self.folder = recipe, RunFolder(folder)
        self.processes = join_processes(torch.device(device))
        self.device = self.processes.device
        self.report: Report = report if self.processes.leads else _silent
        self.step = 0
        self.last_terms: dict[str, float] = {}
        self._midway = self._stopping = False
        self._sampler()  # and what else can be wrong with a recipe is found before its data is decoded
        self.frozen = self._load_frozen()
        self.critic, self.critic_optimiser = self._make_critic()
        self.streams = self._open_streams()
        state = self.folder.load()
        if state is not None:
            self.folder.check(state, recipe, self._seen())
        # A resumed run takes its weights from the checkpoint, the other processes theirs from the leading one.
        fresh = state is None and self.processes.leads
        self.model = starting_model(recipe, self.streams, self.report) if fresh else Autoencoder(recipe.model)
        self.model.to(self.device, memory_format=torch.channels_last_3d).train()
        if recipe.run.recompute:
            recompute_blocks(self.model)
        self.objective = Objective(recipe, self.model, self.frozen).to(self.device)
        self.optimiser = _adamw(parameter_groups(self.objective, recipe.optim), recipe.optim)
        if state is not None:
            self._restore(state)
        several = self.processes.count > 1
        self._parallel_objective = DistributedDataParallel(self.objective) if several else self.objective
        self._parallel_critic = DistributedDataParallel(self.critic) if several and self.critic else self.critic
        # After the wrapping, which gives all processes the leading one's weights.
        kept = self.model.state_dict() if state is None else state["average"]
        self.averaged = {k: v.detach().to(self.device, copy=True) for k, v in kept.items()}

    def _load_frozen(self) -> ImageModel | None:
        rule = self.recipe.regularisation
        if rule.side == "none":
            return None
        frozen = load_image_model(rule.image_model, self.device, torch.float32)
        wanted = self.recipe.model.latent_channels
        if frozen.latent_channels != wanted:
            has = f"{frozen.latent_channels} latent channels"
            raise UsageError(f"Recipe regularisation.image_model has {has} and [model] {wanted}; make them agree.")
        return frozen

    def _make_critic(self) -> tuple[PatchDiscriminator3d | None, torch.optim.AdamW | None]:
        rule, optim = self.recipe.adversarial, self.recipe.optim
        if not rule.weight:
            return None, None
        torch.manual_seed(self.recipe.run.seed)
        critic = PatchDiscriminator3d(rule.channels, rule.layers).to(self.device)
        group = {"params": list(critic.parameters()), "peak": rule.learning_rate, "weight_decay": optim.weight_decay}
        return critic, _adamw([group], optim)

    def _open_streams(self) -> list[WindowStream]:
        """The leading process decodes into the caches first; the others find them filled."""
        seeds = range(self.recipe.run.seed * _SEEDS_APART, (self.recipe.run.seed + 1) * _SEEDS_APART)
        for turn in (True, False):
            if self.processes.leads == turn:
                streams = [WindowStream(config, seed, self.report) for config, seed in zip(self.recipe.streams, seeds)]
            self.processes.wait()
        return streams

    def _sampler(self) -> StepSampler:
        shares, run, optim = [(s.share, s.batch) for s in self.recipe.streams], self.recipe.run, self.recipe.optim
        return StepSampler(shares, run.seed, self.step, optim.steps, self.processes.rank, self.processes.count)

    def _seen(self) -> dict[str, str]:
        """Fingerprints of the data and of the frozen picture autoencoder."""
        data = " ".join(stream.fingerprint() for stream in self.streams)
        return {"windows": data, "image_model": self.frozen.identity if self.frozen else "none"}

    def _restore(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.objective.variances.load_state_dict(state["variances"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
            self.critic_optimiser.load_state_dict(state["critic_optimiser"])
        self.step = state["step"]
        self.report(f"resumed at step {self.step}")

    def save(self) -> None:
        """Write the checkpoint; the leading process does it for all.

        Raises:
            OutputError: it cannot be written; the last one stays.
        """
        if not self.processes.leads:
            return
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.averaged,
            "optimiser": self.optimiser.state_dict(),
            "variances": self.objective.variances.state_dict(),
            **self.provenance(),
        }
        if self.critic is not None:
            state |= {"critic": self.critic.state_dict(), "critic_optimiser": self.critic_optimiser.state_dict()}
        self.folder.save(state)

    def provenance(self) -> dict[str, str]:
        """What a checkpoint and the exported weights say about their making."""
        recipe = json.dumps(recipe_to_dict(self.recipe))
        return {"recipe": recipe, "steps": str(self.step), "commit": source_commit() or "unknown", **self._seen()}

    def averaged_model(self) -> Autoencoder:
        """A copy of the model with the averaged weights, in eval mode on the CPU."""
        model = Autoencoder(self.recipe.model)
        model.load_state_dict({k: v.cpu() for k, v in self.averaged.items()})
        return model.eval()

    def train_step(self, x: Tensor, numbers: list[int]) -> dict[str, float]:
        """One step of the optimisers.

        Args:
            x: this process' windows (B, 3, T, H, W) in [-1, 1].
            numbers: theirs; with the seed they draw each window's noise.

        Returns:
            The terms, means over all processes.
        """
        recipe, processes, pieces = self.recipe, self.processes, self.recipe.optim.accumulate
        x = x.to(self.device, non_blocking=True, memory_format=torch.channels_last_3d)
        critic = self.critic if self.step >= recipe.adversarial.start_step else None
        if critic is not None:
            critic.requires_grad_(False)
        self.optimiser.zero_grad(set_to_none=True)
        outcomes: list[Outcome] = []
        weights: list[float] = []
        parts = list(zip(x.chunk(pieces), _chunks(self._seeds(numbers), pieces), strict=True))
        for last, (part, seeds) in _marked(parts):
            with self._together(self._parallel_objective, last):
                outcome = self._parallel_objective(part, seeds, self._seeds([-1])[0], critic, processes.mean)
                weights.append(len(part) / len(x))
                (outcome.loss * weights[-1]).backward()
            outcome.loss = outcome.loss.detach()
            outcomes.append(outcome)
        norm = self._update(self.optimiser)
        terms = _mean_terms(outcomes, weights) | {"gradient_norm": norm}
        if critic is not None:
            terms["critic"] = self._critic_step(x, torch.cat([outcome.y for outcome in outcomes]))
        self.step += 1
        self._update_average()
        self._midway = False
        values = processes.mean(torch.stack([value.float().reshape(()).to(self.device) for value in terms.values()]))
        return dict(zip(terms, values.tolist()))

    def _together(self, module: nn.Module, last: bool) -> contextlib.AbstractContextManager:
        """Processes add up their gradients with the last piece of a batch alone."""
        return contextlib.nullcontext() if self.processes.count == 1 or last else module.no_sync()

    def _seeds(self, numbers: list[int]) -> list[int]:
        base = self.recipe.run.seed * 1_000_003 + self.step
        return [(base * 1_000_003 + number + 1) % 2**63 for number in numbers]

    def _critic_step(self, x: Tensor, y: Tensor) -> Tensor:
        """One step of the discriminator on what the step before it made: the networks do not run again."""
        self.critic.requires_grad_(True)
        self.critic_optimiser.zero_grad(set_to_none=True)
        total = torch.zeros((), device=x.device)
        pieces = self.recipe.optim.accumulate
        for last, (real, fake) in _marked(list(zip(x.chunk(pieces), y.chunk(pieces)))):
            with self._together(self._parallel_critic, last):
                with torch.autocast(x.device.type, torch.bfloat16, enabled=self.recipe.run.precision == "bf16"):
                    loss = discriminator_step(self._parallel_critic, real, fake) * (len(real) / len(x))
                loss.backward()
            total += loss.detach()
        self._update(self.critic_optimiser)
        return total

    def _update(self, optimiser: torch.optim.Optimizer) -> Tensor:
        """Clip, set the rate and step; returns the first group's gradient norm before clipping.

        Raises:
            CvvaeError: a gradient is not finite; nothing was changed.
        """
        factor = rate_factor(self.step, self.recipe.optim)
        # Group by group: the linear maps' gradients are so much larger that they would decide for the networks.
        norms = [torch.nn.utils.clip_grad_norm_(group["params"], self.recipe.optim.clip) for group in optimiser.param_groups]
        if not torch.stack(norms).isfinite().all():
            advice = "lower the learning rate and go on from the last checkpoint"
            raise CvvaeError(f"Step {self.step + 1} has a gradient that is not finite; {advice}.")
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * factor
        self._midway = True  # from here to the end of the step, state is of no step and must not be saved
        optimiser.step()
        return norms[0]

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.recipe.optim.ema, (1 + self.step) / (10 + self.step))
        for key, value in self.model.state_dict().items():
            self.averaged[key].lerp_(value, 1 - decay)

    def run(self) -> None:
        """Train to the last step, logging and saving on the way.

        Ctrl-C and SIGTERM end the run behind the step at hand, with a checkpoint.

        Raises:
            KeyboardInterrupt: so ended.
            DeviceError: out of memory.
            VideoError: a source can no longer be read.
            CvvaeError: a gradient was not finite. The checkpoint is that of the last whole step.
        """
        processes, first, saved = self.processes, self.step, self.step
        journal = Journal(self.folder.path, first, self.recipe.optim.steps, self.report) if processes.leads else None
        try:
            for stream, numbers, x in self._batches():
                self.last_terms = self.train_step(x, numbers)
                if journal is not None:
                    self._note(journal, stream, x)
                if self.step % self.recipe.run.checkpoint_every == 0:
                    self.save()
                    saved = self.step
                if self._stopping:
                    raise KeyboardInterrupt
        except torch.OutOfMemoryError as error:
            advice = "raise optim.accumulate, set run.recompute = true or lower the batches"
            raise DeviceError(f"Device {self.device} ran out of memory in step {self.step + 1}; {advice}.") from error
        finally:
            if self.step > saved and not self._midway:
                self.save()
            if journal is not None:
                journal.close()
        processes.wait()

    def _batches(self) -> Iterator[tuple[int, list[int], Tensor]]:
        """Stream, numbers and windows of each step that is left; signals only leave a mark meanwhile."""
        sampler, workers = self._sampler(), self.recipe.run.workers
        pinned = self.device.type == "cuda"
        loader = DataLoader(MixedWindows(self.streams), batch_sampler=sampler, num_workers=workers, pin_memory=pinned)
        with _signals(self._stop):
            try:
                for (stream, numbers), x in zip(sampler, loader, strict=True):
                    yield stream, numbers, x
            except VideoError as error:
                # A worker's error comes back with its whole trace as its message.
                raise VideoError(str(error).splitlines()[-1].removeprefix("cvvae_cli.errors.VideoError: ")) from error

    def _stop(self, number: int, frame: object) -> None:
        if self._stopping:
            raise KeyboardInterrupt  # asked twice: at once
        self._stopping = True

    def _note(self, journal: Journal, index: int, x: Tensor) -> None:
        run, config = self.recipe.run, self.recipe.streams[index]
        stream = f"{index}_{config.kind}_{config.frames}x{config.crop}"
        journal.count(len(x) * x.shape[2] * self.processes.count)
        if self.step % run.log_every == 0:
            journal.scalars(self.step, self.last_terms, stream)
        if run.pictures_every and self.step % run.pictures_every == 0 and journal.shows_pictures:
            with torch.no_grad():
                x = x[:1].to(self.device)
                y = self.model.decode(self.model.encode(x).chunk(2, dim=1)[0])
            journal.strip(self.step, x, y, stream)

    def close(self) -> None:
        """Take leave of the other processes."""
        leave_processes(self.processes)


@contextlib.contextmanager
def _signals(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Lets a handler have Ctrl-C and SIGTERM for a while."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _marked(items: list) -> Iterator[tuple[bool, tuple]]:
    """Each item with whether it is the last."""
    for number, item in enumerate(items, 1):
        yield number == len(items), item


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
