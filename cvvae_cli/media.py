"""Opening media files for reading, and saying in one sentence why one cannot be read.

Knows containers, streams and FFmpeg's errors. It does not know pixels, colour or what the frames are for.
"""

import errno
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.stream import VideoStream

from cvvae_cli.errors import OutputError, UsageError, VideoError
from cvvae_cli.picture_sequence import (
    DEFAULT_RATE,
    PictureSequence,
    find_sequence,
    is_picture_of,
    is_sequence,
    picture_numbers,
    picture_path,
)

MICROSECONDS = 1_000_000
"""FFmpeg's AV_TIME_BASE: containers give their start and duration in these units."""

DESCRIPTORS = Path("/dev/fd")
"""Where this process's open files have paths."""

_TEXT_FORMATS = {"tty", "ansi", "bin", "xbin", "idf", "adf"}
"""FFmpeg draws text files as videos of a terminal; nobody who passes us notes.txt means that."""

_POINTERS = {
    "concat", "hls", "dash", "webm_dash_manifest", "imf", "sdp", "rtsp", "rtp", "rtp_mpegts", "sap", "lavfi", "vobsub",
    "alsa", "oss", "fbdev", "kmsgrab", "x11grab", "video4linux2", "v4l2",
}  # fmt: skip
"""Formats that name other files, addresses or devices to be opened: a video from a stranger must not."""

_FORMATS = ",".join(sorted({name for names in av.formats_available for name in names.split(",")} - _POINTERS))

_OPEN_OPTIONS = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
"""PyAV 18 refuses a file for one wrong letter in its title unless told otherwise; 19 replaces it by itself."""


def open_input(path: Path, frame_rate: Fraction | None = None) -> InputContainer:
    """Opens a media file of this machine, and no other that it names.

    Args:
        path: the file, or a pattern of numbered pictures. Names with colons or leading dashes are names, not
            protocols or options.
        frame_rate: of numbered pictures, per second; None is 24.

    Returns:
        The open container; the caller closes it.

    Raises:
        VideoError: the file is missing, unreadable, empty, cut off, or not a media file.
    """
    if path.is_dir():
        raise VideoError(f"{path} is a folder; name a video file in it.")
    try:
        if is_sequence(path):
            container = _open_sequence(find_sequence(path), frame_rate or DEFAULT_RATE)
        else:
            container = av.open(f"file:{path}", options={"format_whitelist": _FORMATS}, **_OPEN_OPTIONS)
    except FFmpegError as error:
        if error.errno == errno.EINVAL:  # so FFmpeg refuses a format that was not allowed
            raise VideoError(f"{named(path)} names other files instead of holding a video; name the video itself.") from None
        raise read_error(path, error) from None
    except UnicodeError:
        raise VideoError(f"{str(path)!r} is not a name that FFmpeg can open; rename the file.") from None
    if container.format.name in _TEXT_FORMATS:
        container.close()
        raise VideoError(f"{named(path)} is a text file, not a video; check the path.")
    return container


def _open_sequence(sequence: PictureSequence, frame_rate: Fraction) -> InputContainer:
    options = {"framerate": str(frame_rate), "start_number": str(sequence.first), "pattern_type": "sequence"}
    return av.open(f"file:{sequence.pattern}", format="image2", options=options)


def named(path: Path) -> str:
    """How a sentence names an input; the standard input comes as a file descriptor's path."""
    return "The standard input" if path.parent == DESCRIPTORS else str(path)


def read_error(path: Path, error: FFmpegError) -> VideoError:
    """Turns a failure of FFmpeg on an input into one sentence.

    Args:
        path: the input.
        error: what FFmpeg raised.

    Returns:
        The error to raise.
    """
    if error.errno == errno.ENOENT:
        return VideoError(f"{named(path)} does not exist; check the path.")
    if error.errno in (errno.EACCES, errno.EPERM):
        return VideoError(f"{named(path)} may not be read by this user; change its permissions.")
    if not isinstance(error, av.error.InvalidDataError):
        return VideoError(f"{named(path)} cannot be read ({error.strerror}); check the disk or convert the file with ffmpeg.")
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        head = b"?"
    if not head:
        return VideoError(f"{named(path)} is empty; copy it again.")
    if head[4:8] in (b"ftyp", b"mdat", b"wide", b"free"):
        return VideoError(
            f"{named(path)} is an MP4 or MOV file without its index (moov), as an unfinished recording or download leaves "
            "it; copy it again or repair it."
        )
    return VideoError(f"{named(path)} is not a video, or is damaged at its beginning; check the path or copy it again.")


def video_streams(container: InputContainer) -> list[VideoStream]:
    """The streams that show a video, without cover art and thumbnails."""
    side_show = Disposition.attached_pic | Disposition.timed_thumbnails
    return [stream for stream in container.streams.video if not stream.disposition & side_show]


def video_stream(container: InputContainer, path: Path, wanted: int | None = None) -> VideoStream:
    """The video stream to read.

    Args:
        container: the open file.
        path: its path.
        wanted: the stream's number in the file; None takes the first that is neither cover art nor a thumbnail.

    Raises:
        UsageError: there is no video stream of that number.
        VideoError: there is none, or FFmpeg here has no decoder for it, or it is one tile of a picture.
    """
    streams = video_streams(container)
    if not streams:
        kinds = sorted({stream.type for stream in container.streams if stream.type != "video"})
        found = f" (only {' and '.join(kinds)})" if kinds else ""
        raise VideoError(f"{named(path)} has no video stream{found}; name a file with a picture track.")
    if any(s.disposition & Disposition.dependent for s in streams) and not any(
        s.disposition & Disposition.default for s in streams
    ):
        raise VideoError(f"{named(path)} is a picture stored in tiles (HEIC), which cannot be put together; convert it to PNG.")
    if wanted is not None:
        numbers = [stream.index for stream in streams]
        if wanted not in numbers:
            raise UsageError(f"{named(path)} has no video stream {wanted}; choose --stream from {', '.join(map(str, numbers))}.")
        streams = [streams[numbers.index(wanted)]]
    for stream in streams:
        if stream.codec_context is not None:
            return stream
    raise VideoError(f"{named(path)} is in a format that this FFmpeg cannot decode; convert a video to H.264, a picture to PNG.")


def timeline_start(container: InputContainer) -> Fraction:
    """The moment, in seconds of the container's timestamps, that a player shows as 0:00.

    `--start` counts from here, for video and sound alike.
    """
    return Fraction(container.start_time or 0, MICROSECONDS)


def codec_name(stream: av.stream.Stream) -> str:
    """FFmpeg's name of a stream's codec ("aac", "subrip"), or "unknown" where it cannot be decoded."""
    return stream.codec_context.codec.canonical_name if stream.codec_context is not None else "unknown"


def keep_inputs(output: str | Path, *inputs: str | Path) -> None:
    """Refuse an output that is one of the inputs, whatever was said about overwriting.

    Raises:
        OutputError: so.
    """
    output = Path(output)
    for path in map(Path, inputs):
        for file in map(partial(picture_path, path), picture_numbers(path)) if _is_there(path) else (path,):
            if _is_written(output, file):
                raise OutputError(f"{output} is an input too and would be lost; name another output.")


def _is_there(path: Path) -> bool:
    """Whether a path stands for numbered pictures in a folder that is there."""
    return is_sequence(path) and path.parent.is_dir()


def _is_written(output: Path, file: Path) -> bool:
    """Whether writing an output replaces a file."""
    if is_sequence(output):
        return file.exists() and is_picture_of(file, output)
    return file.exists() and output.exists() and file.samefile(output)
