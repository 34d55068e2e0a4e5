"""Cutting a video into windows, running a network on each, and putting the results together.

One set of functions serves both directions: `run_chunks` cuts time, `run_tiles` cuts space, and both speak of
*positions*, which are pixels and frames on one side of the network and cells and latent frames on the
other. Results leave as bands of rows as soon as nothing can change them any more, so memory holds one chunk. What
is blended is blended in float32; what is not stays as the network gave it. This module knows no model, no video
file and no latent file.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, islice, pairwise

import torch
from torch import Tensor

from cvvae_cli.config import SMALLEST_TILE, Tiling
from cvvae_cli.geometry import SPATIAL_COMPRESSION_RATIO as CELL
from cvvae_cli.geometry import TEMPORAL_COMPRESSION_RATIO as STEP
from cvvae_cli.geometry import Window, blend_weights, chunk_stride, latent_frame_count, official_windows, tile_windows

Network = Callable[[Tensor], Tensor]
Windows = Callable[[Window, list[Window]], Iterator[Tensor]]
"""The network's outputs, tile by tile, for the windows of one row."""
Weights = Callable[[list[Window], int], list[list[float]]]
"""Weights along one axis, one list per window, that sum to 1 at every position; the number is positions per cell."""
Retreat = Callable[[RuntimeError, Tiling], Tiling]
"""Called with what a network raised and how it was tiled; gives a smaller tiling of the same chunks, or raises."""

# The release overlaps neighbouring tiles by 2/9 of a tile.
OFFICIAL_STRIDE = (7, 9)
# Pixels: official tiles are multiples of it.
OFFICIAL_TILE_STEP = 72


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

RunChunk = Callable[[Network, Tensor, Tiling, Direction], Iterator[tuple[int, Tensor]]]
"""A network over one chunk: (first row, finished rows) from top to bottom, every row once."""


@dataclass(frozen=True)
class Band:
    """Finished rows of finished frames.

    Attributes:
        frame: position of the first frame (or latent frame) in the whole video.
        row: position of the first row (pixels or cells).
        height: rows of a whole frame.
        pieces: (B, C, n, rows, W) floating, consecutive in time.
        dropped: (B, C, 1, rows, W) floating: what a chunk gave first and is none of the frames; None of the video's first chunk.
    """

    frame: int
    row: int
    height: int
    pieces: tuple[Tensor, ...]
    dropped: Tensor | None = None


def smaller_tiling(tiling: Tiling) -> Tiling | None:
    """The same chunks in windows of less memory: one tile at a time, then half the tile; None where it would be too small."""
    if tiling.batch > 1:
        return replace(tiling, batch=1)
    official = tiling.mode == "official"
    step = OFFICIAL_TILE_STEP if official else CELL
    tile = tiling.tile // 2 // step * step
    if tile < SMALLEST_TILE:
        return None
    return replace(tiling, tile=tile, overlap=tile * 2 // 9 if official else min(tiling.overlap, tile // 4))


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
    shared = length - step if first else 0  # how many of the held ones the chunk before has shown
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


def chunk_count(latent_frames: int, tiling: Tiling) -> int:
    """How many chunks `cut_windows` makes of a video of so many latent frames, 1 or more."""
    unseen = latent_frames - latent_frame_count(tiling.chunk)
    return 1 + max(0, -(-unseen // chunk_stride(tiling.chunk, tiling.chunk_overlap)))


def no_retreat(error: RuntimeError, tiling: Tiling) -> Tiling:
    """Let an error pass."""
    raise error


def run_chunks(
    network: Network,
    windows: Iterable[tuple[int, Tensor]],
    tiling: Tiling,
    direction: Direction,
    retreat: Retreat = no_retreat,
    run_chunk: RunChunk | None = None,
) -> Iterator[Band]:
    """Run the network over chunks and crossfade what neighbouring chunks both give.

    The first output of every chunk but the video's first is dropped: it was computed as a first latent frame,
    which stands for one frame, where it should stand for four.

    Args:
        network: one window to its output, e.g. (B, 3, T, H, W) -> (B, 2z, t, h, w).
        windows: what `cut_windows` yields.
        retreat: asked where the network fails; the chunk then goes on below the rows that are done.
        run_chunk: how the network runs over one chunk; None is `run_tiles`.

    Yields:
        Bands in order of frames, then of rows.
    """
    crossfade = _Crossfade(tiling.chunk_overlap // STEP * direction.write_frame)
    end = height = 0
    for start, x in windows:
        height = x.shape[3] // direction.read_cell * direction.write_cell
        drop = 1 if start else 0
        begin, done = start // direction.read_frame * direction.write_frame + drop, 0
        while done < height:
            try:
                for row, values in (run_chunk or run_tiles)(network, x, tiling, direction):
                    fresh = values[:, :, :, max(done - row, 0) :]
                    if fresh.shape[3]:
                        pieces = crossfade.finished(fresh[:, :, drop:], done, height)
                        row, done = done, done + fresh.shape[3]
                        end = begin + sum(piece.shape[2] for piece in pieces)
                        yield Band(begin, row, height, pieces, fresh[:, :, :1] if drop else None)
            except RuntimeError as error:
                tiling = retreat(error, tiling)
        crossfade.next_chunk()
    if crossfade.tail is not None:
        yield Band(end, 0, height, (crossfade.tail,))


class _Crossfade:
    """The frames that a chunk and the one behind it both give: kept in float32, then blended.

    Args:
        overlap: how many.

    Attributes:
        tail: (B, C, overlap, H, W), what the chunk at hand (or, row by row, still the one before) gave last.
    """

    def __init__(self, overlap: int) -> None:
        self.overlap = overlap
        self.tail: Tensor | None = None
        self._fade = ((torch.arange(overlap, dtype=torch.float32) + 0.5) / max(overlap, 1)).view(1, 1, -1, 1, 1)
        self._follows = False

    def next_chunk(self) -> None:
        """The rows that come now are those of the next chunk."""
        self._follows = self.tail is not None

    def finished(self, values: Tensor, row: int, height: int) -> tuple[Tensor, ...]:
        """The frames that the next chunk does not change, the blended ones first.

        Args:
            values: (B, C, n, rows, W), the chunk's frames.
            row: position of their first row.
            height: rows of a whole frame.
        """
        if not self.overlap:
            return (values,)
        rows, split = slice(row, row + values.shape[3]), max(values.shape[2] - self.overlap, 0)
        self._fade = self._fade.to(values.device)
        if self._follows:
            head = self.tail[:, :, :, rows] * (1 - self._fade) + values[:, :, : self.overlap] * self._fade
            rest = values[:, :, self.overlap :]
        else:
            head, rest = values[:, :, :0].float(), values
        if self.tail is None:
            shape = (*values.shape[:2], values.shape[2] - split, height, values.shape[4])
            self.tail = values.new_empty(shape, dtype=torch.float32)
        early = min(split, head.shape[2])  # frames of the head that are not in the tail again
        self.tail[:, :, : head.shape[2] - early, rows] = head[:, :, early:]
        self.tail[:, :, head.shape[2] - early :, rows] = rest[:, :, split - early :]
        return head[:, :, :early], rest[:, :, : split - early]


def run_tiles(
    network: Network, x: Tensor, tiling: Tiling, direction: Direction, reach: int | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Run the network over the tiles of one chunk.

    Args:
        x: (B, C, n, H, W) with H and W in whole cells.
        reach: cells to each side that an output depends on. Where given, tiles overlap so far that each output is taken from
            a tile that has all of them: the result is that of the whole frame at once. A tile has more than twice as many
            cells, or holds the frame.

    Yields:
        (first row, (B, C', n', rows, W') floating) from top to bottom, every row once.
    """
    height, width = x.shape[3] // direction.read_cell, x.shape[4] // direction.read_cell

    def windows(row: Window, cols: list[Window]) -> Iterator[Tensor]:
        scale = direction.read_cell
        strip = x[..., row.start * scale : row.stop * scale, :]
        for _, alike in groupby(cols, key=lambda col: col.size):  # an official row's last tile is narrower
            while together := [strip[..., col.start * scale : col.stop * scale] for col in islice(alike, tiling.batch)]:
                yield from network(torch.cat(together) if len(together) > 1 else together[0]).split(len(x))

    if tiling.mode == "official":
        stride = tiling.tile_cells * OFFICIAL_STRIDE[0] // OFFICIAL_STRIDE[1]
        rows = official_windows(height, tiling.tile_cells, stride)
        cols = official_windows(width, tiling.tile_cells, stride)
        scale, extent = direction.write_cell, tiling.tile_cells - stride
        yield from _official_bands(windows, rows, cols, stride * scale, extent * scale)
    else:
        overlap = tiling.overlap_cells if reach is None else max(tiling.overlap_cells, 2 * reach)
        rows = tile_windows(height, tiling.tile_cells, overlap)
        cols = tile_windows(width, tiling.tile_cells, overlap)
        yield from blended_bands(windows, rows, cols, direction.write_cell, blend_weights if reach is None else core_weights)


def core_windows(windows: list[Window]) -> list[Window]:
    """What of each window it alone answers for: up to the middle of what it shares with its neighbours."""
    edges = [(after.start + before.stop) // 2 for before, after in pairwise(windows)]
    return [Window(start, stop) for start, stop in pairwise([windows[0].start, *edges, windows[-1].stop])]


def core_weights(windows: list[Window], scale: int = 1) -> list[list[float]]:
    """Weights as of `blend_weights` that are 1 in a window's core and 0 elsewhere."""
    cores = zip(windows, core_windows(windows))
    return [[float(core.start <= cell < core.stop) for cell in range(w.start, w.stop) for _ in range(scale)] for w, core in cores]


def blended_bands(
    windows: Windows, rows: list[Window], cols: list[Window], scale: int, weights: Weights = blend_weights
) -> Iterator[tuple[int, Tensor]]:
    """Normalised overlap-add. Weights are a product of one per row and one per column, each summing to 1.

    Args:
        windows: the outputs.
        rows, cols: in cells, sorted.
        scale: positions per cell of the outputs.
        weights: along one axis.

    Yields:
        As `run_tiles`.
    """
    if len(rows) == len(cols) == 1:
        yield 0, next(windows(rows[0], cols))
        return
    row_weights, col_weights = torch.tensor(weights(rows, scale)), torch.tensor(weights(cols, scale))
    carry: Tensor | None = None
    for i, row in enumerate(rows):
        strip: Tensor | None = None
        for j, (col, y) in enumerate(zip(cols, windows(row, cols))):
            if strip is None:
                row_weights, col_weights = row_weights.to(y.device), col_weights.to(y.device)
                strip = y.new_zeros((*y.shape[:4], cols[-1].stop * scale), dtype=torch.float32)
            strip[..., col.start * scale : col.stop * scale] += y * col_weights[j]
        assert strip is not None
        strip *= row_weights[i][:, None]
        if carry is not None:
            strip[..., : carry.shape[3], :] += carry
        done = ((rows[i + 1].start if i + 1 < len(rows) else row.stop) - row.start) * scale
        yield row.start * scale, strip[..., :done, :]
        carry = strip[..., done:, :]


def _official_bands(
    windows: Windows, rows: list[Window], cols: list[Window], stride: int, extent: int
) -> Iterator[tuple[int, Tensor]]:
    """The release's blend: each tile is faded in place, first into the finished tile above, then into its left neighbour.

    All but the last tile of an axis are then cropped to the stride.
    """
    above: list[Tensor] = []
    for i, row in enumerate(rows):
        current: list[Tensor] = []
        for j, tile in enumerate(windows(row, cols)):
            y = tile.float()
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


def assemble(bands: Iterable[Band], convert: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Iterator[Tensor]:
    """Put bands of rows together to whole frames.

    Args:
        bands: what `run_chunks` yields.
        convert: applied to the values of a frame's rows, (B, C, rows, W) in any floating dtype; keeps the shape. Frame by
            frame, because the passes over one frame stay in a processor's cache.
        dtype: of the result, which must hold what `convert` gives.

    Yields:
        (B, C, n, H, W), n >= 1, channels last in memory, on the bands' device, in order.
    """
    frames: Tensor | None = None
    for band in bands:
        singles = [frame for piece in band.pieces for frame in piece.unbind(2)]
        if not singles:
            continue
        batch, channels, rows, width = singles[0].shape
        if band.row == 0:
            shape = (batch, channels, len(singles), band.height, width)
            frames = torch.empty(shape, dtype=dtype, device=singles[0].device, memory_format=torch.channels_last_3d)
        assert frames is not None
        for i, frame in enumerate(singles):
            frames[:, :, i, band.row : band.row + rows] = convert(frame)
        if band.row + rows == band.height:
            yield frames
            frames = None
