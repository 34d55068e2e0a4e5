"""EXIF's eight orientations, in the three kinds of pictures that carry them."""

import struct
import zlib
from pathlib import Path

import av
import numpy as np
import pytest

from cvvae_cli.colour import Orientation
from cvvae_cli.exif import exif_orientation
from cvvae_cli.video_io import VideoReader

CORNERS = np.zeros((32, 48, 3), np.uint8)
CORNERS[:16, :24], CORNERS[:16, 24:] = (255, 0, 0), (0, 255, 0)
CORNERS[16:, :24], CORNERS[16:, 24:] = (0, 0, 255), (255, 255, 255)

# where the stored first row and first column are shown, from the standard's table, done with numpy
UPRIGHT = {
    1: CORNERS, 2: CORNERS[:, ::-1], 3: CORNERS[::-1, ::-1], 4: CORNERS[::-1], 5: CORNERS.transpose(1, 0, 2),
    6: np.rot90(CORNERS, -1), 7: np.rot90(CORNERS, -1)[::-1], 8: np.rot90(CORNERS, 1),
}  # fmt: skip


def tiff(number: int, order: str) -> bytes:
    """A directory of two entries, the second of which is the orientation."""
    mark = b"II" if order == "<" else b"MM"
    first = struct.pack(order + "HHII", 0x0100, 4, 1, 48)
    second = struct.pack(order + "HHIHH", 0x0112, 3, 1, number, 0)
    return mark + struct.pack(order + "HIH", 42, 8, 2) + first + second + bytes(4)


def encoded(codec: str, pix_fmt: str, path: Path) -> bytes:
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as output:
        stream = output.add_stream(codec, width=48, height=32, pix_fmt=pix_fmt)
        frame = av.VideoFrame.from_ndarray(CORNERS, "rgb24").reformat(format=pix_fmt)
        output.mux([*stream.encode(frame), *stream.encode(None)])
    return path.read_bytes()


def with_exif(kind: str, plain: bytes, data: bytes) -> bytes:
    if kind == "jpg":
        return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 8) + b"Exif\0\0" + data + plain[2:]
    if kind == "png":
        checksum = struct.pack(">I", zlib.crc32(b"eXIf" + data))
        return plain[:33] + struct.pack(">I", len(data)) + b"eXIf" + data + checksum + plain[33:]
    extended = b"VP8X" + struct.pack("<IB3x", 10, 8) + struct.pack("<I", 47)[:3] + struct.pack("<I", 31)[:3]
    body = b"WEBP" + extended + plain[12:] + b"EXIF" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("pictures")
    kinds = {"jpg": ("mjpeg", "yuvj444p"), "png": ("png", "rgb24"), "webp": ("libwebp", "bgra")}
    return {kind: encoded(*how, folder / f"plain.{kind}") for kind, how in kinds.items()}


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
@pytest.mark.parametrize("number", range(1, 9))
def test_pictures_come_upright(tmp_path: Path, plain: dict[str, bytes], kind: str, number: int) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(with_exif(kind, plain[kind], tiff(number, "<>"[number % 2])))
    assert exif_orientation(path) == number
    with VideoReader(path) as reader:
        shown = next(iter(reader)).rgb
    assert shown.shape == UPRIGHT[number].shape
    assert np.abs(shown[4::8, 4::8].astype(int) - UPRIGHT[number][4::8, 4::8]).max() < 60  # JPEG and WebP lose a little


@pytest.mark.parametrize("number", range(1, 9))
def test_numbers_turn_as_the_standard_says(number: int) -> None:
    assert np.array_equal(Orientation.from_exif(number).apply(CORNERS), UPRIGHT[number])


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_files_that_break_off_or_say_nonsense_are_upright(tmp_path: Path, plain: dict[str, bytes], kind: str) -> None:
    whole = with_exif(kind, plain[kind], tiff(6, "<"))
    path = tmp_path / "a"
    end = whole.find(tiff(6, "<"))
    for size in (0, 3, 11, 20, end, end + 9, end + 20):
        path.write_bytes(whole[:size])
        assert exif_orientation(path) == 1, size
    for number in (0, 9, 65535):
        path.write_bytes(with_exif(kind, plain[kind], tiff(number, "<")))
        assert exif_orientation(path) == 1
    assert exif_orientation(tmp_path / "nothing") == 1
