"""Padding in plain torch, for processors without Triton: the output is allocated once and each element written once.

The `..._plain` functions are the quick ones and keep no graph; `pad3d_differentiable` is for autograd and for tracing compilers.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from cvvae_kernels.layout import PadMode, empty_padded, padded_shape
from cvvae_kernels.reference import pad3d_reference


def pad3d_plain(x: torch.Tensor, padding: Sequence[int], time_mode: PadMode, space_mode: PadMode) -> torch.Tensor:
    """Pads by one copy of the interior and slice copies of what is already written, or by torch's own single pass.

    Args, Returns and Raises as in `pad3d_reference`, but the arguments are not checked and no gradient flows.

    Memory: the output alone.
    """
    if time_mode == space_mode == "replicate" and x.is_floating_point():
        # As quick as slices when channels_last_3d and two to three times as quick when contiguous (measured on AVX-512).
        # There is no such operator for mixed modes, and torch's zeros fill the output before they copy into it.
        front, back, top, bottom, left, right = padding
        with torch.no_grad():
            return F.pad(x, (left, right, top, bottom, front, back), mode="replicate")
    out = empty_padded(x, padded_shape(x.shape, padding))
    with torch.no_grad():
        interior(out, padding).copy_(x)
        fill_borders(out, padding, time_mode, space_mode)
    return out


def silu_pad_plain(x: torch.Tensor, padding: Sequence[int], time_mode: PadMode, space_mode: PadMode) -> torch.Tensor:
    """`pad3d_plain` of SiLU(x), written by SiLU itself; arguments are taken as checked."""
    out = empty_padded(x, padded_shape(x.shape, padding))
    with torch.no_grad():
        torch.ops.aten.silu.out(x, out=interior(out, padding))
        fill_borders(out, padding, time_mode, space_mode)
    return out


def interior(padded: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
    """The view of a padded tensor that holds the input."""
    front, back, top, bottom, left, right = padding
    _, _, frames, height, width = padded.shape
    return padded[:, :, front : frames - back, top : height - bottom, left : width - right]


def fill_borders(padded: torch.Tensor, padding: Sequence[int], time_mode: PadMode, space_mode: PadMode) -> None:
    """Writes what lies around the interior of a padded tensor, from the interior alone."""
    front, back, top, bottom, left, right = padding
    _, _, frames, height, width = padded.shape
    frames, height, width = frames - front - back, height - top - bottom, width - left - right
    inner_frames = padded.narrow(2, front, frames)
    inner_rows = inner_frames.narrow(3, top, height)
    # Columns before rows before frames: each step copies whole what the steps before have finished, corners included.
    _fill_border(inner_rows, 4, left, width, space_mode)
    _fill_border(inner_frames, 3, top, height, space_mode)
    _fill_border(padded, 2, front, frames, time_mode)


def _fill_border(view: torch.Tensor, axis: int, before: int, size: int, mode: PadMode) -> None:
    """Writes view[:before] and view[before + size:] along `axis` from the nearest inner slice, or with zeros."""
    after = view.shape[axis] - before - size
    for start, length, nearest in ((0, before, before), (before + size, after, before + size - 1)):
        if length == 0:
            continue
        border = view.narrow(axis, start, length)
        if mode == "zeros":
            border.zero_()
        else:
            border.copy_(view.narrow(axis, nearest, 1).expand_as(border))


def pad3d_differentiable(x: torch.Tensor, padding: Sequence[int], time_mode: PadMode, space_mode: PadMode) -> torch.Tensor:
    """Pads with torch's own differentiable operators, which compilers can look into.

    Args, Returns and Raises as in `pad3d_reference`, but the arguments are not checked.
    """
    if not x.is_floating_point():
        return pad3d_reference(x, padding, time_mode, space_mode)  # torch replicates floating point only
    front, back, top, bottom, left, right = padding
    time, space = (0, 0, 0, 0, front, back), (left, right, top, bottom, 0, 0)
    if time_mode == space_mode:
        return _pad(x, (left, right, top, bottom, front, back), time_mode)
    return _pad(_pad(x, time, time_mode), space, space_mode)


def _pad(x: torch.Tensor, amounts: tuple[int, ...], mode: PadMode) -> torch.Tensor:
    if not any(amounts):
        return x
    return F.pad(x, amounts) if mode == "zeros" else F.pad(x, amounts, mode="replicate")
