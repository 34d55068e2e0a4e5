"""Streaming tiles and chunks against naive whole-video references."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cvvae_cli.config import Tiling
from cvvae_cli.errors import UsageError
from cvvae_cli.geometry import blend_weights, tile_windows
from cvvae_cli.tiling import DECODE, ENCODE, Direction, assemble, cut_windows, run_chunks, run_tiles

SAME = Direction(read_cell=8, write_cell=8, read_frame=4, write_frame=4)


def whole(network, x, tiling, direction, pieces=1):
    windows = cut_windows(x.split(pieces, dim=2), tiling, direction)
    return torch.cat([y.clone() for y in assemble(run_chunks(network, windows, tiling, direction), lambda v: v)], dim=2)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 20), st.integers(1, 20), st.sampled_from([64, 72, 96]), st.sampled_from([0, 8, 40, 56]),
    st.sampled_from([0, 4, 8, 12]), st.integers(1, 7),
)  # fmt: skip
def test_a_pointwise_network_comes_back_for_every_plan(frames, rows, cols, tile, overlap, chunk_overlap, pieces):
    frames = 4 * ((frames - 1) // 4) + 1
    x = torch.rand(1, 2, frames, rows * 8, cols * 8)
    y = whole(lambda v: v.clone(), x, Tiling(tile, overlap, chunk_overlap), SAME, pieces)
    assert y.shape == x.shape
    assert torch.allclose(y, x, atol=1e-6)


def test_frames_are_filled_up_to_whole_latents_by_repeating_the_last():
    x = torch.arange(19.0).view(1, 1, 19, 1, 1).expand(1, 1, 19, 8, 8)
    windows = list(cut_windows(x.split(1, dim=2), Tiling(chunk_overlap=0), ENCODE))
    assert [start for start, _ in windows] == [0, 16]
    assert windows[1][1][0, 0, :, 0, 0].tolist() == [16.0, 17.0, 18.0, 18.0, 18.0]


@pytest.mark.parametrize(("frames", "overlap", "starts"), [(17, 4, [0]), (18, 4, [0, 12]), (17, 0, [0]), (33, 0, [0, 16]), (29, 4, [0, 12])])
def test_no_chunk_without_a_new_frame(frames, overlap, starts):
    x = torch.zeros(1, 1, frames, 8, 8)
    assert [s for s, _ in cut_windows([x], Tiling(chunk_overlap=overlap), ENCODE)] == starts


def test_first_output_of_later_chunks_is_never_used():
    def network(z):  # marks what a chunk gives first
        y = z.repeat_interleave(4, dim=2)[:, :, 3:].repeat_interleave(8, 3).repeat_interleave(8, 4).clone()
        y[:, :, 0] = torch.nan
        return y

    y = whole(network, torch.ones(1, 1, 14, 2, 2), Tiling(), DECODE)
    assert y.shape[2] == 53
    assert torch.isnan(y[:, :, 0]).all() and not torch.isnan(y[:, :, 1:]).any()


def test_crossfade_by_hand():
    count = iter(range(10))

    def network(z):  # chunk i decodes to the constant i
        t, h, w = z.shape[2:]
        return torch.full((1, 1, 4 * t - 3, 8 * h, 8 * w), float(next(count)))

    y = whole(network, torch.zeros(1, 1, 8, 2, 2), Tiling(chunk_overlap=4), DECODE)
    assert y[0, 0, :, 0, 0].tolist() == [0.0] * 13 + [0.125, 0.375, 0.625, 0.875] + [1.0] * 12


def test_bands_equal_accumulate_and_divide_in_float64():
    tiling = Tiling(tile=64, overlap=24)
    x = torch.rand(1, 2, 1, 19, 13, dtype=torch.float32)
    seen = []

    def network(z):  # position-dependent inside the tile, so blending shows
        ramp = torch.linspace(0, 1, z.shape[3] * 8)[:, None] + torch.linspace(0, 2, z.shape[4] * 8)
        y = z.repeat_interleave(8, 3).repeat_interleave(8, 4) + ramp
        seen.append(y)
        return y

    got = torch.cat([band for _, band in run_tiles(network, x, tiling, DECODE)], dim=3)
    rows, cols = tile_windows(19, 8, 3), tile_windows(13, 8, 3)
    row_weights, col_weights = blend_weights(rows, 8), blend_weights(cols, 8)
    total = torch.zeros(1, 2, 1, 152, 104, dtype=torch.float64)
    mass = torch.zeros(152, 104, dtype=torch.float64)
    tiles = iter(seen)
    for i, r in enumerate(rows):
        for j, c in enumerate(cols):
            w = torch.tensor(row_weights[i]).double()[:, None] * torch.tensor(col_weights[j]).double()
            area = (..., slice(r.start * 8, r.stop * 8), slice(c.start * 8, c.stop * 8))
            total[area] += next(tiles).double() * w
            mass[area] += w
    assert torch.allclose(got.double(), total / mass, atol=1e-6)


def test_official_blend_matches_a_whole_frame_transcription():
    tiling = Tiling.official(72)
    x = torch.rand(1, 1, 1, 20, 12)
    tiles = {}

    def network(z):
        y = torch.rand(z.shape[0], 1, 1, z.shape[3] * 8, z.shape[4] * 8)
        tiles[len(tiles)] = y.clone()
        return y

    got = torch.cat([band for _, band in run_tiles(network, x, tiling, DECODE)], dim=3)
    grid = [[tiles[i * 2 + j] for j in range(2)] for i in range(3)]
    for i in range(3):
        for j in range(2):
            for axis, before in ((3, grid[i - 1][j] if i else None), (4, grid[i][j - 1] if j else None)):
                if before is None:
                    continue
                b, a = before.transpose(3, axis), grid[i][j].transpose(3, axis)
                n = min(a.shape[3], b.shape[3], 16)
                for p in range(n):
                    a[..., p, :] = b[..., b.shape[3] - n + p, :] * (1 - p / n) + a[..., p, :] * (p / n)
    want = torch.cat([torch.cat([row[0][..., : (56, 56, 160)[i], :56], row[1][..., : (56, 56, 160)[i], :]], dim=4) for i, row in enumerate(grid)], dim=3)
    assert got.shape == want.shape == (1, 1, 1, 160, 96)
    assert torch.allclose(got, want, atol=1e-6)


def test_memory_of_a_band_does_not_grow_with_height():
    tiling = Tiling(tile=64, overlap=16)
    sizes = []
    for rows in (20, 80):
        x = torch.zeros(1, 1, 1, rows, 8)
        bands = run_tiles(lambda z: z.repeat_interleave(8, 3).repeat_interleave(8, 4), x, tiling, DECODE)
        sizes.append(max(band.shape[3] for _, band in bands))
    assert sizes[0] == sizes[1] == 64


@pytest.mark.parametrize(
    "arguments",
    [dict(tile=56), dict(overlap=256), dict(overlap=-8), dict(chunk_overlap=3), dict(chunk_overlap=16), dict(chunk=16), dict(tile=256, mode="official", chunk_overlap=0)],
)
def test_impossible_tilings_are_refused_in_one_sentence(arguments):
    with pytest.raises(UsageError) as caught:
        Tiling(**arguments)
    assert isinstance(caught.value, ValueError) and str(caught.value).count(". ") == 0
