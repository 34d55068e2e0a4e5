"""Whose turn it is, and what is kept of which run."""

import platform

import pytest
import torch
from torch import Tensor

from cvvae_cli.window_timing import time_in_turns

CPU = torch.device("cpu")
MIB_OF_FLOATS = 2**18


def test_calls_take_turns() -> None:
    called: list[str] = []
    lines: list[str] = []

    def call(name: str) -> Tensor:
        called.append(name)
        return torch.full((1,), len(called))

    calls = {"a": lambda: call("a"), "b": lambda: call("b")}
    timings, outputs = time_in_turns(CPU, calls, repeats=3, warmup=2, report=lines.append)
    assert called == 5 * ["a", "b"]
    assert [output.item() for output in outputs] == [1, 2]
    assert [len(timing.seconds) for timing in timings] == [3, 3]
    assert lines[:4] == ["a: warm-up 1 of 2", "b: warm-up 1 of 2", "a: warm-up 2 of 2", "b: warm-up 2 of 2"]
    assert [line.split(",")[0] for line in lines[4:]] == [f"{name}: run {i} of 3" for i in (1, 2, 3) for name in "ab"]


def test_no_gradients_are_kept() -> None:
    weight = torch.ones(3, requires_grad=True)
    outputs = time_in_turns(CPU, {"a": lambda: weight * 2}, 1, 1, lambda line: None)[1]
    assert not outputs[0].requires_grad


@pytest.mark.skipif(platform.system() != "Linux", reason="resident memory is read from /proc")
def test_memory_of_each_call() -> None:
    def take(mib: int) -> Tensor:
        return torch.ones(mib * MIB_OF_FLOATS).sum()

    timings, _ = time_in_turns(CPU, {"large": lambda: take(96), "small": lambda: take(24)}, 1, 1, lambda line: None)
    large, small = timings
    assert large.growth_mib is not None and small.growth_mib is not None and large.peak_mib is not None
    assert 90 < large.growth_mib < large.peak_mib
    assert 18 < small.growth_mib < 60
