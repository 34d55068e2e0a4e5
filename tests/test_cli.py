"""The command line: what each verb answers, its exit status, its one sentence, and what it leaves behind."""

import contextlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from clips import moving_pictures, sound_packets, write_sine, write_video
from safetensors.torch import load_file, save_file
from tiny_model import TINY, save_tiny_model

from cvvae_cli.__main__ import main
from cvvae_cli.commands.options import known_model
from cvvae_cli.model_names import cached_path

ROOT = Path(__file__).parents[1]
QUALITY_KEYS = {"psnr_db", "psnr_worst_db", "ssim", "flicker", "frames", "frames_missing"}
ROUNDTRIP_KEYS = QUALITY_KEYS | {"psnr_file_db", "latent_bytes", "bits_per_pixel", "encode_fps", "decode_fps", "peak_mib"}


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


def test_encode_check_info_and_check_tell_the_same_quality(folder, latent, answer):
    encoded, told = json.loads((folder / "clip.json").read_text()), answer("info", "clip.latent")
    assert set(encoded["quality"]) >= QUALITY_KEYS and encoded["quality"]["frames"] == 20
    assert (encoded["frames"], encoded["width"], encoded["height"], encoded["model"]) == (20, 61, 45, "tiny.safetensors")
    assert told["quality"] == encoded["quality"] == answer("check", "clip.mp4", "clip.latent")
    assert told["shape"] == [6, 4, 6, 8] and told["latent_bytes"] == encoded["latent_bytes"] and told["sound"] is True
    assert told["bits_per_pixel"] == encoded["bits_per_pixel"] == 8 * encoded["latent_bytes"] / (61 * 45 * 20)
    assert told["model"]["name"] == "tiny.safetensors" and told["video"]["source"]["audio_codecs"] == ["aac"]
    assert str(folder.parent).encode() not in latent.read_bytes()


def test_decode_restores_the_clip_and_compares_it_on_the_way(folder, latent, answer, tmp_path):
    words = ["--against", "clip.mp4", "--crf", "10", "--preset", "ultrafast"]
    values = answer("decode", "clip.latent", tmp_path / "back.mp4", *words)
    assert values["quality"] == json.loads((folder / "clip.json").read_text())["quality"]
    assert pictures(tmp_path / "back.mp4").shape == (20, 45, 61, 3) and values["frames"] == 20 and values["decode_fps"] > 0
    assert sound_packets(tmp_path / "back.mp4") == sound_packets(folder / "clip.mp4")
    words = ["--against", "clip.mp4", "--start", "0.2", "--frames", "4", "--no-audio"]
    part = answer("decode", "clip.latent", tmp_path / "part.mp4", *words)
    assert (part["quality"]["frames"], part["quality"]["frames_missing"]) == (4, 0)
    assert sound_packets(tmp_path / "part.mp4") == []
    assert set(answer("check", "clip.mp4", tmp_path / "back.mp4")) >= QUALITY_KEYS


def test_roundtrip_prints_what_is_promised(folder, answer, tmp_path):
    values = answer("roundtrip", "clip.mp4")
    assert set(values) >= ROUNDTRIP_KEYS and values["psnr_file_db"] is None
    assert values["device"] == "cpu" and values["dtype"] == "float32"
    words = ["--frames", "6", "--size", "40x24", "--tile", "100", "--latent-dtype", "float32"]
    values = answer("roundtrip", "clip.mp4", tmp_path / "back.mkv", "--codec", "ffv1", "--latents", tmp_path / "x", *words)
    assert (values["frames"], values["width"], values["height"]) == (6, 40, 24)
    assert values["psnr_file_db"] == values["psnr_db"] and values["latent_bytes"] == 3 * 4 * 3 * 5 * 4
    assert pictures(tmp_path / "back.mkv").shape == (6, 24, 40, 3) and load_file(tmp_path / "x")["latents"].shape == (3, 4, 3, 5)
    assert "Tile 100 px with overlap 24 px is rounded to 96 and 24 px (cells of 8 px)." in values["notes"]


def test_latents_saved_by_hand_decode_to_the_same_frames(folder, latent, answer, tmp_path):
    z = load_file(latent)["latents"].float()
    answer("decode", "clip.latent", tmp_path / "own.mkv", "--codec", "ffv1")
    np.save(tmp_path / "tzhw.npy", z.numpy())
    torch.save(z.transpose(0, 1).clone(), tmp_path / "zthw.pt")
    save_file({"latents": z.transpose(0, 1)[None].contiguous()}, tmp_path / "bzthw.safetensors")
    comfyui = {"latent_tensor": z.transpose(0, 1)[None].contiguous(), "latent_format_version_0": torch.zeros(0)}
    save_file(comfyui, tmp_path / "comfyui.latent")
    save_file({"z": (z - TINY.shift_factor) * TINY.scaling_factor}, tmp_path / "scaled.safetensors")
    own = pictures(tmp_path / "own.mkv")
    for name in ("tzhw.npy", "zthw.pt", "bzthw.safetensors", "comfyui.latent", "scaled.safetensors"):
        words = ["--scaled"] if "scaled" in name else ["--layout", name.split(".")[0]] if "hw" in name else []
        values = answer("decode", tmp_path / name, tmp_path / "plain.mkv", "-y", "--codec", "ffv1", "--fps", "30000/1001", *words)
        plain = pictures(tmp_path / "plain.mkv")
        assert plain.shape == (21, 48, 64, 3) and values["model"] == "tiny.safetensors"
        difference = np.abs(plain[:20, :45, :61].astype(int) - own)
        assert difference.max() <= (1 if "scaled" in name else 0)


def test_a_latent_file_names_its_model(cvvae, folder, latent, monkeypatch):
    monkeypatch.setenv("CVVAE_MODEL", "")
    status, out, err = cvvae("decode", "clip.latent", "x.avi")
    assert status == 2 and "x.avi" in err  # the file names its model, which lies in this folder
    monkeypatch.chdir(folder.parent)
    status, out, err = cvvae("decode", folder / "clip.latent", "x.mp4")
    assert status == 5 and "'tiny.safetensors'" in err and "--model" in err


@pytest.mark.skipif(cached_path("default") is None, reason="the default weights are not in this checkout")
def test_plain_tensors_without_a_model_say_which_one_decodes_them(cvvae, monkeypatch, tmp_path):
    monkeypatch.setenv("CVVAE_MODEL", "")
    np.save(tmp_path / "z.npy", np.zeros((1, 16, 2, 2), np.float32))
    status, out, err = cvvae("decode", tmp_path / "z.npy", tmp_path / "z.png", "--json")
    assert status == 0 and json.loads(out)["model"] == "default"
    assert "--model" in err and json.loads(out)["notes"][0] in err


@pytest.mark.skipif(cached_path("default") is None, reason="the default weights are not in this checkout")
@pytest.mark.parametrize("other", ["cv-vae-sd3", "AILab-CVC/CV-VAE/vae3d"])
def test_another_known_model_is_refused_before_the_network_is_asked(folder, cvvae, monkeypatch, tmp_path, other):
    def refuse(*where, **how):
        raise AssertionError(f"the network was asked for {where}")

    latent = tmp_path / "x.latent"
    assert cvvae("encode", "square.mp4", latent, "--frames", 1, "--model", "default")[0] == 0
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    for words in (["decode", latent, tmp_path / "x.mp4"], ["check", "square.mp4", latent]):
        status, out, err = cvvae(*words, "--model", other)
        assert (status, out) == (4, "") and err.count("\n") == 1
        assert "holds latents of default" in err and "pass --model default" in err
    assert [path.name for path in tmp_path.iterdir()] == ["x.latent"]


def test_known_models_are_known_by_their_hub_id_too(monkeypatch, tmp_path):
    names = ["default", "cv-vae-sd3", "AILab-CVC/CV-VAE/vae3d_sd3", "AILab-CVC/CV-VAE/vae3d"]
    assert [known_model(name) for name in names] == ["default", "cv-vae-sd3", "cv-vae-sd3", "cv-vae-sd21"]
    assert not any(map(known_model, ["other/CV-VAE/vae3d", "x.safetensors", None]))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "AILab-CVC/CV-VAE/vae3d").mkdir(parents=True)  # what lies here comes before the hub
    assert known_model("AILab-CVC/CV-VAE/vae3d") is None


def test_info_describes_a_plain_tensor_and_how_to_decode_it(cvvae, answer, tmp_path):
    values = np.zeros((3, 4, 5, 6), np.float16)
    np.save(tmp_path / "z.npy", values)
    torch.save({"samples": torch.from_numpy(values)}, tmp_path / "z.pt")
    save_file({"latents": torch.from_numpy(values)}, tmp_path / "z.safetensors")
    for name, key in (("z.npy", ""), ("z.pt", "samples"), ("z.safetensors", "latents")):
        told = answer("info", tmp_path / name)
        assert (told["kind"], told["key"], told["shape"], told["dtype"]) == ("tensor", key, [3, 4, 5, 6], "float16")
        assert told["readings"] == [
            {"layout": "tzhw", "z": 4, "frames": 9, "width": 48, "height": 40},
            {"layout": "zthw", "z": 3, "frames": 13, "width": 48, "height": 40},
        ]
        out = cvvae("info", tmp_path / name)[1]
        assert "z = 4, 9 frames of 48x40" in out and f"{tmp_path / name} OUT.mp4 --model" in out and "--scaled" in out
    save_file({"latent_tensor": torch.zeros(1, 16, 1, 2, 2)}, tmp_path / "comfyui.latent")
    out = cvvae("info", tmp_path / "comfyui.latent")[1]
    assert "z = 16, 1 frame of 16x16" in out and "ComfyUI" in out and "5.48998" in out
    np.save(tmp_path / "flat.npy", np.zeros(7, np.float32))
    assert "not possible" in cvvae("info", tmp_path / "flat.npy")[1]


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


def test_samples_are_reproducible(folder, cvvae, tmp_path):
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        assert cvvae("encode", "clip.mp4", tmp_path / name, "--sample", "--seed", seed)[0] == 0
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


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


GATES = [
    ["encode", "clip.mp4", "new.latent", "--check", "--min-psnr", "90"],
    ["check", "clip.mp4", "clip.latent", "--min-psnr", "90"],
    ["roundtrip", "clip.mp4", "--min-psnr", "90"],
    ["check", "clip.mp4", "clip.latent", "--min-psnr", "1"],
]


@pytest.mark.parametrize("words", GATES)
def test_quality_below_the_floor_is_a_status(folder, latent, cvvae, words):
    before = listing(folder)
    status, out, err = cvvae(*words, "--json")
    assert status == (0 if words[-1] == "1" else 7) and ("90 dB" in err) == (status == 7)
    assert listing(folder) == before
    if words[0] != "encode":
        assert set(json.loads(out)) >= QUALITY_KEYS


def test_missing_frames_are_a_status(folder, latent, cvvae, tmp_path):
    write_video(tmp_path / "long.mp4", moving_pictures(23, 61, 45))
    status, out, err = cvvae("check", tmp_path / "long.mp4", "clip.latent", "--json")
    assert status == 7 and json.loads(out)["frames_missing"] == 3 and "3 frames" in err
    assert cvvae("encode", "clip.mp4", tmp_path / "part", "--start", "0.2", "--duration", "0.3", "-q")[0] == 0
    status, out, _ = cvvae("check", "clip.mp4", tmp_path / "part", "--json")
    assert status == 0 and json.loads(out)["frames_missing"] == 0


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


def test_models_are_listed_with_their_sources(answer):
    entries = {entry["name"]: entry for entry in answer("models")["models"]}
    assert entries["default"]["source"] == "in the package"
    assert entries["cv-vae-sd3"]["source"] == "AILab-CVC/CV-VAE/vae3d_sd3" and entries["cv-vae-sd21"]["summary"]
    assert set(entries) == {"default", "default-image", "cv-vae-sd21", "cv-vae-sd21-v1.1", "cv-vae-sd3"}


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
def test_a_signal_in_the_middle_leaves_nothing(folder, latent, tmp_path, verb, sent, status):
    if verb == "encode":
        words, part = ["encode", folder / "clip.mp4", tmp_path / "x", "--size", "512x384"], ".x.part"
    else:
        np.save(folder.parent / "big.npy", np.zeros((41, 4, 40, 64), np.float32))
        words, part = ["decode", folder.parent / "big.npy", tmp_path / "x.mp4"], ".x.part.mp4"
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
    assert (running.returncode, out) == (status, "") and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
