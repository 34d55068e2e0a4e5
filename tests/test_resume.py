"""Runs from file to file that are stopped at any moment: the same call goes on, and gives the file of a run that was not."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from clips import moving_pictures, write_video
from tiny_model import save_tiny_model

from cvvae_cli import memory_model
from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.checkpoint import load_model
from cvvae_cli.config import Tiling
from cvvae_cli.decoding import SEGMENT_CHUNKS, DecodeOptions, decode_file
from cvvae_cli.encoding import EncodeOptions, encode_file
from cvvae_cli.errors import OutputError
from cvvae_cli.memory_model import fitting_tiling

# One new latent frame a chunk, and a crossfade: every chunk depends on the one before.
TILING = Tiling(chunk=9, chunk_overlap=4)
CHUNK_FRAMES, FRAMES = 4, 150
SEGMENT_FRAMES = SEGMENT_CHUNKS * CHUNK_FRAMES


class Stopped(Exception):
    """Comes out of a run at a moment of the test's choice."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    write_video(folder / "clip.mp4", moving_pictures(FRAMES, 40, 32), sound_seconds=5.0)
    save_tiny_model(folder / "tiny.safetensors")
    encode_file(folder / "clip.mp4", folder / "clip.latent", model=load(folder), tiling=TILING)
    decode_file(folder / "clip.latent", folder / "clip.back.mp4", model=load(folder))
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Autoencoder:
    return load(folder)


def load(folder: Path) -> Autoencoder:
    return load_model(str(folder / "tiny.safetensors"))


def stop_at(frame: int):
    def progress(done: int, total: int | None) -> None:
        if done >= frame:
            raise Stopped

    return progress


@pytest.mark.parametrize(
    "options",
    [
        EncodeOptions(),
        EncodeOptions(seed=3, start=0.5, max_frames=101, latent_dtype="float32"),
        EncodeOptions(seed=4, anchors=True),
        EncodeOptions(check=True),
        EncodeOptions(check=True, anchors=True, start=0.5, size=(33, 21), latent_dtype="bfloat16"),
    ],
)
def test_a_stopped_encode_goes_on(folder: Path, model: Autoencoder, tmp_path: Path, options: EncodeOptions) -> None:
    encode_file(folder / "clip.mp4", tmp_path / "whole", model=model, tiling=TILING, options=options)
    moments, resumed = [1, 9, 10, 33, 60, 61, 100], []
    for frame in moments:
        with pytest.raises(Stopped):
            encode_file(
                folder / "clip.mp4", tmp_path / "a", model=model, tiling=TILING, options=options,
                progress=stop_at(frame), resumed=resumed.append,
            )  # fmt: skip
    report = encode_file(folder / "clip.mp4", tmp_path / "a", model=model, tiling=TILING, options=options, resumed=resumed.append)
    # Each run stops behind the chunk that first reaches its frame, and the next one begins there.
    assert resumed == sorted(resumed) and report.resumed_at == resumed[-1] >= 97
    assert (tmp_path / "a").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a", "whole"]


@pytest.mark.parametrize(("anchors", "check"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("frames", [FRAMES, FRAMES - 5])
def test_an_encode_stopped_behind_its_last_chunk_goes_on(
    folder: Path, model: Autoencoder, tmp_path: Path, anchors: bool, check: bool, frames: int
) -> None:
    calls, options = [], EncodeOptions(anchors=anchors, check=check, max_frames=frames)
    encode_file(
        folder / "clip.mp4", tmp_path / "b", model=model, tiling=TILING, options=options,
        progress=lambda *call: calls.append(call),
    )  # fmt: skip
    with pytest.raises(Stopped):
        encode_file(
            folder / "clip.mp4", tmp_path / "a", model=model, tiling=TILING, options=options, progress=stop_at(calls[-1][0])
        )
    resumed = []
    encode_file(folder / "clip.mp4", tmp_path / "a", model=model, tiling=TILING, options=options, resumed=resumed.append)
    assert resumed == [frames] and (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_stopped_decode_goes_on(folder: Path, model: Autoencoder, tmp_path: Path) -> None:
    resumed = []
    for frame in (10, SEGMENT_FRAMES - 1, SEGMENT_FRAMES + 1, 2 * SEGMENT_FRAMES - 2, 2 * SEGMENT_FRAMES + 1):
        with pytest.raises(Stopped):
            decode_file(
                folder / "clip.latent", tmp_path / "clip.back.mp4", model=model, progress=stop_at(frame), resumed=resumed.append
            )
    report = decode_file(folder / "clip.latent", tmp_path / "clip.back.mp4", model=model, resumed=resumed.append)
    assert resumed == [SEGMENT_FRAMES, SEGMENT_FRAMES, 2 * SEGMENT_FRAMES] and report.resumed_at == 2 * SEGMENT_FRAMES
    assert (tmp_path / "clip.back.mp4").read_bytes() == (folder / "clip.back.mp4").read_bytes()
    assert os.listdir(tmp_path) == ["clip.back.mp4"]


def test_a_run_of_other_options_or_another_source_begins_anew(folder: Path, model: Autoencoder, tmp_path: Path) -> None:
    def seen(source: Path, tiling: Tiling, **options: object) -> list[int]:
        resumed = []
        with pytest.raises(Stopped):
            encode_file(
                source, tmp_path / "a", model=model, tiling=tiling, options=EncodeOptions(**options),
                progress=stop_at(70), resumed=resumed.append,
            )  # fmt: skip
        return resumed

    assert seen(folder / "clip.mp4", TILING) == []
    assert seen(folder / "clip.mp4", TILING) != []
    assert seen(folder / "clip.mp4", Tiling(chunk=9, chunk_overlap=0)) == []
    assert seen(folder / "clip.mp4", TILING, seed=1) == []
    assert seen(folder / "clip.mp4", TILING, seed=1, overwrite=True) != []
    other = tmp_path / "other.mp4"
    other.write_bytes((folder / "clip.mp4").read_bytes())
    assert seen(other, TILING, seed=1) == []
    assert seen(other, TILING, seed=1) != []
    dropped = "An unfinished run of this output, of other options or another source, was dropped."
    reports = [encode_file(other, tmp_path / "a", model=model, tiling=Tiling(), options=EncodeOptions(overwrite=True)) for _ in "12"]
    assert [report.notes.count(dropped) for report in reports] == [1, 0]


def test_the_tiling_of_the_beginning_is_kept(
    folder: Path, model: Autoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the machine has free may change while a run waits; the file is that of one run all the same."""
    with monkeypatch.context() as full, pytest.raises(Stopped):
        full.setattr(memory_model, "available_bytes", lambda: 1)
        chosen = fitting_tiling(model, 32, 40)
        encode_file(folder / "clip.mp4", tmp_path / "a", model=model, progress=stop_at(1))
    report = encode_file(folder / "clip.mp4", tmp_path / "a", model=model)
    assert report.resumed_at > 0 and report.tiling == chosen != fitting_tiling(model, 32, 40)


def test_what_cannot_go_on_leaves_nothing(folder: Path, model: Autoencoder, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        decode_file(
            folder / "clip.latent", tmp_path / "a.mp4", model=model, observe=lambda frame: None, progress=stop_at(140)
        )
    assert os.listdir(tmp_path) == []


def test_two_runs_of_one_output(folder: Path, model: Autoencoder, tmp_path: Path) -> None:
    def meet(done: int, total: int | None) -> None:
        with pytest.raises(OutputError, match="is being written by another process; wait for it"):
            decode_file(folder / "clip.latent", tmp_path / "a.mp4", model=model, options=DecodeOptions(overwrite=True))
        raise Stopped

    with pytest.raises(Stopped):
        decode_file(folder / "clip.latent", tmp_path / "a.mp4", model=model, progress=meet)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("verb", "source", "name"), [("encode", "clip.mp4", "clip.latent"), ("decode", "clip.latent", "clip.back.mp4")])
def test_killed_runs_go_on(folder: Path, tmp_path: Path, verb: str, source: str, name: str) -> None:
    """SIGKILL at a random frame, twice; the third run finishes."""
    program = (
        "import os, signal, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import test_resume as t\n"
        "def kill(done, total):\n    if done >= int(sys.argv[5]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "run = t.encode_file if sys.argv[2] == 'encode' else t.decode_file\n"
        "source, tiling = Path(sys.argv[3]), t.TILING if sys.argv[2] == 'encode' else None\n"
        "run(source, sys.argv[4], model=t.load(source.parent), tiling=tiling, progress=kill,\n"
        "    resumed=lambda frame: print('resumed at frame', frame))\n"
    )
    rng = random.Random(verb)
    for frame in (rng.randint(SEGMENT_FRAMES + 1, 100), rng.randint(101, 140), FRAMES + 1):
        words = [str(Path(__file__).parent), verb, str(folder / source), str(tmp_path / name), str(frame)]
        done = subprocess.run([sys.executable, "-c", program, *words], check=False, capture_output=True, text=True)
        assert done.returncode == (0 if frame > FRAMES else -signal.SIGKILL), done.stderr
    assert "resumed at frame" in done.stdout
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert os.listdir(tmp_path) == [name]
