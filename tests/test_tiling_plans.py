"""Plans of tiles and chunks for any size: every position is covered, weights sum to 1, and pointwise networks come back."""

import math
from itertools import accumulate

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cvvae_cli.config import Tiling
from cvvae_cli.geometry import blend_weights, cell_count, chunk_stride, latent_frame_count, tile_windows
from cvvae_cli.tiling import DECODE, ENCODE, Direction, assemble, chunk_count, cut_windows, run_chunks, run_tiles

PIXELS = st.one_of(st.integers(16, 256), st.sampled_from([270, 480, 540, 720, 1080, 2160, 4320, 7680]), st.integers(16, 8192))
CELLS = Direction(read_cell=1, write_cell=1, read_frame=1, write_frame=1)
MOST_TILES = 400


@st.composite
def tilings(draw, most: int = 2048):
    """Any tile from 64 px with any overlap, in whole cells or not; any chunk with any overlap."""
    tile = draw(st.one_of(st.sampled_from([64, 72, 128, 256, 576]), st.integers(64, most)))
    cells = max(1, round(tile / 8))
    chunk = 1 + 4 * draw(st.integers(1, 8))
    return Tiling(
        tile, overlap=draw(st.integers(0, 8 * (cells - 1))), chunk_overlap=4 * draw(st.integers(0, (chunk - 5) // 4)), chunk=chunk,
        batch=draw(st.integers(1, 5)),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(PIXELS, PIXELS, tilings())
def test_tiles_cover_every_cell_with_weights_that_sum_to_one_and_stay_inside(height, width, tiling):
    """Portrait, ultra-wide and 8K among the sizes; weights are products, so each axis alone decides."""
    for size in (height, width):
        cells = cell_count(size)
        windows = tile_windows(cells, tiling.tile_cells, tiling.overlap_cells)
        total = np.zeros(cells)
        for window, weights in zip(windows, blend_weights(windows), strict=True):
            assert 0 <= window.start < window.stop <= cells and window.size == min(tiling.tile_cells, cells)
            assert len(weights) == window.size and min(weights) > 0
            total[window.start : window.stop] += weights
        assert np.abs(total - 1).max() < 1e-12


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), tilings())
def test_chunks_cover_every_latent_frame_and_share_what_they_should(latents, tiling):
    x = torch.arange(float(latents)).view(1, 1, -1, 1, 1)
    windows = list(cut_windows([x], tiling, DECODE))
    length, shared = latent_frame_count(tiling.chunk), 1 + tiling.chunk_overlap // 4
    assert [start for start, _ in windows] == [i * chunk_stride(tiling.chunk, tiling.chunk_overlap) for i in range(len(windows))]
    assert len(windows) == chunk_count(latents, tiling)
    for start, window in windows:  # consecutive, whole but for the last, and each with a frame that the one before has not
        assert window.flatten().tolist() == list(range(start, start + window.shape[2]))
        assert window.shape[2] == length or start == windows[-1][0]
        assert window.shape[2] > shared or start == 0
    ends = [start + window.shape[2] for start, window in windows]
    assert ends[-1] == latents and list(accumulate(ends, max)) == ends
    assert all(end - after == shared for end, (after, _) in zip(ends, windows[1:]))
    filled = [(start, frames.shape[2]) for start, frames in cut_windows([x.expand(1, 1, -1, 1, 1)], tiling, ENCODE)]
    assert all(frames % 4 == 1 and start % 4 == 0 for start, frames in filled) and len(filled) == chunk_count(
        latent_frame_count(latents), tiling
    )


@settings(max_examples=40, deadline=None)
@given(PIXELS, PIXELS, tilings(), st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_a_pointwise_network_comes_back_from_frames_of_any_size(height, width, tiling, upside_down, mirrored, seed):
    """On the grid of cells, up to 8K; turned round, the tiles that were first come last."""
    rows, cols = cell_count(height), cell_count(width)
    count = [math.ceil(n / (tiling.tile_cells - tiling.overlap_cells)) for n in (rows, cols)]
    if count[0] * count[1] > MOST_TILES:  # only to keep the test quick
        tiling = Tiling(max(512, tiling.tile), 0, batch=tiling.batch)
    x = torch.randn(1, 2, 1, rows, cols, generator=torch.Generator().manual_seed(seed))
    turned = [axis for axis, turn in ((3, upside_down), (4, mirrored)) if turn]
    bands = list(run_tiles(lambda v: v.square() - v, x.flip(turned), tiling, CELLS))
    assert [row for row, _ in bands] == [0, *accumulate(values.shape[3] for _, values in bands)][:-1]
    y = torch.cat([values for _, values in bands], dim=3).flip(turned)
    torch.testing.assert_close(y, x.square() - x, rtol=1e-5, atol=1e-5)


def encode_pointwise(x):
    """One pixel of each cell, of every frame that begins a latent frame."""
    return x[:, :, ::4, ::8, ::8] * 2


def decode_pointwise(z):
    """Each value to its cell; to one frame, or to four of which each is a little brighter."""
    y = z.repeat_interleave(4, dim=2)
    y = y + torch.arange(4.0).repeat(z.shape[2]).view(1, 1, -1, 1, 1)
    return y[:, :, 3:].repeat_interleave(8, 3).repeat_interleave(8, 4)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(2, 14), st.integers(2, 14), tilings(most=96), st.integers(1, 9), st.integers(0, 2**31))
def test_pointwise_codecs_come_back_for_every_tile_chunk_overlap_and_stream(frames, rows, cols, tiling, piece, seed):
    generator = torch.Generator().manual_seed(seed)
    frames = 1 + 4 * ((frames + 2) // 4)
    x = torch.randn(1, 1, frames, 8 * rows, 8 * cols, generator=generator)
    z = torch.randn(1, 2, latent_frame_count(frames), rows, cols, generator=generator)
    for network, source, direction in ((encode_pointwise, x, ENCODE), (decode_pointwise, z, DECODE)):
        bands = run_chunks(network, cut_windows(source.split(piece, dim=2), tiling, direction), tiling, direction)
        y = torch.cat([part.clone() for part in assemble(bands, lambda v: v, torch.float32)], dim=2)
        torch.testing.assert_close(y, network(source), rtol=1e-5, atol=1e-5)
