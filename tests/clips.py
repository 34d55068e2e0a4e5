"""Tiny videos for the tests, written with PyAV alone so that our reader and writer are never judged by each other."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SAMPLE_RATE = 44100


def moving_pictures(frames: int, width: int, height: int) -> list[np.ndarray]:
    """Smooth waves that travel, with the frame's number as a grey square in the top left corner."""
    y, x = np.mgrid[0:height, 0:width] / 24.0
    pictures = []
    for index in range(frames):
        waves = [127 + 80 * np.sin(x * a + y * b + index * 0.4) for a, b in ((1, 0.5), (0.4, 1), (0.8, -0.6))]
        picture = np.stack(waves, -1).round().astype(np.uint8)
        picture[: height // 4, : width // 4] = 20 + 10 * (index % 20)
        pictures.append(picture)
    return pictures


def deep_pictures(frames: int, width: int, height: int) -> list[np.ndarray]:
    """`moving_pictures` of 16 bits, with a slow gradient that 8 bits would make bands of."""
    gradient = np.linspace(-600, 600, width * height).reshape(height, width, 1)
    return [(picture * 250.0 + 900 + gradient).astype(np.uint16) for picture in moving_pictures(frames, width, height)]


def write_video(
    path: Path,
    pictures: list[np.ndarray],
    *,
    pts: list[int] | None = None,
    time_base: Fraction = Fraction(1, 12800),
    rotation: int | None = None,
    flips: tuple[bool, bool] = (False, False),
    sound_seconds: float = 0.0,
    codec: str = "libx264rgb",
    pix_fmt: str | None = None,
    aspect: Fraction = Fraction(1),
) -> Path:
    """Writes pictures losslessly (libx264rgb, ffv1 or png) at 25 frames per second or at given times.

    Pictures of 16 bits need a `pix_fmt` that holds more than 8.
    """
    height, width = pictures[0].shape[:2]
    step = int(1 / (25 * time_base))
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25, options={"qp": "0", "g": "10"} if "264" in codec else {})
        stream.width, stream.height = width, height
        stream.pix_fmt = pix_fmt or ("bgr0" if codec == "ffv1" else "rgb24")
        stream.time_base = stream.codec_context.time_base = time_base
        stream.codec_context.sample_aspect_ratio = aspect
        if rotation is not None:
            stream.set_display_rotation(rotation, hflip=flips[0], vflip=flips[1])
        sound = output.add_stream("aac", rate=SAMPLE_RATE, layout="mono") if sound_seconds else None
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb48le" if picture.dtype == np.uint16 else "rgb24")
            frame.pts, frame.time_base = (pts[index] if pts else index * step), time_base
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if sound is not None:
            write_sine(output, sound, sound_seconds)
    return path


def write_sine(output: av.container.OutputContainer, stream: av.audio.stream.AudioStream, seconds: float) -> None:
    """Encodes a rising tone."""
    samples = np.arange(int(seconds * SAMPLE_RATE))
    tone = np.sin(samples * (0.02 + samples * 2e-7)).astype(np.float32)
    for begin in range(0, len(tone), 1024):
        frame = av.AudioFrame.from_ndarray(tone[None, begin : begin + 1024], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, begin, Fraction(1, SAMPLE_RATE)
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def sound_packets(path: Path | str, kind: str = "audio") -> list[tuple[Fraction, bytes]]:
    """Time in seconds and bytes of every packet of the first stream of a kind."""
    with av.open(path) as container:
        stream = next((s for s in container.streams if s.type == kind), None)
        if stream is None:
            return []
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(stream) if p.dts is not None and p.size]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Of 8-bit arrays, dB; 100 where they are equal."""
    mean = np.mean((a.astype(np.float64) - b) ** 2)
    return 100.0 if mean == 0 else float(10 * np.log10(255**2 / mean))
