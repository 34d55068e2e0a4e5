"""What this computer's processors call themselves. It knows no model and no clock."""

import platform

import torch

from cvvae_cli.cpu_info import cpu_field


def device_name(device: torch.device) -> str:
    """What the GPU or CPU calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_field("model name") or platform.machine()


def lists_amx_bf16() -> bool:
    """Whether the CPU lists AMX's bfloat16 tiles; False where it lists nothing."""
    return "amx_bf16" in cpu_field("flags").split()
