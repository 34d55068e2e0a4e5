"""Writing frames as numbered pictures, `frames/%04d.png`: each appears under its name when it is whole.

It does not know where frames come from. Times and sound have no place in pictures.
"""

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
from xxhash import xxh3_64_intdigest

from cvvae_cli.colour import BT601, FULL, Colour
from cvvae_cli.errors import OutputError, UsageError
from cvvae_cli.output_errors import exists_already, told_on_failure
from cvvae_cli.picture_sequence import is_sequence, picture_numbers, picture_path
from cvvae_cli.run_journal import RunJournal, keeps
from cvvae_cli.video_encoder import Encoding, Pictures, VideoEncoder

PICTURE_CODECS = {".png": "png", ".jpg": "mjpeg", ".jpeg": "mjpeg", ".webp": "libwebp"}
"""FFmpeg's encoder for each extension."""

FIRST_NUMBER = 1
"""Of the first picture, as FFmpeg counts them when it writes."""


def names_pictures(path: Path) -> bool:
    """Whether an output stands for numbered pictures."""
    return path.suffix.lower() in PICTURE_CODECS and is_sequence(path)


class PictureWriter:
    """Encodes frames into pictures that are numbered from 1.

    A context manager, as `VideoWriter` is. Left with an exception it removes its pictures, but with a journal, what came from
    outside (`may_go_on`) keeps them for a later run. The journal has a checksum of each picture, noted down before the picture
    gets its name: a later run takes over those that are there as noted, and no other.

    Attributes:
        path: the pattern.
        notes: one sentence for everything that could not be done exactly.
        deep: more than 8 bits per component are written.
        part_frames: what a later run goes on behind, a picture.
        frames: pictures that are there, those of an earlier run with them.
        journal: of the run that was described, else None.
    """

    part_frames = 1

    def __init__(
        self, path: Path, pictures: Pictures, encoding: Encoding, overwrite: bool = False, run: dict | None = None
    ) -> None:
        """Opens the encoder, and finds what an earlier run left.

        Args:
            path: a pattern that `names_pictures`.
            pictures: what is encoded. JPEG has a matrix and range of its own.
            encoding: how; its codec is that of `PICTURE_CODECS`.
            overwrite: whether existing pictures may be replaced.
            run: all that shapes the pictures, JSON-ready: an unfinished run of the same description is continued. None keeps
                nothing of an unfinished run.

        Raises:
            OutputError: a picture of this name is there that is no earlier run's, the folder is missing or may not be written,
                or another process writes there.
            UsageError: codec, pixel format or option unknown, or not to be combined.
        """
        self.path = path
        self.notes: list[str] = []
        self.frames = 0
        self.journal: RunJournal | None = None
        self._overwrite, self._closed = overwrite, False
        self._part = path.with_name(f".{path.name}.part")
        suffix = path.suffix.lower()
        if encoding.codec != PICTURE_CODECS[suffix]:
            raise UsageError(f"{encoding.codec!r} does not make {suffix} pictures; leave out --codec.")
        if encoding.codec == "mjpeg":
            pictures = replace(pictures, colour=Colour(BT601, FULL))
        try:
            self._encoder = VideoEncoder(pictures, encoding, 0)
            self.deep = self._encoder.deep
            with told_on_failure(self.path):
                self._take_over(run)
                self._part.write_bytes(b"")
        except BaseException as error:
            self._give_up(error)
            raise

    def _take_over(self, run: dict | None) -> None:
        """Counts the pictures that an earlier run left whole, and sees that no other is in the way."""
        if not self.path.parent.is_dir():
            raise OutputError(f"The folder {self.path.parent} does not exist; make it first.")
        if run is not None:
            self.journal = RunJournal(self.path, run)
            self.journal.agree({"picture": self._is_there})
        others = self._others()
        if others and not self._overwrite:
            raise exists_already(picture_path(self.path, others[0]))

    def _is_there(self, number: int, digest: int) -> bool:
        """Whether a picture is as an earlier run made it; it counts as written then."""
        try:
            data = picture_path(self.path, number).read_bytes()
        except FileNotFoundError:
            return False
        if xxh3_64_intdigest(data) != digest:
            return False
        self.frames = number
        return True

    def _others(self) -> list[int]:
        """Numbers of the pictures of this name that are not this run's."""
        return [number for number in picture_numbers(self.path) if not FIRST_NUMBER <= number <= self.frames]

    def write(self, rgb: np.ndarray, pts: int, duration: int) -> None:
        """Encodes one frame; its picture may appear some frames later.

        Args:
            rgb: uint8 or uint16 [height, width, 3].
            pts, duration: ticks; of no effect on the pictures but that times must rise.

        Raises:
            OutputError: a picture cannot be written.
            UsageError: the frame has another size or type.
        """
        with told_on_failure(self.path):
            for packet in self._encoder.encode(rgb, pts, duration):
                self._store(bytes(packet))

    def _store(self, data: bytes) -> None:
        number = self.frames + FIRST_NUMBER
        target = picture_path(self.path, number)
        with self._part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name on an empty file
        if target.exists() and not self._overwrite:
            raise exists_already(target)
        if self.journal is not None:
            self.journal.add(["picture", number, xxh3_64_intdigest(data)])
        os.replace(self._part, target)
        self.frames = number

    def close(self) -> None:
        """Writes the pictures that the encoder held back.

        Raises:
            OutputError: there was no frame, or a picture cannot be written.
        """
        if self._closed:
            return
        try:
            with told_on_failure(self.path):
                for packet in self._encoder.end_segment():
                    self._store(bytes(packet))
                if not self.frames:
                    raise OutputError(f"{self.path} was not written: there was no frame to write.")
                if others := self._others():
                    named = picture_path(self.path, others[0])
                    self.notes.append(f"{named} was there before and belongs to another video ({len(others)} in all).")
        except BaseException as error:
            self._give_up(error)
            raise
        self._let_go(keep=False)

    def abort(self, keep: bool = False) -> None:
        """Removes the pictures of this run.

        Args:
            keep: leave them and their journal for a later run.
        """
        if self._closed:
            return
        with contextlib.suppress(OSError):
            for number in range(FIRST_NUMBER, self.frames + FIRST_NUMBER) if not keep else ():
                picture_path(self.path, number).unlink(missing_ok=True)
        self._let_go(keep)

    def _let_go(self, keep: bool) -> None:
        with contextlib.suppress(OSError):
            self._part.unlink(missing_ok=True)
        if self.journal is not None:
            self.journal.close(keep)
        self._closed = True

    def __enter__(self) -> "PictureWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        """Keeps the pictures where a later run may go on, and has the error say so."""
        self.abort(not self._closed and keeps(self.journal, self.frames, error))
