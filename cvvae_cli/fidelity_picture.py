"""A picture of what tiles do to a video: errors amplified, tile lines on them. It measures nothing and knows no model."""

import math

import av
import numpy as np

from cvvae_cli.fidelity import Cut

WHITE_QUANTILE = 0.99
"""This share of a map's pixels is darker than white."""

DASH, DASH_PERIOD = 4, 16
"""Pixels. Tile lines are dashed, so that a seam below them can be seen between the dashes."""

LINE_COLOUR = (0, 255, 255)


def draw_harm(source: np.ndarray, tiled: np.ndarray, untiled: np.ndarray, cut: Cut) -> tuple[np.ndarray, tuple[int, int]]:
    """Six panels in two rows.

    Above: the mean absolute error over frames, tiled and untiled, and the mean absolute difference of the two, with the
    zones that tiles share between dashed lines. Below: source, tiled and error of the frame with the largest error.

    Args:
        source, tiled, untiled: uint8 RGB [T, H, W, 3].
        cut: of the tiled run.

    Returns:
        uint8 RGB [2H, 3W, 3], and how many times the errors and the differences are amplified.
    """
    maps = [mean_absolute(a, b) for a, b in ((tiled, source), (untiled, source), (tiled, untiled))]
    of_errors, of_differences = amplification(maps[0]), amplification(maps[2])
    above = [_grey(values, factor) for values, factor in zip(maps, (of_errors, of_errors, of_differences))]
    for panel in above:
        _draw_lines(panel, cut)
    worst = max(range(len(source)), key=lambda i: float(mean_absolute(tiled[i : i + 1], source[i : i + 1]).mean()))
    error = mean_absolute(tiled[worst : worst + 1], source[worst : worst + 1])
    below = [source[worst], tiled[worst], _grey(error, of_errors)]
    return np.concatenate([np.concatenate(panels, axis=1) for panels in (above, below)]), (of_errors, of_differences)


def mean_absolute(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64 [H, W]: absolute difference of two videos uint8 [T, H, W, 3], mean over frames and colours."""
    total = np.zeros(a.shape[1:3])
    for first, second in zip(a, b):
        total += np.abs(np.subtract(first, second, dtype=np.int16)).sum(axis=2)
    return total / (len(a) * a.shape[3])


def amplification(values: np.ndarray) -> int:
    """The whole factor, 1 to 255, that brings nearly all of a map [H, W] of 8-bit levels up to white and no further."""
    level = float(np.quantile(values, WHITE_QUANTILE))
    return max(1, min(255, math.floor(255 / level))) if level else 255


def _grey(values: np.ndarray, factor: int) -> np.ndarray:
    return np.repeat(np.minimum(values * factor, 255).round().astype(np.uint8)[..., None], 3, axis=2)


def _draw_lines(panel: np.ndarray, cut: Cut) -> None:
    """The border of each zone, as the last pixel before it."""
    height, width = panel.shape[:2]
    across, down = (np.arange(size) % DASH_PERIOD < DASH for size in (width, height))
    for row in {place for zone in cut.rows for place in zone if place < height}:
        panel[row - 1, across] = LINE_COLOUR
    for column in {place for zone in cut.columns for place in zone if place < width}:
        panel[down, column - 1] = LINE_COLOUR


def png_bytes(picture: np.ndarray) -> bytes:
    """A picture uint8 RGB [H, W, 3] as a PNG file."""
    context = av.CodecContext.create("png", "w")
    context.height, context.width = picture.shape[:2]
    context.pix_fmt = "rgb24"
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])
