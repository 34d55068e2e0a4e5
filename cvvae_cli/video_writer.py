"""Writing RGB frames, with sound, to a video file: exact times, tagged colour, nothing half-finished under its name.

Frames are encoded in segments to a hidden file of packets; when all are there, packets and sound are written to the
container. It does not know where frames come from or what a latent is.
"""

import contextlib
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import numpy as np

from cvvae_cli.errors import OutputError, UsageError
from cvvae_cli.host_memory import return_freed_memory
from cvvae_cli.output_errors import exists_already, told_on_failure
from cvvae_cli.packet_file import PacketFile
from cvvae_cli.run_journal import RunJournal, keeps
from cvvae_cli.video_container import EXACT, Beside, VideoContainer
from cvvae_cli.video_encoder import Encoding, Pictures, VideoEncoder
from cvvae_cli.whole_file import put_in_place

DEFAULT_CODECS = {
    ".mp4": "libx264",
    ".m4v": "libx264",
    ".mov": "libx264",
    ".mkv": "libx264",
    ".webm": "libvpx-vp9",
    ".png": "png",
}
"""What can be written, by the file's extension, and the encoder that is used unless another is asked for."""


class VideoWriter:
    """Encodes frames into a file that appears, whole, when the writer is closed.

    Until then there are only hidden files beside it: `.NAME.packets` and, at the end, `.NAME.part.EXT`. Use it as a context
    manager: leaving it with an exception discards them, but with a journal, what came from outside (`may_go_on`) keeps
    the finished segments for a later run.

    Attributes:
        path: the file.
        notes: one sentence for everything that could not be done exactly.
        deep: more than 8 bits per component are written.
        part_frames: frames of a segment, which is what a later run goes on behind; None where all are one.
        frames: frames written so far, those of an earlier run with them: the next one to `write` is this one.
        journal: of the run that was described, else None.
    """

    def __init__(
        self,
        path: Path,
        pictures: Pictures,
        encoding: Encoding | None = None,
        beside: Beside = Beside(),
        overwrite: bool = False,
        segment_frames: int | None = None,
        run: dict | None = None,
    ) -> None:
        """Opens encoder and container; the file itself is not touched yet.

        Args:
            path: .mp4, .m4v, .mov, .mkv, .webm, or .png for a single frame.
            pictures: what is encoded. Odd sizes are kept (as 4:4:4 where the encoder needs that); the container states the frame
                rate, the timestamps decide.
            encoding: how; None is the usual codec of the extension.
            beside: sound, subtitles, titles, and when the video begins.
            overwrite: whether an existing file may be replaced.
            segment_frames: after so many frames a new encoder begins; None encodes all with one.
            run: all that shapes the file, JSON-ready: an unfinished run of the same description is continued behind its last
                whole segment (see `frames`). None keeps nothing of an unfinished run.

        Raises:
            OutputError: the file exists, its folder is missing or may not be written, or another process writes it.
            UsageError: extension, codec, pixel format or option unknown, or not to be combined.
        """
        self.path = path
        self.notes: list[str] = []
        self.journal: RunJournal | None = None
        self._time_base, self.part_frames = pictures.time_base, segment_frames
        self._offset = round(beside.origin / pictures.time_base)
        self._durations: dict[int, int] = {}
        self._overwrite = overwrite
        self._part = _part_of(self.path, overwrite)
        self._packets: PacketFile | None = None
        self._container: VideoContainer | None = None
        try:
            self._open_files(run)
            suffix, encoding = self.path.suffix.lower(), encoding or Encoding(default_codec(self.path))
            options = _container_options(suffix, pictures.time_base)
            self._container = VideoContainer(f"file:{self._part}", suffix, encoding.codec, pictures, options)
            self._encoder = VideoEncoder(pictures, encoding, self._container.stream.codec_context.flags)
            self._codec, self.deep = encoding.codec, self._encoder.deep
            if beside.sidecar is not None and suffix == ".png":
                self.notes.append("The sound was left out, since a picture holds none.")
                beside = replace(beside, sidecar=None)
            self._container.add(beside)
            self.notes += self._container.notes
        except BaseException as error:
            self._give_up(error)
            raise

    def _open_files(self, run: dict | None) -> None:
        """Makes the hidden files, so that a forbidden folder is known at once, and takes over what an earlier run left."""
        with told_on_failure(self.path):
            if run is not None:
                self.journal = RunJournal(self.path, run)
            self._part.write_bytes(b"")
            self._packets = PacketFile(self.path.with_name(f".{self.path.name}.packets"), self.journal)
        self.frames = self._packets.frames

    def write(self, rgb: np.ndarray, pts: int, duration: int) -> None:
        """Encodes one frame.

        Args:
            rgb: uint8 or uint16 [height, width, 3].
            pts: when it is shown, in ticks of `time_base`, later than the frame before.
            duration: how long it is shown, ticks; it matters for the last frame.

        Raises:
            OutputError: the file cannot be written.
            UsageError: the frame has another size or type, or does not come later than the one before.
        """
        if self.frames and self._codec == "png":
            raise UsageError(f"{self.path} holds one frame and the video has more; write .mp4 or limit the frames to 1.")
        shown = pts - self._offset
        self._durations[shown] = duration
        with told_on_failure(self.path):
            assert self._packets is not None
            self._packets.append(self._encoder.encode(rgb, shown, duration), self._durations)
            self.frames += 1
            if self.frames - self._packets.frames == self.part_frames:
                self._end_segment()

    def _end_segment(self) -> None:
        assert self._packets is not None
        self._packets.append(self._encoder.end_segment(), self._durations)
        self._packets.end_segment(self.frames)
        # An encoder leaves its memory in pieces that the next one does not fit into: with each segment there would be more.
        return_freed_memory()

    def close(self) -> None:
        """Writes the container and gives the file its name.

        Raises:
            OutputError: no frame was written, or the file cannot be finished.
        """
        if self._packets is None:
            return
        try:
            if not self.frames:
                raise OutputError(f"{self.path} was not written: there was no frame to write.")
            with told_on_failure(self.path):
                if self.frames > self._packets.frames:
                    self._end_segment()
                self._write_container(self._packets)
                if self.path.exists() and not self._overwrite:
                    raise exists_already(self.path)
                put_in_place(self._part, self.path)
        except BaseException as error:
            self._give_up(error)
            raise
        self.abort()

    def _write_container(self, packets: PacketFile) -> None:
        assert self._container is not None
        # Not before: an open encoder keeps its memory.
        self._encoder.open(self._container.stream.codec_context)
        for packet in packets.packets():
            packet.time_base = self._time_base
            self._container.mux(packet)
        self._container.close()
        self._container = None

    def abort(self, keep: bool = False) -> None:
        """Discards the hidden files; the output's name is not touched.

        Args:
            keep: leave finished segments and their journal for a later run.
        """
        if self._container is not None:
            self._container.abandon()
        self._container = None
        with contextlib.suppress(OSError):
            if self._packets is not None:
                self._part.unlink(missing_ok=True)
                self._packets.close(keep)
        self._packets = None
        if self.journal is not None:
            self.journal.close(keep)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        """Keeps the finished segments where a later run may go on, and has the error say so."""
        self.abort(self._packets is not None and keeps(self.journal, self._packets.frames, error))


def default_codec(path: Path) -> str:
    """FFmpeg's encoder for a file of this name, unless another is asked for.

    Raises:
        UsageError: the extension is unknown.
    """
    codec = DEFAULT_CODECS.get(path.suffix.lower())
    if codec is None:
        raise UsageError(f"{path} must end in one of {', '.join(DEFAULT_CODECS)}; got {path.suffix or 'no extension'!r}.")
    return codec


def _part_of(path: Path, overwrite: bool) -> Path:
    """Checks a name and returns that of the hidden file beside it."""
    default_codec(path)
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file in it.")
    if path.exists() and not overwrite:
        raise exists_already(path)
    if not path.parent.is_dir():
        raise OutputError(f"The folder {path.parent} does not exist; make it first.")
    return path.with_name(f".{path.stem}.part{path.suffix}")


def _container_options(suffix: str, time_base: Fraction) -> dict[str, str]:
    """What keeps times exact: no shifting to 0, and MP4's list of edits in ticks that ours are multiples of."""
    if suffix == ".png":
        return {"update": "1"}
    if suffix in (".mp4", ".m4v", ".mov"):
        return EXACT | {"movie_timescale": str(time_base.denominator * math.ceil(1000 / time_base.denominator))}
    return EXACT
