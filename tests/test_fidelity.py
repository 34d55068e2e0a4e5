"""Seams, chunk edges and ghosts: constructed errors, naive loops as truth, and cuts found in what the pipeline really gives."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from cvvae_cli.config import Tiling
from cvvae_cli.fidelity import Cut, ErrorProfile, cut_of, figures_of, ghosting, observed_and_expected
from cvvae_cli.metrics import Comparison
from cvvae_cli.tiling import DECODE, cut_windows, run_chunks, run_tiles

FRAMES, HEIGHT, WIDTH = 37, 96, 160
TILING = Tiling(tile=64, overlap=16, chunk=17, chunk_overlap=4)
CUT = cut_of(TILING, FRAMES, HEIGHT, WIDTH)


def grey(frames: int = FRAMES) -> np.ndarray:
    return np.full((frames, HEIGHT, WIDTH, 3), 128, np.uint8)


def noisy(seed: int, frames: int = FRAMES) -> np.ndarray:
    return np.random.default_rng(seed).integers(118, 139, (frames, HEIGHT, WIDTH, 3), dtype=np.uint8)


def test_a_cut_by_hand():
    # 12 and 20 cells in tiles of 8 that share 2 or more: starts 0 and 4; 0, 6 and 12.
    assert CUT.rows == ((32, 64),) and CUT.columns == ((48, 64), (96, 112))
    assert CUT.crossfades == ((13, 17), (25, 29))
    assert np.flatnonzero(CUT.row_lines).tolist() == [31, 47, 63]
    assert np.flatnonzero(CUT.column_lines).tolist() == [47, 55, 63, 95, 103, 111]
    assert np.flatnonzero(CUT.crossfaded).tolist() == [13, 14, 15, 16, 25, 26, 27, 28]
    assert np.flatnonzero(CUT.edge_frames).tolist() == [*range(12, 18), *range(24, 30)]
    assert np.flatnonzero(CUT.edge_differences).tolist() == [*range(12, 17), *range(24, 29)]


def test_a_cut_without_overlap_and_no_cut_at_all():
    cut = cut_of(Tiling(tile=64, overlap=0, chunk=17, chunk_overlap=0), 34, 128, 64)
    assert (cut.rows, cut.columns, cut.crossfades) == (((64, 64),), (), ((17, 17), (33, 33)))
    assert np.flatnonzero(cut.row_lines).tolist() == [63] and not cut.crossfaded.any()
    assert np.flatnonzero(cut.edge_frames).tolist() == [16, 17, 32, 33]
    assert np.flatnonzero(cut.edge_differences).tolist() == [16, 32]
    assert cut_of(Tiling(), 17, 256, 256) == Cut(17, 256, 256, (), (), ())
    assert cut_of(Tiling(), 1, 1, 1).edge_differences.shape == (0,)


@pytest.mark.parametrize("mode", ["blend", "touching", "official"])
@pytest.mark.parametrize("cells", [9, 12, 21, 34])
def test_tile_zones_are_where_two_tiles_are_blended(mode: str, cells: int) -> None:
    tiling = {"blend": TILING, "touching": Tiling(tile=64, overlap=0), "official": Tiling.official(72)}[mode]
    numbers = itertools.count(1)

    def numbered(z: torch.Tensor) -> torch.Tensor:
        return torch.full((1, 1, 1, 8 * z.shape[3], 8 * z.shape[4]), 10.0 ** next(numbers), dtype=torch.float64)

    latents = torch.zeros(1, 1, 1, 3, cells)
    row = torch.cat([band for _, band in run_tiles(numbered, latents, tiling, DECODE)], dim=3)[0, 0, 0, 0].double()
    # A pixel that one tile alone gives holds a power of ten.
    digits = torch.log10(row)
    whole = (digits - digits.round()).abs() < 1e-6
    zones = cut_of(tiling, 1, 24, 8 * cells).columns
    blended = torch.zeros(8 * cells, dtype=torch.bool)
    for first, stop in zones:
        # The release's fade begins with weight 0 for the later tile.
        blended[first + (mode == "official") : stop] = True
    assert torch.equal(~whole, blended)
    assert len(zones) == int(digits.round().max()) - 1


@pytest.mark.parametrize(("chunk", "overlap"), [(17, 4), (17, 0), (17, 8), (33, 4), (9, 4), (5, 0)])
@pytest.mark.parametrize("frames", [1, 5, 17, 18, 30, 49, 50])
def test_crossfades_are_where_two_chunks_are_blended(chunk: int, overlap: int, frames: int) -> None:
    tiling = Tiling(chunk=chunk, chunk_overlap=overlap)
    numbers = itertools.count(1)

    def numbered(z: torch.Tensor) -> torch.Tensor:
        return torch.full((1, 1, 4 * z.shape[2] - 3, 8, 8), float(next(numbers)) ** 2)

    latents = [torch.zeros(1, 1, 1 + -(-(frames - 1) // 4), 1, 1)]
    bands = run_chunks(numbered, cut_windows(latents, tiling, DECODE), tiling, DECODE)
    values = torch.cat([piece[0, 0, :, 0, 0] for band in bands for piece in band.pieces], dim=0)[:frames]
    cut = cut_of(tiling, frames, 8, 8)
    assert np.array_equal(cut.crossfaded, (values.sqrt().round() ** 2 != values).numpy())
    assert len(cut.crossfades) == next(numbers) - 2


def naive_sums(values: list[float], marked: list[bool], period: int) -> tuple[float, float]:
    observed = expected = 0.0
    for i in range(len(values)):
        before = [values[j] for j in range(len(values)) if j < i and (i - j) % period == 0 and not marked[j]][-2:]
        behind = [values[j] for j in range(len(values)) if j > i and (j - i) % period == 0 and not marked[j]][:2]
        if marked[i] and before and behind:
            observed += values[i]
            expected += (sum(before) / len(before) + sum(behind) / len(behind)) / 2
    return observed, expected


def naive_profile(source: np.ndarray, decoded: np.ndarray) -> tuple[list[int], list[int], list[int], list[int]]:
    frames, height, width, colours = source.shape
    error = decoded.astype(int) - source.astype(int)
    rows, columns, each, steps = [0] * (height - 1), [0] * (width - 1), [0] * frames, [0] * (frames - 1)
    for t, y, x, c in itertools.product(range(frames), range(height), range(width), range(colours)):
        here = error[t, y, x, c]
        each[t] += abs(here)
        if y:
            rows[y - 1] += abs(here - error[t, y - 1, x, c])
        if x:
            columns[x - 1] += abs(here - error[t, y, x - 1, c])
        if t:
            steps[t - 1] += abs(here - error[t - 1, y, x, c])
    return rows, columns, each, steps


def test_profile_and_figures_equal_the_naive_ones() -> None:
    rng = np.random.default_rng(3)
    source, decoded = rng.integers(0, 256, (2, 30, 24, 30, 3), dtype=np.uint8)
    profile = ErrorProfile()
    for a, b in zip(source, decoded):
        profile.add(a, b)
    rows, columns, frames, differences = naive_profile(source, decoded)
    assert profile.rows.tolist() == rows and profile.columns.tolist() == columns
    assert (profile.frames, profile.differences) == (frames, differences)

    cut = Cut(30, 24, 30, ((8, 13),), ((8, 16),), ((13, 17),))
    figures = figures_of(source, decoded, cut)
    # Lines between rows 7|8, 9|10 and 12|13, and between columns 7|8, 11|12 and 15|16; frames and steps without the first.
    down = naive_sums(rows, [i in (7, 9, 12) for i in range(23)], 8)
    along = naive_sums(columns, [i in (7, 11, 15) for i in range(29)], 8)
    edges = naive_sums(frames[1:], [i + 1 in range(12, 18) for i in range(29)], 4)
    steps = naive_sums(differences[1:], [i + 1 in range(12, 17) for i in range(28)], 4)
    assert down[1] and along[1] and edges[1] and steps[1]
    assert figures.seam_ratio == pytest.approx((down[0] + along[0]) / (down[1] + along[1]), rel=1e-12)
    assert figures.seam_ratio_rows == pytest.approx(down[0] / down[1], rel=1e-12)
    assert figures.seam_ratio_columns == pytest.approx(along[0] / along[1], rel=1e-12)
    assert figures.chunk_edge_ratio == pytest.approx(edges[0] / edges[1], rel=1e-12)
    assert figures.chunk_edge_difference_ratio == pytest.approx(steps[0] / steps[1], rel=1e-12)
    comparison = Comparison(with_ssim=False)
    for a, b in zip(source, decoded):
        comparison.add(a, b)
    assert (figures.psnr_db, figures.flicker) == (comparison.result().psnr_db, comparison.result().flicker)


@pytest.mark.parametrize("seed", range(20))
def test_sums_equal_the_naive_ones(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, marked = rng.uniform(0, 9, 40), rng.random(40) < rng.uniform(0, 0.8)
    period = int(rng.integers(1, 9))
    assert observed_and_expected(values, marked, period) == pytest.approx(naive_sums(values.tolist(), marked.tolist(), period))


def test_what_rises_evenly_or_repeats_is_no_edge() -> None:
    marked = np.isin(np.arange(64), [20, 24, 28, 40])
    ramp, grid = np.arange(64.0), np.arange(64) % 8 + 1.0
    for values in (ramp, grid, ramp + grid):
        observed, expected = observed_and_expected(values, marked, 8)
        assert observed == pytest.approx(expected) and observed > 0


def test_marks_without_a_like_place_on_either_side_are_left_out() -> None:
    assert observed_and_expected(np.ones(16), np.arange(16) < 8, 8) == (0.0, 0.0)
    assert observed_and_expected(np.ones(4), np.ones(4, bool), 4) == (0.0, 0.0)


def test_a_step_at_every_tile_line_is_a_seam() -> None:
    source = noisy(0)
    decoded = source + np.random.default_rng(1).integers(0, 3, source.shape, dtype=np.uint8)
    stepped = decoded.copy()
    stepped[:, :, 48:56] += 20  # between two lines of one zone
    plain, seams = figures_of(source, decoded, CUT), figures_of(source, stepped, CUT)
    assert seams.seam_ratio_columns > 5 and seams.seam_ratio > 3
    assert seams.seam_ratio_rows == pytest.approx(plain.seam_ratio_rows)
    assert plain.seam_ratio == pytest.approx(1, abs=0.02)
    assert seams.chunk_edge_ratio < 1.01
    # The same step where no line is.
    stepped = decoded.copy()
    stepped[:, :, 24:32] += 20
    assert figures_of(source, stepped, CUT).seam_ratio_columns < 1.01


def test_the_cell_grid_of_a_network_is_no_seam() -> None:
    source = grey()
    decoded = source + np.random.default_rng(1).integers(0, 3, source.shape, dtype=np.uint8)
    decoded += (np.arange(WIDTH) // 8 % 2 * 20).astype(np.uint8)[:, None]  # every cell border is a step
    assert figures_of(source, decoded, CUT).seam_ratio_columns == pytest.approx(1, abs=0.01)


def test_noise_has_ratios_of_one_within_their_own_interval() -> None:
    found = [figures_of(grey(), noisy(seed), CUT) for seed in range(10)]
    for name in ("seam_ratio", "seam_ratio_rows", "seam_ratio_columns", "chunk_edge_ratio", "chunk_edge_difference_ratio"):
        values = [getattr(figures, name) for figures in found]
        half = student.ppf(0.999, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
        assert 0 < half < 0.02 and abs(np.mean(values) - 1) < half


def test_errors_in_crossfaded_frames_alone_are_a_chunk_edge() -> None:
    source = grey()
    decoded = source + np.random.default_rng(1).integers(0, 3, source.shape, dtype=np.uint8)
    decoded[CUT.crossfaded] += 10
    figures = figures_of(source, decoded, CUT)
    # 11 levels in 4 frames of 6 and 1 in 2, against 1; the difference errors are 0.9 but 10 at the two ends of 5.
    assert figures.chunk_edge_ratio == pytest.approx((4 * 11 + 2 * 1) / 6, abs=0.1)
    assert figures.chunk_edge_difference_ratio == pytest.approx((2 * 10 + 3 * 8 / 9) / 5 / (8 / 9), rel=0.02)
    assert figures.seam_ratio == pytest.approx(1, abs=0.02)


def test_errors_by_place_in_a_latent_frame_are_no_chunk_edge() -> None:
    source = grey()
    decoded = source + 3
    decoded[1::4] += 9
    decoded[0] += 100
    figures = figures_of(source, decoded, CUT)
    assert figures.chunk_edge_ratio == figures.chunk_edge_difference_ratio == 1


def test_what_is_not_there_is_none() -> None:
    source = grey(5)
    figures = figures_of(source, noisy(0, 5), cut_of(Tiling(), 5, HEIGHT, WIDTH))
    assert figures.seam_ratio is figures.seam_ratio_rows is figures.seam_ratio_columns is None
    assert figures.chunk_edge_ratio is figures.chunk_edge_difference_ratio is None
    perfect = figures_of(grey(), grey(), CUT)
    assert perfect.psnr_db == 100 and perfect.seam_ratio is perfect.chunk_edge_ratio is None
    single = figures_of(source[:1], noisy(0, 1), Cut(1, HEIGHT, WIDTH, CUT.rows, CUT.columns, ()))
    assert single.seam_ratio is not None and single.chunk_edge_ratio is None and single.flicker == 0


def test_ghosting_by_hand() -> None:
    # Of 12 crossfaded frames the 2 fastest count: 17 and 16, which move by 70 and 50 levels; 12 moves by 6.
    source = np.zeros((30, 4, 4, 3), np.uint8)
    level = 0
    for index in range(10, 22):
        step = {16: 50, 17: 70}.get(index, 2 * (index - 9))
        level += step if level < 100 else -step
        source[index] = level
    crossfaded = np.isin(np.arange(30), range(10, 22))
    decoded, inside = source + 5, source + 5
    decoded[16] += 4
    decoded[17] += 2
    decoded[12] += 100
    assert ghosting(source, decoded, inside, crossfaded) == (9 + 7) / (5 + 5)
    assert ghosting(source, inside, inside, crossfaded) == 1
    assert ghosting(source, decoded, source, crossfaded) is None
    assert ghosting(source, decoded, inside, np.zeros(30, bool)) is None
