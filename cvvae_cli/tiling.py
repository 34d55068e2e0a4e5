"""Cutting a video into windows, running a network on each, and putting the results together.

One set of functions serves both directions: `run_chunks` cuts time, `run_tiles` cuts space, and both speak of
*positions*, which are pixels and frames on one side of the network and cells and latent frames on the
other. Results leave as bands of rows, in float32, as soon as nothing can change them any more, so memory
holds one chunk. This module knows no model, no video file and no latent file.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cvvae_cli.config import Tiling
from cvvae_cli.geometry import SPATIAL_COMPRESSION_RATIO as CELL
from cvvae_cli.geometry import TEMPORAL_COMPRESSION_RATIO as STEP
from cvvae_cli.geometry import Window, blend_weights, chunk_stride, latent_frame_count, official_windows, tile_windows

Network = Callable[[Tensor], Tensor]

# The release overlaps neighbouring tiles by 2/9 of a tile.
OFFICIAL_STRIDE = (7, 9)


@dataclass(frozen=True)
class Direction:
    """Positions per cell and per latent frame on the side read and the side written.

    Attributes:
        read_cell, write_cell: positions per cell, 8 for pixels and 1 for latents.
        read_frame, write_frame: positions per latent frame after the first, 4 for frames and 1 for latents.
    """

    read_cell: int
    write_cell: int
    read_frame: int
    write_frame: int


ENCODE = Direction(read_cell=CELL, write_cell=1, read_frame=STEP, write_frame=1)
DECODE = Direction(read_cell=1, write_cell=CELL, read_frame=1, write_frame=STEP)


@dataclass(frozen=True)
class Band:
    """Finished rows of finished frames.

    Attributes:
        frame: position of the first frame (or latent frame) in the whole video.
        row: position of the first row (pixels or cells).
        height: rows of a whole frame.
        values: (B, C, n, rows, W) float32.
    """

    frame: int
    row: int
    height: int
    values: Tensor


def cut_windows(pieces: Iterable[Tensor], tiling: Tiling, direction: Direction, first: int = 0) -> Iterator[tuple[int, Tensor]]:
    """Regroup a stream into the chunks that the network sees.

    Args:
        pieces: consecutive (B, C, n, H, W) with any n >= 1.
        tiling: chunk length and overlap.
        direction: ENCODE for frames, where the last chunk is filled up to 1 + 4k by repeating the last
            frame; DECODE for latents.
        first: position of the stream's first frame or latent frame, the start of a chunk.

    Yields:
        (position of its first frame or latent frame, chunk (B, C, n, H, W)).
    """
    step = chunk_stride(tiling.chunk, tiling.chunk_overlap) * direction.read_frame
    length = (latent_frame_count(tiling.chunk) - 1) * direction.read_frame + 1
    held: list[Tensor] = []
    shared = 0  # how many of the held ones the chunk before has shown
    for piece in pieces:
        held.extend(piece.split(1, dim=2))
        while len(held) >= length:
            yield first, torch.cat(held[:length], dim=2)
            del held[:step]
            first += step
            shared = length - step
    if len(held) > shared:
        held.extend([held[-1]] * (-(len(held) - 1) % direction.read_frame))
        yield first, torch.cat(held, dim=2)


def run_chunks(network: Network, windows: Iterable[tuple[int, Tensor]], tiling: Tiling, direction: Direction) -> Iterator[Band]:
    """Run the network over chunks and crossfade what neighbouring chunks both give.

    The first output of every chunk but the video's first is dropped: it was computed as a first latent frame,
    which stands for one frame, where it should stand for four.

    Args:
        network: one window to its output, e.g. (B, 3, T, H, W) -> (B, 2z, t, h, w).
        windows: what `cut_windows` yields.

    Yields:
        Bands in order of frames, then of rows.
    """
    overlap = tiling.chunk_overlap // STEP * direction.write_frame
    fade = ((torch.arange(overlap, dtype=torch.float32) + 0.5) / max(overlap, 1)).view(1, 1, -1, 1, 1)
    tails: dict[int, Tensor] = {}
    begin = height = 0
    for start, x in windows:
        height = x.shape[3] // direction.read_cell * direction.write_cell
        begin = start // direction.read_frame * direction.write_frame
        drop = 1 if start else 0
        begin += drop
        end = begin
        for row, values in run_tiles(network, x, tiling, direction):
            values = values[:, :, drop:]
            if row in tails:
                fade = fade.to(values.device)
                values[:, :, :overlap] = tails[row] * (1 - fade) + values[:, :, :overlap] * fade
            split = max(values.shape[2] - overlap, 0)
            end = begin + split
            tails[row] = values[:, :, split:].clone() if overlap else values[:, :, split:]
            if split:
                yield Band(begin, row, height, values[:, :, :split])
        begin = end
    if overlap:
        for row, values in tails.items():
            yield Band(begin, row, height, values)


def run_tiles(network: Network, x: Tensor, tiling: Tiling, direction: Direction) -> Iterator[tuple[int, Tensor]]:
    """Run the network over the tiles of one chunk.

    Args:
        x: (B, C, n, H, W) with H and W in whole cells.

    Yields:
        (first row, (B, C', n', rows, W') float32) from top to bottom, every row once.
    """
    height, width = x.shape[3] // direction.read_cell, x.shape[4] // direction.read_cell

    def window(row: Window, col: Window) -> Tensor:
        scale = direction.read_cell
        return network(x[..., row.start * scale : row.stop * scale, col.start * scale : col.stop * scale]).float()

    if tiling.mode == "official":
        stride = tiling.tile_cells * OFFICIAL_STRIDE[0] // OFFICIAL_STRIDE[1]
        rows = official_windows(height, tiling.tile_cells, stride)
        cols = official_windows(width, tiling.tile_cells, stride)
        scale, extent = direction.write_cell, tiling.tile_cells - stride
        yield from _official_bands(window, rows, cols, stride * scale, extent * scale)
    else:
        rows = tile_windows(height, tiling.tile_cells, tiling.overlap_cells)
        cols = tile_windows(width, tiling.tile_cells, tiling.overlap_cells)
        yield from _blended_bands(window, rows, cols, direction.write_cell)


def _blended_bands(
    window: Callable[[Window, Window], Tensor], rows: list[Window], cols: list[Window], scale: int
) -> Iterator[tuple[int, Tensor]]:
    """Normalised overlap-add. Weights are a product of one per row and one per column, each summing to 1."""
    row_weights, col_weights = torch.tensor(blend_weights(rows, scale)), torch.tensor(blend_weights(cols, scale))
    carry: Tensor | None = None
    for i, row in enumerate(rows):
        strip: Tensor | None = None
        for j, col in enumerate(cols):
            y = window(row, col)
            if len(rows) == len(cols) == 1:
                yield 0, y
                return
            if strip is None:
                row_weights, col_weights = row_weights.to(y.device), col_weights.to(y.device)
                strip = y.new_zeros((*y.shape[:4], cols[-1].stop * scale))
            strip[..., col.start * scale : col.stop * scale] += y * col_weights[j]
        assert strip is not None
        strip *= row_weights[i][:, None]
        if carry is not None:
            strip[..., : carry.shape[3], :] += carry
        done = ((rows[i + 1].start if i + 1 < len(rows) else row.stop) - row.start) * scale
        yield row.start * scale, strip[..., :done, :]
        carry = strip[..., done:, :]


def _official_bands(
    window: Callable[[Window, Window], Tensor], rows: list[Window], cols: list[Window], stride: int, extent: int
) -> Iterator[tuple[int, Tensor]]:
    """The release's blend: each tile is faded in place, first into the finished tile above, then into its left neighbour.

    All but the last tile of an axis are then cropped to the stride.
    """
    above: list[Tensor] = []
    for i, row in enumerate(rows):
        current: list[Tensor] = []
        for j, col in enumerate(cols):
            y = window(row, col)
            if above:
                _fade_in(above[j], y, extent, dim=3)
            if current:
                _fade_in(current[-1], y, extent, dim=4)
            current.append(y)
        kept = [y if col is cols[-1] else y[..., :stride] for y, col in zip(current, cols)]
        strip = torch.cat(kept, dim=4)
        yield i * stride, strip if row is rows[-1] else strip[..., :stride, :]
        above = current


def _fade_in(before: Tensor, after: Tensor, extent: int, dim: int) -> None:
    """Replace the first positions of `after` by a linear fade from the last positions of `before`."""
    extent = min(before.shape[dim], after.shape[dim], extent)
    shape = [1] * after.dim()
    shape[dim] = extent
    weight = (torch.arange(extent, dtype=torch.float32, device=after.device) / extent).view(shape)
    head = after.narrow(dim, 0, extent)
    head.copy_(before.narrow(dim, before.shape[dim] - extent, extent) * (1 - weight) + head * weight)


def assemble(bands: Iterable[Band], convert: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """Put bands of rows together to whole frames.

    Args:
        bands: what `run_chunks` yields.
        convert: applied to each band's values, e.g. to bytes; keeps the shape.

    Yields:
        (B, C, n, H, W) in `convert`'s dtype, channels last in memory, in order.
    """
    frames: Tensor | None = None
    for band in bands:
        values = convert(band.values)
        rows = values.shape[3]
        if band.row == 0:
            shape = (*values.shape[:3], band.height, values.shape[4])
            frames = torch.empty(shape, dtype=values.dtype, device=values.device, memory_format=torch.channels_last_3d)
        assert frames is not None
        frames[..., band.row : band.row + rows, :] = values
        if band.row + rows == band.height:
            yield frames
