"""The command line: what its verbs share, in exit statuses, sentences and what they leave behind."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import command_line
import numpy as np
import pytest
import torch
from clips import moving_pictures, write_video
from command_line import listing

folder, latent, cvvae = command_line.folder, command_line.latent, command_line.cvvae
ROOT = Path(__file__).parents[1]


def test_progress_off_a_terminal_ends_with_the_whole_and_one_frame_is_singular(folder, cvvae, tmp_path):
    status, _, err = cvvae("roundtrip", "clip.mp4")
    said = [line.split(",")[0] for line in err.splitlines()]
    assert status == 0 and said == ["encode: 20 of 20 frames", "decode: 20 of 20 frames"]
    status, out, err = cvvae("encode", "clip.mp4", tmp_path / "one", "--frames", 1)
    assert status == 0 and "1 frame of 61x45" in out and err.startswith("encode: 1 of 1 frame, ")
    status, out, _ = cvvae("info", tmp_path / "one")
    assert status == 0 and "1 frame of 61x45" in out
    write_video(tmp_path / "longer.mp4", moving_pictures(4, 48, 48))
    status, _, err = cvvae("check", tmp_path / "longer.mp4", "square.mp4", "-q")
    assert status == 7 and "1 frame without a partner" in err


def test_existing_outputs_are_replaced_only_when_asked(folder, latent, cvvae, tmp_path):
    old = tmp_path / "old.mp4"
    for words in (["encode", "clip.mp4", old], ["decode", "clip.latent", old], ["roundtrip", "clip.mp4", old]):
        old.write_bytes(b"old")
        status, out, err = cvvae(*words)
        assert status == 8 and "-y" in err and out == "" and old.read_bytes() == b"old"
        assert cvvae(*words, "-y")[0] == 0 and old.read_bytes() != b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["old.mp4"]


def test_an_input_is_not_replaced_even_when_asked(folder, latent, cvvae):
    before = listing(folder)
    for words in (
        ["encode", "clip.mp4", "./clip.mp4"],
        ["roundtrip", "clip.mp4", "clip.mp4"],
        ["decode", "clip.latent", "clip.mp4", "--against", "clip.mp4"],
    ):
        status, _, err = cvvae(*words, "-y")
        assert status == 8 and "input" in err
    assert listing(folder) == before


NEW = "new.latent"
FAILURES = [
    (3, "encode missing.mp4 new.latent", "missing.mp4 does not exist"),
    (3, "roundtrip missing.mp4", "does not exist"),
    (3, "check missing.mp4 clip.latent", "does not exist"),
    (3, "check clip.mp4 missing.latent", "does not exist"),
    (3, "info missing", "does not exist"),
    (4, "decode missing.latent new.mp4", "does not exist"),
    (3, "decode clip.latent new.mp4 --against missing.mp4", "does not exist"),
    (3, "encode text.mp4 new.latent", "not a video"),
    (3, "info text.mp4", "not a video"),
    (3, "encode empty.mp4 new.latent", "is empty"),
    (3, "encode cut.mp4 new.latent", "index (moov)"),
    (3, "encode sound.m4a new.latent", "no video stream"),
    (3, "encode clip.mp4 new.latent --start 99", "--start"),
    (3, "encode . new.latent", "folder"),
    (4, "decode text.mp4 new.mp4", "no latent file"),
    (4, "decode z5.npy new.mp4", "z = 4"),
    (4, "decode integers.npy new.mp4", "int64"),
    (4, "decode damaged.latent new.mp4", "chunk 0"),
    (4, "check clip.mp4 damaged.latent", "chunk 0"),
    (4, "info short.latent", "cut off"),
    (4, "info integers.npy", "int64"),
    (4, "info tiny.safetensors", "tensors"),
    (4, "info version.latent", "version 7"),
    (4, "decode clip.latent new.mp4 --model other.safetensors", "tiny.safetensors"),
    (4, "check clip.mp4 clip.latent --model other.safetensors", "tiny.safetensors"),
    (5, "encode clip.mp4 new.latent --model nosuch", "cvvae models"),
    (5, "encode clip.mp4 new.latent --model text.mp4", "text.mp4"),
    (5, "models get nosuch", "cv-vae-sd3"),
    (6, "encode clip.mp4 new.latent --device tpu", "tpu"),
    (6, "decode clip.latent new.mp4 --device meta", "meta"),
    (2, "encode clip.mp4 new.latent --dtype int8", "int8"),
    (2, "encode clip.mp4 new.latent --latent-dtype int8", "int8"),
    (2, "encode clip.mp4 new.latent --tile 32", "64 or more"),
    (2, "encode clip.mp4 new.latent --overlap 256", "smaller than the tile"),
    (2, "encode clip.mp4 new.latent --chunk-overlap 3", "multiple of 4"),
    (2, "encode clip.mp4 new.latent --tiling fancy", "--tiling blend"),
    (2, "encode clip.mp4 new.latent --tiling official --tile 512", "multiple of 72"),
    (2, "roundtrip clip.mp4 --tiling official --overlap 8", "2/9"),
    (2, "decode clip.latent new.mp4 --tiling official --chunk-overlap 4", "--chunk-overlap 0"),
    (2, "encode clip.mp4 new.latent --seed 3", "--sample"),
    (2, "encode clip.mp4 new.latent --min-psnr 20", "--check"),
    (2, "encode clip.mp4 new.latent --size 0x20", "WIDTHxHEIGHT"),
    (2, "encode clip.mp4 new.latent --duration -1", "duration"),
    (2, "decode clip.latent new.avi", "must end in"),
    (2, "roundtrip clip.mp4 new", "must end in"),
    (2, "decode clip.latent new.mp4 --fps 0", "--fps"),
    (2, "decode clip.latent new.mp4 --encoder-opt tune", "NAME=VALUE"),
    (2, "decode clip.latent new.mp4 --codec nosuch", "nosuch"),
    (2, "decode clip.latent new.mp4 --pix-fmt nosuch", "nosuch"),
    (2, "decode clip.latent new.mp4 --start 99", "smaller --start"),
    (2, "decode clip.latent new.mp4 --layout tzhw", "drop --layout"),
    (2, "decode z5.npy new.mp4 --layout hwzt", "--layout"),
    (7, "check clip.mp4 square.mp4", "48x48"),
    (8, "encode clip.mp4 none/new.latent", "none"),
    (8, "decode clip.latent none/new.mp4", "none"),
    (8, "roundtrip clip.mp4 none/new.mp4", "none"),
    (8, "roundtrip clip.mp4 --latents none/x", "none"),
    (8, "encode clip.mp4 /proc/new.latent", "/proc/new.latent"),
    (8, "decode clip.latent /proc/new.mp4", "/proc/new.mp4"),
]


@pytest.mark.parametrize(("status", "words", "part"), FAILURES, ids=[words for _, words, _ in FAILURES])
def test_a_failure_is_a_status_and_one_sentence_and_leaves_nothing(folder, latent, cvvae, status, words, part):
    before = listing(folder)
    found, out, err = cvvae(*words.split())
    assert (found, out) == (status, ""), err
    assert err.startswith("cvvae: ") and err.endswith(".\n") and err.count("\n") == 1 and part in err
    assert listing(folder) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(folder, cvvae):
    status, out, err = cvvae("encode", "clip.mp4", NEW, "--device", "cuda")
    assert (status, out) == (6, "") and "--device cpu" in err and not (folder / NEW).exists()


@pytest.mark.parametrize("words", ["encode clip.mp4 -y", "nosuch", "decode clip.latent x.mp4 --frames 0", "bench --x"])
def test_wrong_words_are_usage_errors(cvvae, latent, words):
    status, out, err = cvvae(*words.split())
    assert status == 2 and out == "" and err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(folder, latent, cvvae, tmp_path):
    tmp_path.chmod(0o555)
    assert cvvae("encode", "clip.mp4", tmp_path / NEW)[0] == 8
    assert cvvae("decode", "clip.latent", tmp_path / "x.mp4")[0] == 8


def test_a_disk_that_is_full(folder, latent, cvvae, tmp_path):
    """A limit on file sizes stands for the disk: it too fails in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        results = [cvvae("encode", "clip.mp4", tmp_path / "x"), cvvae("decode", "clip.latent", tmp_path / "x.mp4")]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [(status, out) for status, out, _ in results] == [(8, ""), (8, "")]
    assert list(tmp_path.iterdir()) == []


def test_quiet_says_nothing_and_tables_go_to_stdout(folder, latent, cvvae, tmp_path):
    assert cvvae("encode", "clip.mp4", tmp_path / "x", "--tile", "100", "-q") == (0, "", "")
    assert cvvae("decode", tmp_path / "x", tmp_path / "x.mp4", "-q") == (0, "", "")
    for words in ("roundtrip clip.mp4", "check clip.mp4 clip.latent", "info clip.latent", "info clip.mp4", "models"):
        assert cvvae(*words.split(), "-q") == (0, "", "")
    out = cvvae("roundtrip", "clip.mp4")[1]
    assert all(word in out for word in ("PSNR", "SSIM", "worst", "flicker", "bits per pixel", "peak memory", "frames/s"))
    out = cvvae("info", "clip.latent")[1]
    assert all(word in out for word in ("20 frames of 61x45", "aac", "tiny.safetensors", "PSNR", "bits per pixel"))
    assert "61x45" in cvvae("info", "clip.mp4")[1]


def test_strange_names_are_names(folder, cvvae, tmp_path, latent):
    name = os.fsdecode(b"[red]-\xff 'a:b'.mp4")
    (tmp_path / name).write_bytes((folder / "clip.mp4").read_bytes())
    status, out, err = cvvae("encode", tmp_path / name, tmp_path / f"{name}.latent")
    assert status == 0 and "[red]-" in out
    assert cvvae("info", tmp_path / f"{name}.latent")[0] == 0
    assert cvvae("decode", tmp_path / f"{name}.latent", tmp_path / f"2{name}")[0] == 0


def test_the_version_and_every_help_with_an_example(cvvae):
    status, out, _ = cvvae("--version")
    assert status == 0 and out.startswith("cvvae 0.") and cvvae("-V")[1] == out
    assert cvvae("-h")[0] == 0
    for verb in ("encode", "decode", "roundtrip", "check", "info", "bench", "models", "train", "demo"):
        status, out, _ = cvvae(verb, "-h")
        assert status == 0 and f"cvvae {verb}" in out.split("Example")[-1]


def test_the_examples_of_a_help_are_lines_to_copy(cvvae, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for verb in ("encode", "decode", "roundtrip", "check", "info", "bench", "models"):
        lines = cvvae(verb, "-h")[1].split("Examples:")[1].splitlines()
        assert max(map(len, lines)) <= 80
        assert sum(line.strip(" •").startswith("cvvae ") for line in lines) >= 2


@pytest.mark.parametrize(("verb", "sent", "status"), [("encode", signal.SIGINT, 130), ("decode", signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_leaves_nothing_or_says_what(folder, latent, tmp_path, verb, sent, status):
    if verb == "encode":
        words, part = ["encode", folder / "clip.mp4", tmp_path / "x", "--size", "512x384"], ".x.part"
        kept = {".x.journal", ".x.part"}
    else:
        np.save(folder.parent / "big.npy", np.zeros((41, 4, 40, 64), np.float32))
        words, part = ["decode", folder.parent / "big.npy", tmp_path / "x.mp4"], ".x.part.mp4"
        kept = {".x.mp4.journal", ".x.mp4.packets"}
    words += ["--tile", "64", "--overlap", "48", "--model", folder / "tiny.safetensors"]
    running = subprocess.Popen(
        [sys.executable, "-m", "cvvae_cli", *map(str, words)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where the tests run in the background
    )
    while not (tmp_path / part).exists():
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.005)
    running.send_signal(sent)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (status, "") and "Traceback" not in err, err
    left = {path.name for path in tmp_path.iterdir()}
    assert left == (kept if "What is done is kept; the same command goes on from there." in err else set())
