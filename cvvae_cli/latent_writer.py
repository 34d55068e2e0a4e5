"""Writing latent files as a stream.

What the bytes mean is said in `latent_file`, which reads them. This module knows neither models nor video, and
does not import torch.
"""

import contextlib
import errno
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from xxhash import xxh3_64

from cvvae_cli.errors import OutputError, UsageError
from cvvae_cli.latent_file import BLOCK, LATENT_DTYPES
from cvvae_cli.piece_file import PieceFile
from cvvae_cli.run_journal import Entry, RunJournal, keeps
from cvvae_cli.safetensors_header import ALIGNMENT, NUMPY_TYPES, OWN_METADATA, describe, make_header, to_float
from cvvae_cli.small_tensor import STORED_NAMES, SmallTensor
from cvvae_cli.stored_latents import stored_latents
from cvvae_cli.whole_file import put_in_place

HEADER_RESERVE = 16 * 1024
"""Bytes kept free at the front for the header and its length; the payload then starts at a page."""

_OWN_TENSORS = {"latents", "chunk_end", "chunk_xxh3", "anchors", "anchors_xxh3", "_pad", "__metadata__"}


class LatentWriter:
    """Writes a latent file chunk by chunk, under a hidden name beside the target until it is complete.

    As a context manager it removes the unfinished file unless `close` was reached; with a journal, what came from outside
    (`may_go_on`) keeps it for a later run. Anchors are kept in a hidden file of their own, `.NAME.anchors`, until `close`.
    Memory: one chunk in the file's dtype, two numbers per chunk and anchor, and blocks of 1 MiB of what is stored from a file.

    Attributes:
        journal: of the run that was described, else None.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        channels: int,
        height: int,
        width: int,
        dtype: str = "float16",
        overwrite: bool = False,
        run: dict | None = None,
    ) -> None:
        """Opens the hidden file, which may hold the chunks of an earlier run.

        Args:
            path: the target; a link is followed.
            channels: z, >= 1.
            height, width: of the latent grid in cells, >= 1.
            dtype: what the latents are stored as: "float16", "float32" or "bfloat16".
            overwrite: whether an existing file may be replaced (at `close`, and not before).
            run: all that shapes the file, JSON-ready: an unfinished run of the same description is continued behind its last
                chunk that is sound, as everything written before it is (see `latent_frames` and `num_anchors`). None keeps
                nothing of an unfinished run.

        Raises:
            UsageError: unknown dtype.
            OutputError: the target exists, is a folder or a device, cannot be written, or another process writes it.
        """
        if dtype not in LATENT_DTYPES:
            raise UsageError(f"Latent dtype {dtype!r} is unknown; pass --latent-dtype {', '.join(LATENT_DTYPES)}.")
        self._shown = os.fspath(path)
        self._target = Path(os.path.realpath(path))
        self._overwrite = overwrite
        self._dtype = LATENT_DTYPES[dtype]
        self._frame_shape = (channels, height, width)
        self._chunks = PieceFile(self._target.with_name(f".{self._target.name}.part"), "chunk", HEADER_RESERVE)
        self._anchors = PieceFile(self._target.with_name(f".{self._target.name}.anchors"), "anchor")
        self.journal: RunJournal | None = None
        try:
            with self._told_on_failure():
                self._check_target()
                if run is not None:
                    self.journal = RunJournal(self._target, run)
                if self.journal is not None and self.journal.entries and self._chunks.path.exists():
                    self._restore(self.journal)
                else:
                    self._begin()
        except BaseException:
            self.abort(keep=bool(self._chunks.ends))
            raise

    def _begin(self) -> None:
        if self.journal is not None:
            self.journal.claim()
            self.journal.agree({"chunk": self._chunks.take_over, "anchor": self._anchors.take_over})  # nothing is there
        self._anchors.path.unlink(missing_ok=True)
        self._chunks.begin()

    def _restore(self, journal: RunJournal) -> None:
        """Take over the chunks and anchors that the journal names, up to the first that is not on the disk as it was."""
        self._chunks.reopen()
        if self._anchors.path.exists():
            self._anchors.reopen()
        journal.agree({"chunk": self._chunks.take_over, "anchor": self._anchors.take_over})
        self._chunks.drop_rest()
        self._anchors.drop_rest()

    @property
    def _frame_bytes(self) -> int:
        return math.prod(self._frame_shape) * np.dtype(NUMPY_TYPES[self._dtype]).itemsize

    @property
    def latent_frames(self) -> int:
        """Latent frames appended so far."""
        return self._chunks.nbytes // self._frame_bytes

    @property
    def num_anchors(self) -> int:
        """Anchors appended so far."""
        return len(self._anchors.ends)

    @property
    def latent_bytes(self) -> int:
        """Bytes of latents and anchors."""
        return self._chunks.nbytes + self._anchors.nbytes

    def append(self, latents: np.ndarray) -> None:
        """Appends one chunk.

        Args:
            latents: float32 [t, z, h, w] with t >= 1, unscaled; z, h, w as at the opening. A reader that
                wants one latent frame of a chunk reads the whole chunk, to check it.

        Raises:
            UsageError: another shape.
            LatentFileError: a value is not finite, or not in the file's dtype; nothing is written then.
            OutputError: no space, or another failure of the disk.
        """
        if latents.ndim != 4 or latents.shape[1:] != self._frame_shape or len(latents) == 0:
            wanted = ", ".join(map(str, self._frame_shape))
            raise UsageError(f"Latents {list(latents.shape)} do not fit this file; append [t, {wanted}] with t >= 1.")
        stored = stored_latents(latents, self._dtype, "Latent frame", self.latent_frames)
        with self._told_on_failure():
            self._chunks.append(stored, self.journal)

    def append_anchor(self, anchor: np.ndarray) -> None:
        """Appends the anchor of the next chunk that has one, before the chunk itself.

        Args:
            anchor: float32 [z, h, w], unscaled.

        Raises:
            LatentFileError: a value is not finite, or not in the file's dtype; nothing is written then.
            OutputError: no space, or another failure of the disk.
        """
        stored = stored_latents(anchor[None], self._dtype, "Anchor", self.num_anchors)
        with self._told_on_failure():
            self._anchors.append(stored, self.journal)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Latent frames that were appended, as a reader of the file will get them.

        Args:
            start, stop: 0 <= start < stop <= `latent_frames`.

        Returns:
            float32 [stop - start, z, h, w].

        Raises:
            OutputError: the disk fails.
        """
        return self._read(self._chunks, start, stop)

    def read_anchor(self, index: int) -> np.ndarray:
        """An anchor that was appended, as a reader of the file will get it: float32 [z, h, w].

        Raises:
            OutputError: the disk fails.
        """
        return self._read(self._anchors, index, index + 1)[0]

    def note(self, entry: Entry) -> None:
        """Adds a line of the caller's own to the journal, behind those of all that was appended, where there is a journal.

        Raises:
            OutputError: the disk fails.
        """
        if self.journal is not None:
            with self._told_on_failure():
                self.journal.add(entry)

    def _read(self, pieces: PieceFile, start: int, stop: int) -> np.ndarray:
        with self._told_on_failure():
            data = pieces.read(start * self._frame_bytes, stop * self._frame_bytes)
        stored = np.frombuffer(data, NUMPY_TYPES[self._dtype])
        return to_float(stored, self._dtype).reshape(stop - start, *self._frame_shape)

    @contextlib.contextmanager
    def scratch_file(self) -> Iterator[BinaryIO]:
        """An empty file without a name on the target's disk, for a tensor that is too large for memory.

        It is gone when the context is left; left with an error, it takes a latent file without a journal along.

        Raises:
            OutputError: it cannot be made, or an OSError came out of the context.
        """
        with self._told_on_failure(), tempfile.TemporaryFile(dir=self._target.parent) as file:
            yield file

    def close(self, metadata: dict[str, str], tensors: Mapping[str, np.ndarray | BinaryIO]) -> None:
        """Writes the small tensors and the header, and gives the file its name.

        Args:
            metadata: strings for the header; lone surrogates become "?".
            tensors: small tensors by name, e.g. int64 `pts` [F]; any numpy dtype that safetensors has. A file, open
                for reading and seeking, stands for the uint8 tensor of all its bytes and may be large.

        Raises:
            UsageError: no chunk was appended, or a name or dtype that this file cannot hold.
            OutputError: the file cannot be completed; the hidden file is removed.
        """
        self._check_content(metadata, tensors)
        payload = self.latent_frames * self._frame_bytes
        pad = {"_pad": np.zeros(-payload % ALIGNMENT, np.uint8)} if payload % ALIGNMENT else {}
        small = self._own_tensors() | {name: SmallTensor.of(source) for name, source in {**tensors, **pad}.items()}
        # The padding first, then wide types before narrow ones: every tensor is aligned to its type.
        ordered = sorted(small.items(), key=lambda item: (item[0] != "_pad", -item[1].itemsize))
        entries = {"latents": describe(self._dtype, (self.latent_frames, *self._frame_shape), 0, payload)}
        end = payload
        for name, tensor in ordered:
            entries[name] = describe(tensor.dtype, tensor.shape, end, end + tensor.nbytes)
            end += tensor.nbytes
        unknown = {name: "0" * 16 for name, _ in ordered}
        make_header(metadata, unknown, entries, HEADER_RESERVE)  # too much metadata is refused before anything is written
        sums = {name: self._copy(tensor) for name, tensor in ordered}
        header = make_header(metadata, sums, entries, HEADER_RESERVE)
        with self._told_on_failure():
            self._finish(header, end)

    def _own_tensors(self) -> dict[str, SmallTensor]:
        """The table of chunks; anchors, where there are any, and theirs."""
        chunks, anchors = self._chunks, self._anchors
        own = {
            "chunk_end": SmallTensor.of(np.array(chunks.ends, np.int64) // self._frame_bytes),
            "chunk_xxh3": SmallTensor.of(np.array(chunks.sums, np.uint64)),
        }
        if anchors.file is not None and anchors.ends:
            own["anchors"] = SmallTensor(self._dtype, (len(anchors.ends), *self._frame_shape), anchors.file)
            own["anchors_xxh3"] = SmallTensor.of(np.array(anchors.sums, np.uint64))
        return own

    def abort(self, keep: bool = False) -> None:
        """Closes the hidden files, and removes them; does nothing after `close`.

        Args:
            keep: leave files and journal for a later run.
        """
        self._chunks.close(keep)
        self._anchors.close(keep)
        if self.journal is not None:
            self.journal.close(keep)

    def __enter__(self) -> "LatentWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        unfinished = self._chunks.file is not None
        self.abort(unfinished and error is not None and keeps(self.journal, len(self._chunks.ends), error))

    @contextlib.contextmanager
    def _told_on_failure(self) -> Iterator[None]:
        """An OSError becomes the sentence for it; without a journal, the hidden file is removed where the context fails.

        Raises:
            OutputError: for an OSError.
        """
        try:
            yield
        except BaseException as error:
            if self.journal is None:
                self.abort()
            if isinstance(error, OSError):
                raise _output_error(self._shown, error) from error
            raise

    def _finish(self, header: bytes, data_bytes: int) -> None:
        file = self._chunks.file
        assert file is not None
        shift = len(header) - HEADER_RESERVE
        # A header beyond the reserve: the data moves up, last block first, so that nothing is overwritten unread.
        for start in reversed(range(0, data_bytes if shift else 0, BLOCK)):
            file.seek(HEADER_RESERVE + start)
            block = file.read(min(BLOCK, data_bytes - start))
            file.seek(HEADER_RESERVE + start + shift)
            file.write(block)
        file.seek(0)
        file.write(header)
        file.flush()
        self._check_target()
        if not self._chunks.is_own():
            raise OutputError(f"{self._shown} is being written by another process too; give each its own output.")
        put_in_place(self._chunks.path, self._target)
        self._chunks.close(keep=True)  # under its own name now
        self.abort()

    def _copy(self, tensor: SmallTensor) -> str:
        """Writes a small tensor and returns its checksum."""
        digest = xxh3_64()
        for block in tensor.blocks():
            digest.update(block)
            self._write(block)
        return digest.hexdigest()

    def _write(self, data: np.ndarray | bytes) -> None:
        assert self._chunks.file is not None, "the writer is closed"
        with self._told_on_failure():
            self._chunks.file.write(data)

    def _check_target(self) -> None:
        if not self._target.parent.is_dir():
            raise OutputError(f"{self._shown} cannot be written: the folder {self._target.parent} does not exist; make it first.")
        if self._target.is_dir():
            raise OutputError(f"{self._shown} is a folder; name a file in it.")
        if self._target.exists():
            if not self._target.is_file():
                raise OutputError(f"{self._shown} is not a regular file; name another output.")
            if not self._overwrite:
                raise OutputError(f"{self._shown} exists already; pass -y (overwrite=True in Python) to replace it.")

    def _check_content(self, metadata: dict[str, str], tensors: Mapping[str, np.ndarray | BinaryIO]) -> None:
        taken = sorted((OWN_METADATA & set(metadata)) | (_OWN_TENSORS & set(tensors)))
        if taken:
            raise UsageError(f"The name {taken[0]!r} belongs to the latent file itself; choose another one.")
        for name, tensor in tensors.items():
            if isinstance(tensor, np.ndarray) and tensor.dtype.newbyteorder("<") not in STORED_NAMES:
                known = ", ".join(map(str, STORED_NAMES))
                raise UsageError(f"Tensor {name!r} is {tensor.dtype}, which the file cannot hold; pass {known}.")
        if not self._chunks.ends:
            raise UsageError("No latent frame was appended, so there is nothing to write; append at least one.")


def _output_error(path: str, error: OSError) -> OutputError:
    reasons = {
        errno.ENOSPC: "no space is left on the disk; free some or name another disk",
        errno.EDQUOT: "the disk quota is used up; free some space or name another disk",
        errno.EACCES: "permission was denied; choose a folder that you may write to",
        errno.EPERM: "permission was denied; choose a folder that you may write to",
        errno.EROFS: "the file system is read-only; choose another folder",
    }
    return OutputError(f"{path} cannot be written: {reasons.get(error.errno or 0, error.strerror or str(error))}.")
