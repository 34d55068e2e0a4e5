"""How much memory a call takes: of torch's allocator on CUDA, of the whole process on a CPU.

This module does not know what is called.
"""

import threading
from collections.abc import Callable

import torch

from cvvae_cli.host_memory import resident_bytes, return_freed_memory

MIB = 2**20
# Activations of a convolution live for milliseconds to seconds, and memory fills at a few MiB per millisecond.
RESIDENT_SAMPLING_SECONDS = 0.002


def peak_memory(device: torch.device, call: Callable[[], object]) -> tuple[float | None, float | None]:
    """Most memory in use while `call` runs, in MiB, and how much of it was not there before.

    CUDA: what torch's allocator has handed out, exactly. CPU: resident memory of this process, sampled every 2 ms
    from /proc; (None, None) where there is none.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
        return peak / MIB, (peak - before) / MIB
    if device.type != "cpu" or resident_bytes() is None:
        call()
        return None, None
    return_freed_memory()  # else a window after a larger one seems to need less
    with _ResidentPeak() as resident:
        call()
    return resident.peak / MIB, (resident.peak - resident.before) / MIB


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch raised it for want of memory; the CPU's allocator has no error class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class _ResidentPeak:
    """Watches resident memory from a thread of its own; torch's operations let it run beside them."""

    def __enter__(self) -> "_ResidentPeak":
        self.before = self.peak = resident_bytes() or 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(RESIDENT_SAMPLING_SECONDS):
            self.peak = max(self.peak, resident_bytes() or 0)

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
