"""Integers only: frames and latent frames, pixels and cells, chunks and tiles.

A *cell* is one latent position in space (8 px), a *latent frame* one in time: the first stands for one
frame, each later one for four. This module knows no torch, no video and no file.
"""

import math
from dataclasses import dataclass

TEMPORAL_COMPRESSION_RATIO = 4
SPATIAL_COMPRESSION_RATIO = 8
RGB = 3
"""Channels of a pixel."""
DEEP_LEVELS = 257
"""16-bit levels in one of 8 bits: white is 65535 in the one and 255 in the other."""


def latent_frame_count(num_frames: int) -> int:
    """Latent frames that hold `num_frames` frames: 1 + ceil((n - 1) / 4)."""
    return 1 + math.ceil((num_frames - 1) / TEMPORAL_COMPRESSION_RATIO)


def frame_count(latent_frames: int) -> int:
    """Frames that `latent_frames` latent frames decode to: 1 + 4 (t - 1)."""
    return 1 + TEMPORAL_COMPRESSION_RATIO * (latent_frames - 1)


def cell_count(pixels: int) -> int:
    """Cells that cover `pixels` pixels of height or width."""
    return math.ceil(pixels / SPATIAL_COMPRESSION_RATIO)


@dataclass(frozen=True)
class Window:
    """One tile along one axis, in cells: it reads `start` to `stop` and its neighbours overlap it."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


def tile_windows(cells: int, tile: int, overlap: int) -> list[Window]:
    """Equal full-size tiles that cover `cells`, neighbours sharing at least `overlap` cells.

    The least possible number of tiles is used and the slack is spread evenly in whole cells, so no tile is
    a sliver and all have one shape. A size below the tile gives one window of that size.

    Args:
        cells: length of the axis, >= 1.
        tile: wanted tile size in cells, >= 1.
        overlap: least overlap of neighbours in cells, 0 <= overlap < tile.
    """
    if cells <= tile:
        return [Window(0, cells)]
    count = math.ceil((cells - overlap) / (tile - overlap))
    slack = cells - tile
    starts = [slack * i // (count - 1) for i in range(count)]
    return [Window(s, s + tile) for s in starts]


def official_windows(cells: int, tile: int, stride: int) -> list[Window]:
    """The release's tiles: a fixed stride from 0, the last one cut off at the end.

    No tile starts where the one before it already reaches the end. Source: the tensors that
    AILab-CVC/CV-VAE at 375f18a computes.
    """
    return [Window(s, min(s + tile, cells)) for s in range(0, max(cells - (tile - stride), 1), stride)]


def chunk_stride(chunk_frames: int, overlap_frames: int) -> int:
    """Latent frames from one chunk to the next: neighbours share one context frame plus the overlap."""
    return (chunk_frames - 1 - overlap_frames) // TEMPORAL_COMPRESSION_RATIO


def blend_weights(windows: list[Window], scale: int = 1) -> list[list[float]]:
    """Weights along one axis, one list per window, that sum to 1 at every position.

    Each window rises and falls linearly over what it shares with its neighbours; positions that three
    windows share are normalised too.

    Args:
        windows: sorted windows that cover the axis from 0 to the last one's stop, in cells.
        scale: positions per cell (8 for pixels, 1 for latents).
    """
    raw: list[list[float]] = []
    for i, w in enumerate(windows):
        n = w.size * scale
        rise = 0 if i == 0 else max(0, windows[i - 1].stop - w.start) * scale
        fall = 0 if i == len(windows) - 1 else max(0, w.stop - windows[i + 1].start) * scale
        raw.append([min(1.0, (p + 0.5) / rise if rise else 1.0, (n - p - 0.5) / fall if fall else 1.0) for p in range(n)])
    total = [0.0] * (windows[-1].stop * scale)
    for w, weights in zip(windows, raw):
        for p, value in enumerate(weights):
            total[w.start * scale + p] += value
    return [[value / total[w.start * scale + p] for p, value in enumerate(weights)] for w, weights in zip(windows, raw)]
