"""Writing RGB frames, with sound, to a video file: exact times, tagged colour, nothing half-finished left behind.

Knows encoders, containers and files. It does not know where frames come from or what a latent is.
"""

import contextlib
import errno
import math
import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import av
import numpy as np
from av.codec import Codec
from av.error import FFmpegError
from av.packet import Packet
from av.video.stream import VideoStream

from cvvae_cli.colour import FULL, RGB, Colour, RgbToFrame, has_subsampled_chroma
from cvvae_cli.errors import OutputError, UsageError
from cvvae_cli.sidecar import SidecarCopy

DEFAULT_CODECS = {
    ".mp4": "libx264",
    ".m4v": "libx264",
    ".mov": "libx264",
    ".mkv": "libx264",
    ".webm": "libvpx-vp9",
    ".png": "png",
}
"""What can be written, by the file's extension, and the encoder that is used unless another is asked for."""

DEFAULT_CRF = {"libx264": 16, "libx264rgb": 16, "libx265": 18, "libvpx-vp9": 24, "libsvtav1": 24, "libaom-av1": 24}
"""Fine enough that the encoder's loss stays well below a VAE's (x264 crf 16 gives 42-50 dB)."""

_RATE_OPTIONS = {"crf", "qp", "b", "q", "cq", "global_quality", "lossless", "x264-params", "x265-params"}
"""Options that choose the rate: one of these from the user switches our default crf off."""

_CODEC_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "libvpx-vp9": {"row-mt": "1", "cpu-used": "4", "deadline": "good"},
    "libx265": {"x265-params": "log-level=error"},
}
_LOSSLESS_FORMATS = {"ffv1": "bgr0", "libx264rgb": "bgr0", "png": "rgb24"}

_CODECS_WITH_ASPECT = {"libx264", "libx264rgb", "libx265"}
"""These write the pixel aspect into their own stream, so that any container keeps it."""

_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


class VideoWriter:
    """Encodes frames into a file that appears, whole, when the writer is closed.

    Until then everything goes to a hidden `.NAME.part.EXT` beside it, which is removed if anything fails.
    Use it as a context manager: leaving it with an exception (Ctrl-C too) discards the file.

    Attributes:
        path: the file.
        notes: one sentence for everything that could not be done exactly.
        frames: frames written so far.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        frame_rate: Fraction,
        time_base: Fraction,
        *,
        colour: Colour | None = None,
        sample_aspect_ratio: Fraction = Fraction(1),
        codec: str | None = None,
        crf: float | None = None,
        preset: str | None = None,
        pix_fmt: str | None = None,
        encoder_options: Mapping[str, str] | None = None,
        sidecar: BinaryIO | None = None,
        time_origin: Fraction = Fraction(0),
        sound_stop: Fraction | None = None,
        overwrite: bool = False,
    ) -> None:
        """Opens encoder and container; the file itself is not touched yet.

        Args:
            path: .mp4, .m4v, .mov, .mkv, .webm, or .png for a single frame.
            width: pixels, 1 or more; odd sizes are kept (as 4:4:4 where the encoder needs that).
            height: pixels, 1 or more.
            frame_rate: average frames per second; what the container states, the timestamps decide.
            time_base: seconds per tick of `write`'s times.
            colour: the source's description; what it leaves unsaid is chosen by size, used and tagged.
            sample_aspect_ratio: width of a pixel over its height.
            codec: FFmpeg's encoder; None chooses by the extension.
            crf: constant quality, smaller is better; None is 16 for x264 and alike values for others.
            preset: the encoder's; None is its own default (medium for x264).
            pix_fmt: None is yuv420p, yuv444p at odd sizes, or RGB for ffv1, libx264rgb and png.
            encoder_options: as `ffmpeg -NAME VALUE` has them.
            sidecar: sound and subtitles from `write_sidecar`, a file that stays open until the writer is closed.
            time_origin: moment of the source, in seconds, that becomes 0 in the file; video and sound alike.
            sound_stop: moment of the source, in seconds, from which on sound is left out; None takes all.
            overwrite: whether an existing file may be replaced.

        Raises:
            OutputError: the file exists, or its folder is missing or may not be written.
            UsageError: extension, codec, pixel format or option unknown, or not to be combined.
        """
        self.path = Path(path)
        self.frames = 0
        self._size = (height, width)
        self._time_base = Fraction(time_base)
        self._offset = round(Fraction(time_origin) / self._time_base)
        self._last_pts: int | None = None
        self._durations: dict[int, int] = {}
        self._overwrite = overwrite
        self._part = _part_of(self.path, overwrite)
        self._sidecar: SidecarCopy | None = None
        self._container: av.container.OutputContainer | None = None
        try:
            _create(self._part, self.path)
            suffix = self.path.suffix.lower()
            self._codec = codec or DEFAULT_CODECS[suffix]
            options = _container_options(suffix, self._time_base)
            self._container = av.open(f"file:{self._part}", "w", container_options=options)
            self._stream = self._add_stream(frame_rate, sample_aspect_ratio)
            pixels = pix_fmt or _default_format(self._stream.codec_context.codec, width, height)
            self._converter = self._set_pixels(pixels, colour or Colour())
            self._open_encoder(_encoder_options(self._codec, crf, preset, pixels, encoder_options or {}))
            self.notes: list[str] = []
            if sidecar is not None and suffix == ".png":
                self.notes.append("The sound was left out, since a picture holds none.")
            elif sidecar is not None:
                self._sidecar = SidecarCopy(sidecar, self._container, Fraction(time_origin), sound_stop)
                self.notes += self._sidecar.notes
            if sample_aspect_ratio != 1 and suffix in (".mkv", ".webm") and self._codec not in _CODECS_WITH_ASPECT:
                # PyAV cannot reach the Matroska header's display size
                self.notes.append(f"The pixel aspect {sample_aspect_ratio} is lost, since {self._codec} stores none.")
        except BaseException:
            self.abort()
            raise

    def _add_stream(self, frame_rate: Fraction, sample_aspect_ratio: Fraction) -> VideoStream:
        try:
            kind = Codec(self._codec, "w").type
        except ValueError:
            raise UsageError(f"There is no encoder {self._codec!r}; use libx264, libx265, libsvtav1 or ffv1.") from None
        if kind != "video":
            raise UsageError(f"{self._codec!r} does not encode video; use libx264, libx265, libsvtav1 or ffv1.")
        try:
            stream = self._container.add_stream(self._codec, rate=Fraction(frame_rate).limit_denominator(1_000_000))
        except ValueError:
            suffix = self.path.suffix
            raise UsageError(f"A {suffix} file cannot hold {self._codec}; choose another codec or container.") from None
        context = stream.codec_context
        context.height, context.width = self._size
        context.time_base = stream.time_base = self._time_base
        context.sample_aspect_ratio = sample_aspect_ratio
        context.thread_type = "AUTO"  # PyAV's SLICE makes x264 cut every frame into slices, which costs quality
        return stream

    def _set_pixels(self, pix_fmt: str, colour: Colour) -> RgbToFrame:
        """Chooses format and colour tags, and the conversion that makes them true."""
        context, (height, width) = self._stream.codec_context, self._size
        names = [pixels.name for pixels in context.codec.video_formats or ()]
        if names and pix_fmt not in names:
            raise UsageError(f"{self._codec} does not encode {pix_fmt!r}; use one of {', '.join(names)}.")
        try:
            is_rgb = av.VideoFormat(pix_fmt, width, height).is_rgb
        except ValueError:
            raise UsageError(f"There is no pixel format {pix_fmt!r}; use yuv420p or yuv444p.") from None
        tags = colour.for_yuv(height, width)
        if is_rgb:
            tags = Colour(RGB, FULL, colour.primaries, colour.transfer)
        context.pix_fmt = pix_fmt
        context.colorspace, context.color_range = tags.matrix, tags.range
        context.color_primaries, context.color_trc = tags.primaries, tags.transfer
        return RgbToFrame(width, height, pix_fmt, tags, self._time_base)

    def _open_encoder(self, options: dict[str, str]) -> None:
        context = self._stream.codec_context
        if self._codec == "libsvtav1":
            os.environ.setdefault("SVT_LOG", "1")  # else it reports on stderr, past every logger
        context.options = dict(options)
        try:
            context.open()
        except FFmpegError as error:
            height, width = self._size
            given = ", ".join(f"{key}={value}" for key, value in options.items())
            raise UsageError(
                f"{self._codec} refuses {width}x{height} {context.pix_fmt} with {given or 'no options'} "
                f"({error.strerror}); change --pix-fmt, --encoder-opt or --codec."
            ) from None
        if context.options:
            raise UsageError(f"{self._codec} has no option {', '.join(sorted(context.options))}; leave it out.")

    def write(self, rgb: np.ndarray, pts: int, duration: int) -> None:
        """Encodes one frame.

        Args:
            rgb: uint8 [height, width, 3].
            pts: when it is shown, in ticks of `time_base`, later than the frame before.
            duration: how long it is shown, ticks; it matters for the last frame.

        Raises:
            OutputError: the file cannot be written.
            UsageError: the frame has another size or type, or does not come later than the one before.
        """
        if rgb.shape != (*self._size, 3) or rgb.dtype != np.uint8:
            raise UsageError(f"A frame must be uint8 {(*self._size, 3)}; got {rgb.dtype} {rgb.shape}.")
        if self._last_pts is not None and pts <= self._last_pts:
            raise UsageError(f"Frame times must rise; got {pts} after {self._last_pts}, pass later times.")
        if self.frames and self._codec == "png":
            raise UsageError(f"{self.path} holds one frame and the video has more; write .mp4 or limit the frames to 1.")
        self._last_pts = pts
        shown = pts - self._offset
        self._durations[shown] = duration
        try:
            self._mux(self._stream.encode(self._converter(rgb, shown, duration)))
        except FFmpegError as error:
            raise self._failure(error) from None
        self.frames += 1

    def _mux(self, packets: list[Packet]) -> None:
        """Writes encoded frames and, before each, the sound that is due."""
        for packet in packets:
            packet.duration = self._durations.pop(packet.pts, packet.duration)
            if self._sidecar is not None:
                self._sidecar.advance(packet.dts * packet.time_base)
            self._container.mux(packet)

    def close(self) -> None:
        """Finishes the file and gives it its name.

        Raises:
            OutputError: no frame was written, or the file cannot be finished.
        """
        if self._container is None:
            return
        try:
            if not self.frames:
                raise OutputError(f"{self.path} was not written: there was no frame to write.")
            self._mux(self._stream.encode(None))
            if self._sidecar is not None:
                self._sidecar.advance(None)
            self._container.close()
            if self.path.exists() and not self._overwrite:
                raise _exists(self.path)
            os.replace(self._part, self.path)
        except (FFmpegError, OSError) as error:
            self.abort()
            raise self._failure(error) from None
        except BaseException:
            self.abort()
            raise
        self._container = None

    def abort(self) -> None:
        """Discards everything; the output's name is never touched."""
        if self._sidecar is not None:
            self._sidecar.close()
        if self._container is not None:
            try:
                self._container.close()
            except (FFmpegError, OSError):
                pass  # what is being thrown away need not be finished
        self._container = None
        with contextlib.suppress(OSError):  # it is not there where it could not be made
            self._part.unlink()

    def _failure(self, error: FFmpegError | OSError) -> OutputError:
        return _output_error(self.path, error)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def _exists(path: Path) -> OutputError:
    return OutputError(f"{path} exists already; pass -y (overwrite=True in Python) to replace it.")


def _output_error(path: Path, error: FFmpegError | OSError) -> OutputError:
    if error.errno in _FULL_DISK:
        return OutputError(f"{path} cannot be written: no space left; free some or write elsewhere.")
    if error.errno in _FORBIDDEN:
        return OutputError(f"{path} cannot be written: no permission for {path.parent}; write elsewhere.")
    return OutputError(f"{path} cannot be written ({error.strerror}); try another container or codec, or --no-audio.")


def _part_of(path: Path, overwrite: bool) -> Path:
    """Checks a name and returns that of the hidden file beside it."""
    if path.suffix.lower() not in DEFAULT_CODECS:
        raise UsageError(f"{path} must end in one of {', '.join(DEFAULT_CODECS)}; got {path.suffix or 'no extension'!r}.")
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file in it.")
    if path.exists() and not overwrite:
        raise _exists(path)
    if not path.parent.is_dir():
        raise OutputError(f"The folder {path.parent} does not exist; make it first.")
    return path.with_name(f".{path.stem}.part{path.suffix}")


def _create(part: Path, path: Path) -> None:
    """Makes the hidden file, so that a forbidden folder is known at once."""
    try:
        part.write_bytes(b"")
    except OSError as error:
        raise _output_error(path, error) from None


def _container_options(suffix: str, time_base: Fraction) -> dict[str, str]:
    """What keeps times exact: no shifting to 0, and MP4's list of edits in ticks that ours are multiples of."""
    if suffix == ".png":
        return {"update": "1"}
    options = {"avoid_negative_ts": "disabled"}
    if suffix in (".mp4", ".m4v", ".mov"):
        options["movie_timescale"] = str(time_base.denominator * math.ceil(1000 / time_base.denominator))
    return options


def _default_format(codec: Codec, width: int, height: int) -> str:
    names = [pixels.name for pixels in codec.video_formats or ()]
    if codec.name in _LOSSLESS_FORMATS:
        return _LOSSLESS_FORMATS[codec.name]
    if (width % 2 or height % 2) and "yuv444p" in names:
        return "yuv444p"
    return "yuv420p" if "yuv420p" in names or not names else names[0]


def _encoder_options(codec: str, crf: float | None, preset: str | None, pix_fmt: str, given: Mapping[str, str]) -> dict[str, str]:
    """The user's options over ours."""
    options = dict(_CODEC_OPTIONS.get(codec, {}))
    if has_subsampled_chroma(pix_fmt):
        options["chroma_sample_location"] = "left"
    if crf is None and codec in DEFAULT_CRF and not _RATE_OPTIONS & set(given):
        crf = DEFAULT_CRF[codec]
    if crf is not None:
        options["crf"] = f"{crf:g}"
    if preset is not None:
        options["preset"] = preset
    return options | {key: str(value) for key, value in given.items()}
