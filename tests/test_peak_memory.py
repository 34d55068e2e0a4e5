"""Peak memory of known buffers."""

import platform

import pytest
import torch

from cvvae_cli.peak_memory import is_out_of_memory, peak_memory

CPU = torch.device("cpu")
needs_proc = pytest.mark.skipif(platform.system() != "Linux", reason="resident memory is read from /proc")


@needs_proc
def test_memory_of_a_known_buffer() -> None:
    count = 16 * 2**20
    peak, growth = peak_memory(CPU, lambda: torch.ones(count).sum())
    assert peak is not None and growth is not None
    assert 56 < growth < 96
    assert peak > growth + 50  # the interpreter and torch are in it


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep little")
def test_memory_kept_by_the_c_library_counts_again() -> None:
    def small_buffers() -> list[torch.Tensor]:
        return [torch.ones(2**14) for _ in range(1024)]  # 64 KiB each, which glibc takes from its heap

    pin = small_buffers()[-1]  # the last one keeps the heap from shrinking by itself
    _, growth = peak_memory(CPU, small_buffers)
    assert growth is not None and 48 < growth < 96
    assert pin.numel() == 2**14


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_memory_of_a_known_buffer_on_cuda() -> None:
    device = torch.device("cuda", 0)
    peak, growth = peak_memory(device, lambda: torch.empty(64 * 2**20, dtype=torch.uint8, device=device))
    assert growth == 64 and peak is not None and peak >= 64


def test_what_torch_raises_for_want_of_memory_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as full:
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError) as other:
        torch.zeros(2) + torch.zeros(3)
    assert is_out_of_memory(full.value) and not is_out_of_memory(other.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_what_cuda_raises_for_want_of_memory() -> None:
    with pytest.raises(RuntimeError) as full:
        torch.empty(2**50, dtype=torch.uint8, device="cuda")
    assert is_out_of_memory(full.value)
