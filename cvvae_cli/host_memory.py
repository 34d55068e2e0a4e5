"""How this process keeps and sees the machine's memory. It knows no tensor and no model."""

import ctypes
import os
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = -1
_STATM = Path("/proc/self/statm")
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_CLEAR_PEAK = "5"

_earlier_peak = 0
"""Highest peak before the system's own count was last begun anew, bytes."""


def keep_freed_memory(largest: int) -> None:
    """Let the C library keep what is freed, so that the next tensor finds its pages there.

    A network frees and asks for the same large blocks all the time. glibc would give each back to the system and get it
    again as pages that must be cleared one by one, which on large windows costs more than the convolutions. The
    process then holds the most it ever needed, or more: glibc does not put a tensor where one of its size was, because it asks for
    some bytes more to align it. Its first thread alone gains: glibc keeps no large block for another. Other C libraries, and a
    glibc that refuses the size, are left alone.

    Args:
        largest: bytes of a block that is still kept. Larger ones come from the system and go back to it one by one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and mallopt(_M_MMAP_THRESHOLD, largest):
        mallopt(_M_TRIM_THRESHOLD, _NEVER)


def return_freed_memory() -> None:
    """Make the C library give back what was freed; glibc alone keeps that much, and it alone has the call."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def resident_bytes() -> int | None:
    """Bytes of memory that this process holds; None where the system does not say."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def restart_peak() -> bool:
    """Have the system count the peak of resident memory from now on; False where it does not."""
    global _earlier_peak
    peak = peak_since_restart()
    try:
        _CLEAR_REFS.write_text(_CLEAR_PEAK)
    except OSError:
        return False
    _earlier_peak = max(_earlier_peak, peak or 0)
    return peak is not None


def peak_since_restart() -> int | None:
    """Most bytes of memory that this process has held since `restart_peak`; None where the system does not say."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def peak_bytes() -> int | None:
    """Most bytes of memory that this process has ever held; None where the system does not say."""
    peak = peak_since_restart()
    return None if peak is None else max(peak, _earlier_peak)


def available_bytes() -> int | None:
    """Bytes that this process can still take without swapping: what the system has free, or the control group if less.

    Returns:
        None where the system does not say.
    """
    limits = [left for left in (_system_bytes(), _control_group_bytes()) if left is not None]
    return min(limits, default=None)


def _system_bytes(file: Path = Path("/proc/meminfo")) -> int | None:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if found is None else int(found) * 1024


def _control_group_bytes(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a container's limit (control groups, version 2) leaves; its file cache counts as free, as it can be dropped."""
    try:
        limit = (folder / "memory.max").read_text(encoding="utf-8").strip()
        used = int((folder / "memory.current").read_text(encoding="utf-8"))
        cached = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(0, int(limit) - used + int(cached.get("inactive_file", 0)))
