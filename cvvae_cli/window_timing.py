"""Seconds and memory of several ways to do the same, in turns, so that what slows the machine slows all of them.

This module does not know what is called.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cvvae_cli.matmul_rate import seconds_of
from cvvae_cli.peak_memory import peak_memory


@dataclass(frozen=True)
class Timing:
    """What running one call took.

    Attributes:
        seconds: of each timed run.
        peak_mib: most memory in use during the first, untimed run, as `peak_memory` reads it.
        growth_mib: what of it was not there before that run.
    """

    seconds: list[float]
    peak_mib: float | None
    growth_mib: float | None


def time_in_turns(
    device: torch.device,
    calls: Mapping[str, Callable[[], Tensor]],
    repeats: int,
    warmup: int,
    report: Callable[[str], None],
) -> tuple[list[Timing], list[Tensor]]:
    """Run each call `warmup` times untimed and `repeats` times timed: first, second, ..., first, second, ...

    Args:
        device: where the calls compute.
        calls: what progress calls it -> a call.
        repeats: >= 1.
        warmup: >= 1; memory is read during the first, where looking does not disturb a clock.
        report: called with a line of progress after each run.

    Returns:
        The timings, and the outputs of the first runs, in the order of `calls`.
    """
    memory: list[tuple[float | None, float | None]] = []
    outputs: list[Tensor] = []
    seconds: list[list[float]] = [[] for _ in calls]
    with torch.inference_mode():
        for name, call in calls.items():
            memory.append(peak_memory(device, lambda: outputs.append(call())))
            report(f"{name}: warm-up 1 of {warmup}")
        for i in range(1, warmup):
            for name, call in calls.items():
                call()
                report(f"{name}: warm-up {i + 1} of {warmup}")
        for i in range(repeats):
            for (name, call), taken in zip(calls.items(), seconds):
                taken.append(seconds_of(device, call))
                report(f"{name}: run {i + 1} of {repeats}, {taken[-1]:.3g} s")
    return [Timing(taken, *mib) for taken, mib in zip(seconds, memory)], outputs
