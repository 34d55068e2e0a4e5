"""How much memory a call takes: of torch's allocator on CUDA, of the whole process on a CPU.

This module does not know what is called.
"""

from collections.abc import Callable

import torch

from cvvae_cli.host_memory import peak_since_restart, resident_bytes, restart_peak, return_freed_memory

MIB = 2**20


def peak_memory(device: torch.device, call: Callable[[], object]) -> tuple[float | None, float | None]:
    """Most memory in use while `call` runs, in MiB, and how much of it was not there before.

    CUDA: what torch's allocator has handed out. CPU: resident memory of this process, as Linux counts it;
    (None, None) where nobody does.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
        return peak / MIB, (peak - before) / MIB
    return_freed_memory()  # else a window after a larger one seems to need less
    before = resident_bytes()
    counted = device.type == "cpu" and restart_peak()
    call()
    peak = peak_since_restart()
    if not counted or peak is None or before is None:
        return None, None
    return peak / MIB, (peak - before) / MIB


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch raised it for want of memory; the CPU's allocator has no error class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
