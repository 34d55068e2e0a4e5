"""The truth that every faster padding must equal bit for bit. Slow, differentiable, any device and dtype.

Says for each output position which input position it reads, and nothing about how to do that quickly.
"""

from collections.abc import Sequence

import torch

from cvvae_kernels.layout import PadMode, check_arguments, memory_format_of


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
