"""Mean and squared deviations of channel groups in one read of a tensor, with or without another added on the way.

Both memory formats are one case here: planes of rows of channels. A channels_last_3d tensor has B planes, a row for
each pixel and C channels. A contiguous one has a plane for each of its B * groups runs of elements; rows of
`_RUN_LANES` are cut from it, the last of them perhaps shorter, and all of a row is in the same group.

A program walks down a stretch of rows with a tile of rows x lanes, holding mean and M2 for every place of the tile in
registers (Welford: no sums to cancel, and threads need nothing of each other). At its end it pools those into parts,
runs of lanes that divide a group, and a second kernel pools all parts of a group. The cut depends on the shape alone
and nothing is atomic, so the same tensor gives the same result every time. All in float32.

Importing this module needs Triton.
"""

from dataclasses import dataclass
from math import gcd

import torch
import triton
import triton.language as tl

from cvvae_kernels.layout import memory_format_of
from cvvae_kernels.tiles import MAX_ALIGNMENT, MAX_INT32, WARPS, launching_on, tile_shape

# Lanes of a contiguous run that make a row. All that matters is that they divide a warp's accesses: rows follow on each
# other without gaps.
_RUN_LANES = 32
_FEWEST_LANES = 4
# Programs of one launch, where the tensor has as many tiles: several for each place on the largest GPUs, and few enough
# that pooling their parts costs little.
_PROGRAMS = 2048
# Tiles on their way from memory while one is computed with, plus that one: what registers are too few to hold.
_STAGES: tl.constexpr = tl.constexpr(3)
_POOL_BLOCK = 2048
_POOL_WARPS = 8


@triton.jit
def _pool(count, mean, m2, axis: tl.constexpr):
    """Chan's formula for any number of parts along an axis; parts with nothing in them count 0."""
    total = tl.sum(count, axis)
    pooled = tl.sum(count * mean, axis) / tl.maximum(total, 1.0)
    apart = mean - tl.expand_dims(pooled, axis)
    return total, pooled, tl.sum(m2 + count * apart * apart, axis)


@triton.jit
def _read(h, x, offset, mask, ADD: tl.constexpr):
    """A tile of h in float32; with ADD, of h + x as rounded and written to h."""
    value = tl.load(h + offset, mask=mask, other=0)
    if ADD:
        total = value.to(tl.float32) + tl.load(x + offset, mask=mask, other=0).to(tl.float32)
        value = total.to(value.dtype)
        tl.store(h + offset, value, mask=mask)
    return value.to(tl.float32)


@triton.jit(do_not_specialize=["length", "chunks", "tiles"])
def _gather_kernel(
    h, x, parts, length, chunks, tiles,
    ADD: tl.constexpr, CHANNELS: tl.constexpr, PART: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_LANES: tl.constexpr,
):  # fmt: skip
    TILE: tl.constexpr = BLOCK_ROWS * CHANNELS
    lane_tiles: tl.constexpr = (CHANNELS + BLOCK_LANES - 1) // BLOCK_LANES
    program = tl.program_id(0)
    lane_tile = program % lane_tiles
    chunk = program // lane_tiles % chunks
    plane = program // lane_tiles // chunks

    # Dividing and multiplying by the known alignment changes nothing and lets the compiler see it: wide accesses.
    length = tl.cast(length, tl.int64) // ALIGN * ALIGN
    first = tl.cast(chunk, tl.int64) * tiles * TILE
    h += plane * length + first
    x += plane * length + first
    # A program's elements are counted in 32 bits, which `plan_statistics` guarantees.
    size = tl.minimum(length - first, tiles * TILE).to(tl.int32) // ALIGN * ALIGN

    lane = lane_tile * BLOCK_LANES + tl.arange(0, BLOCK_LANES)
    place = tl.arange(0, BLOCK_ROWS)[:, None] * CHANNELS + lane[None, :]
    exists = (lane < CHANNELS)[None, :]
    full = size // TILE
    mean = tl.zeros((BLOCK_ROWS, BLOCK_LANES), tl.float32)
    m2 = tl.zeros((BLOCK_ROWS, BLOCK_LANES), tl.float32)
    for tile in tl.range(0, full, num_stages=_STAGES):
        offset = place + tile * TILE
        value = _read(h, x, offset, exists, ADD)
        apart = value - mean
        mean += apart * (1.0 / (tile + 1))
        m2 += apart * (value - mean)
    # What is left is a tile with a ragged end, or nothing.
    offset = place + full * TILE
    valid = exists & (offset < size)
    value = _read(h, x, offset, valid, ADD)
    apart = tl.where(valid, value - mean, 0.0)
    mean += apart * (1.0 / (full + 1))
    m2 += apart * (value - mean)
    count = tl.where(exists, full, 0).to(tl.float32) + valid.to(tl.float32)

    count, mean, m2 = _pool(count, mean, m2, 0)
    PARTS: tl.constexpr = BLOCK_LANES // PART
    count, mean, m2 = _pool(
        tl.reshape(count, (PARTS, PART)), tl.reshape(mean, (PARTS, PART)), tl.reshape(m2, (PARTS, PART)), 1
    )
    # (3, planes, parts of a plane, chunks): the parts of a group lie side by side.
    part = lane_tile * PARTS + tl.arange(0, PARTS)
    stride = tl.num_programs(0).to(tl.int64) // lane_tiles * (CHANNELS // PART)
    target = parts + ((tl.cast(plane, tl.int64) * (CHANNELS // PART) + part) * chunks + chunk)
    owned = part < CHANNELS // PART
    tl.store(target, count, mask=owned)
    tl.store(target + stride, mean, mask=owned)
    tl.store(target + 2 * stride, m2, mask=owned)


@triton.jit(do_not_specialize=["size"])
def _pool_kernel(parts, result, size, BLOCK: tl.constexpr):
    """One group per program: `size` parts of it become one."""
    group = tl.program_id(0)
    groups = tl.num_programs(0)
    stride = tl.cast(groups, tl.int64) * size
    parts += tl.cast(group, tl.int64) * size
    count = tl.zeros((1, BLOCK), tl.float32)
    mean = tl.zeros((1, BLOCK), tl.float32)
    m2 = tl.zeros((1, BLOCK), tl.float32)
    for first in range(0, size, BLOCK):
        index = first + tl.arange(0, BLOCK)[None, :]
        inside = index < size
        more = tl.load(parts + index, mask=inside, other=0)
        apart = tl.load(parts + stride + index, mask=inside, other=0) - mean
        total = count + more
        share = more / tl.maximum(total, 1.0)
        mean += apart * share
        m2 += tl.load(parts + 2 * stride + index, mask=inside, other=0) + apart * apart * (count * share)
        count = total
    _, mean, m2 = _pool(count, mean, m2, 1)
    one = tl.arange(0, 1)
    tl.store(result + group + one, mean)
    tl.store(result + groups + group + one, m2)


@dataclass(frozen=True)
class StatisticsPlan:
    """Everything of the two launches but the tensors.

    Attributes:
        programs: length of the first grid.
        parts: parts that the first kernel leaves of each group.
        sizes: the first kernel's integer arguments, in their order.
        constants: its compile-time arguments but ADD.
    """

    programs: int
    parts: int
    sizes: tuple[int, int, int]
    constants: dict[str, int]


def plan_statistics(shape: tuple[int, ...], itemsize: int, channels_last: bool, groups: int) -> StatisticsPlan:
    """Chooses tile, stretch and grid.

    Args:
        shape: (B, C, T, H, W).
        itemsize: bytes of an element.
        channels_last: whether the tensor is channels_last_3d in memory, instead of contiguous.
        groups: a divisor of C.

    Raises:
        ValueError: more programs, or more elements for one of them, than 32 bits count (all other offsets have 64).
    """
    batch, channels, frames, height, width = shape
    run = channels // groups * frames * height * width
    if channels_last:
        planes, length, per_group = batch, groups * run, channels // groups
        rows = frames * height * width
        block_rows, block_lanes = tile_shape(rows, channels, itemsize, channels, _FEWEST_LANES)
    else:
        planes, length, per_group, channels = batch * groups, run, _RUN_LANES, _RUN_LANES
        rows = triton.cdiv(run, _RUN_LANES)
        block_rows, block_lanes = tile_shape(rows, _RUN_LANES, itemsize, _RUN_LANES)
    part = gcd(per_group, block_lanes)
    row_tiles, lane_tiles = triton.cdiv(rows, block_rows), triton.cdiv(channels, block_lanes)
    tiles = triton.cdiv(planes * row_tiles * lane_tiles, _PROGRAMS)
    chunks = triton.cdiv(row_tiles, tiles)
    programs = planes * chunks * lane_tiles
    if max(programs, (tiles + 1) * block_rows * channels) > MAX_INT32:
        raise ValueError(f"Shape {tuple(shape)} is too large for one launch; split the tensor.")
    constants = {
        "CHANNELS": channels, "PART": part, "ALIGN": gcd(length, block_rows * channels, MAX_ALIGNMENT),
        "BLOCK_ROWS": block_rows, "BLOCK_LANES": block_lanes,
    }  # fmt: skip
    return StatisticsPlan(programs, per_group // part * chunks, (length, chunks, tiles), constants)


def launch_statistics(h: torch.Tensor, x: torch.Tensor | None, groups: int) -> torch.Tensor:
    """Mean and M2 of each group of h, after adding x to h in place where x is given.

    Args:
        h: (B, C, T, H, W) on CUDA, or on the CPU when Triton interprets; bfloat16, float16 or float32. To be added to,
            it must be contiguous or channels_last_3d; else it is copied if it is neither.
        x: None, or a tensor of h's shape and dtype, copied if it has another memory format.
        groups: a divisor of C.

    Returns:
        (2, B, groups), float32: means, and sums of squared deviations.

    Raises:
        ValueError: a device or element count that the kernels cannot serve.
    """
    memory_format = memory_format_of(h)
    assert x is None or h.is_contiguous(memory_format=memory_format)
    source = h.contiguous(memory_format=memory_format)
    other = source if x is None else x.contiguous(memory_format=memory_format)
    plan = plan_statistics(tuple(h.shape), h.dtype.itemsize, memory_format == torch.channels_last_3d, groups)
    count = h.shape[0] * groups
    parts = torch.empty(3, count, plan.parts, dtype=torch.float32, device=h.device)
    result = torch.empty(2, h.shape[0], groups, dtype=torch.float32, device=h.device)
    with launching_on(h.device, "gathers statistics"):
        _gather_kernel[(plan.programs,)](
            source, other, parts, *plan.sizes, ADD=x is not None, **plan.constants, num_warps=WARPS
        )
        _pool_kernel[(count,)](parts, result, plan.parts, BLOCK=_POOL_BLOCK, num_warps=_POOL_WARPS)
    return result
