"""Padding, group norms and residual sums of video tensors, (B, C, T, H, W): Triton on CUDA, plain torch elsewhere.

The way is chosen by capability, never by trying: a kernel that fails to launch is an error and stays one. Importing
this package does not import Triton. Knows nothing of the networks that use it.
"""

from collections.abc import Sequence
from importlib.util import find_spec

import torch
import torch.nn.functional as F

from cvvae_kernels.layout import PadMode, check_arguments, check_groups, check_norm, memory_format_of
from cvvae_kernels.moments import Moments, merge_statistics
from cvvae_kernels.ops import add_with_statistics_op, group_statistics_op, norm_silu_pad_op, pad3d_op
from cvvae_kernels.plain import pad3d_differentiable, pad3d_plain, silu_pad_plain
from cvvae_kernels.plain_norm import (
    add_with_statistics_plain,
    group_statistics_differentiable,
    group_statistics_plain,
    norm_silu_differentiable,
    norm_silu_pad_plain,
)
from cvvae_kernels.reference import (
    add_with_statistics_reference,
    group_statistics_reference,
    norm_silu_pad_reference,
    pad3d_reference,
)

__all__ = [
    "Moments", "PadMode", "add_with_statistics", "add_with_statistics_reference", "group_statistics",
    "group_statistics_reference", "has_norm_kernels", "merge_statistics", "norm_silu_pad", "norm_silu_pad_reference",
    "norms_while_padding", "pad3d", "pad3d_reference", "silu_pad",
]  # fmt: skip

_TRITON_INSTALLED = find_spec("triton") is not None
_TRITON_NORMS = (torch.bfloat16, torch.float16, torch.float32)
# Bytes. The caches hold less, and calls for all the borders take longer there than another pass.
_WORTH_A_PASS = 1 << 20


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


def silu_pad(x: torch.Tensor, padding: Sequence[int], time_mode: PadMode, space_mode: PadMode) -> torch.Tensor:
    """Pads SiLU(x), `pad3d(silu(x), ...)`; on the CPU in one read and one write, unless it is tiny.

    Args:
        x: (B, C, T, H, W), no axis empty, floating point. Not to be used afterwards: without gradients it may be overwritten.
        padding, time_mode, space_mode: as for `pad3d`.

    Returns:
        (B, C, front + T + back, top + H + bottom, left + W + right) in the dtype and memory format of x. Differentiable.

    Raises:
        ValueError: a wrong shape, padding or mode.

    Memory: the output alone, or nothing where there is nothing to add.
    """
    check_arguments(x, padding, time_mode, space_mode)
    on_cpu = x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if on_cpu and any(padding) and x.nbytes >= _WORTH_A_PASS:
        return silu_pad_plain(x, padding, time_mode, space_mode)
    return pad3d(F.silu(x, inplace=not torch.is_grad_enabled()), padding, time_mode, space_mode)


def has_norm_kernels(x: torch.Tensor) -> bool:
    """Whether the functions below are kernels of their own for x and pay: on CUDA with Triton, without gradients.

    Elsewhere torch's own group norm and `silu_pad` do the same.
    """
    return x.is_cuda and not torch.is_grad_enabled() and not _needs_composition(x)


def norms_while_padding(x: torch.Tensor, padding: Sequence[int]) -> bool:
    """Whether `group_statistics` and `norm_silu_pad` are a better way for x than torch's group norm and `silu_pad`.

    With kernels of their own they are. On the CPU, without gradients, what is normalised apart from padding would be another tensor of
    x's size; where nothing is to be padded, `silu_pad` needs none either.
    """
    if x.device.type != "cpu":
        return has_norm_kernels(x)
    return any(padding) and not torch.is_grad_enabled() and not _needs_composition(x)


def group_statistics(x: torch.Tensor, groups: int) -> Moments:
    """Gathers what a group norm over (C / groups, T, H, W) needs, without the cancellation of summing squares.

    Args:
        x: (B, C, T, H, W), or frames (N, C, H, W) each normalised alone; no axis empty, floating point. Contiguous and
            channels-last tensors are read once where they are; views that are neither cost a copy more on CUDA.
        groups: a divisor of C; group g has the channels from g C / groups on.

    Returns:
        Moments of each (B, groups), in float32 (float64 for float64). Those of disjoint parts of a tensor, tiles say,
        pool by `merge_statistics`. The same every time, on CUDA too. Differentiable.

    Raises:
        ValueError: a wrong shape, dtype or number of groups.
    """
    x = _video(x)
    check_groups(x, groups)
    if _needs_composition(x):
        return group_statistics_differentiable(x, groups)
    if x.is_cuda:
        return _moments(x, groups, group_statistics_op(x, groups))
    return group_statistics_plain(x, groups)


def norm_silu_pad(
    x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
    padding: Sequence[int], time_mode: PadMode, space_mode: PadMode,
) -> torch.Tensor:  # fmt: skip
    """Pads SiLU((x - mean) rstd weight + bias), as `norm_silu_pad_reference` does: one read, one write.

    Args:
        x: (B, C, T, H, W), or frames (N, C, H, W); no axis empty, floating point. Contiguous and channels-last tensors
            are read once where they are; views that are neither cost a copy more on CUDA.
        mean, rstd: (B, groups), from `group_statistics`.
        weight, bias: (C,).
        padding: (front, back, top, bottom, left, right) as for `pad3d`, all 0 if nothing is to be added; for frames,
            front = back = 0. What is repeated is the activated value, and what is blank is zero.
        time_mode, space_mode: as for `pad3d`.

    Returns:
        (B, C, front + T + back, top + H + bottom, left + W + right), or that without its third axis for frames, in the
        dtype and memory format of x. On CUDA computed in float32 and rounded once; on the CPU rounded before SiLU too.
        Differentiable.

    Raises:
        ValueError: a wrong shape, dtype, padding or mode.

    Memory: the output alone.
    """
    video = _video(x)
    check_arguments(video, padding, time_mode, space_mode)
    check_norm(video, mean, rstd, weight, bias)
    if x.dim() == 4 and any(padding[:2]):
        raise ValueError(f"Padding {tuple(padding)} adds frames to tensors of one frame; pass front = back = 0.")
    if _needs_composition(video, mean, rstd, weight, bias):
        out = pad3d(norm_silu_differentiable(video, mean, rstd, weight, bias), padding, time_mode, space_mode)
    else:
        way = norm_silu_pad_op if x.is_cuda else norm_silu_pad_plain
        out = way(video, mean, rstd, weight, bias, padding, time_mode, space_mode)
    return out.squeeze(2) if x.dim() == 4 else out


def add_with_statistics(h: torch.Tensor, x: torch.Tensor, groups: int) -> tuple[torch.Tensor, Moments]:
    """Adds x to h and gathers the sum's group statistics in the same pass, for a residual sum that is normalised next.

    Args:
        h: (B, C, T, H, W), or frames (N, C, H, W); no axis empty, floating point. Not to be used afterwards: unless
            autograd or a compiler is at work, the sum overwrites it (a view that is neither contiguous nor
            channels-last is copied).
        x: of h's shape and dtype; another memory format than h's costs a copy on CUDA.
        groups: a divisor of C.

    Returns:
        The sum, rounded to their dtype, in h's memory format, and its moments as `group_statistics` gives them.

    Raises:
        ValueError: a wrong shape, dtype or number of groups.
    """
    if h.shape != x.shape or h.dtype != x.dtype:
        told = f"{tuple(h.shape)} {h.dtype} and {tuple(x.shape)} {x.dtype}"
        raise ValueError(f"{told} do not add up in place; pass tensors of one shape and dtype.")
    video = _video(h)
    check_groups(video, groups)
    if _needs_composition(h, x):
        total = h + x
        return total, group_statistics_differentiable(_video(total), groups)
    total = video.contiguous(memory_format=memory_format_of(video))
    if h.is_cuda:
        moments = _moments(video, groups, add_with_statistics_op(total, _video(x), groups))
    else:
        moments = add_with_statistics_plain(total, _video(x), groups)
    return total.squeeze(2) if h.dim() == 4 else total, moments


def _video(x: torch.Tensor) -> torch.Tensor:
    """Frames (N, C, H, W) as N videos of one frame each, a view; anything else as it is."""
    return x.unsqueeze(2) if x.dim() == 4 else x


def _moments(x: torch.Tensor, groups: int, gathered: torch.Tensor) -> Moments:
    return Moments(x.numel() // (x.shape[0] * groups), gathered[0], gathered[1])


def _needs_composition(*tensors: torch.Tensor) -> bool:
    """Whether only torch's own operators will do: gradients, tracing on the CPU, devices and dtypes without a kernel."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return True
    x = tensors[0]
    if x.is_cuda:
        return not _TRITON_INSTALLED or x.dtype not in _TRITON_NORMS
    return x.device.type != "cpu" or torch.compiler.is_compiling()
