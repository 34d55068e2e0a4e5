"""What the kernels' tests share: tensors, comparisons, and a Python that compiles kernels for GPUs it may not have."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import cvvae_kernels
import pytest
import torch
from cvvae_kernels import Moments, group_statistics_reference
from cvvae_kernels.layout import PAD_MODES

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMATS = [torch.contiguous_format, torch.channels_last_3d]
FORMAT_NAMES = ["contiguous", "channels_last"]
MODES = list(itertools.product(PAD_MODES, PAD_MODES))
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
per_format = pytest.mark.parametrize("memory_format", FORMATS, ids=FORMAT_NAMES)
per_mode = pytest.mark.parametrize("time_mode, space_mode", MODES, ids=["-".join(modes) for modes in MODES])


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Makes torch.empty return NaN (the largest value of integers), so that an element left unwritten shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)

NOTHING = (0, 0, 0, 0, 0, 0)
# Of a value rounded once: one unit in the last place. The plain path rounds twice.
ROUNDING = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7, torch.float64: 1e-12}


def activations(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32, memory_format: torch.memory_format = torch.contiguous_format
) -> torch.Tensor:
    """Noise whose mean and size differ from channel to channel, as activations' do."""
    generator = torch.Generator().manual_seed(sum(shape))
    channel = torch.arange(shape[1], dtype=torch.float64).view(-1, *(1,) * (len(shape) - 2))
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * (1 + channel % 3) + channel % 5 - 2
    return x.to(dtype).to(DEVICE).to(memory_format=memory_format)


def affine(channels: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(channels)
    weight, bias = torch.randn(2, channels, generator=generator, dtype=torch.float64).to(dtype).to(DEVICE)
    return weight, bias


def norm_arguments(x: torch.Tensor, groups: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    moments = group_statistics_reference(x, groups)
    exact = torch.promote_types(x.dtype, torch.float32)
    return x, moments.mean.to(exact), moments.rstd(1e-2).to(exact), *affine(x.shape[1], dtype)


def assert_moments(actual: Moments, expected: Moments, tolerance: float = 2e-6) -> None:
    assert actual.count == expected.count and actual.mean.shape == expected.mean.shape
    size = (expected.m2 / expected.count + expected.mean**2).sqrt().max().item()
    torch.testing.assert_close(actual.mean.double(), expected.mean, rtol=0, atol=tolerance * size)
    torch.testing.assert_close(actual.m2.double(), expected.m2, rtol=tolerance, atol=tolerance * size**2 * 1e-3)


def assert_rounded(actual: torch.Tensor, expected: torch.Tensor, rounds: int = 1) -> None:
    """Equal but for rounding; a value rounded before SiLU too moves by as much as its input, which 8 bounds here."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    tolerance = ROUNDING[actual.dtype]
    torch.testing.assert_close(actual, expected, rtol=rounds * tolerance, atol=1e-6 if rounds == 1 else 8 * tolerance)


def large_mean(memory_format: torch.memory_format, shape: tuple[int, ...] = (1, 8, 5, 40, 40)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(shape, generator=generator) + 1e4).to(DEVICE).to(memory_format=memory_format)


def compiled_ahead_of_time(script: str, cache: Path) -> dict:
    """What a fresh Python says that interprets nothing, has an empty cache, and compiles for GPUs it may not have."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(cvvae_kernels.__file__).parents[1])
    environment["TRITON_CACHE_DIR"] = str(cache)
    command = [sys.executable, "-W", "ignore", "-c", script]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)
