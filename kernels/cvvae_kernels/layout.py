"""What a padding is: its arguments, the shape it gives, the memory format it keeps. No arithmetic on elements here.

Knows tensors' shapes and strides only; nothing of Triton, nothing of networks.
"""

from collections.abc import Sequence
from typing import Literal

import torch

PadMode = Literal["replicate", "zeros"]
PAD_MODES: tuple[PadMode, ...] = ("replicate", "zeros")


def check_arguments(x: torch.Tensor, padding: Sequence[int], time_mode: str, space_mode: str) -> None:
    """Refuses what no padding can be made of.

    Raises:
        ValueError: x is not (B, C, T, H, W) or has an empty axis, padding is not six numbers >= 0, or a mode is unknown.
    """
    if x.dim() != 5 or x.numel() == 0:
        raise ValueError(f"The input has shape {tuple(x.shape)}; pass (B, C, T, H, W) with no empty axis.")
    if len(padding) != 6 or any(amount < 0 for amount in padding):
        raise ValueError(f"Padding {tuple(padding)} must be six numbers >= 0; pass (front, back, top, bottom, left, right).")
    for name, mode in (("time_mode", time_mode), ("space_mode", space_mode)):
        if mode not in PAD_MODES:
            raise ValueError(f"{name} {mode!r} is unknown; pass one of {', '.join(PAD_MODES)}.")


def padded_shape(shape: Sequence[int], padding: Sequence[int]) -> tuple[int, int, int, int, int]:
    """The shape after padding (B, C, T, H, W) by (front, back, top, bottom, left, right)."""
    batch, channels, frames, height, width = shape
    front, back, top, bottom, left, right = padding
    return batch, channels, frames + front + back, height + top + bottom, width + left + right


def memory_format_of(x: torch.Tensor) -> torch.memory_format:
    """The memory format that a result made from x should have.

    Args:
        x: (B, C, T, H, W), any strides.

    Returns:
        `channels_last_3d` or `contiguous_format`. A tensor that is both (one channel, or one pixel) goes by its
        strides, as torch's own operators do; one that is neither goes by whether its channels lie side by side.
    """
    channels = x.shape[1]
    if x.is_contiguous(memory_format=torch.channels_last_3d):
        channels_last = not x.is_contiguous() or (channels > 1 and x.stride(4) == channels)
    else:
        channels_last = not x.is_contiguous() and channels > 1 and x.stride(1) == 1
    return torch.channels_last_3d if channels_last else torch.contiguous_format


def empty_padded(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """An uninitialised tensor of `shape` with the dtype, the device and the memory format of x."""
    return torch.empty(tuple(shape), dtype=x.dtype, device=x.device, memory_format=memory_format_of(x))
