"""Pieces of bytes one behind the other in a hidden file, so that a run that was stopped finds them again.

What the pieces mean, and what becomes of the file in the end, is its owner's affair.
"""

import contextlib
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from xxhash import xxh3_64, xxh3_64_intdigest

from cvvae_cli.run_journal import RunJournal

_BLOCK = 1 << 20


class PieceFile:
    """A hidden file of pieces, there from `begin`, `reopen` or the first piece on.

    Args:
        path: the file.
        kind: of a piece's line in a journal, [kind, end, checksum].
        offset: bytes, zeros for now, before the first piece.

    Attributes:
        path: the file.
        file: open for reading and writing, its position behind the last piece; None where it is not there.
        ends: one past the last byte of each piece, counted from the first piece.
        sums: XXH3-64 of each piece.

    Every method raises OSError where the disk fails. Memory: two numbers per piece.
    """

    def __init__(self, path: Path, kind: str, offset: int = 0) -> None:
        self.path, self._kind, self._offset = path, kind, offset
        self.file: BinaryIO | None = None
        self.ends: list[int] = []
        self.sums: list[int] = []

    @property
    def nbytes(self) -> int:
        """Bytes of all pieces."""
        return self.ends[-1] if self.ends else 0

    def begin(self) -> None:
        """Make the file anew."""
        # A file of this name is left from a crash. Unlinking it, rather than truncating, keeps two writers
        # of one target apart: each has a file of its own.
        self.path.unlink(missing_ok=True)
        self.file = open(self.path, "xb+")
        self.file.write(b"\0" * self._offset)

    def reopen(self) -> None:
        """Open what an earlier run left, whose pieces `take_over` finds."""
        self.file = open(self.path, "rb+")

    def take_over(self, end: int, digest: int) -> bool:
        """Whether the next piece is in the file as its line in the journal says; it counts as written then."""
        if self.file is None or end <= self.nbytes:
            return False
        found = xxh3_64()
        for start in range(self.nbytes, end, _BLOCK):
            found.update(self.read(start, min(start + _BLOCK, end)))
        if found.intdigest() != digest:
            return False
        self._count(end, digest)
        return True

    def drop_rest(self) -> None:
        """Cut off what lies behind the last piece, and go on there."""
        if self.file is not None:
            self.file.seek(self._offset + self.nbytes)
            self.file.truncate()

    def append(self, data: np.ndarray, journal: RunJournal | None) -> None:
        """Write a piece, then its line.

        Args:
            data: contiguous; its bytes are the piece.
            journal: of the run, None where it has none.
        """
        if self.file is None:
            self.begin()
        assert self.file is not None
        self.file.write(data)
        self.file.flush()
        end, digest = self.nbytes + data.nbytes, xxh3_64_intdigest(data)
        if journal is not None:
            journal.add([self._kind, end, digest])
        self._count(end, digest)

    def _count(self, end: int, digest: int) -> None:
        self.ends.append(end)
        self.sums.append(digest)

    def read(self, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop`, counted from the first piece; fewer where the file ends before."""
        assert self.file is not None
        parts, position = [], self._offset + start
        # One call reads 2 GiB at most.
        while part := os.pread(self.file.fileno(), self._offset + stop - position, position):
            parts.append(part)
            position += len(part)
        return b"".join(parts)

    def is_own(self) -> bool:
        """Whether the file's name still is this file's, and no other writer's."""
        assert self.file is not None
        try:
            return os.path.samestat(os.fstat(self.file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False

    def close(self, keep: bool) -> None:
        """Let go of the file; failures of the disk are passed over.

        Args:
            keep: leave it for a later run.
        """
        if self.file is None:
            return
        with contextlib.suppress(OSError):
            if not keep and self.is_own():
                self.path.unlink()
        with contextlib.suppress(OSError):
            self.file.close()
        self.file = None
