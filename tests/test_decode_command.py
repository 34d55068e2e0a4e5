"""`cvvae decode`: the clip comes back, from its own files and from plain tensors, by the model that made them."""

import json

import av
import command_line
import numpy as np
import pytest
import torch
from clips import sound_packets
from command_line import QUALITY_KEYS, pictures
from safetensors.torch import load_file, save_file
from tiny_model import TINY

from cvvae_cli.latent_file import LatentReader
from cvvae_cli.latent_writer import LatentWriter
from cvvae_cli.model_names import cached_path

folder, latent, cvvae, answer = command_line.folder, command_line.latent, command_line.cvvae, command_line.answer


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


def test_ten_bits_are_written_on_request(folder, latent, cvvae, answer, tmp_path):
    words = ["--depth", "10", "--against", "clip.mp4", "--encoder-opt", "qp=0"]
    values, checked = answer("decode", "clip.latent", tmp_path / "x.mkv", *words), json.loads((folder / "clip.json").read_text())
    assert values["quality"]["psnr_db"] == pytest.approx(checked["quality"]["psnr_db"], abs=0.01)
    with av.open(str(tmp_path / "x.mkv")) as container:
        assert container.streams.video[0].pix_fmt == "yuv444p10le"
    status, out, err = cvvae("decode", "clip.latent", tmp_path / "y.mkv", "--depth", "9")
    assert status == 2 and "pass --depth 8 or --depth 10" in err and not (tmp_path / "y.mkv").exists()


def test_a_model_of_no_known_name_is_loaded_at_the_users_word_alone(cvvae, folder, latent, monkeypatch):
    monkeypatch.setenv("CVVAE_MODEL", "")
    status, out, err = cvvae("decode", "clip.latent", "x.mp4")  # its model lies in this folder
    assert status == 5 and "'tiny.safetensors'" in err and "pass --model tiny.safetensors." in err
    assert cvvae("check", "clip.mp4", "clip.latent")[0] == 5
    assert cvvae("decode", "clip.latent", "x.avi", "--model", "tiny.safetensors")[0] == 2  # nothing is wrong but the extension


STRANGE = ["/etc/passwd", "../tiny.safetensors", "tiny.safetensors", ".", "evil/model", "evil/model/vae", "a/../../b", "x" * 150]


@pytest.mark.parametrize("name", STRANGE)
def test_a_strangers_file_opens_no_path_and_no_repository(cvvae, folder, latent, monkeypatch, tmp_path, name):
    def refuse(*where, **how):
        raise AssertionError(f"{where} was asked for")

    with LatentReader(latent) as reader, LatentWriter(tmp_path / "x", *reader.shape[1:]) as writer:
        writer.append(reader.read(0, reader.shape[0]))
        model = json.loads(reader.metadata["model"]) | {"name": name, "revision": "refs/pr/1"}
        tensors = {key: reader.tensor(key) for key in ("pts", "durations")}
        writer.close(reader.metadata | {"model": json.dumps(model)}, tensors)
    monkeypatch.setenv("CVVAE_MODEL", "")
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("cvvae_cli.checkpoint.load_model", refuse)
    status, out, err = cvvae("decode", tmp_path / "x", tmp_path / "x.mp4")
    assert status == 5 and f"pass --model {name}." in err and err.count("\n") == 1


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
