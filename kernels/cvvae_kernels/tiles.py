"""How padded video tensors are cut into the tiles that Triton programs own, and how a tile is read and written.

Both memory formats are one case here. In memory, a contiguous tensor is `planes x frames x rows x lanes` with B*C
planes, H rows and W lanes; a channels_last_3d tensor is the same with B planes, H rows and W*C lanes, a pixel being a
`period` of C lanes (1 lane when contiguous). So lanes are always side by side in memory, and padding a column means
padding `period` lanes. Divisions happen per program and per lane, never per element.

Importing this module needs Triton. What kernels run on was fixed when Triton decorated them: CUDA, or the CPU
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

from cvvae_kernels.layout import padded_shape

# One program moves 8 KiB with 128 threads: four 16-byte accesses in flight per thread, and enough programs per
# multiprocessor to cover the latency of device memory.
_PROGRAM_BYTES = 8192
WARPS = 4
# A tile's rows are at most 1 KiB (two full 512-byte warp accesses) and at least 32 lanes (a warp) wide.
_MAX_ROW_BYTES = 1024
_MIN_LANES = 32
# Lanes of a tile beyond the end of a row are idle threads; up to a quarter more is cheaper than narrower tiles.
_TOLERATED_IDLE = 1.25
MAX_ALIGNMENT = 16  # elements: 16 bytes is the widest access, and the narrowest element has one byte
_WORD_BYTES = 4
MAX_INT32 = 2**31 - 1  # also the largest grid on axis 0

# The kernels' integer arguments: of the unpadded tensor, then the padding.
SIZES = ["frames", "rows", "lanes", "front", "back", "top", "bottom", "left", "right", "period"]


@triton.jit
def tile_of_program(frames, rows, lanes, BLOCK_ROWS: tl.constexpr, BLOCK_LANES: tl.constexpr):
    """Which (plane, frame, first row, first lane) this program owns, on a grid of one axis."""
    lane_tiles = tl.cdiv(lanes, BLOCK_LANES)
    row_tiles = tl.cdiv(rows, BLOCK_ROWS)
    program = tl.program_id(0)
    lane_tile = program % lane_tiles
    row_tile = program // lane_tiles % row_tiles
    picture = program // lane_tiles // row_tiles
    return picture // frames, picture % frames, row_tile * BLOCK_ROWS, lane_tile * BLOCK_LANES


@triton.jit
def lane_sizes(
    lanes, left, right, period, ALIGN_IN: tl.constexpr, ALIGN_SHIFT: tl.constexpr, ALIGN_OUT: tl.constexpr
):  # fmt: skip
    """(lanes with padding, lanes before the first, period, lanes), as multiples of what they are known to be multiples of.

    Dividing and multiplying by the known alignment changes nothing and lets the compiler see it: wide accesses.
    """
    lanes_out = (lanes + (left + right) * period) // ALIGN_OUT * ALIGN_OUT
    before = left * period // ALIGN_SHIFT * ALIGN_SHIFT
    return lanes_out, before, period // ALIGN_SHIFT * ALIGN_SHIFT, lanes // ALIGN_IN * ALIGN_IN


@triton.jit
def read_tile(
    source, plane, frame, first_row, local_row, lane_out, frames, rows, lanes, top, before, period, SPACE_ZEROS: tl.constexpr
):  # fmt: skip
    """What a tile of output rows and lanes reads from its input frame, and where it lies inside that frame.

    Outside, the values are zero or, unless SPACE_ZEROS, those of the nearest position.
    """
    row = first_row + local_row - top
    lane = lane_out - before
    inside = ((row >= 0) & (row < rows))[:, None] & ((lane >= 0) & (lane < lanes))[None, :]
    # A tile's corner is found in 64 bits; inside a tile 32 are enough, which `plan_launch` guarantees.
    picture = source + (tl.cast(plane, tl.int64) * frames + frame) * rows * lanes
    if SPACE_ZEROS:
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
    return value, inside


@triton.jit
def write_frames(
    target, value, plane, frame, first_row, local_row, lane_out, frames, rows_out, lanes_out, front, back,
    TIME_ZEROS: tl.constexpr,
):  # fmt: skip
    """Writes a tile to the output frame of its input frame and to those in front and behind that repeat it.

    With TIME_ZEROS, zeros go to those instead.
    """
    frames_out = frames + front + back
    owned = (first_row + local_row < rows_out)[:, None] & (lane_out < lanes_out)[None, :]
    offset = local_row[:, None] * lanes_out + lane_out[None, :]
    first_frame = tl.where(frame == 0, 0, frame + front)
    end_frame = tl.where(frame == frames - 1, frames_out, frame + front + 1)
    for frame_out in range(first_frame, end_frame):
        corner = target + ((tl.cast(plane, tl.int64) * frames_out + frame_out) * rows_out + first_row) * lanes_out
        if TIME_ZEROS:
            tl.store(corner + offset, tl.where(frame_out == frame + front, value, 0), mask=owned)
        else:
            tl.store(corner + offset, value, mask=owned)


class _LaneView(NamedTuple):
    """A video tensor as it lies in memory: see the module's docstring."""

    planes: int
    frames: int
    rows: int
    lanes: int
    period: int


@dataclass(frozen=True)
class LaunchPlan:
    """Everything of a launch but the tensors and the modes.

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
    block_rows, block_lanes = tile_shape(owned.rows, owned.lanes, itemsize, widest)
    programs = small.planes * small.frames * triton.cdiv(owned.rows, block_rows) * triton.cdiv(owned.lanes, block_lanes)
    if max(programs, large.rows + block_rows, (block_rows + 1) * (large.lanes + block_lanes)) > MAX_INT32:
        raise ValueError(f"Shape {tuple(shape)} padded by {tuple(padding)} is too large for one launch; split the tensor.")
    # Without rows or columns to add, the two modes read the same lanes, and the one with masks never looks at the period.
    lanes_by_mask = modes[1] == "zeros" or not any(padding[2:])
    alignments = {
        "ALIGN_IN": gcd(small.lanes, MAX_ALIGNMENT),
        "ALIGN_SHIFT": gcd(padding[4] * small.period, 0 if lanes_by_mask else small.period, MAX_ALIGNMENT),
        "ALIGN_OUT": gcd(large.lanes, MAX_ALIGNMENT),
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


def tile_shape(rows: int, lanes: int, itemsize: int, widest: int, narrowest: int = _MIN_LANES) -> tuple[int, int]:
    """Rows and lanes (powers of two) of one program: the widest tile that leaves few threads idle at the row's end."""
    widest = max(narrowest, min(widest, _MAX_ROW_BYTES // itemsize))
    widths = [1 << bits for bits in range(narrowest.bit_length() - 1, widest.bit_length())]
    covered = {width: triton.cdiv(lanes, width) * width for width in widths}
    good = [width for width in widths if covered[width] <= _TOLERATED_IDLE * lanes]
    block_lanes = max(good) if good else min(widths, key=covered.__getitem__)
    block_rows = max(1, _PROGRAM_BYTES // itemsize // block_lanes)
    return min(block_rows, triton.next_power_of_2(rows)), block_lanes


def launching_on(device: torch.device, verb: str) -> AbstractContextManager:
    """Makes `device` current, since Triton launches on the current one.

    Raises:
        ValueError: Triton runs for CUDA here and `device` is another; `verb` says what it was to do.
    """
    if device.type == "cuda":
        return torch.cuda.device(device)
    if isinstance(tile_of_program, triton.JITFunction):
        raise ValueError(f"Triton {verb} on CUDA, not on {device}; move the tensor, or set TRITON_INTERPRET=1 at the start.")
    return nullcontext()
