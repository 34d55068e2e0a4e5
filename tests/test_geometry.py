"""Integers: counts, chunks, tiles and their weights, against brute force."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvvae_cli.geometry import Window, blend_weights, cell_count, frame_count, latent_frame_count, official_windows, tile_windows


@given(st.integers(1, 4000))
def test_latent_frames_hold_all_frames_and_no_group_more(frames):
    latents = latent_frame_count(frames)
    assert frame_count(latents) >= frames
    assert latents == 1 or frame_count(latents - 1) < frames


def test_counts_by_hand():
    assert [latent_frame_count(n) for n in (1, 2, 5, 6, 17, 18)] == [1, 2, 2, 3, 5, 6]
    assert [cell_count(n) for n in (1, 8, 9, 1080)] == [1, 1, 2, 135]


@given(st.integers(1, 300), st.integers(1, 80), st.data())
def test_tiles_cover_with_one_shape_and_at_least_the_overlap(cells, tile, data):
    overlap = data.draw(st.integers(0, tile - 1))
    windows = tile_windows(cells, tile, overlap)
    assert windows[0].start == 0 and windows[-1].stop == cells
    assert {w.size for w in windows} == {min(tile, cells)}
    for a, b in zip(windows, windows[1:]):
        assert a.start < b.start and a.stop - b.start >= overlap
    fewest = next(n for n in range(1, 400) if n * min(tile, cells) - (n - 1) * overlap >= cells)
    assert len(windows) == fewest


@given(st.integers(1, 200), st.integers(1, 60), st.data(), st.sampled_from([1, 8]))
def test_weights_sum_to_one_and_are_positive(cells, tile, data, scale):
    windows = tile_windows(cells, tile, data.draw(st.integers(0, tile - 1)))
    total = [0.0] * (cells * scale)
    for window, weights in zip(windows, blend_weights(windows, scale)):
        assert len(weights) == window.size * scale and min(weights) > 0
        for p, value in enumerate(weights):
            total[window.start * scale + p] += value
    assert total == pytest.approx([1.0] * len(total), abs=1e-12)


def test_weights_fade_linearly_by_hand():
    weights = blend_weights([Window(0, 4), Window(2, 6)])
    assert weights[0] == pytest.approx([1, 1, 0.75, 0.25])
    assert weights[1] == pytest.approx([0.25, 0.75, 1, 1])


def test_official_windows_leave_a_remainder():
    assert official_windows(20, 9, 7) == [Window(0, 9), Window(7, 16), Window(14, 20)]
    assert official_windows(15, 9, 7) == [Window(0, 9), Window(7, 15)]  # 14 lies inside the second tile
    assert official_windows(9, 9, 7) == [Window(0, 9)]
