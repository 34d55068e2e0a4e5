"""Latent files: writing one as a stream, and reading parts of one.

A latent file is a valid safetensors file. In order: the header (see `safetensors_header`), the payload
`latents` [t, z, h, w], zeros up to a multiple of 8 (`_pad`), small tensors. Every byte is under an XXH3-64
checksum: each chunk of the payload in the tensor `chunk_xxh3`, beside its end in `chunk_end`; each other
tensor, and the header itself, in the header.

This module knows neither models nor video: what the metadata and the small tensors mean is the codec's
business. It does not import torch.
"""

import contextlib
import errno
import functools
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from xxhash import xxh3_64, xxh3_64_hexdigest, xxh3_64_intdigest

from cvvae_cli.errors import LatentFileError, OutputError, UsageError
from cvvae_cli.safetensors_header import (
    ALIGNMENT,
    NUMPY_TYPES,
    OWN_METADATA,
    bears_mark,
    check_own_header,
    describe,
    make_header,
    open_for_reading,
    parse_header,
    read_exactly,
    read_header,
    to_float,
    to_stored,
)

LATENT_DTYPES = {"float16": "F16", "float32": "F32", "bfloat16": "BF16"}
HEADER_RESERVE = 16 * 1024
"""Bytes kept free at the front for the header and its length; the payload then starts at a page."""
BLOCK = 1024 * 1024

_EXPONENT_BITS = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000}
"""All set in infinities and NaN, and in nothing else."""
_NAMES = {np.dtype(code): name for name, code in NUMPY_TYPES.items() if name != "BF16"}
_OWN_TENSORS = {"latents", "chunk_end", "chunk_xxh3", "_pad", "__metadata__"}


class LatentWriter:
    """Writes a latent file chunk by chunk, under a hidden name beside the target until it is complete.

    As a context manager it removes the unfinished file unless `close` was reached. Memory: one chunk in the
    file's dtype, and 16 bytes per chunk.
    """

    def __init__(
        self, path: str | os.PathLike, channels: int, height: int, width: int, dtype: str = "float16", overwrite: bool = False
    ) -> None:
        """Opens the hidden file.

        Args:
            path: the target; a link is followed.
            channels: z, >= 1.
            height, width: of the latent grid in cells, >= 1.
            dtype: what the latents are stored as: "float16", "float32" or "bfloat16".
            overwrite: whether an existing file may be replaced (at `close`, and not before).

        Raises:
            UsageError: unknown dtype.
            OutputError: the target exists, is a folder or a device, or cannot be written.
        """
        if dtype not in LATENT_DTYPES:
            raise UsageError(f"Latent dtype {dtype!r} is unknown; pass --latent-dtype {', '.join(LATENT_DTYPES)}.")
        self._shown = os.fspath(path)
        self._target = Path(os.path.realpath(path))
        self._part = self._target.with_name(f".{self._target.name}.part")
        self._overwrite = overwrite
        self._dtype = LATENT_DTYPES[dtype]
        self._frame_shape = (channels, height, width)
        self._ends: list[int] = []
        self._sums: list[int] = []
        self._file: BinaryIO | None = None
        try:
            self._check_target()
            # A file of this name is left from a crash. Unlinking it, rather than truncating, keeps two writers
            # of one target apart: each has a file of its own, and the first finds its name taken at `close`.
            self._part.unlink(missing_ok=True)
            self._file = open(self._part, "xb+")
            self._file.write(b"\0" * HEADER_RESERVE)
        except OSError as error:
            self.abort()
            raise _output_error(self._shown, error) from error

    @property
    def latent_frames(self) -> int:
        """Latent frames appended so far."""
        return self._ends[-1] if self._ends else 0

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
        stored = to_stored(latents, self._dtype)
        self._check_finite(latents, stored)
        self._write(stored)
        self._ends.append(self.latent_frames + len(stored))
        self._sums.append(xxh3_64_intdigest(stored))

    def close(self, metadata: dict[str, str], tensors: dict[str, np.ndarray]) -> None:
        """Writes the small tensors and the header, and gives the file its name.

        Args:
            metadata: strings for the header; lone surrogates become "?".
            tensors: small tensors by name, e.g. int64 `pts` [F]; any numpy dtype that safetensors has.

        Raises:
            UsageError: no chunk was appended, or a name or dtype that this file cannot hold.
            OutputError: the file cannot be completed; the hidden file is removed.
        """
        self._check_content(metadata, tensors)
        payload = self.latent_frames * math.prod(self._frame_shape) * np.dtype(NUMPY_TYPES[self._dtype]).itemsize
        entries = {"latents": describe(self._dtype, (self.latent_frames, *self._frame_shape), 0, payload)}
        sums: dict[str, str] = {}
        end = payload
        table = {"chunk_end": np.array(self._ends, np.int64), "chunk_xxh3": np.array(self._sums, np.uint64)}
        small = {name: np.asarray(a, a.dtype.newbyteorder("<"), order="C") for name, a in {**table, **tensors}.items()}
        if payload % ALIGNMENT:
            small["_pad"] = np.zeros(-payload % ALIGNMENT, np.uint8)
        # The padding first, then wide types before narrow ones: every tensor is aligned to its type.
        ordered = sorted(small.items(), key=lambda item: (item[0] != "_pad", -item[1].itemsize))
        for name, array in ordered:
            entries[name] = describe(_NAMES[array.dtype], array.shape, end, end + array.nbytes)
            sums[name] = xxh3_64_hexdigest(array)
            end += array.nbytes
        header = make_header(metadata, sums, entries, HEADER_RESERVE)
        for _, array in ordered:
            self._write(array)
        try:
            self._finish(header, end)
        except OSError as error:
            self.abort()
            raise _output_error(self._shown, error) from error
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Closes and removes the hidden file; does nothing after `close`."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            if self._owns_part():
                self._part.unlink()
        with contextlib.suppress(OSError):
            self._file.close()
        self._file = None

    def __enter__(self) -> "LatentWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.abort()

    def _finish(self, header: bytes, data_bytes: int) -> None:
        assert self._file is not None
        shift = len(header) - HEADER_RESERVE
        # A header beyond the reserve: the data moves up, last block first, so that nothing is overwritten unread.
        for start in reversed(range(0, data_bytes if shift else 0, BLOCK)):
            self._file.seek(HEADER_RESERVE + start)
            block = self._file.read(min(BLOCK, data_bytes - start))
            self._file.seek(HEADER_RESERVE + start + shift)
            self._file.write(block)
        self._file.seek(0)
        self._file.write(header)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._check_target()
        if not self._owns_part():
            raise OutputError(f"{self._shown} is being written by another process too; give each its own output.")
        os.replace(self._part, self._target)
        self._file.close()
        self._file = None
        with contextlib.suppress(OSError):  # some network file systems cannot sync a folder
            folder = os.open(self._target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _write(self, data: np.ndarray) -> None:
        assert self._file is not None, "the writer is closed"
        try:
            self._file.write(data)
        except OSError as error:
            self.abort()
            raise _output_error(self._shown, error) from error

    def _owns_part(self) -> bool:
        assert self._file is not None
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._part))
        except FileNotFoundError:
            return False

    def _check_target(self) -> None:
        if not self._target.parent.is_dir():
            raise OutputError(f"{self._shown} cannot be written: the folder {self._target.parent} does not exist; make it first.")
        if self._target.is_dir():
            raise OutputError(f"{self._shown} is a folder; name a file in it.")
        if self._target.exists():
            if not self._target.is_file():
                raise OutputError(f"{self._shown} is not a regular file; name another output.")
            if not self._overwrite:
                raise OutputError(f"{self._shown} exists already; pass -y to overwrite it.")

    def _check_finite(self, latents: np.ndarray, stored: np.ndarray) -> None:
        mask = _EXPONENT_BITS[self._dtype]
        bad = (stored.view(f"u{stored.itemsize}") & mask) == mask
        if not bad.any():
            return
        first = tuple(np.argwhere(bad)[0])
        frame, value = self.latent_frames + int(first[0]), float(latents[first])
        if math.isfinite(value):
            wider = "float32" if self._dtype == "BF16" else "float32 (or bfloat16)"
            raise LatentFileError(
                f"Latent frame {frame} holds {value:.6g}, too large for the file's {self._dtype}; pass --latent-dtype {wider}."
            )
        raise LatentFileError(
            f"Latent frame {frame} holds {value}, which is not finite, so the network itself overflowed; "
            "encode again with --dtype float32 --latent-dtype float32."
        )

    def _check_content(self, metadata: dict[str, str], tensors: dict[str, np.ndarray]) -> None:
        taken = sorted((OWN_METADATA & set(metadata)) | (_OWN_TENSORS & set(tensors)))
        if taken:
            raise UsageError(f"The name {taken[0]!r} belongs to the latent file itself; choose another one.")
        unknown = [name for name, a in tensors.items() if a.dtype.newbyteorder("<") not in _NAMES]
        if unknown:
            known = ", ".join(map(str, _NAMES))
            raise UsageError(f"Tensor {unknown[0]!r} is {tensors[unknown[0]].dtype}, which the file cannot hold; pass {known}.")
        if not self._ends:
            raise UsageError("No latent frame was appended, so there is nothing to write; append at least one.")


class LatentReader:
    """Reads parts of a latent file and checks every byte that it returns.

    Opening reads the header only. Memory: what `read` returns, blocks of 1 MiB and the table of chunks.

    Attributes:
        metadata: the strings that were given to `LatentWriter.close`.
        shape: (t, z, h, w).
        dtype: "float16", "float32" or "bfloat16", as stored.
        num_chunks: chunks that the payload was written in.
        payload_bytes: bytes of `latents` alone.
        file_bytes: bytes of the whole file.
        tensor_names: names that `tensor` takes.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        """Opens a file and checks its header.

        Raises:
            LatentFileError: the file is missing, unreadable, of another format or version, cut off or damaged.
        """
        self.path = os.fspath(path)
        self._file, self.file_bytes = open_for_reading(self.path)
        try:
            raw = read_header(self._file, self.file_bytes, self.path)
            check_own_header(raw, self.path)
            metadata, self._entries = parse_header(raw, self.file_bytes, self.path)
            self._sums = self._check_structure(metadata)
        except BaseException:
            self._file.close()
            raise
        self.metadata = {key: value for key, value in metadata.items() if key not in OWN_METADATA}
        payload = self._entries["latents"]
        self.shape: tuple[int, int, int, int] = payload.shape
        self.dtype = next(name for name, stored in LATENT_DTYPES.items() if stored == payload.dtype)
        self.payload_bytes = payload.stop - payload.start
        self.num_chunks: int = self._entries["chunk_end"].shape[0]
        self.tensor_names = tuple(name for name in self._entries if name not in ("latents", "_pad"))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Latent frames `start` to `stop`, from the chunks that hold them, checksums verified.

        Returns:
            float32 [stop - start, z, h, w].

        Raises:
            UsageError: not 0 <= start <= stop <= t.
            LatentFileError: a chunk is damaged; it is named with its latent frames.
        """
        frames = self.shape[0]
        if not 0 <= start <= stop <= frames:
            raise UsageError(f"Latent frames {start} to {stop} are not in {self.path}; ask for 0 to {frames} at most.")
        out = np.empty((stop - start, *self.shape[1:]), np.float32)
        ends, _ = self._chunks
        first = start
        for index in range(int(np.searchsorted(ends, start, "right")), self.num_chunks):
            if first >= stop:
                break
            last = min(stop, int(ends[index]))
            part = self._chunk(index, first, last)
            if part is None:
                held = f"latent frames {self._chunk_start(index)} to {int(ends[index]) - 1}"
                raise LatentFileError(
                    f"{self.path} is damaged: chunk {index} ({held}) does not match its checksum; encode the video again."
                )
            out[first - start : last - start] = part
            first = last
        return out

    def tensor(self, name: str) -> np.ndarray:
        """One of the small tensors, whole, its checksum verified.

        Raises:
            LatentFileError: no tensor of that name, or a damaged one.
        """
        if name not in self.tensor_names:
            raise LatentFileError(f"{self.path} holds no tensor {name!r}; it holds {', '.join(self.tensor_names)}.")
        entry = self._entries[name]
        data = read_exactly(self._file, entry.start, entry.stop - entry.start, self.path)
        self._check_sum(name, xxh3_64_hexdigest(data))
        return np.frombuffer(data, NUMPY_TYPES[entry.dtype]).reshape(entry.shape)

    def verify(self) -> list[int]:
        """Reads the whole file, block by block, and checks all of it.

        Returns:
            The numbers of the damaged chunks; empty for a sound file.

        Raises:
            LatentFileError: damage elsewhere: the header or a small tensor, which is named.
        """
        check_own_header(read_header(self._file, self.file_bytes, self.path), self.path)
        for name in self._sums:
            entry = self._entries[name]
            digest = xxh3_64()
            for _, block in self._blocks(entry.start, entry.stop):
                digest.update(block)
            self._check_sum(name, digest.hexdigest())
        return [i for i in range(self.num_chunks) if self._chunk(i, self._chunk_start(i), self._chunk_start(i)) is None]

    def close(self) -> None:
        """Closes the file; what was read stays."""
        self._file.close()

    def __enter__(self) -> "LatentReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @functools.cached_property
    def _chunks(self) -> tuple[np.ndarray, np.ndarray]:
        """One past the last latent frame of each chunk, and its checksum."""
        ends = self.tensor("chunk_end")
        if ends[0] < 1 or ends[-1] != self.shape[0] or (ends[1:] <= ends[:-1]).any():
            raise LatentFileError(f"{self.path} is damaged: its chunks do not cover its {self.shape[0]} latent frames.")
        return ends, self.tensor("chunk_xxh3")

    def _chunk_start(self, index: int) -> int:
        return int(self._chunks[0][index - 1]) if index else 0

    def _chunk(self, index: int, first: int, last: int) -> np.ndarray | None:
        """Latent frames `first` to `last` of one chunk, or None where the chunk's checksum is wrong."""
        ends, sums = self._chunks
        payload = self._entries["latents"]
        frame_bytes = self.payload_bytes // self.shape[0]
        frames = (self._chunk_start(index), int(ends[index]), first, last)
        start, stop, low, high = (payload.start + frame * frame_bytes for frame in frames)
        kept = bytearray()
        digest = xxh3_64()
        for position, block in self._blocks(start, stop):
            digest.update(block)
            kept += block[max(low - position, 0) : max(high - position, 0)]
        if digest.intdigest() != sums[index]:
            return None
        return to_float(np.frombuffer(kept, NUMPY_TYPES[payload.dtype]), payload.dtype).reshape(last - first, *self.shape[1:])

    def _blocks(self, start: int, stop: int) -> Iterator[tuple[int, bytearray]]:
        for position in range(start, stop, BLOCK):
            yield position, read_exactly(self._file, position, min(BLOCK, stop - position), self.path)

    def _check_sum(self, name: str, found: str) -> None:
        if found != self._sums[name]:
            raise LatentFileError(f"{self.path} is damaged: tensor {name!r} does not match its checksum; encode the video again.")

    def _check_structure(self, metadata: dict[str, str]) -> dict[str, str]:
        """Checks the tensors that the format asks for; returns the checksums of the small ones."""
        entries = self._entries
        latents, ends, sums = (entries.get(name) for name in ("latents", "chunk_end", "chunk_xxh3"))
        try:
            small = json.loads(metadata["tensors_xxh3"])
            sound = small.keys() == entries.keys() - {"latents"} and all(type(value) is str for value in small.values())
        except (KeyError, ValueError, AttributeError, RecursionError):
            sound = False
        if not sound or latents is None or ends is None or sums is None:
            raise LatentFileError(f"{self.path} has a damaged header: its tensors and their checksums do not match.")
        if len(latents.shape) != 4 or 0 in latents.shape or latents.dtype not in LATENT_DTYPES.values():
            found = f"{latents.dtype} {list(latents.shape)}"
            raise LatentFileError(f"{self.path} has a damaged header: latents of {found}, not [t, z, h, w] of a floating type.")
        if (ends.dtype, sums.dtype) != ("I64", "U64") or len(ends.shape) != 1 or ends.shape != sums.shape or ends.shape[0] == 0:
            raise LatentFileError(f"{self.path} has a damaged header: its table of chunks is malformed.")
        return small


def is_latent_file(path: str | os.PathLike) -> bool:
    """Whether a file says that it is one of ours, damaged or not; False for what cannot be read."""
    try:
        file, _ = open_for_reading(os.fspath(path))
        with file:
            return bears_mark(file.read(512))
    except (LatentFileError, OSError):
        return False


def _output_error(path: str, error: OSError) -> OutputError:
    reasons = {
        errno.ENOSPC: "no space is left on the disk; free some or name another disk",
        errno.EDQUOT: "the disk quota is used up; free some space or name another disk",
        errno.EACCES: "permission was denied; choose a folder that you may write to",
        errno.EPERM: "permission was denied; choose a folder that you may write to",
        errno.EROFS: "the file system is read-only; choose another folder",
    }
    return OutputError(f"{path} cannot be written: {reasons.get(error.errno or 0, error.strerror or str(error))}.")
