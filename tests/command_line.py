"""`cvvae` as a user calls it, in a folder of inputs; the fixtures and helpers of the tests of its commands.

A test file takes the fixtures that it needs, and those that these need, by name: `folder = command_line.folder`.
"""

import contextlib
import io
import json
import signal
import sys

import av
import numpy as np
import pytest
from clips import moving_pictures, write_sine, write_video
from tiny_model import save_tiny_model

from cvvae_cli.__main__ import main

QUALITY_KEYS = {"psnr_db", "psnr_worst_db", "ssim", "flicker", "frames", "frames_missing"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of inputs good and bad; every test runs in it and must leave it as it was."""
    folder = tmp_path_factory.mktemp("cli")
    write_video(folder / "clip.mp4", moving_pictures(20, 61, 45), pts=[512 * (i + i // 3) for i in range(20)], sound_seconds=1.2)
    save_tiny_model(folder / "tiny.safetensors")
    save_tiny_model(folder / "other.safetensors", seed=1)
    write_video(folder / "square.mp4", moving_pictures(3, 48, 48))
    (folder / "text.mp4").write_text("no video at all, only words\n" * 9)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "cut.mp4").write_bytes((folder / "clip.mp4").read_bytes()[:60_000])
    with av.open(str(folder / "sound.m4a"), "w") as output:
        write_sine(output, output.add_stream("aac", rate=44100, layout="mono"), 0.3)
    np.save(folder / "z5.npy", np.zeros((2, 5, 3, 3), np.float32))
    np.save(folder / "integers.npy", np.zeros((2, 4, 3, 3), np.int64))
    return folder


@pytest.fixture
def cvvae(folder, monkeypatch, capsys):
    """Runs a command in the folder: cvvae("info", "clip.mp4") -> (status, stdout, stderr)."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("CVVAE_MODEL", "tiny.safetensors")
    monkeypatch.setenv("CVVAE_DEVICE", "cpu")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["cvvae", *map(str, words)])
        handler = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as stopped:
            main()
        signal.signal(signal.SIGTERM, handler)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return stopped.value.code or 0, said.out, said.err

    return run


@pytest.fixture
def answer(cvvae):
    """Runs a command with --json and gives its one object."""

    def run(*words):
        status, out, err = cvvae(*words, "--json")
        assert status == 0, err
        assert out.count("\n") == 1
        return json.loads(out)

    return run


@pytest.fixture(scope="module")
def latent(folder):
    """clip.latent and clip.json, what encoding it answered, made once from another folder; and damaged copies."""
    said = io.StringIO()
    words = ["encode", folder / "clip.mp4", folder / "clip.latent", "--model", folder / "tiny.safetensors", "--check", "--json"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), pytest.raises(SystemExit) as stopped:
        patch.chdir(folder.parent)
        patch.setattr(sys, "argv", ["cvvae", *map(str, words)])
        main()
    assert not stopped.value.code
    (folder / "clip.json").write_text(said.getvalue())
    data = bytearray((folder / "clip.latent").read_bytes())
    data[16 * 1024 + 5] ^= 4
    (folder / "damaged.latent").write_bytes(data)
    (folder / "short.latent").write_bytes(data[:-100])
    (folder / "version.latent").write_bytes(bytes(data).replace(b'"format_version":"1"', b'"format_version":"7"'))
    return folder / "clip.latent"


def listing(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pictures(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
