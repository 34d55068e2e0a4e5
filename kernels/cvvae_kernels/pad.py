"""Causal and plain padding of video tensors in one Triton launch, forward and backward; `tiles.py` says how they are cut.

A program owns one input frame of one plane and a tile of rows x lanes. Forward, it reads the tile once and writes it to
every output frame that repeats that input frame. Backward, it gathers every output gradient that read its tile: no
atomics, so the same result every time.

Importing this module needs Triton.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from cvvae_kernels.layout import empty_padded, memory_format_of, padded_shape
from cvvae_kernels.tiles import (
    SIZES,
    WARPS,
    lane_sizes,
    launching_on,
    plan_launch,
    read_tile,
    tile_of_program,
    write_frames,
)

_INTEGER_OF_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit(do_not_specialize=SIZES)
def _pad_kernel(
    source, target, frames, rows, lanes, front, back, top, bottom, left, right, period,
    TIME_ZEROS: tl.constexpr, SPACE_ZEROS: tl.constexpr,
    ALIGN_IN: tl.constexpr, ALIGN_SHIFT: tl.constexpr, ALIGN_OUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_LANES: tl.constexpr,
):  # fmt: skip
    rows_out = rows + top + bottom
    lanes_out, before, period, lanes = lane_sizes(lanes, left, right, period, ALIGN_IN, ALIGN_SHIFT, ALIGN_OUT)
    plane, frame, first_row, first_lane = tile_of_program(frames, rows_out, lanes_out, BLOCK_ROWS, BLOCK_LANES)
    row = tl.arange(0, BLOCK_ROWS)
    lane = first_lane + tl.arange(0, BLOCK_LANES)
    value, _ = read_tile(source, plane, frame, first_row, row, lane, frames, rows, lanes, top, before, period, SPACE_ZEROS)
    write_frames(target, value, plane, frame, first_row, row, lane, frames, rows_out, lanes_out, front, back, TIME_ZEROS)


@triton.jit(do_not_specialize=SIZES)
def _pad_backward_kernel(
    grad, target, frames, rows, lanes, front, back, top, bottom, left, right, period,
    TIME_ZEROS: tl.constexpr, SPACE_ZEROS: tl.constexpr,
    ALIGN_IN: tl.constexpr, ALIGN_SHIFT: tl.constexpr, ALIGN_OUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_LANES: tl.constexpr,
    SUM_DTYPE: tl.constexpr,
):  # fmt: skip
    frames_out = frames + front + back
    rows_out = rows + top + bottom
    lanes_out, before, period, lanes = lane_sizes(lanes, left, right, period, ALIGN_IN, ALIGN_SHIFT, ALIGN_OUT)
    plane, frame, first_row, first_lane = tile_of_program(frames, rows, lanes, BLOCK_ROWS, BLOCK_LANES)

    local_row = tl.arange(0, BLOCK_ROWS)
    row = first_row + local_row
    lane = first_lane + tl.arange(0, BLOCK_LANES)
    plane = tl.cast(plane, tl.int64)
    first_frame = frame + front
    end_frame = first_frame + 1
    if not TIME_ZEROS:
        first_frame = tl.where(frame == 0, 0, first_frame)
        end_frame = tl.where(frame == frames - 1, frames_out, end_frame)
    # Shift 0 is the element's own copy. Shifts -top .. -1 are the copies of row 0 above, 1 .. bottom those of the last
    # row below; only tiles at a border have any. The same for lanes, a period at a time.
    first_up, end_down, first_left, end_right = 0, 1, 0, 1
    if not SPACE_ZEROS:
        first_up = tl.where(first_row == 0, -top, 0)
        end_down = tl.where(first_row + BLOCK_ROWS >= rows, bottom + 1, 1)
        first_left = tl.where(first_lane < period, -left, 0)
        end_right = tl.where(first_lane + BLOCK_LANES > lanes - period, right + 1, 1)

    offset = local_row[:, None] * lanes_out + lane[None, :]
    total = tl.zeros((BLOCK_ROWS, BLOCK_LANES), SUM_DTYPE)
    for frame_out in range(first_frame, end_frame):
        for row_shift in range(first_up, end_down):
            copied_row = (row >= tl.where(row_shift > 0, rows - 1, 0)) & (row < tl.where(row_shift < 0, 1, rows))
            line = (plane * frames_out + frame_out) * rows_out + first_row + top + row_shift
            for shift in range(first_left, end_right):
                first = tl.where(shift > 0, lanes - period, 0)
                end = tl.where(shift < 0, period, lanes)
                copied = copied_row[:, None] & ((lane >= first) & (lane < end))[None, :]
                corner = grad + (line * lanes_out + before + shift * period)
                total += tl.load(corner + offset, mask=copied, other=0).to(SUM_DTYPE)

    corner = target + ((plane * frames + frame) * rows + first_row) * lanes
    owned = (row < rows)[:, None] & (lane < lanes)[None, :]
    tl.store(corner + (local_row[:, None] * lanes + lane[None, :]), total.to(target.dtype.element_ty), mask=owned)


def launch_pad(x: torch.Tensor, padding: Sequence[int], modes: tuple[str, str]) -> torch.Tensor:
    """`pad3d_reference` in one launch.

    Args:
        x: (B, C, T, H, W) on CUDA, or on the CPU when Triton interprets; any dtype of 1, 2, 4 or 8 bytes. A tensor that
            is neither contiguous nor channels_last_3d is copied into one of them first.
        padding: (front, back, top, bottom, left, right), each >= 0.
        modes: (time_mode, space_mode).

    Returns:
        The padded tensor in x's dtype and memory format.

    Raises:
        ValueError: a device, element size or element count that the kernel cannot serve.
    """
    if x.dtype.itemsize not in _INTEGER_OF_SIZE:
        raise ValueError(f"Elements of {x.dtype} have {x.dtype.itemsize} bytes; the Triton padding moves 1, 2, 4 or 8.")
    memory_format = memory_format_of(x)
    plan = plan_launch(x.shape, x.dtype.itemsize, memory_format == torch.channels_last_3d, padding, modes)
    out = empty_padded(x, padded_shape(x.shape, padding))
    # Copying bits as integers is exact for every dtype (NaN payloads, bf16 in the interpreter) and saves compilations.
    integer = _INTEGER_OF_SIZE[x.dtype.itemsize]
    source = x.contiguous(memory_format=memory_format).view(integer)
    with launching_on(x.device, "pads"):
        _pad_kernel[(plan.programs,)](source, out.view(integer), *plan.sizes, **plan.constants, num_warps=WARPS)
    return out


def launch_pad_backward(grad: torch.Tensor, padding: Sequence[int], modes: tuple[str, str]) -> torch.Tensor:
    """The gradient of `launch_pad`'s input in one launch, summed in float32 (float64 for float64) and rounded once.

    Args:
        grad: gradient of the padded tensor, (B, C, front + T + back, top + H + bottom, left + W + right), floating point.
        padding, modes: as given to `launch_pad`.

    Returns:
        (B, C, T, H, W) in grad's dtype and memory format.

    Raises:
        ValueError: a device or element count that the kernel cannot serve.
    """
    memory_format = memory_format_of(grad)
    target = empty_padded(grad, padded_shape(grad.shape, [-amount for amount in padding]))
    channels_last = memory_format == torch.channels_last_3d
    plan = plan_launch(target.shape, grad.dtype.itemsize, channels_last, padding, modes, backward=True)
    sum_dtype = tl.float64 if grad.dtype == torch.float64 else tl.float32
    source = grad.contiguous(memory_format=memory_format)
    with launching_on(grad.device, "pads"):
        _pad_backward_kernel[(plan.programs,)](
            source, target, *plan.sizes, **plan.constants, SUM_DTYPE=sum_dtype, num_warps=WARPS
        )
    return target
