"""What paddings and group norms are given: shapes, groups, modes, memory formats. No arithmetic on elements here.

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


def check_groups(x: torch.Tensor, groups: int) -> None:
    """Refuses what has no group statistics.

    Raises:
        ValueError: x is not (B, C, T, H, W), has an empty axis or is not floating point, or groups does not divide C.
    """
    if x.dim() != 5 or x.numel() == 0:
        raise ValueError(f"The input has shape {tuple(x.shape)}; pass (B, C, T, H, W) or (N, C, H, W) with no empty axis.")
    if not x.is_floating_point():
        raise ValueError(f"The input is {x.dtype}; a norm needs floating point.")
    if groups < 1 or x.shape[1] % groups:
        raise ValueError(f"{groups} groups do not divide {x.shape[1]} channels; pass a divisor.")


def check_norm(
    x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> None:  # fmt: skip
    """Refuses statistics and affine parameters that do not belong to x.

    Raises:
        ValueError: as `check_groups`; mean and rstd are not both (B, groups), or weight and bias not both (C,).
    """
    if mean.dim() != 2 or mean.shape != rstd.shape or mean.shape[0] != x.shape[0]:
        shapes = f"{tuple(mean.shape)} and {tuple(rstd.shape)}"
        raise ValueError(f"mean and rstd have shapes {shapes}; pass (B, groups) with B = {x.shape[0]}.")
    check_groups(x, mean.shape[1])
    if not tuple(weight.shape) == tuple(bias.shape) == (x.shape[1],):
        shapes = f"{tuple(weight.shape)} and {tuple(bias.shape)}"
        raise ValueError(f"weight and bias have shapes {shapes}; pass ({x.shape[1]},), one for each channel.")


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
