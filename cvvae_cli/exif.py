"""Which way up a picture is, from the EXIF data of JPEG, PNG and WebP files.

FFmpeg hands on how far such a picture is turned, but PyAV not whether it is mirrored too. Decodes nothing.
"""

import os
import struct
from pathlib import Path
from typing import BinaryIO

UPRIGHT = 1

_ORIENTATION_TAG = 0x0112
_LARGEST = 1 << 16
"""Bytes of EXIF that are looked at; the first directory lies near their beginning."""


def exif_orientation(path: Path) -> int:
    """EXIF's number of a picture's orientation.

    Args:
        path: a file of any kind.

    Returns:
        1 to 8, 1 being upright; 1 too where the file says nothing or cannot be understood.
    """
    try:
        with path.open("rb") as file:
            head = file.read(12)
            if head[:2] == b"\xff\xd8":
                return _orientation(_in_jpeg(file))
            if head[:8] == b"\x89PNG\r\n\x1a\n":
                return _orientation(_in_png(file))
            if head[:4] == b"RIFF" and head[8:] == b"WEBP":
                return _orientation(_in_webp(file))
    except (OSError, struct.error):
        pass  # a file that breaks off says nothing more
    return UPRIGHT


def _in_jpeg(file: BinaryIO) -> bytes:
    """The EXIF data before a JPEG's picture, empty where there is none."""
    file.seek(2)
    while True:
        mark, kind, size = struct.unpack(">BBH", file.read(4))
        if mark != 0xFF or kind == 0xDA:  # the picture begins
            return b""
        data = file.read(min(size - 2, _LARGEST)) if kind == 0xE1 else b""
        if data.startswith(b"Exif\0\0"):
            return data[6:]
        file.seek(size - 2 - len(data), os.SEEK_CUR)


def _in_png(file: BinaryIO) -> bytes:
    file.seek(8)
    while True:
        size, kind = struct.unpack(">I4s", file.read(8))
        if kind == b"eXIf":
            return file.read(min(size, _LARGEST))
        file.seek(size + 4, os.SEEK_CUR)


def _in_webp(file: BinaryIO) -> bytes:
    file.seek(12)
    while True:
        kind, size = struct.unpack("<4sI", file.read(8))
        if kind == b"EXIF":
            return file.read(min(size, _LARGEST)).removeprefix(b"Exif\0\0")
        file.seek(size + size % 2, os.SEEK_CUR)


def _orientation(tiff: bytes) -> int:
    """The orientation in EXIF's first directory."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return UPRIGHT
    (directory,) = struct.unpack_from(order + "I", tiff, 4)
    (entries,) = struct.unpack_from(order + "H", tiff, directory)
    for i in range(entries):
        tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, directory + 2 + 12 * i)
        if tag == _ORIENTATION_TAG and kind == 3 and 1 <= value <= 8:
            return int(value)
    return UPRIGHT
