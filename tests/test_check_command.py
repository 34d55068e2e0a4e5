"""`cvvae check`, and the same gates where other commands check."""

import json

import command_line
import pytest
from clips import moving_pictures, write_video
from command_line import QUALITY_KEYS, listing

folder, latent, cvvae = command_line.folder, command_line.latent, command_line.cvvae
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
