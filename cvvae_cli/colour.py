"""Between a video's pixels and RGB of 8 or 16 bits: matrix, range, chroma siting, size and orientation.

Nothing here knows files or time. Codes are FFmpeg's AVCOL_* numbers (those of ITU-T H.273); 2 means that the
source does not say, in matrix, primaries and transfer, and 0 in range. Transfer and primaries are passed on,
never converted: HDR codes come through as they are.

swscale's defaults are wrong for our purpose in three ways that are all measured: RGB to YUV is always BT.601,
the fast YUV to RGB path darkens by more than one level, and chroma of frames made from arrays is sited in the
centre while H.264 and its successors mean left. With 16 bits there is a fourth: white is not 65535 wherever YUV is
read or written (see `_to_whole_scale`, `RgbToFrame`).
"""

import os
from dataclasses import asdict, dataclass
from fractions import Fraction

import av
import numpy as np
from av.filter import Graph
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from cvvae_cli.geometry import DEEP_LEVELS

UNSPECIFIED = 2
LIMITED, FULL = 1, 2
RGB, BT709, BT601 = 0, 1, 6

_TO_SWSCALE = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}
_TO_SCALE_FILTER = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}

_READ_FLAGS = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
"""Bicubic and not bilinear: over a YUV -> RGB -> YUV identity it loses 3-5 dB less of the chroma of real clips."""

_THREADS = min(4, os.cpu_count() or 1)
"""Of swscale, per stream: more gain little on one frame and would starve the network."""

_ALWAYS_FULL_RANGE = ("gray", "ya", "xyz")
"""How the names of formats begin that are neither RGB nor YUV; swscale heeds no range of theirs."""

_WRITE_FLAGS = "lanczos+accurate_rnd+full_chroma_int"


@dataclass(frozen=True)
class Colour:
    """The colour description of a source, as its tags give it.

    Attributes:
        matrix: AVCOL_SPC_*: 1 = BT.709, 5 and 6 = BT.601, 9 = BT.2020, 0 = RGB, 2 = not stated.
        range: AVCOL_RANGE_*: 1 = limited (16..235), 2 = full (0..255), 0 = not stated (limited).
        primaries: AVCOL_PRI_*.
        transfer: AVCOL_TRC_*: 16 = PQ, 18 = HLG.
    """

    matrix: int = UNSPECIFIED
    range: int = 0
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED

    def assumed_matrix(self, height: int, width: int) -> int:
        """The matrix to compute with: the stated one, or what players assume where none (or RGB) is stated.

        Args:
            height: of the frame, pixels.
            width: of the frame, pixels.

        Returns:
            A code that swscale knows: BT.709 for untagged HD (720 lines or 1280 columns and more) and for
            RGB sources, BT.601 for untagged SD.
        """
        if self.matrix in _TO_SWSCALE:
            return self.matrix
        return BT709 if self.matrix == RGB or height >= 720 or width >= 1280 else BT601

    def for_yuv(self, height: int, width: int) -> "Colour":
        """The description to write a YUV file of this size with: nothing of matrix and range left unsaid."""
        full = self.range == FULL and self.matrix != RGB
        matrix = self.assumed_matrix(height, width)
        return Colour(matrix, FULL if full else LIMITED, self.primaries, self.transfer)

    def to_dict(self) -> dict[str, int]:
        """A JSON-ready dictionary."""
        return asdict(self)


def colour_of(frame: VideoFrame) -> Colour:
    """What a decoded frame says about its colour; JPEG pixel formats count as full range."""
    full = frame.format.name.startswith("yuvj")
    return Colour(
        int(frame.colorspace), FULL if full else int(frame.color_range), int(frame.color_primaries), int(frame.color_trc)
    )


@dataclass(frozen=True)
class Orientation:
    """How stored pixels become upright: first transposed, then mirrored.

    Attributes:
        transposed: rows become columns.
        flip_x: left and right change places (after transposing).
        flip_y: top and bottom change places (after transposing).
    """

    transposed: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> "Orientation":
        """From the nine integers of a display matrix, rounded to the nearest right angle.

        Args:
            matrix: int32 [9], [a b u c d v x y w]: stored (x, y) is shown at (ax + cy, bx + dy).
        """
        a, b, c, d = (int(matrix[i]) for i in (0, 1, 3, 4))
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(True, c < 0, b < 0)
        return cls(False, a < 0, d < 0)

    @classmethod
    def from_rotation(cls, degrees: int) -> "Orientation":
        """From an anticlockwise rotation in degrees, rounded to the nearest right angle."""
        quarter = round(degrees / 90) % 4
        return cls(quarter in (1, 3), quarter in (2, 3), quarter in (1, 2))

    @classmethod
    def from_exif(cls, number: int) -> "Orientation":
        """From EXIF's number, 1 to 8: where the stored picture's first row and column belong."""
        return cls(number >= 5, number in (2, 3, 6, 7), number in (3, 4, 7, 8))

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Turns an image [H, W, 3] upright; the result is contiguous."""
        if self.transposed:
            pixels = pixels.transpose(1, 0, 2)
        if self.flip_x:
            pixels = pixels[:, ::-1]
        if self.flip_y:
            pixels = pixels[::-1]
        return np.ascontiguousarray(pixels)


class FrameToRgb:
    """Decoded frames of one stream to upright RGB of one size, of 8 or 16 bits.

    Memory: one swscale context for the whole stream; a context per frame, which frame.to_ndarray would make,
    is three times slower and leaks.
    """

    def __init__(self, colour: Colour, orientation: Orientation, width: int, height: int, deep: bool = False) -> None:
        """
        Args:
            colour: stands in for what single frames leave unsaid.
            orientation: applied after the conversion.
            width: of the result, upright, pixels.
            height: of the result, upright, pixels.
            deep: give 16 bits.
        """
        self._colour = colour
        self._deep = deep
        self._orientation = orientation
        self._stored = (height, width) if orientation.transposed else (width, height)
        self._reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        """Converts one frame.

        Returns:
            uint8 [height, width, 3], white 255, or uint16, white 65535, where `deep`; alpha is ignored.
        """
        colour = colour_of(frame)
        if colour.matrix == UNSPECIFIED:
            colour = Colour(self._colour.matrix, colour.range)
        full = (colour.range or self._colour.range) == FULL
        stored = max(component.bits for component in frame.format.components)
        deep = self._deep and stored > 8
        rgb = self._reformatter.reformat(
            frame,
            width=self._stored[0],
            height=self._stored[1],
            format="rgb48le" if deep else "rgb24",
            src_colorspace=_TO_SWSCALE[colour.assumed_matrix(frame.height, frame.width)],
            src_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG,
            interpolation=_READ_FLAGS,
            threads=_THREADS,
        )
        pixels = self._orientation.apply(rgb.to_ndarray())
        if deep:
            resized = (frame.width, frame.height) != self._stored
            return _to_whole_scale(pixels, _white_bits(frame.format, min(stored, 16), full, resized))
        return pixels * np.uint16(DEEP_LEVELS) if self._deep else pixels


def _white_bits(pixels: VideoFormat, stored: int, full: bool, resized: bool) -> int:
    """How many of the 16 bits are ones where swscale gives white, in formats of `stored` bits, 9 to 16."""
    if pixels.is_rgb:
        return stored if resized else 16
    return stored if full or pixels.name.startswith(_ALWAYS_FULL_RANGE) else 8


def _to_whole_scale(rgb: np.ndarray, bits: int) -> np.ndarray:
    """Stretches 16-bit RGB so that white, which has ones in its first `bits` bits alone, becomes 65535; above it is white too.

    swscale shifts: full-range YUV (and RGB that is resized) of 10 bits has white at 1023 * 64. Limited range ends at 255 * 256
    whatever its depth, since its factors are those of 8 bits.
    """
    if bits == 16:
        return rgb
    white = np.uint16(65535 - (65535 >> bits))
    rgb = np.minimum(rgb, white)
    rgb += rgb >> bits
    return rgb


class RgbToFrame:
    """RGB images of 8 or 16 bits to frames that an encoder takes, in the matrix, range and siting that are tagged."""

    def __init__(self, width: int, height: int, pix_fmt: str, colour: Colour, time_base: Fraction, deep: bool = False) -> None:
        """
        Args:
            width: pixels.
            height: pixels.
            pix_fmt: FFmpeg's name of the encoder's pixel format.
            colour: complete (`Colour.for_yuv`); of no effect for RGB formats.
            time_base: seconds per tick of the frames' timestamps.
            deep: the images have 16 bits.
        """
        self._colour = colour
        self._source = "rgb48le" if deep else "rgb24"
        self._is_rgb = VideoFormat(pix_fmt, width, height).is_rgb
        self._graph = Graph()
        source = self._graph.add_buffer(width=width, height=height, format=self._source, time_base=time_base)
        scale = self._graph.add("scale", self._scale_arguments(has_subsampled_chroma(pix_fmt)))
        pixels = self._graph.add("format", f"pix_fmts={pix_fmt}")
        sink = self._graph.add("buffersink")
        source.link_to(scale)
        scale.link_to(pixels)
        pixels.link_to(sink)
        self._graph.configure()
        self._time_base = time_base

    def _scale_arguments(self, subsampled: bool) -> str:
        if self._is_rgb:
            return f"flags={_WRITE_FLAGS}"
        matrix = _TO_SCALE_FILTER[self._colour.matrix]
        limits = "pc" if self._colour.range == FULL else "tv"
        siting = ":out_chroma_loc=left" if subsampled else ""
        return f"out_color_matrix={matrix}:in_range=pc:out_range={limits}:flags={_WRITE_FLAGS}{siting}"

    def __call__(self, rgb: np.ndarray, pts: int, duration: int) -> VideoFrame:
        """Converts one image.

        Args:
            rgb: uint8 [height, width, 3], uint16 where `deep`.
            pts: ticks.
            duration: ticks.

        Returns:
            A tagged frame with its time.
        """
        if rgb.dtype == np.uint16 and not self._is_rgb:
            # swscale takes 255 * 256 for white where it makes YUV of 16 bits, and would be 1/256 too bright.
            rgb = rgb - (rgb >> 8)
        image = VideoFrame.from_ndarray(np.ascontiguousarray(rgb), self._source)
        image.pts, image.time_base = pts, self._time_base
        self._graph.push(image)
        frame = self._graph.pull()
        frame.pts, frame.time_base, frame.duration = pts, self._time_base, duration
        if not self._is_rgb:
            frame.colorspace, frame.color_range = self._colour.matrix, self._colour.range
        frame.color_primaries, frame.color_trc = self._colour.primaries, self._colour.transfer
        return frame


def is_deep(pix_fmt: str) -> bool:
    """Whether a pixel format stores more than 8 bits per component."""
    return av.VideoFormat(pix_fmt, 16, 16).components[0].bits > 8


def has_subsampled_chroma(pix_fmt: str) -> bool:
    """Whether a pixel format stores chroma at half width (4:2:0, 4:2:2), where siting matters."""
    pixels = av.VideoFormat(pix_fmt, 16, 16)
    return not pixels.is_rgb and pixels.chroma_width(16) < 16
