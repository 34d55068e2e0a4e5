"""Numbered pictures as a video."""

import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import moving_pictures

from cvvae_cli.errors import VideoError
from cvvae_cli.picture_sequence import find_sequence, is_sequence
from cvvae_cli.reading import Reading
from cvvae_cli.video_io import VideoReader

PICTURES = moving_pictures(6, 32, 24)


def write_picture(path: Path, picture: np.ndarray, pix_fmt: str = "rgb24") -> None:
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as output:
        stream = output.add_stream("png", width=picture.shape[1], height=picture.shape[0], pix_fmt=pix_fmt)
        # swscale would make 65283 of white out of 8-bit RGB
        words = av.VideoFrame.from_ndarray(picture * np.uint16(257), "rgb48le")
        frame = (words if "48" in pix_fmt else av.VideoFrame.from_ndarray(picture, "rgb24")).reformat(format=pix_fmt)
        output.mux([*stream.encode(frame), *stream.encode(None)])


def write_sequence(folder: Path, numbers: list[int]) -> Path:
    for number, picture in zip(numbers, PICTURES, strict=False):
        write_picture(folder / f"a{number:04d}.png", picture)
    return folder / "a%04d.png"


def test_pictures_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """They begin at 9997, far beyond where FFmpeg looks by itself, and grow a digit longer than the pattern says."""
    pattern = write_sequence(tmp_path, [9997, 9998, 9999, 10000, 10001, 10002])
    with VideoReader(pattern, reading=Reading(frame_rate=Fraction(30000, 1001))) as reader:
        frames = list(reader)
        tick = reader.info.time_base
    assert all(np.array_equal(frame.rgb, picture) for frame, picture in zip(frames, PICTURES, strict=True))
    assert [frame.pts * tick for frame in frames] == [i * Fraction(1001, 30000) for i in range(6)]
    assert reader.info.frame_rate == Fraction(30000, 1001) and reader.notes(to_end=True) == ()


def test_a_rate_that_nobody_says_is_said(tmp_path: Path) -> None:
    pattern = write_sequence(tmp_path, [0, 1, 2])
    with VideoReader(pattern) as reader:
        assert len(list(reader)) == 3 and reader.info.frame_rate == 24
    assert reader.notes(to_end=True) == ("24 pictures per second were assumed; --fps RATE says another rate.",)


def test_a_start_inside_a_sequence_is_exact(tmp_path: Path) -> None:
    pattern = write_sequence(tmp_path, [5, 6, 7, 8, 9, 10])
    with VideoReader(pattern, start=2 / 24, max_frames=2) as reader:
        frames = list(reader)
    assert [np.array_equal(frame.rgb, picture) for frame, picture in zip(frames, PICTURES[2:4], strict=True)] == [True, True]


def test_folders_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "50% [best] *%d"
    folder.mkdir()
    with VideoReader(write_sequence(folder, [1, 2])) as reader:
        assert len(list(reader)) == 2


def test_a_name_may_be_nothing_but_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, picture in enumerate(PICTURES[:2], 7):
        write_picture(Path(f"{number}.png"), picture)
    for pattern in ("%d.png", tmp_path / "%d.png"):
        with VideoReader(pattern) as reader:
            assert len(list(reader)) == 2


def test_a_missing_number_ends_the_sequence_aloud(tmp_path: Path) -> None:
    pattern = write_sequence(tmp_path, [3, 4, 6, 7])
    with VideoReader(pattern, reading=Reading(frame_rate=Fraction(24))) as reader:
        assert len(list(reader)) == 2
    assert reader.notes(to_end=True) == (f"Picture 5 of {pattern} is missing, and 2 behind it were left out.",)
    with pytest.raises(VideoError, match="Picture 5 of .* is missing, and 2 behind it would be left out"):
        VideoReader(pattern, reading=Reading(strict=True))


def test_which_files_belong_to_a_pattern(tmp_path: Path) -> None:
    for name in ("b1.png", "b2.png", "b03.png", "b3.jpg", "xb3.png", "b3.png~", "b004.png"):
        (tmp_path / name).write_bytes(b"")
    found = find_sequence(tmp_path / "b%d.png")
    assert (found.first, found.count, found.missing, found.left_out) == (1, 2, None, 0)
    assert find_sequence(tmp_path / "b%02d.png").first == 3
    (tmp_path / "50%d.png").write_bytes(b"")
    assert not is_sequence(tmp_path / "50%d.png"), "a file of that very name"
    assert is_sequence(tmp_path / "b%05d.png") and not is_sequence(tmp_path / "b%d%d.png") and not is_sequence(tmp_path / "b.png")


def test_no_picture_and_no_folder_are_one_sentence(tmp_path: Path) -> None:
    for path in (tmp_path / "c%d.png", tmp_path / "gone" / "c%d.png"):
        with pytest.raises(VideoError) as failure:
            VideoReader(path)
        assert str(path) in str(failure.value) and "\n" not in str(failure.value)


def test_a_picture_of_another_size_is_fitted(tmp_path: Path) -> None:
    write_sequence(tmp_path, [1, 2])
    write_picture(tmp_path / "a0003.png", moving_pictures(1, 16, 16)[0])
    with VideoReader(tmp_path / "a%04d.png") as reader:
        assert [frame.rgb.shape for frame in reader] == [(24, 32, 3)] * 3
    assert reader.changed_frames == 1


@pytest.mark.parametrize("pix_fmt", ["rgb48be", "gray", "rgba", "gray16be", "ya8", "monob"])
def test_every_kind_of_png_is_read(tmp_path: Path, pix_fmt: str) -> None:
    picture = np.full((16, 24, 3), 255, np.uint8)
    picture[:, :12] = 0
    write_picture(tmp_path / "a.png", picture, pix_fmt)
    deep = "16" in pix_fmt or "48" in pix_fmt
    with VideoReader(tmp_path / "a.png", deep=True) as reader:
        frames = list(reader)
    white = picture.astype(np.uint16) * 257 if deep else picture
    assert len(frames) == 1 and frames[0].rgb.dtype == white.dtype and np.array_equal(frames[0].rgb, white)
    assert reader.notes(to_end=True) == ()


def test_a_palette_with_transparency_is_read_and_said(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    indices = np.arange(8, dtype=np.uint8).reshape(2, 4) % 3
    palette = np.array([[250, 10, 20], [0, 128, 255], [7, 7, 7]], np.uint8)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 2, 8, 3, 0, 0, 0)) + chunk(b"PLTE", palette.tobytes())
    rows = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in indices))) + chunk(b"IEND", b"")
    for alpha, notes in ((b"\xff\xff\xff", ()), (b"\xff\x80\xff", ("The transparency (alpha) was left out.",))):
        path = tmp_path / "a.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"tRNS", alpha) + rows)
        with VideoReader(path) as reader:
            assert np.array_equal(next(iter(reader)).rgb, palette[indices])
        assert reader.notes(to_end=True) == notes
