"""The picture of the harm: its panels, its lines and its file."""

import io

import av
import numpy as np
import pytest

from cvvae_cli.fidelity import Cut
from cvvae_cli.fidelity_picture import DASH, LINE_COLOUR, amplification, draw_harm, mean_absolute, png_bytes

CUT = Cut(3, 32, 48, ((8, 16),), ((24, 24),), ())


def frames_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)


def test_mean_absolute_is_the_naive_mean() -> None:
    a, b = frames_of(0), frames_of(1)
    assert np.allclose(mean_absolute(a, b), np.abs(a.astype(float) - b).mean(axis=(0, 3)), rtol=1e-12)


@pytest.mark.parametrize(("level", "factor"), [(0, 255), (0.5, 255), (1, 255), (2, 127), (100, 2), (128, 1), (254, 1)])
def test_amplification_brings_a_map_up_to_white(level: float, factor: int) -> None:
    assert amplification(np.full((4, 4), level)) == factor
    many = np.full(1000, level)
    many[:5] = 255  # a few bright pixels do not darken the rest
    assert amplification(many.reshape(20, 50)) == factor


def test_panels_hold_what_they_say() -> None:
    source = np.full((3, 32, 48, 3), 100, np.uint8)
    untiled, tiled = source + 10, source + 10
    tiled[1, 20, 30] += 60  # the worst frame, far from any line
    picture, factors = draw_harm(source, tiled, untiled, CUT)
    assert picture.shape == (64, 144, 3) and factors == (25, 255)
    of_tiled, of_untiled, difference = (picture[:32, x : x + 48] for x in (0, 48, 96))
    assert of_untiled[20, 30, 0] == of_tiled[21, 30, 0] == 250 and of_tiled[20, 30, 0] == 255
    assert difference[20, 30].tolist() == [255] * 3 and difference[21, 30].tolist() == [0] * 3
    assert np.array_equal(picture[32:, :48], source[1]) and np.array_equal(picture[32:, 48:96], tiled[1])
    error = picture[32:, 96:]
    assert error[20, 30, 0] == 255 and error[21, 30, 0] == 250


def test_lines_are_dashed_and_lie_before_each_zone_border() -> None:
    source = np.zeros((3, 32, 48, 3), np.uint8)
    picture, _ = draw_harm(source, source, source, CUT)
    lines = (picture == LINE_COLOUR).all(axis=2)
    for x in (0, 48, 96):
        panel = lines[:32, x : x + 48]
        expected = np.zeros((32, 48), bool)
        expected[[7, 15]] = np.arange(48) % 16 < DASH
        expected[:, 23] |= np.arange(32) % 16 < DASH
        assert np.array_equal(panel, expected)
    assert not lines[32:].any()


def test_the_file_is_a_png_of_the_same_pixels() -> None:
    picture = frames_of(0)[0]
    data = png_bytes(picture[:, ::-1])
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    with av.open(io.BytesIO(data)) as container:
        (frame,) = container.decode(video=0)
        assert np.array_equal(frame.to_ndarray(format="rgb24"), picture[:, ::-1])
