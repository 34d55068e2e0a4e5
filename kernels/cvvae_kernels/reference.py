"""The truth: every faster padding equals it bit for bit, every faster norm to rounding. Slow, differentiable, any device.

Says what is computed from what, and nothing about how to do that quickly.
"""

from collections.abc import Sequence

import torch

from cvvae_kernels.layout import PadMode, check_arguments, check_groups, check_norm, memory_format_of
from cvvae_kernels.moments import Moments


def pad3d_reference(x: torch.Tensor, padding: Sequence[int], time_mode: PadMode, space_mode: PadMode) -> torch.Tensor:
    """Pads time and space, axis by axis, by reading the nearest input and blanking what a zeros mode forbids.

    Args:
        x: (B, C, T, H, W), no axis empty, any dtype, any strides.
        padding: (front, back, top, bottom, left, right): frames, rows and columns to add, each >= 0.
        time_mode: "replicate" repeats the first and last frame; "zeros" adds blank frames.
        space_mode: the same for rows and columns.

    Returns:
        (B, C, front + T + back, top + H + bottom, left + W + right) in the dtype and memory format of x. A
        position outside along an axis whose mode is "zeros" is zero, whatever the other axes say.

    Raises:
        ValueError: a wrong shape, padding or mode.
    """
    check_arguments(x, padding, time_mode, space_mode)
    result = x
    for axis, mode in ((2, time_mode), (3, space_mode), (4, space_mode)):
        before, after = padding[2 * (axis - 2)], padding[2 * (axis - 2) + 1]
        size = x.shape[axis]
        wanted = torch.arange(-before, size + after, device=x.device)
        result = result.index_select(axis, wanted.clamp(0, size - 1))
        if mode == "zeros":
            outside = (wanted < 0) | (wanted >= size)
            result = result.masked_fill(outside.view([-1 if a == axis else 1 for a in range(5)]), 0)
    return result.contiguous(memory_format=memory_format_of(x))


def group_statistics_reference(x: torch.Tensor, groups: int) -> Moments:
    """Count, mean and squared deviations of each group, straight from their definition in float64.

    Args:
        x: (B, C, T, H, W), no axis empty, floating point, any strides.
        groups: a divisor of C; group g has the channels from g C / groups on.

    Returns:
        Moments of the C / groups * T * H * W elements of each (B, groups), float64.

    Raises:
        ValueError: a wrong shape, dtype or number of groups.
    """
    check_groups(x, groups)
    elements = x.double().reshape(x.shape[0], groups, -1)
    mean = elements.mean(2)
    return Moments(elements.shape[2], mean, (elements - mean[:, :, None]).square().sum(2))


def norm_silu_pad_reference(
    x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
    padding: Sequence[int], time_mode: PadMode, space_mode: PadMode,
) -> torch.Tensor:  # fmt: skip
    """`pad3d_reference` of SiLU((x - mean) rstd weight + bias), computed in float64 and rounded once.

    Args:
        x: (B, C, T, H, W), no axis empty, floating point, any strides.
        mean, rstd: (B, groups), of the elements that the norm is over.
        weight, bias: (C,).
        padding, time_mode, space_mode: as for `pad3d_reference`; what is padded is the activated value.

    Returns:
        (B, C, front + T + back, top + H + bottom, left + W + right) in the dtype and memory format of x.

    Raises:
        ValueError: a wrong shape, dtype, padding or mode.
    """
    check_norm(x, mean, rstd, weight, bias)

    def spread(values: torch.Tensor) -> torch.Tensor:
        return values.double().repeat_interleave(x.shape[1] // mean.shape[1], 1)[:, :, None, None, None]

    normed = (x.double() - spread(mean)) * spread(rstd)
    affine = normed * weight.double()[:, None, None, None] + bias.double()[:, None, None, None]
    activated = (affine * torch.sigmoid(affine)).to(x.dtype).contiguous(memory_format=memory_format_of(x))
    return pad3d_reference(activated, padding, time_mode, space_mode)


def add_with_statistics_reference(h: torch.Tensor, x: torch.Tensor, groups: int) -> tuple[torch.Tensor, Moments]:
    """h + x, rounded to their dtype, and the moments of what it was rounded to; h stays as it is."""
    total = h + x
    return total, group_statistics_reference(total, groups)
