"""A short lively clip made from nothing: moving detail, text, a cut, noise, and two tones of sound.

So that the tool can show itself offline, with nothing but what the package holds.
"""

import io
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np

from cvvae_cli.video_container import Beside
from cvvae_cli.video_encoder import Pictures
from cvvae_cli.video_writer import VideoWriter

WIDTH, HEIGHT, FRAMES, RATE = 384, 216, 72, Fraction(24)
SAMPLE_RATE = 48_000
CUT = 40

# Capital letters and digits, 5 x 7 dots each, one string of rows per glyph: drawn for this clip.
_GLYPHS = {
    "C": ".###. #...# #.... #.... #.... #...# .###.",
    "V": "#...# #...# #...# #...# #...# .#.#. ..#..",
    "A": ".###. #...# #...# ##### #...# #...# #...#",
    "E": "##### #.... #.... ####. #.... #.... #####",
    "0": ".###. #..## #.#.# #.#.# #.#.# ##..# .###.",
    "1": "..#.. .##.. ..#.. ..#.. ..#.. ..#.. .###.",
    "2": ".###. #...# ....# ..##. .#... #.... #####",
    "3": "####. ....# ....# .###. ....# ....# ####.",
    "4": "...#. ..##. .#.#. #..#. ##### ...#. ...#.",
    "5": "##### #.... ####. ....# ....# #...# .###.",
    "6": ".###. #.... #.... ####. #...# #...# .###.",
    "7": "##### ....# ...#. ..#.. .#... .#... .#...",
    "8": ".###. #...# #...# .###. #...# #...# .###.",
    "9": ".###. #...# #...# .#### ....# ....# .###.",
    " ": "..... ..... ..... ..... ..... ..... .....",
}


def _text(words: str, dot: int) -> np.ndarray:
    """Bool [7 dot, 6 dot n]: the words in dots of `dot` pixels."""
    glyphs = [np.array([[c == "#" for c in row + "."] for row in _GLYPHS[letter].split()]) for letter in words]
    return np.kron(np.hstack(glyphs), np.ones((dot, dot), bool)).astype(bool)


def _stamp(frame: np.ndarray, words: str, dot: int, x: int, y: int, colour: tuple[int, int, int]) -> None:
    mask = _text(words, dot)
    frame[y : y + mask.shape[0], x : x + mask.shape[1]][mask] = colour


def _meadow(t: float) -> np.ndarray:
    """Waves of several scales under a moving light, panning."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    x = x + 40 * t
    fine = np.sin(0.16 * x + 3 * np.sin(0.05 * y)) * np.sin(0.14 * y - 0.05 * x)
    coarse = np.sin(0.03 * x + 0.02 * y + t) + np.sin(0.021 * y - 0.017 * x)
    light = np.exp(-(((x - 40 * t - 190 - 120 * np.sin(1.5 * t)) / 70) ** 2) - ((y - 108 - 60 * np.cos(2 * t)) / 60) ** 2)
    planes = [
        110 + 30 * fine + 25 * coarse + 90 * light,
        120 + 25 * fine + 35 * coarse + 60 * light,
        90 + 15 * fine - 30 * coarse + 30 * light,
    ]
    return np.stack(planes, axis=-1)


def _checker(t: float) -> np.ndarray:
    """A turning, growing checkerboard with a soft shadow."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    angle, scale = 0.3 * t, 44 * (1 + 0.3 * np.sin(2 * t))
    u = (np.cos(angle) * (x - 192) + np.sin(angle) * (y - 108)) / scale
    v = (-np.sin(angle) * (x - 192) + np.cos(angle) * (y - 108)) / scale
    squares = np.tanh(4 * np.sin(np.pi * u) * np.sin(np.pi * v))[..., None]
    shade = 1 - 0.5 * np.hypot((x - 192) / 192, (y - 108) / 108)[..., None] ** 2
    return (128 + squares * np.array([70, 50, 90])) * np.clip(shade, 0.2, 1)


def clip_frame(index: int) -> np.ndarray:
    """Frame `index` of the clip, uint8 [216, 384, 3], a pure function of it."""
    t = index / float(RATE)
    scene = _meadow(t) if index < CUT else _checker(t)
    noise = np.random.default_rng(index).normal(0, 2.5, scene.shape)
    frame = np.clip(scene + noise, 0, 255).astype(np.uint8)
    _stamp(frame, "CVVAE", 6, 20 + 2 * index, 20, (250, 240, 220))
    _stamp(frame, f"{index:03d}", 2, WIDTH - 44, HEIGHT - 22, (255, 255, 255))
    return frame


def tone(seconds: float) -> BinaryIO:
    """Two tones as AAC in a Matroska file in memory."""
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    wave = 0.2 * np.sin(2 * np.pi * 220 * t) + 0.1 * np.sin(2 * np.pi * (330 + 40 * t) * t)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("aac", rate=SAMPLE_RATE)
        stream.layout = "mono"
        step = 1024
        for start in range(0, len(wave), step):
            frame = av.AudioFrame.from_ndarray(wave[None, start : start + step].astype(np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer


def write_demo_clip(path: Path, overwrite: bool = False) -> None:
    """Write the clip: 72 frames of 384x216 at 24 frames/s, 3 s of sound.

    Raises:
        OutputError: the file cannot be written.
    """
    pictures, beside = Pictures(WIDTH, HEIGHT, RATE, 1 / RATE), Beside(tone(FRAMES / float(RATE)))
    with VideoWriter(path, pictures, beside=beside, overwrite=overwrite) as writer:
        for index in range(FRAMES):
            writer.write(clip_frame(index), index, 1)
