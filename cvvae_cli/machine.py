"""What this computer's processors call themselves. It knows no model and no clock."""

import platform
from pathlib import Path

import torch


def device_name(device: torch.device) -> str:
    """What the GPU or CPU calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpu_field("model name") or platform.machine()


def lists_amx_bf16() -> bool:
    """Whether the CPU lists AMX's bfloat16 tiles; False where it lists nothing."""
    return "amx_bf16" in _cpu_field("flags").split()


def _cpu_field(name: str) -> str:
    """The first value of a field of /proc/cpuinfo; "" where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == name), "")
