"""Runs with anchors and comparisons that are stopped at any of their writes go on, too."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import test_resume
from clips import moving_pictures, write_video
from test_resume import SEGMENT_FRAMES, TILING, Stopped, stop_at

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.decoding import DecodeOptions, decode_file
from cvvae_cli.encoding import EncodeOptions, encode_file
from cvvae_cli.latent_video import LatentVideo
from cvvae_cli.metrics import Quality
from cvvae_cli.roundtrip import SourceComparison
from cvvae_cli.run_journal import RunJournal

folder, model = test_resume.folder, test_resume.model


@contextmanager
def stopped_at_line(monkeypatch: pytest.MonkeyPatch, lines: list[str], stop: int, before: bool = False) -> Iterator[None]:
    """A run inside is stopped before or behind a line of its journal, counted from 1; `lines` gets the kinds of all."""
    add = RunJournal.add

    def add_or_stop(journal: RunJournal, entry: list) -> None:
        lines.append(entry[0])
        if len(lines) == stop and before:
            raise Stopped
        add(journal, entry)
        if len(lines) == stop:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(RunJournal, "add", add_or_stop)
        yield


@pytest.mark.parametrize("options", [EncodeOptions(max_frames=13), EncodeOptions(max_frames=18, anchors=True, check=True)])
def test_an_encode_that_stopped_at_any_of_its_writes_goes_on(
    folder: Path, model: Autoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: EncodeOptions
) -> None:
    """Before and behind each line of the journal, that is behind each piece."""
    lines = []
    with stopped_at_line(monkeypatch, lines, 0):
        encode_file(folder / "clip.mp4", tmp_path / "a", model=model, tiling=TILING, options=options)
    whole = (tmp_path / "a").read_bytes()
    assert set(lines) == {"run", "tiling", "chunk"} | ({"anchor", "compared"} if options.check else set())
    for line in range(1, len(lines) + 1):
        for before in (True, False):
            (tmp_path / "a").unlink()
            with stopped_at_line(monkeypatch, [], line, before), pytest.raises(Stopped):
                encode_file(folder / "clip.mp4", tmp_path / "a", model=model, tiling=TILING, options=options)
            encode_file(folder / "clip.mp4", tmp_path / "a", model=model, tiling=TILING, options=options)
            assert (tmp_path / "a").read_bytes() == whole, (line, before)
            assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("loss", ["gone", "torn", "changed"])
def test_anchors_that_the_disk_lost_are_made_again(folder: Path, model: Autoencoder, tmp_path: Path, loss: str) -> None:
    options, resumed = EncodeOptions(anchors=True, max_frames=61), []
    encode_file(folder / "clip.mp4", tmp_path / "b", model=model, tiling=TILING, options=options)
    with pytest.raises(Stopped):
        encode_file(folder / "clip.mp4", tmp_path / "a", model=model, tiling=TILING, options=options, progress=stop_at(40))
    kept, anchor = tmp_path / ".a.anchors", 4 * 4 * 5 * 2
    data = bytearray(kept.read_bytes())
    data[4 * anchor + 3] ^= 1
    {"gone": kept.unlink, "torn": lambda: os.truncate(kept, 4 * anchor + 3), "changed": lambda: kept.write_bytes(data)}[loss]()
    encode_file(folder / "clip.mp4", tmp_path / "a", model=model, tiling=TILING, options=options, resumed=resumed.append)
    # Chunk 5 wants the lost anchor; chunks 0 to 4 gave six latent frames, chunk 0 alone two.
    assert resumed == [5 if loss == "gone" else 21] and (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_anchors_of_a_run_that_is_dropped_are_dropped(folder: Path, model: Autoencoder, tmp_path: Path) -> None:
    for keep, left in ((True, {".a.part", ".a.anchors", ".a.journal"}), (False, {".a.part", ".a.journal"})):
        with pytest.raises(Stopped):
            encode_file(
                folder / "clip.mp4", tmp_path / "a", model=model, tiling=TILING, options=EncodeOptions(anchors=keep),
                progress=stop_at(40),
            )  # fmt: skip
        assert set(os.listdir(tmp_path)) == left


def compared_decode(
    folder: Path, model: Autoencoder, output: Path, source: Path | None = None, frames: int = 100, **calls: object
) -> Quality:
    """As `cvvae decode --against` does it."""
    options = DecodeOptions(start=0.2, max_frames=frames)
    with LatentVideo.open(folder / "clip.latent", model.config) as latents:
        first, stop = latents.span(options.start, options.max_frames)
        with closing(SourceComparison(source or folder / "clip.mp4", latents, skip=first)) as comparison:
            decode_file(latents, output, model=model, options=options, against=comparison, **calls)
            return comparison.result(stop - first, to_end=False)


@pytest.mark.parametrize("name", ["a.mp4", "%03d.png"])
def test_a_stopped_comparison_of_a_decode_goes_on(folder: Path, model: Autoencoder, tmp_path: Path, name: str) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "part").mkdir()
    quality, resumed = compared_decode(folder, model, tmp_path / "whole" / name), []
    assert (quality.frames, quality.frames_missing) == (100, 0)
    for frame in (1, SEGMENT_FRAMES + 1, 2 * SEGMENT_FRAMES, 2 * SEGMENT_FRAMES + 3, 70, 99):
        with pytest.raises(Stopped):
            compared_decode(folder, model, tmp_path / "part" / name, progress=stop_at(frame), resumed=resumed.append)
    assert compared_decode(folder, model, tmp_path / "part" / name, resumed=resumed.append) == quality
    assert len(resumed) >= 5 and resumed[-1] >= 6 * SEGMENT_FRAMES
    assert sorted(os.listdir(tmp_path / "part")) == sorted(os.listdir(tmp_path / "whole"))
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "part" / path.name).read_bytes() == path.read_bytes()


def test_a_comparison_whose_source_is_shorter_goes_on(folder: Path, model: Autoencoder, tmp_path: Path) -> None:
    short = write_video(tmp_path / "short.mp4", moving_pictures(50, 40, 32))  # of which frames 5 to 49 have a partner
    quality, resumed = compared_decode(folder, model, tmp_path / "b.mp4", short), []
    assert (quality.frames, quality.frames_missing) == (45, 55)
    for frame in (45, 49, 90):
        with pytest.raises(Stopped):
            compared_decode(folder, model, tmp_path / "a.mp4", short, progress=stop_at(frame), resumed=resumed.append)
    assert compared_decode(folder, model, tmp_path / "a.mp4", short, resumed=resumed.append) == quality
    assert resumed[-1] == 80 and (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_a_comparison_that_stopped_at_any_of_its_writes_goes_on(
    folder: Path, model: Autoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = []
    with stopped_at_line(monkeypatch, lines, 0):
        quality = compared_decode(folder, model, tmp_path / "a.mp4", frames=2 * SEGMENT_FRAMES + 5)
    whole = (tmp_path / "a.mp4").read_bytes()
    assert lines == ["run", "tiling", *["compared", "segment"] * 3]
    for line in range(3, len(lines) + 1):
        for before in (True, False):
            (tmp_path / "a.mp4").unlink()
            with stopped_at_line(monkeypatch, [], line, before), pytest.raises(Stopped):
                compared_decode(folder, model, tmp_path / "a.mp4", frames=2 * SEGMENT_FRAMES + 5)
            assert compared_decode(folder, model, tmp_path / "a.mp4", frames=2 * SEGMENT_FRAMES + 5) == quality
            assert (tmp_path / "a.mp4").read_bytes() == whole and os.listdir(tmp_path) == ["a.mp4"]
