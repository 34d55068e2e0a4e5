"""Frames as numbered pictures: exact pixels, no picture lost or replaced unasked, and runs that go on."""

import os
from fractions import Fraction
from pathlib import Path

import av
import encoded_clip
import numpy as np
import pytest
from clips import moving_pictures, psnr
from encoded_clip import TILING, decoded

from cvvae_cli.colour import Colour
from cvvae_cli.decoding import DecodeOptions, decode_file
from cvvae_cli.errors import LatentFileError, OutputError, UsageError
from cvvae_cli.media import keep_inputs
from cvvae_cli.picture_writer import PICTURE_CODECS, PictureWriter, names_pictures
from cvvae_cli.video_encoder import Encoding, Pictures
from cvvae_cli.video_io import VideoReader

folder, model = encoded_clip.folder, encoded_clip.model
FRAMES = moving_pictures(9, 41, 30)
RUN = {"of": "this"}


def begun(
    path: Path, run: dict | None = RUN, overwrite: bool = False, codec: str | None = None, **options: object
) -> PictureWriter:
    pictures = Pictures(41, 30, Fraction(25), Fraction(1, 25), colour=Colour(1, 1, 9, 16))
    return PictureWriter(path, pictures, Encoding(codec or PICTURE_CODECS[path.suffix], **options), overwrite, run)


def carry_on(writer: PictureWriter, stop: int) -> None:
    for index in range(writer.frames, stop):
        writer.write(FRAMES[index], index, 1)


def picture(path: Path) -> np.ndarray:
    with VideoReader(path) as reader:
        return next(iter(reader)).rgb


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path))


@pytest.mark.parametrize(("name", "least"), [("%d.png", 100), ("p%04d.webp", 100), ("a%02db.jpg", 32)])
def test_every_frame_is_a_picture_from_number_1_on(tmp_path: Path, name: str, least: float) -> None:
    with begun(tmp_path / name) as writer:
        carry_on(writer, 9)
    assert names(tmp_path) == sorted(name % number for number in range(1, 10))
    assert all(psnr(frame, picture(tmp_path / (name % number))) >= least for number, frame in enumerate(FRAMES, 1))
    assert writer.frames == 9 and writer.notes == []


def test_what_stands_for_numbered_pictures(tmp_path: Path) -> None:
    (tmp_path / "%d.png").write_bytes(b"")
    assert not names_pictures(tmp_path / "%d.png")
    assert [names_pictures(Path(name)) for name in ("%d.png", "a%04d.JPG", "%d.mp4", "a.png", "%d%d.png", "%s.png")] == [
        True, True, False, False, False, False,
    ]  # fmt: skip


def test_existing_pictures_are_not_replaced_unasked(tmp_path: Path) -> None:
    for number in (4, 12):
        (tmp_path / f"{number}.png").write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"4\.png exists already; pass -y"):
        begun(tmp_path / "%d.png")
    assert names(tmp_path) == ["12.png", "4.png"] and (tmp_path / "4.png").read_bytes() == b"precious"
    with begun(tmp_path / "%d.png", overwrite=True) as writer:
        carry_on(writer, 9)
    assert np.array_equal(picture(tmp_path / "4.png"), FRAMES[3]) and (tmp_path / "12.png").read_bytes() == b"precious"
    assert len(writer.notes) == 1 and "12.png was there before" in writer.notes[0]


def test_a_picture_that_comes_in_between_is_kept(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists already"), begun(tmp_path / "%d.png", run=None) as writer:
        (tmp_path / "3.png").write_bytes(b"precious")
        carry_on(writer, 9)
    assert names(tmp_path) == ["3.png"]


@pytest.mark.parametrize("run", [None, RUN])
def test_what_would_fail_again_removes_its_pictures(tmp_path: Path, run: dict | None) -> None:
    with pytest.raises(UsageError, match="must be uint8"), begun(tmp_path / "%d.png", run) as writer:
        carry_on(writer, 5)
        writer.write(FRAMES[0][1:], 5, 1)
    assert names(tmp_path) == []


def test_a_stopped_run_goes_on_behind_its_whole_pictures(tmp_path: Path) -> None:
    path, kept = tmp_path / "%d.png", []
    for stop in (4, 7):
        with pytest.raises(KeyboardInterrupt), begun(path) as writer:
            carry_on(writer, stop)
            kept.append(writer.frames)
            raise KeyboardInterrupt
    assert kept == sorted(kept) and 0 < kept[1] <= 7
    assert names(tmp_path) == sorted([".%d.png.journal", *(f"{number}.png" for number in range(1, kept[1] + 1))])
    with begun(path) as writer:
        assert writer.frames == kept[1]
        carry_on(writer, 9)
    assert names(tmp_path) == [f"{number}.png" for number in range(1, 10)]
    assert all(np.array_equal(picture(tmp_path / f"{number}.png"), frame) for number, frame in enumerate(FRAMES, 1))


@pytest.mark.parametrize("harm", ["changed", "gone"])
def test_a_picture_that_is_not_the_runs_own_ends_what_is_taken_over(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "%d.png"
    with pytest.raises(KeyboardInterrupt), begun(path) as writer:
        carry_on(writer, 6)
        raise KeyboardInterrupt
    assert writer.frames > 3
    if harm == "gone":
        (tmp_path / "3.png").unlink()
    else:
        (tmp_path / "3.png").write_bytes(b"another's")
    with pytest.raises(OutputError, match=rf"{'4' if harm == 'gone' else '3'}\.png exists already"):
        begun(path)
    with begun(path, overwrite=True) as again:
        assert again.frames == 2
        carry_on(again, 9)
    assert all(np.array_equal(picture(tmp_path / f"{number}.png"), frame) for number, frame in enumerate(FRAMES, 1))


def test_a_run_of_other_options_takes_nothing_over(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), begun(tmp_path / "%d.png") as writer:
        carry_on(writer, 6)
        raise KeyboardInterrupt
    with pytest.raises(OutputError, match=r"1\.png exists already"):
        begun(tmp_path / "%d.png", {"of": "another"})


def test_impossible_wishes_are_refused(tmp_path: Path) -> None:
    wishes = {"no option crf": {"crf": 20}, "leave out --codec": {"codec": "libx264"}, "does not encode": {"pix_fmt": "yuv420p"}}
    for words, wish in wishes.items():
        with pytest.raises(UsageError, match=words):
            begun(tmp_path / "%d.png", **wish)
    with pytest.raises(OutputError, match="make it first"):
        begun(tmp_path / "none" / "%d.png")
    with pytest.raises(OutputError, match="no frame"), begun(tmp_path / "%d.png"):
        pass
    assert names(tmp_path) == []


def test_an_input_is_not_an_output(tmp_path: Path) -> None:
    (tmp_path / "0007.png").write_bytes(b"")
    for output, source in (("%04d.png", "%04d.png"), ("%d.png", "0007.png"), ("%04d.png", "0007.png"), ("0007.png", "%04d.png")):
        if output == "%d.png":
            keep_inputs(tmp_path / output, tmp_path / source)  # it would write 7.png
            continue
        with pytest.raises(OutputError, match="is an input too"):
            keep_inputs(tmp_path / output, tmp_path / ".." / tmp_path.name / source)


def test_latents_become_pictures(folder: Path, model: object, tmp_path: Path) -> None:
    options = DecodeOptions(start=0.1, max_frames=20)
    report = decode_file(folder / "clip.latent", tmp_path / "%03d.png", model=model, options=options)
    frames = decoded(folder / "clip.latent", model, start=0.1, max_frames=20)
    assert report.frames == len(frames) == 20 and any("sound is left out" in note for note in report.notes)
    assert names(tmp_path) == [f"{number:03d}.png" for number in range(1, 21)]
    with av.open(str(tmp_path / "%03d.png")) as container:
        assert np.array_equal([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)], frames)


class Stopped(Exception):
    """Comes out of a run at a moment of the test's choice."""


def test_a_stopped_decode_goes_on_and_a_damaged_file_leaves_no_picture(folder: Path, model: object, tmp_path: Path) -> None:
    def stop(done: int, total: int | None) -> None:
        if done == 20:
            raise Stopped

    path, resumed = tmp_path / "%d.png", []
    with pytest.raises(Stopped):
        decode_file(folder / "clip.latent", path, model=model, progress=stop, tiling=TILING)
    report = decode_file(folder / "clip.latent", path, model=model, resumed=resumed.append, tiling=TILING)
    assert 10 < report.resumed_at == resumed[0] <= 20 and names(tmp_path) == sorted(f"{number}.png" for number in range(1, 25))
    frames = decoded(folder / "clip.latent", model)
    assert all(np.array_equal(picture(tmp_path / f"{number}.png"), frame) for number, frame in enumerate(frames, 1))
    harmed = tmp_path / "harmed"
    data = bytearray((folder / "clip.latent").read_bytes())
    data[16 * 1024 + 5] ^= 4
    harmed.write_bytes(data)
    with pytest.raises(LatentFileError):
        decode_file(harmed, tmp_path / "x%d.png", model=model)
    assert not list(tmp_path.glob("x*")) and not list(tmp_path.glob(".*"))
