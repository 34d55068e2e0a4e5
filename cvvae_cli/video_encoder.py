"""RGB frames to packets, segment by segment: every segment has an encoder of its own and refers to no other.

Knows codecs, their options and pixel formats. Where packets go is unknown here.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.codec import Codec, CodecContext
from av.error import FFmpegError
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext

from cvvae_cli.colour import FULL, RGB, Colour, RgbToFrame, has_subsampled_chroma, is_deep
from cvvae_cli.cpu_info import cpu_field
from cvvae_cli.errors import UsageError

DEFAULT_CRF = {"libx264": 16, "libx264rgb": 16, "libx265": 18, "libvpx-vp9": 24, "libsvtav1": 24, "libaom-av1": 24}
"""Fine enough that the encoder's loss stays well below a VAE's (x264 crf 16 gives 42-50 dB)."""

CODECS_WITH_ASPECT = {"libx264", "libx264rgb", "libx265"}
"""These write the pixel aspect into their own stream, so that any container keeps it."""

_RATE_OPTIONS = {"crf", "qp", "b", "q", "cq", "global_quality", "lossless", "x264-params", "x265-params"}
"""Options that choose the rate: one of these from the user switches our default crf off."""

_CODEC_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "libvpx-vp9": {"row-mt": "1", "cpu-used": "4", "deadline": "good"},
    "libx265": {"x265-params": "log-level=error"},
    "mjpeg": {"flags": "+qscale", "global_quality": "236"},  # q 2, in FFmpeg's units of 1/118: its finest but one
    "libwebp": {"lossless": "1"},
}
_DEEP_FORMATS = {"ffv1": ["gbrp10le"], "png": ["rgb48be"]}
_DEFAULT_FORMATS = {"ffv1": "bgr0", "libx264rgb": "bgr0", "png": "rgb24", "libwebp": "bgra", "mjpeg": "yuv444p"}


@dataclass(frozen=True)
class Pictures:
    """What is encoded.

    Attributes:
        width, height: pixels, 1 or more.
        frame_rate: average frames per second.
        time_base: seconds per tick.
        sample_aspect_ratio: width of a pixel over its height.
        colour: the source's description; what it leaves unsaid is chosen by size.
    """

    width: int
    height: int
    frame_rate: Fraction
    time_base: Fraction
    sample_aspect_ratio: Fraction = Fraction(1)
    colour: Colour = Colour()


@dataclass(frozen=True)
class Encoding:
    """How it is encoded.

    Attributes:
        codec: FFmpeg's encoder.
        crf: constant quality, smaller is better; None is `DEFAULT_CRF`.
        preset: the encoder's; None is its own default.
        pix_fmt: None is yuv420p, yuv444p at odd sizes and for mjpeg, or RGB for ffv1, libx264rgb, png and libwebp.
        options: as `ffmpeg -NAME VALUE` has them, over ours.
        depth: bits per component of the pixel format, 8 or 10, where none is named.
    """

    codec: str
    crf: float | None = None
    preset: str | None = None
    pix_fmt: str | None = None
    options: tuple[tuple[str, str], ...] = ()
    depth: int = 8


class VideoEncoder:
    """Encodes frames.

    Args:
        pictures: what comes in.
        encoding: how to encode.
        flags: of the context of the stream that will hold the packets.
        context: the stream's own, where all is encoded as one segment; None makes one for each segment.

    Attributes:
        deep: the pixel format has more than 8 bits, so that frames of 16 bits come out better.

    Raises:
        UsageError: pixel format or option unknown, or not to be combined.
    """

    def __init__(self, pictures: Pictures, encoding: Encoding, flags: int, context: VideoCodecContext | None = None) -> None:
        self.pictures, self.encoding = pictures, encoding
        codec = Codec(encoding.codec, "w")
        self._pixels = encoding.pix_fmt or _default_format(codec, pictures.width, pictures.height, encoding.depth)
        self._tags = _tags(codec, self._pixels, pictures)
        self._flags, self._options = flags, _options(encoding, self._pixels)
        self.deep = is_deep(self._pixels)
        if encoding.depth > 8 and not self.deep:
            raise UsageError(f"{self._pixels} has 8 bits, and the depth asked for is {encoding.depth}; leave out one of the two.")
        self._converters: dict[bool, RgbToFrame] = {}
        self._last_pts: int | None = None
        if context is not None:
            self.open(context)
        self._context: VideoCodecContext | None = context or self._fresh()

    def encode(self, rgb: np.ndarray, pts: int, duration: int) -> list[Packet]:
        """Packets that are ready once this frame is in.

        Args:
            rgb: uint8 or uint16 [height, width, 3].
            pts: when it is shown, ticks, later than the frame before.
            duration: ticks.

        Raises:
            UsageError: the frame has another size or type, or does not come later than the one before.
            FFmpegError: the encoder fails.
        """
        size = (self.pictures.height, self.pictures.width, 3)
        if rgb.shape != size or rgb.dtype not in (np.uint8, np.uint16):
            raise UsageError(f"A frame must be uint8 or uint16 {size}; got {rgb.dtype} {rgb.shape}.")
        if self._last_pts is not None and pts <= self._last_pts:
            raise UsageError(f"Frame times must rise; got {pts} after {self._last_pts}, pass later times.")
        self._last_pts = pts
        if self._context is None:
            self._context = self._fresh()
        deep = rgb.dtype == np.uint16
        if deep not in self._converters:
            height, width, _ = size
            self._converters[deep] = RgbToFrame(width, height, self._pixels, self._tags, self.pictures.time_base, deep)
        return self._context.encode(self._converters[deep](rgb, pts, duration))

    def end_segment(self) -> list[Packet]:
        """The packets that were held back; the next frame begins a new segment.

        Raises:
            FFmpegError: the encoder fails.
        """
        assert self._context is not None
        packets = self._context.encode(None)
        self._context = None
        return packets

    def _fresh(self) -> VideoCodecContext:
        context = CodecContext.create(self.encoding.codec, "w")
        assert isinstance(context, VideoCodecContext)
        context.flags = self._flags
        self.open(context)
        return context

    def open(self, context: VideoCodecContext) -> None:
        """Open an encoder, a segment's or the stream's own, whose packets describe themselves alike.

        Raises:
            UsageError: it refuses what it shall do.
        """
        pictures, tags = self.pictures, self._tags
        context.width, context.height = pictures.width, pictures.height
        context.time_base = pictures.time_base
        context.framerate = Fraction(pictures.frame_rate).limit_denominator(1_000_000)
        context.sample_aspect_ratio = pictures.sample_aspect_ratio
        context.thread_type = "AUTO"  # PyAV's SLICE makes x264 cut every frame into slices, which costs quality
        context.pix_fmt = self._pixels
        context.colorspace, context.color_range = tags.matrix, tags.range
        context.color_primaries, context.color_trc = tags.primaries, tags.transfer
        if self.encoding.codec == "libsvtav1":
            os.environ.setdefault("SVT_LOG", "1")  # else it reports on stderr, past every logger
        context.options = dict(self._options)
        try:
            context.open()
        except FFmpegError as error:
            given = ", ".join(f"{key}={value}" for key, value in self._options.items())
            raise UsageError(
                f"{self.encoding.codec} refuses {pictures.width}x{pictures.height} {self._pixels} with {given or 'no options'} "
                f"({error.strerror}); change --pix-fmt, --encoder-opt or --codec."
            ) from None
        if context.options:
            unknown = ", ".join(sorted(context.options))
            raise UsageError(f"{self.encoding.codec} has no option {unknown}; leave it out.")


def _tags(codec: Codec, pix_fmt: str, pictures: Pictures) -> Colour:
    """The colour that the packets are tagged with."""
    names = [pixels.name for pixels in codec.video_formats or ()]
    if names and pix_fmt not in names:
        raise UsageError(f"{codec.name} does not encode {pix_fmt!r}; use one of {', '.join(names)}.")
    try:
        is_rgb = av.VideoFormat(pix_fmt, pictures.width, pictures.height).is_rgb
    except ValueError:
        raise UsageError(f"There is no pixel format {pix_fmt!r}; use yuv420p or yuv444p.") from None
    colour = pictures.colour
    return Colour(RGB, FULL, colour.primaries, colour.transfer) if is_rgb else colour.for_yuv(pictures.height, pictures.width)


def _default_format(codec: Codec, width: int, height: int, depth: int) -> str:
    names = [pixels.name for pixels in codec.video_formats or ()]
    if depth > 8:
        return _ten_bit_format(codec, names, bool(width % 2 or height % 2))
    if codec.name in _DEFAULT_FORMATS:
        return _DEFAULT_FORMATS[codec.name]
    if (width % 2 or height % 2) and "yuv444p" in names:
        return "yuv444p"
    return "yuv420p" if "yuv420p" in names or not names else names[0]


def _ten_bit_format(codec: Codec, names: list[str], odd: bool) -> str:
    wanted = [*_DEEP_FORMATS.get(codec.name, ()), *(["yuv444p10le"] if odd else []), "yuv420p10le", "yuv422p10le"]
    found = next((name for name in wanted if name in names), None)
    if found is None:
        raise UsageError(f"{codec.name} makes no 10-bit video; use libx264, libx265, libsvtav1 or ffv1, or leave out --depth.")
    return found


def _options(encoding: Encoding, pix_fmt: str) -> dict[str, str]:
    """The user's options over ours."""
    codec, crf, given = encoding.codec, encoding.crf, dict(encoding.options)
    options = dict(_CODEC_OPTIONS.get(codec, {}))
    if codec in ("libx264", "libx264rgb") and "avx512f" in cpu_field("flags").split():
        # x264 165 reads memory that it has not written in its AVX-512 code (mbtree with B-frames): files differ run by run.
        given["x264-params"] = ":".join(filter(None, ["asm=AVX2", given.get("x264-params")]))
    if has_subsampled_chroma(pix_fmt):
        options["chroma_sample_location"] = "left"
    if crf is None and codec in DEFAULT_CRF and not _RATE_OPTIONS & {key for key, _ in encoding.options}:
        crf = DEFAULT_CRF[codec]
    if crf is not None:
        options["crf"] = f"{crf:g}"
    if encoding.preset is not None:
        options["preset"] = encoding.preset
    return options | {key: str(value) for key, value in given.items()}
