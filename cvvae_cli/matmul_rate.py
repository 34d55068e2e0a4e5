"""How fast a machine multiplies matrices: the mark that a network of convolutions is set against, and the clock for both.

This module knows no model.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

# A product that a slow CPU would chew on for longer tells nothing that one of this length does not.
LONGEST_PRODUCT_SECONDS = 1.0
# Where a product is shorter, several are timed together, so that clocks and launches do not count.
SHORTEST_TIMING_SECONDS = 0.02
SMALLEST_PRODUCT = 256


@dataclass(frozen=True)
class MatmulRate:
    """The best of several square matrix products.

    Attributes:
        size: rows and columns of the factors.
        flops_per_second: 2 size^3 over the best time.
    """

    size: int
    flops_per_second: float


def matmul_rate(device: torch.device | str, dtype: torch.dtype, size: int = 4096, repeats: int = 5) -> MatmulRate:
    """The rate of a square matrix product, the fastest that a network of convolutions can hope for.

    Args:
        device: where.
        dtype: of the factors. float32 on CUDA uses TF32 if cuDNN's convolutions do, to compare like with like.
        size: rows and columns, halved until one product takes about a second at most.
        repeats: timings, the best of which counts.
    """
    device = torch.device(device)
    with torch.inference_mode(), _precision_of_convolutions(device, dtype):
        n = min(SMALLEST_PRODUCT, size)
        while True:
            a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
            out = torch.mm(a, b)
            seconds = min(seconds_of(device, lambda: torch.mm(a, b, out=out)) for _ in range(2))
            larger = min(2 * n, size)
            if larger == n or seconds * (larger / n) ** 3 > LONGEST_PRODUCT_SECONDS:
                break
            n = larger
        count = max(1, round(SHORTEST_TIMING_SECONDS / max(seconds, 1e-6)))

        def products() -> None:
            for _ in range(count):
                torch.mm(a, b, out=out)

        best = min(seconds_of(device, products) for _ in range(repeats))
    return MatmulRate(n, 2 * n**3 * count / best)


@contextmanager
def _precision_of_convolutions(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Let float32 matrix products on CUDA round their factors as torch's convolutions there do."""
    if device.type != "cuda" or dtype != torch.float32 or not torch.backends.cudnn.allow_tf32:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def seconds_of(device: torch.device, call: Callable[[], object]) -> float:
    """Wall-clock seconds until the device has done all of `call`."""
    module = torch.get_device_module(device)
    module.synchronize()
    begin = time.perf_counter()
    call()
    module.synchronize()
    return time.perf_counter() - begin
