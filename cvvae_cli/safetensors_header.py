"""The header of a safetensors file: reading any one without trust, and making and checking that of a latent file.

A safetensors file begins with the length of its header (u64) and the header (JSON, padded with spaces); the
bytes of the tensors follow without a gap. A latent file's header begins with `format`, `format_version` and
`header_xxh3`, the XXH3-64 checksum of the length and the header, padding included, in which its own 16
digits count as zeros. `tensors_xxh3` holds the checksums of the small tensors.

`requires`, where it is there, is a JSON list of features without which the file cannot be understood.

This module does not know which tensors a file should hold. It does not import torch.
"""

import json
import math
import os
import re
import stat
import struct
from dataclasses import dataclass
from io import FileIO

import numpy as np
from xxhash import xxh3_64

from cvvae_cli.errors import LatentFileError, UsageError

FORMAT_VERSION = 1
FEATURES: frozenset[str] = frozenset()
"""What a file may require of this version. A version that stores what older ones would misread adds a name here and in
`requires`; what older ones may pass over is a metadata string or a tensor of a new name and needs no feature."""
ALIGNMENT = 8
HEADER_LIMIT = 4 * 1024 * 1024
"""Bytes that a header may take: Python's objects for JSON take many times the bytes of the text."""
NAME_LIMIT = 80
"""Characters that are shown of a name out of a file."""
OWN_METADATA = {"format", "format_version", "header_xxh3", "tensors_xxh3", "requires"}
"""What the header of a latent file says about itself."""

NUMPY_TYPES = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8", "BOOL": "?", "I8": "i1", "U8": "u1", "I16": "<i2",
               "U16": "<u2", "I32": "<i4", "U32": "<u4", "I64": "<i8", "U64": "<u8"}  # fmt: skip
"""Numpy's type for each of a safetensors file; numpy has no bfloat16, whose bits travel as uint16."""

_START = re.compile(
    rb'\{"__metadata__":\{"format":"cvvae-latent","format_version":"(\d{1,9})","header_xxh3":"([0-9a-f]{16})"'
)
_MARKS = (b'"cvvae-latent"', b'"header_xxh3"')


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies.

    Attributes:
        dtype: a key of `NUMPY_TYPES`.
        shape: of the tensor.
        start, stop: first byte and one past the last, counted from the beginning of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def to_stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Floating-point values to what a file holds in `dtype`, rounded to nearest, ties to even.

    A value that is too large becomes an infinity; NaN stays NaN.
    """
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(values, NUMPY_TYPES[dtype])
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    # Adding just under half of the lost part, plus the last kept bit, carries exactly when rounding up is due.
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def to_float(stored: np.ndarray, dtype: str) -> np.ndarray:
    """What a file holds in the floating-point type `dtype` to float32: exact, but for "F64", which may overflow to infinity."""
    if dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return stored.astype(np.float32)


def open_for_reading(path: str) -> tuple[FileIO, int]:
    """Opens a file without a buffer.

    Returns:
        The file and its size in bytes.

    Raises:
        LatentFileError: it is missing, not a regular file, or cannot be opened.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # asked before opening, which would wait at a pipe
            raise LatentFileError(f"{path} is not a file; name a latent file.")
        # Without a buffer, so that a check sees what the disk has now and not what it had at opening.
        file = open(path, "rb", buffering=0)
    except FileNotFoundError:
        raise LatentFileError(f"{path} does not exist; check the name.") from None
    except (OSError, ValueError) as error:
        raise LatentFileError(f"{path!r} cannot be opened: {getattr(error, 'strerror', None) or error}.") from error
    return file, os.fstat(file.fileno()).st_size


def read_exactly(file: FileIO, start: int, size: int, path: str) -> bytearray:
    """`size` bytes from byte `start`; `path` is for the message.

    Raises:
        LatentFileError: the file ends before, or the disk fails.
    """
    data, filled = bytearray(size), 0
    view = memoryview(data)
    try:
        file.seek(start)
        while filled < size:
            count = file.readinto(view[filled:])
            if not count:
                raise LatentFileError(f"{path} is cut off at byte {start + filled}; copy or encode it again.")
            filled += count
    except OSError as error:
        raise LatentFileError(f"{path} cannot be read: {error.strerror or error}.") from error
    return data


def read_header(file: FileIO, file_bytes: int, path: str) -> bytearray:
    """The JSON of a safetensors file with its padding, without trust in the length it states.

    Raises:
        LatentFileError: the file begins otherwise, is cut off, or states more than `HEADER_LIMIT`.
    """
    start = read_exactly(file, 0, min(9, file_bytes), path)
    if start[8:] != b"{":
        raise LatentFileError(f"{path} is no latent file: it does not begin like a safetensors file.")
    (size,) = struct.unpack("<Q", start[:8])
    if size > HEADER_LIMIT:
        raise LatentFileError(f"{path} is damaged or no latent file: it states a header of {size} bytes, above {HEADER_LIMIT}.")
    if size > file_bytes - 8:
        found = f"its header alone takes {size} bytes, and the file has {file_bytes}"
        raise LatentFileError(f"{path} is cut off: {found}; copy or encode it again.")
    return read_exactly(file, 8, size, path)


def load_header(header: bytearray, path: str) -> tuple[dict[str, str], dict[str, object]]:
    """The metadata of a header from `read_header`, and what it says of each tensor, for `place_tensors`.

    Raises:
        LatentFileError: it is malformed.
    """
    try:
        tensors = json.loads(header.decode("utf-8"))
        metadata = tensors.pop("__metadata__", {})
        if not all(type(value) is str for value in metadata.values()):
            raise ValueError("metadata must be strings")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise LatentFileError(f"{path} has a damaged header ({error}).") from error
    return metadata, tensors


def place_tensors(tensors: dict[str, object], begin: int, file_bytes: int, path: str) -> dict[str, Entry]:
    """Where the tensors lie whose bytes begin at byte `begin`.

    Raises:
        LatentFileError: one is malformed, or they do not cover the rest of the file exactly.
    """
    try:
        entries = {name: _parse_entry(value, begin) for name, value in tensors.items()}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise LatentFileError(f"{path} has a damaged header ({error}).") from error
    position = begin
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != position:
            found = f"tensor {name[:NAME_LIMIT]!r} does not begin where the one before it ends"
            raise LatentFileError(f"{path} has a damaged header: {found}.")
        position = entry.stop
    if position != file_bytes:
        state = "is cut off" if position > file_bytes else "goes on after its end"
        found = f"its header tells of {position} bytes, and it has {file_bytes}"
        raise LatentFileError(f"{path} {state}: {found}; copy or encode it again.")
    return entries


def parse_header(header: bytearray, file_bytes: int, path: str) -> tuple[dict[str, str], dict[str, Entry]]:
    """The metadata and the tensors of a header from `read_header`.

    Raises:
        LatentFileError: it is malformed, or its tensors do not cover the rest of the file exactly.
    """
    metadata, tensors = load_header(header, path)
    return metadata, place_tensors(tensors, 8 + len(header), file_bytes, path)


def check_requires(metadata: dict[str, str], path: str) -> None:
    """Refuse a latent file that this version would misread.

    Raises:
        LatentFileError: it requires a feature that is not one of `FEATURES`, which is named.
    """
    try:
        required = json.loads(metadata.get("requires", "[]"))
    except (ValueError, RecursionError):
        required = None
    if type(required) is not list or not all(type(feature) is str for feature in required):
        raise LatentFileError(f"{path} has a damaged header: what it requires is no list of features; encode the video again.")
    unknown = next((feature for feature in required if feature not in FEATURES), None)
    if unknown is not None:
        needed = unknown[:NAME_LIMIT]
        raise LatentFileError(f"{path} requires {needed!r}, which this version of cvvae does not know; upgrade cvvae.")


def bears_mark(data: bytes | bytearray) -> bool:
    """Whether the first 512 bytes of a file or of its header say that it is a latent file.

    There are two marks, and one suffices: a flipped bit must not make a damaged latent file another kind of file.
    """
    return any(mark in data[:512] for mark in _MARKS)


def check_own_header(header: bytearray, path: str) -> None:
    """Checks the marks, the version and the checksum of a latent file's header, before any of it is parsed.

    Raises:
        LatentFileError: one of them is wrong.
    """
    match = _START.match(header)
    if match is None:
        if bears_mark(header):
            raise LatentFileError(f"{path} has a damaged header, or another program rewrote it; encode the video again.")
        raise LatentFileError(f"{path} is a safetensors file, but no latent file of cvvae.")
    version = int(match[1])
    if version != FORMAT_VERSION:
        raise LatentFileError(f"{path} has format version {version}, but this program reads {FORMAT_VERSION}; upgrade cvvae.")
    if _checksum(header, match) != match[2]:
        raise LatentFileError(f"{path} has a damaged header: it does not match its checksum; encode the video again.")


def make_header(metadata: dict[str, str], sums: dict[str, str], tensors: dict[str, dict], reserve: int) -> bytes:
    """The length and the header of a latent file.

    Args:
        metadata: strings other than `OWN_METADATA`; lone surrogates become "?".
        sums: checksums of the small tensors, as hexadecimal digits.
        tensors: what `describe` says of each tensor.
        reserve: bytes to fill, a multiple of `ALIGNMENT`; what does not fit takes as many as it needs.

    Raises:
        UsageError: more than `HEADER_LIMIT`.
    """
    own = {"format": "cvvae-latent", "format_version": str(FORMAT_VERSION), "header_xxh3": "0" * 16}
    content = {"__metadata__": {**own, "tensors_xxh3": json.dumps(sums), **metadata}, **tensors}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    size = max(reserve, 8 + len(text) + -len(text) % ALIGNMENT) - 8
    if size > HEADER_LIMIT:
        raise UsageError(f"Metadata of {len(text)} bytes is more than the {HEADER_LIMIT} of a latent file; put it into a tensor.")
    header = text.ljust(size)
    match = _START.match(header)
    assert match is not None
    return struct.pack("<Q", size) + header[: match.start(2)] + _checksum(header, match) + header[match.end(2) :]


def describe(dtype: str, shape: tuple[int, ...], start: int, stop: int) -> dict:
    """What a header says of one tensor; `start` and `stop` count from the end of the header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def _checksum(header: bytes | bytearray, match: re.Match[bytes]) -> bytes:
    digest = xxh3_64(struct.pack("<Q", len(header)))
    digest.update(header[: match.start(2)] + b"0" * 16 + header[match.end(2) :])
    return digest.hexdigest().encode()


def _parse_entry(value: dict, base: int) -> Entry:
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if type(dtype) is not str or dtype not in NUMPY_TYPES:
        raise ValueError(f"unknown type {str(dtype)[:20]!r}")
    if type(shape) is not list or len(shape) > 8 or type(offsets) is not list or len(offsets) != 2:
        raise ValueError("malformed tensor")
    if not all(type(n) is int and 0 <= n < 2**63 for n in shape + offsets):
        raise ValueError("a size is out of range")
    if math.prod(max(n, 1) for n in shape) >= 2**60:  # an empty tensor may state sizes that numpy refuses
        raise ValueError("a shape is out of range")
    if math.prod(shape) * np.dtype(NUMPY_TYPES[dtype]).itemsize != offsets[1] - offsets[0]:
        raise ValueError("a shape does not match its bytes")
    return Entry(dtype, tuple(shape), base + offsets[0], base + offsets[1])
