"""The latent file: what it holds, and reading parts of one.

A latent file is a valid safetensors file. In order: the header (see `safetensors_header`), the payload
`latents` [t, z, h, w], zeros up to a multiple of 8 (`_pad`), small tensors. Every byte is under an XXH3-64
checksum: each chunk of the payload in the tensor `chunk_xxh3`, beside its end in `chunk_end`; each other
tensor, and the header itself, in the header. Anchors, where there are any, have one each in `anchors_xxh3` too.
`latent_writer` writes it.

This module knows neither models nor video: what the metadata and the small tensors mean is the codec's
business. It does not import torch.
"""

import functools
import io
import json
import os
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
from xxhash import xxh3_64, xxh3_64_hexdigest, xxh3_64_intdigest

from cvvae_cli.errors import LatentFileError, UsageError
from cvvae_cli.safetensors_header import (
    NAME_LIMIT,
    NUMPY_TYPES,
    OWN_METADATA,
    Entry,
    bears_mark,
    check_own_header,
    check_requires,
    load_header,
    open_for_reading,
    place_tensors,
    read_exactly,
    read_header,
    to_float,
)

LATENT_DTYPES = {"float16": "F16", "float32": "F32", "bfloat16": "BF16"}
BLOCK = 1024 * 1024
"""Bytes that are read or copied at a time."""


class LatentReader:
    """Reads parts of a latent file and checks every byte that it returns.

    Opening reads the header only. Memory: what `read` and `tensor` return, blocks of 1 MiB and the table of chunks.

    Attributes:
        metadata: the strings that were given to `LatentWriter.close`.
        shape: (t, z, h, w).
        dtype: "float16", "float32" or "bfloat16", as stored.
        num_chunks: chunks that the payload was written in.
        num_anchors: anchors that `read_anchor` takes, 0 where the file has none.
        payload_bytes: bytes of `latents` alone.
        latent_bytes: of latents and anchors.
        file_bytes: bytes of the whole file.
        tensor_names: names that `tensor` and `open_tensor` take.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        """Opens a file and checks its header.

        Raises:
            LatentFileError: the file is missing, unreadable, of another format or version, cut off, damaged, or requires
                what this version does not know.
        """
        self.path = os.fspath(path)
        self._file, self.file_bytes = open_for_reading(self.path)
        try:
            raw = read_header(self._file, self.file_bytes, self.path)
            check_own_header(raw, self.path)
            metadata, tensors = load_header(raw, self.path)
            check_requires(metadata, self.path)  # first, because a feature may change all that follows
            self._entries = place_tensors(tensors, 8 + len(raw), self.file_bytes, self.path)
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
        anchors = self._entries.get("anchors")
        self.num_anchors: int = anchors.shape[0] if anchors else 0
        self.latent_bytes = self.payload_bytes + (anchors.stop - anchors.start if anchors else 0)
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
        for index, first, last in self.parts(start, stop):
            part = self.read_chunk(index, first, last)
            if part is None:
                begin, end = self.chunk_span(index)
                held = f"latent frames {begin} to {end - 1}"
                raise LatentFileError(
                    f"{self.path} is damaged: chunk {index} ({held}) does not match its checksum; encode the video again, "
                    "or decode with --keep-going."
                )
            out[first - start : last - start] = part
        return out

    def parts(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The chunks that hold latent frames `start` to `stop`, each with the first of them in it and one past the last."""
        ends, _ = self._chunks
        first = start
        for index in range(int(np.searchsorted(ends, start, "right")), self.num_chunks):
            if first >= stop:
                return
            last = min(stop, int(ends[index]))
            yield index, first, last
            first = last

    def chunk_span(self, index: int) -> tuple[int, int]:
        """First latent frame of a chunk, and one past its last."""
        ends, _ = self._chunks
        return int(ends[index - 1]) if index else 0, int(ends[index])

    def read_chunk(self, index: int, first: int, last: int) -> np.ndarray | None:
        """Latent frames `first` to `last` of one chunk, all of which is checked: float32, or None where it is damaged."""
        _, sums = self._chunks
        payload = self._entries["latents"]
        frame_bytes = self.payload_bytes // self.shape[0]
        start, stop, low, high = (payload.start + frame * frame_bytes for frame in (*self.chunk_span(index), first, last))
        kept = bytearray()
        digest = xxh3_64()
        for position, block in self._blocks(start, stop):
            digest.update(block)
            kept += block[max(low - position, 0) : max(high - position, 0)]
        if digest.intdigest() != sums[index]:
            return None
        return to_float(np.frombuffer(kept, NUMPY_TYPES[payload.dtype]), payload.dtype).reshape(last - first, *self.shape[1:])

    def read_anchor(self, index: int) -> np.ndarray | None:
        """An anchor, checked alone where the file has checksums of each, else with all others, once.

        Returns:
            float32 [z, h, w]; None where it is damaged.

        Raises:
            LatentFileError: the checksums are damaged.
        """
        entry, (start, stop) = self._small_entry("anchors"), self._anchor_span(index)
        data = read_exactly(self._file, start, stop - start, self.path)
        sums = self._anchor_sums
        if not (self._anchors_are_sound if sums is None else xxh3_64_intdigest(data) == sums[index]):
            return None
        return to_float(np.frombuffer(data, NUMPY_TYPES[entry.dtype]), entry.dtype).reshape(self.shape[1:])

    def _anchor_span(self, index: int) -> tuple[int, int]:
        """First byte of an anchor in the file, and one past the last."""
        entry = self._entries["anchors"]
        size = (entry.stop - entry.start) // self.num_anchors
        return entry.start + index * size, entry.start + (index + 1) * size

    @functools.cached_property
    def _anchor_sums(self) -> np.ndarray | None:
        return self.tensor("anchors_xxh3") if "anchors_xxh3" in self._entries else None

    @functools.cached_property
    def _anchors_are_sound(self) -> bool:
        return self._is_sound("anchors")

    def tensor(self, name: str) -> np.ndarray:
        """One of the small tensors, whole, its checksum verified.

        Raises:
            LatentFileError: no tensor of that name, or a damaged one.
        """
        entry = self._small_entry(name)
        data = read_exactly(self._file, entry.start, entry.stop - entry.start, self.path)
        if xxh3_64_hexdigest(data) != self._sums[name]:
            raise self._damaged(name)
        return np.frombuffer(data, NUMPY_TYPES[entry.dtype]).reshape(entry.shape)

    def open_tensor(self, name: str) -> BinaryIO:
        """The bytes of one of the small tensors as a file, for what is too large for memory.

        Returns:
            A file that can seek, of use until the reader is closed. Its checksum was verified in blocks; what is
            read from it later is not checked again.

        Raises:
            LatentFileError: no tensor of that name, or a damaged one.
        """
        entry = self._small_entry(name)
        if not self._is_sound(name):
            raise self._damaged(name)
        return io.BufferedReader(_Part(self._file, entry.start, entry.stop, self.path), BLOCK)

    def verify(self) -> list[int]:
        """Reads the whole file, block by block, and checks all of it.

        Returns:
            The numbers of the damaged chunks; empty for a sound file.

        Raises:
            LatentFileError: damage elsewhere: the header or a small tensor, which is named.
        """
        for name in self.damaged_tensors():
            raise self._damaged(name)
        return self.damaged_chunks()

    def damaged_tensors(self) -> list[str]:
        """Checks all but the latents; names the small tensors that do not match their checksums.

        Raises:
            LatentFileError: the header is damaged now, or the file cannot be read.
        """
        check_own_header(read_header(self._file, self.file_bytes, self.path), self.path)
        damaged = [name for name in self._sums if not self._is_sound(name)]
        sums = None if {"anchors", "anchors_xxh3"} & {*damaged} else self._anchor_sums
        if sums is not None and any(self._digest_of(*self._anchor_span(n)).intdigest() != sum_ for n, sum_ in enumerate(sums)):
            damaged.append("anchors_xxh3")  # sound, and of other anchors
        return damaged

    def damaged_chunks(self, progress: Callable[[int], None] | None = None) -> list[int]:
        """Checks all the latents; the numbers of the chunks that do not match their checksums.

        Args:
            progress: called after every chunk with the latent frames that have been read.

        Raises:
            LatentFileError: the table of chunks is damaged, or the file cannot be read.
        """
        damaged = []
        for index in range(self.num_chunks):
            start, stop = self.chunk_span(index)
            if self.read_chunk(index, start, start) is None:
                damaged.append(index)
            if progress:
                progress(stop)
        return damaged

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

    def _blocks(self, start: int, stop: int) -> Iterator[tuple[int, bytearray]]:
        for position in range(start, stop, BLOCK):
            yield position, read_exactly(self._file, position, min(BLOCK, stop - position), self.path)

    def _small_entry(self, name: str) -> Entry:
        if name not in self.tensor_names:
            held = ", ".join(self.tensor_names)[: 4 * NAME_LIMIT]
            raise LatentFileError(f"{self.path} holds no tensor {name!r}; it holds {held}.")
        return self._entries[name]

    def _is_sound(self, name: str) -> bool:
        entry = self._entries[name]
        return self._digest_of(entry.start, entry.stop).hexdigest() == self._sums[name]

    def _digest_of(self, start: int, stop: int) -> xxh3_64:
        digest = xxh3_64()
        for _, block in self._blocks(start, stop):
            digest.update(block)
        return digest

    def _damaged(self, name: str) -> LatentFileError:
        return LatentFileError(f"{self.path} is damaged: tensor {name[:NAME_LIMIT]!r} does not match its checksum; encode again.")

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
        self._check_anchors(entries.get("anchors"), entries.get("anchors_xxh3"))
        return small

    def _check_anchors(self, anchors: Entry | None, sums: Entry | None) -> None:
        latents = self._entries["latents"]
        if anchors is not None and (anchors.dtype, anchors.shape[1:]) != (latents.dtype, latents.shape[1:]):
            found = f"anchors of {anchors.dtype} {list(anchors.shape)}, not like its latents"
            raise LatentFileError(f"{self.path} has a damaged header: {found}.")
        if anchors is not None and anchors.shape[0] >= latents.shape[0]:  # each belongs to a latent frame behind the first
            found = f"{anchors.shape[0]} anchors for {latents.shape[0]} latent frames"
            raise LatentFileError(f"{self.path} has a damaged header: {found}.")
        if sums is not None and (anchors is None or (sums.dtype, sums.shape) != ("U64", anchors.shape[:1])):
            raise LatentFileError(f"{self.path} has a damaged header: the checksums of its anchors are not one for each.")


class _Part(io.RawIOBase):
    """A span of bytes of an open file as a file of its own, read only."""

    def __init__(self, file: io.FileIO, start: int, stop: int, path: str) -> None:
        super().__init__()
        self._file, self._start, self._size, self._path = file, start, stop - start, path
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:
        count = max(0, min(len(buffer), self._size - self._position))
        buffer[:count] = read_exactly(self._file, self._start + self._position, count, self._path)
        self._position += count
        return count


def is_latent_file(path: str | os.PathLike) -> bool:
    """Whether a file says that it is one of ours, damaged or not; False for what cannot be read."""
    try:
        file, _ = open_for_reading(os.fspath(path))
        with file:
            return bears_mark(file.read(512))
    except (LatentFileError, OSError):
        return False
