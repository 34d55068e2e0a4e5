"""What a video is: size, rate, colour, orientation and streams, from its headers and its first frame.

Decodes nothing itself; `video_io` brings the first frame.
"""

from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from cvvae_cli.checked_values import number_of, ratio_of, text_of, whole_of
from cvvae_cli.colour import UNSPECIFIED, Colour, Orientation, colour_of
from cvvae_cli.exif import UPRIGHT, exif_orientation
from cvvae_cli.media import MICROSECONDS, codec_name, open_input

LONGEST_SIDE = 2**16
"""Pixels of width or height that a description may state; no encoder at hand takes more."""
_STANDARD_RATES = [Fraction(n, 1001) for n in (24000, 30000, 48000, 60000, 120000)] + [
    Fraction(n) for n in (10, 12, 15, 20, 24, 25, 30, 48, 50, 60, 90, 100, 120, 240)
]
_MAX_BELIEVED_RATE = 480
"""Containers that count milliseconds state 1000 frames per second when they state nothing."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video is, from its headers and its first frame.

    Attributes:
        width: pixels as stored, upright (after rotation), without stretching by the pixel aspect.
        height: pixels, likewise.
        frame_rate: average frames per second, never 0.
        time_base: seconds per tick of timestamps.
        num_frames: what the container claims; None where it says nothing. Only reading tells for sure.
        duration_seconds: what the container claims, or None.
        sample_aspect_ratio: width over height of a pixel, upright.
        rotation: degrees anticlockwise that the stored pictures are turned by to be upright: 0, 90, 180, 270.
        pix_fmt: FFmpeg's name of the stored pixel format.
        bit_depth: bits per component as stored.
        colour: as tagged.
        codec: FFmpeg's name of the video codec.
        audio_codecs: one name per audio stream.
        subtitle_codecs: one name per subtitle stream.
    """

    width: int
    height: int
    frame_rate: Fraction
    time_base: Fraction
    num_frames: int | None
    duration_seconds: float | None
    sample_aspect_ratio: Fraction
    rotation: int
    pix_fmt: str
    bit_depth: int
    colour: Colour
    codec: str
    audio_codecs: tuple[str, ...]
    subtitle_codecs: tuple[str, ...]

    def to_dict(self) -> dict:
        """A JSON-ready dictionary; fractions are "n/d" strings."""
        fractions = {
            key: f"{value.numerator}/{value.denominator}" for key, value in vars(self).items() if isinstance(value, Fraction)
        }
        lists = {"audio_codecs": list(self.audio_codecs), "subtitle_codecs": list(self.subtitle_codecs)}
        return asdict(self) | fractions | lists

    @classmethod
    def from_dict(cls, values: dict) -> "VideoInfo":
        """The inverse of `to_dict`, of which nothing is believed; keys of later versions are ignored.

        Raises:
            KeyError, ValueError, TypeError: the dictionary was not made by `to_dict`.
        """
        known = {key: values[key] for key in cls.__dataclass_fields__}
        for key in ("frame_rate", "time_base", "sample_aspect_ratio"):
            known[key] = ratio_of(known[key])
        for key in ("width", "height"):
            known[key] = whole_of(known[key], 1, LONGEST_SIDE)
        whole_of(known["rotation"], 0, 359)
        whole_of(known["bit_depth"], 1, 64)
        if known["num_frames"] is not None:
            whole_of(known["num_frames"], 0, 2**63 - 1)
        if known["duration_seconds"] is not None:
            number_of(known["duration_seconds"])
        for key in ("pix_fmt", "codec"):
            text_of(known[key])
        for key in ("audio_codecs", "subtitle_codecs"):
            known[key] = tuple(text_of(codec) for codec in known[key])
        codes = {key: whole_of(known["colour"][key], 0, 255) for key in Colour.__dataclass_fields__}
        return cls(**known | {"colour": Colour(**codes)})


def orientation_of(container: InputContainer, frame: VideoFrame, path: Path) -> tuple[Orientation, int]:
    """How to turn frames upright, and the same as degrees anticlockwise."""
    rotation = frame.rotation % 360
    from_rotation = Orientation.from_rotation(rotation)
    # PyAV 18 frees the name of a PNG's colour profile twice when side data is looked at, and fails on EXIF:
    # pictures are asked for their EXIF data by ourselves, PNG frames of videos for their rotation only
    if container.format.name == "image2" or container.format.name.endswith("_pipe"):
        number = exif_orientation(path)
        return (from_rotation if number == UPRIGHT else Orientation.from_exif(number)), rotation
    if "rgb" in frame.format.name:
        return from_rotation, rotation
    try:
        matrix = frame.side_data[SideDataType.DISPLAYMATRIX]
    except (KeyError, ValueError):
        return from_rotation, rotation
    return Orientation.from_matrix(np.frombuffer(bytes(matrix), np.int32)), rotation


def describe_video(
    container: InputContainer,
    stream: VideoStream,
    frame: VideoFrame,
    orientation: Orientation,
    rotation: int,
    path: Path,
) -> VideoInfo:
    """Puts together what headers and first frame say; where they differ the frame is right."""
    width, height = (frame.height, frame.width) if orientation.transposed else (frame.width, frame.height)
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    aspect = aspect if aspect > 0 else Fraction(1)
    seconds = stream.duration * stream.time_base if stream.duration else Fraction(container.duration or 0, MICROSECONDS)
    context, seen = stream.codec_context, colour_of(frame)
    return VideoInfo(
        width=width,
        height=height,
        frame_rate=_frame_rate(stream, path),
        time_base=Fraction(stream.time_base),
        num_frames=stream.frames or None,
        duration_seconds=float(seconds) or None,
        sample_aspect_ratio=1 / aspect if orientation.transposed else aspect,
        rotation=rotation,
        pix_fmt=frame.format.name,
        bit_depth=max(component.bits for component in frame.format.components),
        colour=Colour(
            int(context.colorspace) if seen.matrix == UNSPECIFIED else seen.matrix,
            seen.range or int(context.color_range),
            int(context.color_primaries) if seen.primaries == UNSPECIFIED else seen.primaries,
            int(context.color_trc) if seen.transfer == UNSPECIFIED else seen.transfer,
        ),
        codec=codec_name(stream),
        audio_codecs=tuple(codec_name(s) for s in container.streams if s.type == "audio"),
        subtitle_codecs=tuple(codec_name(s) for s in container.streams if s.type == "subtitle"),
    )


def _frame_rate(stream: VideoStream, path: Path) -> Fraction:
    """The average frame rate: the container's where it can be believed, else measured, else a guess."""
    for rate in (stream.average_rate, _measured_rate(stream.index, path) if _doubtful(stream.average_rate) else None):
        if not _doubtful(rate):
            return Fraction(rate)
    guess = stream.guessed_rate
    return Fraction(25) if _doubtful(guess) or guess * stream.time_base == 1 else Fraction(guess)


def _doubtful(rate: Fraction | None) -> bool:
    return not rate or not 0 < rate <= _MAX_BELIEVED_RATE


def _measured_rate(index: int, path: Path) -> Fraction | None:
    """Frames per second over the first packets of a stream, read without decoding; standard rates are recognised."""
    times: list[int] = []
    with open_input(path) as container:
        stream = container.streams[index]
        packets = container.demux(stream)
        try:
            for packet in packets:
                if packet.pts is not None:
                    times.append(packet.pts)
                if len(times) == 240:
                    break
        except FFmpegError:
            pass  # what was read before the damage is enough
        packets.close()
        if len(times) < 2 or max(times) == min(times):
            return None
        rate = (len(times) - 1) / ((max(times) - min(times)) * Fraction(stream.time_base))
    nearest = min(_STANDARD_RATES, key=lambda standard: abs(standard - rate))
    return nearest if abs(nearest - rate) < rate / 200 else rate.limit_denominator(1000)
