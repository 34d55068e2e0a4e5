"""Padding of video tensors, (B, C, T, H, W), on whatever the tensor is on: Triton on CUDA, plain torch elsewhere.

The way is chosen by capability, never by trying: a kernel that fails to launch is an error and stays one. Importing
this package does not import Triton. Knows nothing of the networks that use it.
"""

from collections.abc import Sequence
from importlib.util import find_spec

import torch

from cvvae_kernels.layout import PadMode, check_arguments
from cvvae_kernels.ops import pad3d_op
from cvvae_kernels.plain import pad3d_differentiable, pad3d_plain
from cvvae_kernels.reference import pad3d_reference

__all__ = ["PadMode", "pad3d", "pad3d_reference"]

_TRITON_INSTALLED = find_spec("triton") is not None


def pad3d(x: torch.Tensor, padding: Sequence[int], time_mode: PadMode, space_mode: PadMode) -> torch.Tensor:
    """Adds frames, rows and columns around a video tensor, bit for bit as `pad3d_reference` does.

    Args:
        x: (B, C, T, H, W), no axis empty, any dtype (1, 2, 4 or 8 bytes on CUDA). Contiguous and channels_last_3d
            tensors are padded in one pass; others cost a copy more on CUDA.
        padding: (front, back, top, bottom, left, right): frames, rows and columns to add, each >= 0.
            Causal padding of a kernel k frames long is front = k - 1, back = 0.
        time_mode: "replicate" repeats the first and last frame; "zeros" adds blank frames.
        space_mode: the same for rows and columns.

    Returns:
        (B, C, front + T + back, top + H + bottom, left + W + right) in the dtype and memory format of x; x itself, not
        a copy, when there is nothing to add. Where time and space are both outside, zeros win over replication.
        Differentiable; gradients on CUDA are summed in float32 and the same every time.

    Raises:
        ValueError: a wrong shape, padding or mode.

    Memory: the output alone.
    """
    check_arguments(x, padding, time_mode, space_mode)
    if not any(padding):
        return x
    if x.is_cuda and _TRITON_INSTALLED:
        return pad3d_op(x, padding, time_mode, space_mode)
    if torch.compiler.is_compiling() or (x.requires_grad and torch.is_grad_enabled()):
        return pad3d_differentiable(x, padding, time_mode, space_mode)
    return pad3d_plain(x, padding, time_mode, space_mode)
