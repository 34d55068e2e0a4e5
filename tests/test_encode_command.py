"""`cvvae encode`: what it answers, and that its samples can be had again."""

import json

import command_line
from command_line import QUALITY_KEYS

folder, latent, cvvae, answer = command_line.folder, command_line.latent, command_line.cvvae, command_line.answer


def test_encode_check_info_and_check_tell_the_same_quality(folder, latent, answer):
    encoded, told = json.loads((folder / "clip.json").read_text()), answer("info", "clip.latent")
    assert set(encoded["quality"]) >= QUALITY_KEYS and encoded["quality"]["frames"] == 20
    assert (encoded["frames"], encoded["width"], encoded["height"], encoded["model"]) == (20, 61, 45, "tiny.safetensors")
    assert told["quality"] == encoded["quality"] == answer("check", "clip.mp4", "clip.latent")
    assert told["shape"] == [6, 4, 6, 8] and told["latent_bytes"] == encoded["latent_bytes"] and told["sound"] is True
    assert told["bits_per_pixel"] == encoded["bits_per_pixel"] == 8 * encoded["latent_bytes"] / (61 * 45 * 20)
    assert told["model"]["name"] == "tiny.safetensors" and told["video"]["source"]["audio_codecs"] == ["aac"]
    assert str(folder.parent).encode() not in latent.read_bytes()


def test_samples_are_reproducible(folder, cvvae, tmp_path):
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        assert cvvae("encode", "clip.mp4", tmp_path / name, "--sample", "--seed", seed)[0] == 0
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c
