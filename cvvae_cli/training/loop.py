"""The training loop: windows in, a model out, exactly resumable.

A run is a folder with `checkpoint.pt` (all state, written beside and renamed) and the journal. Data order and
noise depend on seed, step and window number only, so a run that was stopped goes on as if it had not been, and
several devices do what one would do with their batches together. The objective is the recipe's; this module
knows no terms.
"""

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.checkpoint import placed
from cvvae_cli.errors import DeviceError, VideoError
from cvvae_cli.provenance import source_commit
from cvvae_cli.training.discriminator import PatchDiscriminator3d, discriminator_step
from cvvae_cli.training.distributed import join_processes, leave_processes
from cvvae_cli.training.journal import Journal
from cvvae_cli.training.objective import Objective, Outcome, load_frozen
from cvvae_cli.training.optimiser import make_adamw, parameter_groups, prepare_step, update_average
from cvvae_cli.training.recipe import Recipe, recipe_to_dict
from cvvae_cli.training.run_folder import RunFolder
from cvvae_cli.training.start import starting_model
from cvvae_cli.training.windows import MixedWindows, StepSampler, WindowStream

_SEEDS_APART = 1000
"""Streams have seeds of their own, and those of another run's seed are others."""


class Trainer:
    """The state of a run and its steps.

    Args:
        recipe: the run.
        folder: where `checkpoint.pt` and the journal go.
        device: torch device; under `torchrun` each process takes its own card.
        report: called with a line of progress, by the leading process only.
    """

    def __init__(self, recipe: Recipe, folder: str | Path, device: str | torch.device, report: Callable[[str], None]) -> None:
        self.recipe, self.folder = recipe, RunFolder(folder)
        self.processes = join_processes(torch.device(device))
        self.device = self.processes.device
        self.report = report if self.processes.leads else lambda line: None
        self.step = 0
        self.last_terms: dict[str, float] = {}
        self._midway = False
        self._sampler()  # and what else can be wrong with a recipe is found before its data is decoded
        self.frozen = load_frozen(recipe, self.device)
        self.critic, self.critic_optimiser = self._make_critic()
        self.streams = self._open_streams()
        state = self.folder.load()
        if state is not None:
            self.folder.check(state, recipe, self._seen())
        # A resumed run takes its weights from the checkpoint, the other processes theirs from the leading one.
        fresh = state is None and self.processes.leads
        self.model = starting_model(recipe, self.streams, self.report) if fresh else Autoencoder(recipe.model)
        for weight in self.model.parameters():
            weight.data = placed(weight.data, self.device, weight.dtype)
        self.model.to(self.device).train()
        self.objective = Objective(recipe, self.model, self.frozen).to(self.device)
        self.optimiser = make_adamw(parameter_groups(self.model, self.objective.variances, recipe.optim), recipe.optim)
        if state is not None:
            self._restore(state)
        several = self.processes.count > 1
        self._parallel_objective = DistributedDataParallel(self.objective) if several else self.objective
        self._parallel_critic = DistributedDataParallel(self.critic) if several and self.critic else self.critic
        # After the wrapping, which gives all processes the leading one's weights.
        kept = self.model.state_dict() if state is None else state["average"]
        self.averaged = {k: v.detach().to(self.device, copy=True) for k, v in kept.items()}

    def _make_critic(self) -> tuple[PatchDiscriminator3d | None, torch.optim.AdamW | None]:
        rule, optim = self.recipe.adversarial, self.recipe.optim
        if not rule.weight:
            return None, None
        torch.manual_seed(self.recipe.run.seed)
        critic = PatchDiscriminator3d(rule.channels, rule.layers).to(self.device)
        group = {"params": list(critic.parameters()), "peak": rule.learning_rate, "weight_decay": optim.weight_decay}
        return critic, make_adamw([group], optim)

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

    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """What has a state that training changes, the average apart, by its name in the checkpoint."""
        parts = {"model": self.model, "optimiser": self.optimiser, "variances": self.objective.variances}
        return parts if self.critic is None else parts | {"critic": self.critic, "critic_optimiser": self.critic_optimiser}

    def _restore(self, state: dict) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.step = state["step"]
        self.report(f"resumed at step {self.step}")

    def save(self) -> None:
        """Write the checkpoint; the leading process does it for all.

        Raises:
            OutputError: it cannot be written; the last one stays.
        """
        if not self.processes.leads:
            return
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        self.folder.save({"step": self.step, "average": self.averaged, **parts, **self.provenance()})

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
        parts = list(zip(x.chunk(pieces), torch.tensor(self._seeds(numbers)).chunk(pieces), strict=True))
        weights = [len(part) / len(x) for part, _ in parts]
        for i, (part, seeds) in enumerate(parts):
            with self._together(self._parallel_objective, last=i == len(parts) - 1):
                outcome = self._parallel_objective(part, seeds.tolist(), self._seeds([-1])[0], critic, processes.mean)
                (outcome.loss * weights[i]).backward()
            outcome.loss = outcome.loss.detach()
            outcomes.append(outcome)
        norm = self._update(self.optimiser)
        terms = _mean_terms(outcomes, weights) | {"gradient_norm": norm}
        if critic is not None:
            terms["critic"] = self._critic_step(x, torch.cat([outcome.y for outcome in outcomes]))
        self.step += 1
        update_average(self.averaged, self.model, self.step, recipe.optim)
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
        parts = list(zip(x.chunk(pieces), y.chunk(pieces), strict=True))
        for i, (real, fake) in enumerate(parts):
            with self._together(self._parallel_critic, last=i == len(parts) - 1):
                with torch.autocast(x.device.type, torch.bfloat16, enabled=self.recipe.run.precision == "bf16"):
                    loss = discriminator_step(self._parallel_critic, real, fake) * (len(real) / len(x))
                loss.backward()
            total += loss.detach()
        self._update(self.critic_optimiser)
        return total

    def _update(self, optimiser: torch.optim.Optimizer) -> Tensor:
        """Clip and step; returns the first group's gradient norm before clipping."""
        norm = prepare_step(optimiser, self.step, self.recipe.optim)
        self._midway = True  # from here to the end of the step, state is of no step and must not be saved
        optimiser.step()
        return norm

    def run(self) -> None:
        """Train to the last step, logging and saving on the way.

        Ctrl-C and SIGTERM end the run behind the step at hand, with a checkpoint, and are raised again then: where a
        handler returns, so does this, short of the last step.

        Raises:
            KeyboardInterrupt: Ctrl-C; or whatever else a signal's handler raises.
            DeviceError: out of memory.
            VideoError: a source can no longer be read.
            CvvaeError: a gradient was not finite. The checkpoint is that of the last whole step.
        """
        processes, first, saved = self.processes, self.step, self.step
        journal = Journal(self.folder.path, first, self.recipe.optim.steps, self.report) if processes.leads else None
        with _held_signals() as held:
            try:
                for stream, numbers, x in self._batches():
                    self.last_terms = self.train_step(x, numbers)
                    if journal is not None:
                        self._note(journal, stream, x)
                    if self.step % self.recipe.run.checkpoint_every == 0:
                        self.save()
                        saved = self.step
                    if held:
                        break
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
        """Stream, numbers and windows of each step that is left."""
        sampler, workers = self._sampler(), self.recipe.run.workers
        pinned = self.device.type == "cuda"
        loader = DataLoader(MixedWindows(self.streams), batch_sampler=sampler, num_workers=workers, pin_memory=pinned)
        try:
            for (stream, numbers), x in zip(sampler, loader, strict=True):
                yield stream, numbers, x
        except VideoError as error:
            # A worker's error comes back with its whole trace as its message.
            raise VideoError(str(error).splitlines()[-1].removeprefix("cvvae_cli.errors.VideoError: ")) from error

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
def _held_signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM wait: one that comes inside is put down in the list that this gives, and raised again behind.

    A second one of its kind acts at once. What is ignored stays so. Python sets handlers in the main thread alone;
    in another, nothing is held.
    """
    held: list[int] = []

    def hold(number: int, frame: object) -> None:
        if number in held:
            signal.signal(number, before[number])
            signal.raise_signal(number)
        else:
            held.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: handler for number in numbers if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, hold)
        yield held
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in held:
        signal.raise_signal(number)


def _mean_terms(outcomes: list[Outcome], weights: list[float]) -> dict[str, Tensor]:
    """Means over the pieces of a batch, the loss first."""
    terms = {"loss": sum(o.loss * w for o, w in zip(outcomes, weights))}
    return terms | {name: sum(o.terms[name] * w for o, w in zip(outcomes, weights)) for name in outcomes[0].terms}
