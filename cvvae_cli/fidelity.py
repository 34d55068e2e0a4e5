"""How much harm tiles and chunks do, told from frames: seams, chunk edges, ghosts.

A network's own errors lie on its grid: they are larger on the borders of cells and differ among the frames of one latent
frame, with no tile or chunk in sight; and they follow the picture. So a tile line is held against the nearest places on
both sides that lie alike within a cell, and a chunk edge against the nearest frames on both sides that lie alike within
a latent frame; 1 means that nothing is to be seen. What is left of the picture's own part shows in the same ratio of a
decode that was not cut there.

Everything is measured on 8-bit RGB frames, with sums in exact integers. This module knows no model and no file.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

from cvvae_cli.config import Tiling
from cvvae_cli.geometry import SPATIAL_COMPRESSION_RATIO as CELL
from cvvae_cli.geometry import TEMPORAL_COMPRESSION_RATIO as STEP
from cvvae_cli.geometry import Window, cell_count, chunk_stride, official_windows, tile_windows
from cvvae_cli.metrics import Comparison
from cvvae_cli.tiling import OFFICIAL_STRIDE

Zone = tuple[int, int]
"""First position and one past the last; both the same where neighbours touch and share nothing."""

LIKE_PLACES = 2
"""How many places on each side a marked one is held against."""

FASTEST_SHARE = 10
"""Ghosts are looked for in one of so many crossfaded frames: the fastest-moving ones."""


@dataclass(frozen=True)
class Cut:
    """Where tiles and chunks meet in a decoded video.

    Encode and decode cut alike, in cells and latent frames, so these are the places of both.

    Attributes:
        frames, height, width: of the video, in frames and pixels.
        rows, columns: zones that neighbouring tiles share, in pixels from the top, from the left.
        crossfades: zones that neighbouring chunks share, in frames; where they share none, the later one's first frame.
    """

    frames: int
    height: int
    width: int
    rows: tuple[Zone, ...]
    columns: tuple[Zone, ...]
    crossfades: tuple[Zone, ...]

    @property
    def row_lines(self) -> np.ndarray:
        """Bool [H - 1]: whether a tile line lies between row i and the next."""
        return _lines(self.rows, self.height)

    @property
    def column_lines(self) -> np.ndarray:
        """Bool [W - 1]: whether a tile line lies between column i and the next."""
        return _lines(self.columns, self.width)

    @property
    def crossfaded(self) -> np.ndarray:
        """Bool [T]: frames that are blended from two chunks or more."""
        return _marked(self.frames, (range(first, stop) for first, stop in self.crossfades))

    @property
    def edge_frames(self) -> np.ndarray:
        """Bool [T]: crossfaded frames and the frame on each side of them."""
        return _marked(self.frames, (range(first - 1, stop + 1) for first, stop in self.crossfades))

    @property
    def edge_differences(self) -> np.ndarray:
        """Bool [T - 1]: whether the step from frame i to the next enters, crosses or leaves a crossfade."""
        return _marked(self.frames - 1, (range(first - 1, stop) for first, stop in self.crossfades))


def cut_of(tiling: Tiling, frames: int, height: int, width: int) -> Cut:
    """Where `tiling` cuts a video.

    Args:
        tiling: of encode and decode.
        frames, height, width: of the video, in frames and pixels, 1 or more.
    """
    stride = STEP * chunk_stride(tiling.chunk, tiling.chunk_overlap)
    # A chunk begins where the ones before have not shown every frame.
    starts = range(stride, max(frames - tiling.chunk + stride, 0), stride)
    crossfades = tuple((start + 1, start + 1 + tiling.chunk_overlap) for start in starts)
    return Cut(frames, height, width, _zones(tiling, height), _zones(tiling, width), crossfades)


def _zones(tiling: Tiling, size: int) -> tuple[Zone, ...]:
    windows = tiles_along(tiling, size)
    return tuple((CELL * after.start, CELL * before.stop) for before, after in pairwise(windows))


def tiles_along(tiling: Tiling, size: int) -> list[Window]:
    """The tiles along an axis of `size` pixels."""
    if tiling.mode == "official":
        return official_windows(cell_count(size), tiling.tile_cells, tiling.tile_cells * OFFICIAL_STRIDE[0] // OFFICIAL_STRIDE[1])
    return tile_windows(cell_count(size), tiling.tile_cells, tiling.overlap_cells)


def _lines(zones: Iterable[Zone], size: int) -> np.ndarray:
    """A zone's lines are where the later tile begins, where both weigh the same, and where the earlier one ends."""
    lines = {place for first, stop in zones for place in (first, (first + stop) // 2, stop)}
    return _marked(size - 1, [[line - 1 for line in lines if line < size]])


def _marked(size: int, places: Iterable[Iterable[int]]) -> np.ndarray:
    marks = np.zeros(max(size, 0), bool)
    marks[sorted({place for group in places for place in group})] = True
    return marks


class ErrorProfile:
    """Sums of the errors of decoded frames along both axes and along time.

    Memory: one frame of int16 errors beside the sums.

    Attributes:
        rows, columns: int64 [H - 1], [W - 1]: absolute steps of the error (decoded less source) to the next row, column.
        frames: absolute error of each frame.
        differences: absolute change of the error from each frame to the next, which is the error of the frame difference.
    """

    def __init__(self) -> None:
        self.rows = self.columns = np.zeros(1, np.int64)
        self.frames: list[int] = []
        self.differences: list[int] = []
        self._error: np.ndarray | None = None

    def add(self, source: np.ndarray, decoded: np.ndarray) -> None:
        """Add the next pair of frames, uint8 [H, W, 3] of one size."""
        error = np.subtract(decoded, source, dtype=np.int16)
        self.rows = self.rows + np.abs(np.diff(error, axis=0)).sum(axis=(1, 2), dtype=np.int64)
        self.columns = self.columns + np.abs(np.diff(error, axis=1)).sum(axis=(0, 2), dtype=np.int64)
        self.frames.append(_total(error))
        if self._error is not None:
            self.differences.append(_total(error - self._error))
        self._error = error


@dataclass(frozen=True)
class Harm:
    """What is to be seen of tiles and chunks in decoded frames, measured at the places of a cut.

    Every ratio is what was found at the marked places over what the like places beside them let expect
    (`observed_and_expected`); None where nothing is marked, or no like place lies beside it, or none has an error.

    Attributes:
        seam_ratio: absolute gradient of the error across tile lines: where the later tile begins, where both tiles weigh
            the same, where the earlier one ends. Rows and columns together, as sums over pixels.
        seam_ratio_rows, seam_ratio_columns: of the lines between rows, between columns.
        chunk_edge_ratio: absolute error in crossfaded frames and the frame on each side of them.
        chunk_edge_difference_ratio: absolute error of the frame differences that touch a crossfaded frame.
    """

    seam_ratio: float | None
    seam_ratio_rows: float | None
    seam_ratio_columns: float | None
    chunk_edge_ratio: float | None
    chunk_edge_difference_ratio: float | None


@dataclass(frozen=True)
class Figures(Harm):
    """Decoded frames against their source.

    Attributes:
        psnr_db, flicker: as `metrics.Quality` has them.
    """

    psnr_db: float
    flicker: float


def harm_of(profile: ErrorProfile, cut: Cut) -> Harm:
    """Read a profile at the places of a cut; the frames need not have been cut there.

    Args:
        profile: of all frames.
        cut: of as many frames of this size.
    """
    rows = observed_and_expected(profile.rows, cut.row_lines, CELL)
    columns = observed_and_expected(profile.columns, cut.column_lines, CELL)
    # The first frame has a latent frame of its own; the others are one of four.
    frames = observed_and_expected(profile.frames[1:], cut.edge_frames[1:], STEP)
    differences = observed_and_expected(profile.differences[1:], cut.edge_differences[1:], STEP)
    return Harm(_ratio(rows, columns), _ratio(rows), _ratio(columns), _ratio(frames), _ratio(differences))


def figures_of(source: np.ndarray, decoded: np.ndarray, cut: Cut) -> Figures:
    """Measure decoded frames at the places of a cut.

    Args:
        source, decoded: uint8 RGB [T, H, W, 3].
        cut: of this size; `decoded` need not have been cut there.
    """
    assert source.shape[:3] == decoded.shape[:3] == (cut.frames, cut.height, cut.width)
    comparison, profile = Comparison(with_ssim=False), ErrorProfile()
    for before, after in zip(source, decoded):
        comparison.add(before, after)
        profile.add(before, after)
    quality = comparison.result()
    return Figures(**asdict(harm_of(profile, cut)), psnr_db=quality.psnr_db, flicker=quality.flicker)


def observed_and_expected(values: np.ndarray | list[int], marked: np.ndarray, period: int) -> tuple[float, float]:
    """The sum of the marked values, and the sum that the others let expect.

    A marked value is expected to be the mean of two: that of the nearest like values before it, and of those behind it. Like are
    unmarked values whole periods away. What rises or falls evenly is met exactly.

    Args:
        values: [n], along an axis.
        marked: bool [n].
        period: after how many places they lie alike.

    Returns:
        Both sums; marked values without a like one on either side are left out of both.
    """
    observed = expected = 0.0
    for index in np.flatnonzero(marked):
        before, behind = range(index - period, -1, -period), range(index + period, len(values), period)
        sides = [[values[place] for place in side if not marked[place]][:LIKE_PLACES] for side in (before, behind)]
        if all(sides):
            observed += float(values[index])
            expected += sum(float(np.mean(side)) for side in sides) / 2
    return observed, expected


def _ratio(*sums: tuple[float, float]) -> float | None:
    observed, expected = (sum(side) for side in zip(*sums))
    return observed / expected if expected else None


def ghosting(source: np.ndarray, decoded: np.ndarray, inside: np.ndarray, crossfaded: np.ndarray) -> float | None:
    """Mean absolute error of the fastest-moving crossfaded frames over that of the same frames decoded inside a chunk.

    Two chunks that disagree about something that moves show it twice, half as strong.

    Args:
        source, decoded: uint8 RGB [T, H, W, 3].
        inside: the same frames of a decode whose chunks do not end there.
        crossfaded: bool [T]; of these the tenth (one at least) whose source differs most from the frame before is taken.

    Returns:
        None without a crossfaded frame, or where `inside` has no error there.
    """
    motion = {i: _difference(source[i], source[i - 1]) for i in np.flatnonzero(crossfaded)}
    fastest = sorted(motion, key=lambda i: -motion[i])[: -(-len(motion) // FASTEST_SHARE)]
    found, aim = (sum(_difference(run[i], source[i]) for i in fastest) for run in (decoded, inside))
    return found / aim if aim else None


def _difference(a: np.ndarray, b: np.ndarray) -> int:
    return _total(np.subtract(a, b, dtype=np.int16))


def _total(values: np.ndarray) -> int:
    return int(np.abs(values).sum(dtype=np.int64))
