"""Causal and plain padding of video tensors in one Triton launch, forward and backward.

Both memory formats are one case here. In memory, a contiguous tensor is `planes x frames x rows x lanes` with B*C
planes, H rows and W lanes; a channels_last_3d tensor is the same with B planes, H rows and W*C lanes, a pixel being a
`period` of C lanes (1 lane when contiguous). So lanes are always side by side in memory, and padding a column means
padding `period` lanes.

A program owns one input frame of one plane and a tile of rows x lanes. Forward, it reads the tile once and writes it to
every output frame that repeats that input frame. Backward, it gathers every output gradient that read its tile: no
atomics, so the same result every time. Divisions happen per program and per lane, never per element.

Importing this module needs Triton. What it runs on was fixed when Triton decorated the kernels: CUDA, or the CPU
interpreter if TRITON_INTERPRET=1 was set before.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import gcd
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from cvvae_kernels.layout import empty_padded, memory_format_of, padded_shape

# One program moves 8 KiB with 128 threads: four 16-byte accesses in flight per thread, and enough programs per
# multiprocessor to cover the latency of device memory.
_PROGRAM_BYTES = 8192
_WARPS = 4
# A tile's rows are at most 1 KiB (two full 512-byte warp accesses) and at least 32 lanes (a warp) wide.
_MAX_ROW_BYTES = 1024
_MIN_LANES = 32
# Lanes of a tile beyond the end of a row are idle threads; up to a quarter more is cheaper than narrower tiles.
_TOLERATED_IDLE = 1.25
_MAX_ALIGNMENT = 16  # elements: 16 bytes is the widest access, and the narrowest element has one byte
_WORD_BYTES = 4
_MAX_INT32 = 2**31 - 1  # also the largest grid on axis 0

_INTEGER_OF_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SIZES = ["frames", "rows", "lanes", "front", "back", "top", "bottom", "left", "right", "period"]


@triton.jit
def _tile_of_program(frames, rows, lanes, BLOCK_ROWS: tl.constexpr, BLOCK_LANES: tl.constexpr):
    """Which (plane, frame, first row, first lane) this program owns, on a grid of one axis."""
    lane_tiles = tl.cdiv(lanes, BLOCK_LANES)
    row_tiles = tl.cdiv(rows, BLOCK_ROWS)
    program = tl.program_id(0)
    lane_tile = program % lane_tiles
    row_tile = program // lane_tiles % row_tiles
    picture = program // lane_tiles // row_tiles
    return picture // frames, picture % frames, row_tile * BLOCK_ROWS, lane_tile * BLOCK_LANES


@triton.jit
def _lane_sizes(
    lanes, left, right, period, ALIGN_IN: tl.constexpr, ALIGN_SHIFT: tl.constexpr, ALIGN_OUT: tl.constexpr
):  # fmt: skip
    """(lanes with padding, lanes before the first, period, lanes), as multiples of what they are known to be multiples of.

    Dividing and multiplying by the known alignment changes nothing and lets the compiler see it: wide accesses.
    """
    lanes_out = (lanes + (left + right) * period) // ALIGN_OUT * ALIGN_OUT
    before = left * period // ALIGN_SHIFT * ALIGN_SHIFT
    return lanes_out, before, period // ALIGN_SHIFT * ALIGN_SHIFT, lanes // ALIGN_IN * ALIGN_IN


@triton.jit(do_not_specialize=_SIZES)
def _pad_kernel(
    source, target, frames, rows, lanes, front, back, top, bottom, left, right, period,
    TIME_ZEROS: tl.constexpr, SPACE_ZEROS: tl.constexpr,
    ALIGN_IN: tl.constexpr, ALIGN_SHIFT: tl.constexpr, ALIGN_OUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_LANES: tl.constexpr,
):  # fmt: skip
    frames_out = frames + front + back
    rows_out = rows + top + bottom
    lanes_out, before, period, lanes = _lane_sizes(lanes, left, right, period, ALIGN_IN, ALIGN_SHIFT, ALIGN_OUT)
    plane, frame, first_row, first_lane = _tile_of_program(frames, rows_out, lanes_out, BLOCK_ROWS, BLOCK_LANES)

    local_row = tl.arange(0, BLOCK_ROWS)
    row_out = first_row + local_row
    lane_out = first_lane + tl.arange(0, BLOCK_LANES)
    row = row_out - top
    lane = lane_out - before
    # A tile's corner is found in 64 bits; inside a tile 32 are enough, which `plan_launch` guarantees.
    plane = tl.cast(plane, tl.int64)
    picture = source + (plane * frames + frame) * rows * lanes
    if SPACE_ZEROS:
        inside = ((row >= 0) & (row < rows))[:, None] & ((lane >= 0) & (lane < lanes))[None, :]
        corner = picture + tl.cast(first_row - top, tl.int64) * lanes
        value = tl.load(corner + (local_row[:, None] * lanes + lane[None, :]), mask=inside, other=0)
    else:
        corner_row = tl.minimum(tl.maximum(first_row - top, 0), rows - 1)
        row = tl.minimum(tl.maximum(row, 0), rows - 1)
        within = lane_out % period
        lane = tl.where(lane < 0, within, tl.where(lane >= lanes, lanes - period + within, lane))
        # Clamped addresses are valid for idle threads too, so this load needs no mask.
        corner = picture + tl.cast(corner_row, tl.int64) * lanes
        value = tl.load(corner + ((row - corner_row)[:, None] * lanes + lane[None, :]))

    owned = (row_out < rows_out)[:, None] & (lane_out < lanes_out)[None, :]
    offset = local_row[:, None] * lanes_out + lane_out[None, :]
    first_frame = tl.where(frame == 0, 0, frame + front)
    end_frame = tl.where(frame == frames - 1, frames_out, frame + front + 1)
    for frame_out in range(first_frame, end_frame):
        corner = target + ((plane * frames_out + frame_out) * rows_out + first_row) * lanes_out
        if TIME_ZEROS:
            tl.store(corner + offset, tl.where(frame_out == frame + front, value, 0), mask=owned)
        else:
            tl.store(corner + offset, value, mask=owned)


@triton.jit(do_not_specialize=_SIZES)
def _pad_backward_kernel(
    grad, target, frames, rows, lanes, front, back, top, bottom, left, right, period,
    TIME_ZEROS: tl.constexpr, SPACE_ZEROS: tl.constexpr,
    ALIGN_IN: tl.constexpr, ALIGN_SHIFT: tl.constexpr, ALIGN_OUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_LANES: tl.constexpr,
    SUM_DTYPE: tl.constexpr,
):  # fmt: skip
    frames_out = frames + front + back
    rows_out = rows + top + bottom
    lanes_out, before, period, lanes = _lane_sizes(lanes, left, right, period, ALIGN_IN, ALIGN_SHIFT, ALIGN_OUT)
    plane, frame, first_row, first_lane = _tile_of_program(frames, rows, lanes, BLOCK_ROWS, BLOCK_LANES)

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


class _LaneView(NamedTuple):
    """A video tensor as it lies in memory: see the module's docstring."""

    planes: int
    frames: int
    rows: int
    lanes: int
    period: int


@dataclass(frozen=True)
class LaunchPlan:
    """Everything of a launch but the two tensors and the modes.

    Attributes:
        programs: length of the grid.
        sizes: the kernels' integer arguments, in their order.
        constants: the kernels' compile-time arguments.
    """

    programs: int
    sizes: tuple[int, ...]
    constants: dict[str, int | bool]


def plan_launch(shape: Sequence[int], itemsize: int, channels_last: bool, padding: Sequence[int], modes: Sequence[str],
                backward: bool = False) -> LaunchPlan:  # fmt: skip
    """Chooses tile and grid.

    Args:
        shape: (B, C, T, H, W) without the padding.
        itemsize: bytes of an element.
        channels_last: whether both tensors are channels_last_3d in memory, instead of contiguous.
        padding: (front, back, top, bottom, left, right), each >= 0.
        modes: (time_mode, space_mode).
        backward: programs own tiles of the unpadded tensor, instead of the padded one.

    Raises:
        ValueError: more programs, or more elements in one tile's rows, than 32 bits count (all other offsets have 64).
    """
    small = _lane_view(shape, channels_last)
    large = _lane_view(padded_shape(shape, padding), channels_last)
    owned = small if backward else large
    # A tile at the left or right border sums full tiles once more per copied column; narrow tiles keep most clear of that.
    widest = owned.lanes // 4 if backward and modes[1] == "replicate" else owned.lanes
    block_rows, block_lanes = _tile_shape(owned.rows, owned.lanes, itemsize, widest)
    programs = small.planes * small.frames * triton.cdiv(owned.rows, block_rows) * triton.cdiv(owned.lanes, block_lanes)
    if max(programs, large.rows + block_rows, (block_rows + 1) * (large.lanes + block_lanes)) > _MAX_INT32:
        raise ValueError(f"Shape {tuple(shape)} padded by {tuple(padding)} is too large for one launch; split the tensor.")
    # Without rows or columns to add, the two modes read the same lanes, and the one with masks never looks at the period.
    lanes_by_mask = modes[1] == "zeros" or not any(padding[2:])
    alignments = {
        "ALIGN_IN": gcd(small.lanes, _MAX_ALIGNMENT),
        "ALIGN_SHIFT": gcd(padding[4] * small.period, 0 if lanes_by_mask else small.period, _MAX_ALIGNMENT),
        "ALIGN_OUT": gcd(large.lanes, _MAX_ALIGNMENT),
    }
    # Where one side is narrow, wide accesses on the other would spread a warp's narrow ones over many cache lines.
    widest_useful = max(min(alignments.values()), _WORD_BYTES // itemsize)
    constants = {
        **{name: min(alignment, widest_useful) for name, alignment in alignments.items()},
        "TIME_ZEROS": modes[0] == "zeros",
        "SPACE_ZEROS": lanes_by_mask,
        "BLOCK_ROWS": block_rows,
        "BLOCK_LANES": block_lanes,
    }
    return LaunchPlan(programs, (small.frames, small.rows, small.lanes, *padding, small.period), constants)


def _lane_view(shape: Sequence[int], channels_last: bool) -> _LaneView:
    batch, channels, frames, height, width = shape
    if channels_last:
        return _LaneView(batch, frames, height, width * channels, channels)
    return _LaneView(batch * channels, frames, height, width, 1)


def _tile_shape(rows: int, lanes: int, itemsize: int, widest: int) -> tuple[int, int]:
    """Rows and lanes (powers of two) of one program: the widest tile that leaves few threads idle at the row's end."""
    widest = max(_MIN_LANES, min(widest, _MAX_ROW_BYTES // itemsize))
    widths = [1 << bits for bits in range(_MIN_LANES.bit_length() - 1, widest.bit_length())]
    covered = {width: triton.cdiv(lanes, width) * width for width in widths}
    good = [width for width in widths if covered[width] <= _TOLERATED_IDLE * lanes]
    block_lanes = max(good) if good else min(widths, key=covered.__getitem__)
    block_rows = max(1, _PROGRAM_BYTES // itemsize // block_lanes)
    return min(block_rows, triton.next_power_of_2(rows)), block_lanes


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
    with _launching_on(x.device):
        _pad_kernel[(plan.programs,)](source, out.view(integer), *plan.sizes, **plan.constants, num_warps=_WARPS)
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
    with _launching_on(grad.device):
        _pad_backward_kernel[(plan.programs,)](
            source, target, *plan.sizes, **plan.constants, SUM_DTYPE=sum_dtype, num_warps=_WARPS
        )
    return target


def _launching_on(device: torch.device) -> AbstractContextManager:
    """Makes `device` current, since Triton launches on the current one."""
    if device.type == "cuda":
        return torch.cuda.device(device)
    if isinstance(_pad_kernel, triton.JITFunction):
        raise ValueError(f"Triton pads on CUDA, not on {device}; move the tensor, or set TRITON_INTERPRET=1 at the start.")
    return nullcontext()
