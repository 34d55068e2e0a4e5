"""What an unfinished run has done: a hidden file beside its output, a line for each finished part.

A run is described by all that shapes its output. A later run of the same description goes on behind the last part; one of
another description begins anew. This module knows neither latents nor video.
"""

import contextlib
import fcntl
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

from xxhash import xxh3_64_hexdigest, xxh3_128_hexdigest

from cvvae_cli.errors import CvvaeError, DeviceError, OutputError

Entry = list[str | int | dict]
"""A kind and what belongs to it, as JSON has it."""


class RunJournal:
    """Holds the output for this process, and says what an earlier run left.

    Every line carries its checksum: what a crash tore is dropped when the file is read. A finished part must be on its way to
    the disk before its line is added; whether it got there, its owner checks when it goes on.

    Attributes:
        path: `.NAME.journal` beside the output.
        entries: what an earlier run of the same description had finished, in order.
        replaces: an earlier run was of another description.
        notes: one sentence where it is dropped for this one.
    """

    def __init__(self, target: Path, run: dict) -> None:
        """Opens the journal of an output, and locks it.

        Args:
            target: the output.
            run: the description, JSON-ready.

        Raises:
            OutputError: another process is writing this output.
            OSError: it cannot be made.
        """
        self.path = target.with_name(f".{target.name}.journal")
        self._file = _locked(self.path, target)
        self._ends: list[int] = []
        self.entries = self._read()
        mark: Entry = ["run", xxh3_128_hexdigest(json.dumps(run, sort_keys=True).encode())]
        self.replaces = bool(self.entries) and self.entries[0] != mark
        self.notes: list[str] = []
        self._mark: Entry | None = None
        if self.entries[:1] == [mark]:
            self.entries = self.entries[1:]
            self._file.truncate(self._ends[-1])
        else:
            # An older run's journal stays until this one has something to say: it may yet be refused.
            self.entries, self._mark = [], mark

    def claim(self) -> None:
        """Make the journal this run's, where it still is an older one's. What the older one had written may go from here on.

        Raises:
            OSError: the disk does not take it.
        """
        if self._mark is not None:
            if self.replaces:
                self.notes.append("An unfinished run of this output, of other options or another source, was dropped.")
            self._file.truncate(0)
            mark, self._mark = self._mark, None
            self.add(mark)

    def add(self, entry: Entry) -> None:
        """Note a finished part.

        Raises:
            OSError: the disk does not take it.
        """
        self.claim()
        text = json.dumps(entry)
        self._file.write(f"{text} {xxh3_64_hexdigest(text.encode())}\n".encode())

    def agree(self, checks: dict[str, Callable[..., bool]]) -> None:
        """Go through `entries` in order, and forget them from the first on whose part is not on the disk as it says.

        Args:
            checks: by kind, called with what belongs to an entry: whether the part is there. Other kinds need no check.

        Raises:
            OSError: the disk does not take it.
        """
        for index, (kind, *values) in enumerate(self.entries):
            if kind in checks and not checks[kind](*values):
                self._file.truncate(self._ends[index])
                del self.entries[index:], self._ends[index + 1 :]
                return

    def close(self, keep: bool) -> None:
        """Let go of the output.

        Args:
            keep: a later run may go on; otherwise the file is removed, unless it is still an older run's.
        """
        if self._file.closed:
            return
        if not keep and not (self.replaces and self._mark is not None):
            with contextlib.suppress(OSError):
                self.path.unlink()
        self._file.close()

    def _read(self) -> list[Entry]:
        """The sound lines from the first on, and where each ends."""
        entries, end = [], 0
        self._file.seek(0)
        for line in self._file.read().splitlines(keepends=True):
            text, _, digest = line.rpartition(b" ")
            if digest != xxh3_64_hexdigest(text).encode() + b"\n":
                break
            end += len(line)
            entries.append(json.loads(text))
            self._ends.append(end)
        return entries


def _locked(path: Path, target: Path) -> io.FileIO:
    while True:
        file = open(path, "a+b", buffering=0)  # a line is one call: it is there whole when the process is killed behind it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise OutputError(f"{target} is being written by another process; wait for it, or name another output.") from None
        except OSError:
            return file  # some network file systems cannot lock
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()  # its owner has finished and removed it in between


GOES_ON = "What is done is kept; the same command goes on from there."
BEGINS_ANEW = "No part was finished yet, so the same command begins anew."


def keeps(journal: RunJournal | None, parts: int, error: BaseException) -> bool:
    """Whether a run that an error ends leaves its finished parts to a later one; the error then says so in a note.

    Args:
        journal: of the run; None keeps nothing.
        parts: how many are finished.
        error: what ends it.
    """
    if journal is None or not may_go_on(error):
        return False
    error.add_note(GOES_ON if parts else BEGINS_ANEW)
    return parts > 0


def may_go_on(error: BaseException | None) -> bool:
    """Whether what ended a run came from outside (a signal, a full disk, no memory), so that the same run may go on later."""
    return error is not None and (not isinstance(error, CvvaeError) or isinstance(error, OutputError | DeviceError))
