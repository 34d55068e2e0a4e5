"""Normalise, SiLU and pad in one Triton launch: one read of the input, one write of what a convolution reads.

The cut is that of the padding alone (`tiles.py`): a program reads a tile of one input frame once, computes in float32,
rounds once and writes to every output frame that repeats that input frame. Lanes stand for channels, so what depends on
the channel alone is loaded per lane.

Importing this module needs Triton.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from cvvae_kernels.layout import empty_padded, memory_format_of, padded_shape
from cvvae_kernels.tiles import SIZES, lane_sizes, launching_on, plan_launch, read_tile, tile_of_program, write_frames

# Half the threads of a plain padding: what a thread computes for its lanes serves twice as many rows.
_WARPS = 2
_MINUS_LOG2_E: tl.constexpr = tl.constexpr(-1.4426950408889634)


@triton.jit(do_not_specialize=SIZES)
def _norm_silu_pad_kernel(
    source, target, mean, rstd, weight, bias, frames, rows, lanes, front, back, top, bottom, left, right, period,
    CHANNELS: tl.constexpr, GROUP: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLANKS: tl.constexpr,
    TIME_ZEROS: tl.constexpr, SPACE_ZEROS: tl.constexpr,
    ALIGN_IN: tl.constexpr, ALIGN_SHIFT: tl.constexpr, ALIGN_OUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_LANES: tl.constexpr,
):  # fmt: skip
    rows_out = rows + top + bottom
    lanes_out, before, period, lanes = lane_sizes(lanes, left, right, period, ALIGN_IN, ALIGN_SHIFT, ALIGN_OUT)
    plane, frame, first_row, first_lane = tile_of_program(frames, rows_out, lanes_out, BLOCK_ROWS, BLOCK_LANES)
    row = tl.arange(0, BLOCK_ROWS)
    lane = first_lane + tl.arange(0, BLOCK_LANES)
    value, inside = read_tile(source, plane, frame, first_row, row, lane, frames, rows, lanes, top, before, period, SPACE_ZEROS)

    if CHANNELS_LAST:
        channel = (lane % CHANNELS)[None, :]
        group = plane * (CHANNELS // GROUP) + channel // GROUP
    else:
        channel = plane % CHANNELS
        group = plane // GROUP
    scale = tl.load(rstd + group) * tl.load(weight + channel).to(tl.float32)
    # The mean comes off first: folded into the bias, it would cancel badly where it is large.
    value = (value.to(tl.float32) - tl.load(mean + group)) * scale + tl.load(bias + channel).to(tl.float32)
    # SiLU, value / (1 + exp(-value)). exp2 and rsqrt are one instruction each; exp and division check for cases that float32
    # activations never reach, which makes half as many instructions again and would cost bandwidth.
    root = tl.rsqrt(1.0 + tl.exp2(value * _MINUS_LOG2_E))
    value = value * root * root
    if BLANKS:
        value = tl.where(inside, value, 0.0)
    value = value.to(target.dtype.element_ty)
    write_frames(target, value, plane, frame, first_row, row, lane, frames, rows_out, lanes_out, front, back, TIME_ZEROS)


def launch_norm_silu_pad(
    x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
    padding: Sequence[int], modes: tuple[str, str],
) -> torch.Tensor:  # fmt: skip
    """`norm_silu_pad_reference` in one launch, in float32.

    Args:
        x: (B, C, T, H, W) on CUDA, or on the CPU when Triton interprets; bfloat16, float16 or float32. A tensor that is
            neither contiguous nor channels_last_3d is copied into one of them first.
        mean, rstd: (B, groups), used in float32.
        weight, bias: (C,), any floating point.
        padding: (front, back, top, bottom, left, right), each >= 0.
        modes: (time_mode, space_mode).

    Returns:
        The padded tensor in x's dtype and memory format.

    Raises:
        ValueError: a device or element count that the kernel cannot serve.
    """
    memory_format = memory_format_of(x)
    channels_last = memory_format == torch.channels_last_3d
    plan = plan_launch(x.shape, x.dtype.itemsize, channels_last, padding, modes)
    channels = x.shape[1]
    out = empty_padded(x, padded_shape(x.shape, padding))
    source = x.contiguous(memory_format=memory_format)
    per_channel = [mean.float().contiguous(), rstd.float().contiguous(), weight.contiguous(), bias.contiguous()]
    with launching_on(x.device, "normalises"):
        _norm_silu_pad_kernel[(plan.programs,)](
            source, out, *per_channel, *plan.sizes, CHANNELS=channels, GROUP=channels // mean.shape[1],
            CHANNELS_LAST=channels_last, BLANKS=modes[1] == "zeros" and any(padding[2:]), **plan.constants, num_warps=_WARPS,
        )  # fmt: skip
    return out
