"""The compact family without time: shapes, what it refuses, and that stored configs from before it still mean video."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_model import TINY

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.checkpoint import load_model, save_model
from cvvae_cli.compact import PICTURE, VIDEO, channel_to_space, reach_of, space_to_channel
from cvvae_cli.config import CompactConfig, config_from_dict, config_to_dict
from cvvae_cli.errors import UsageError

TINY_PICTURE = replace(TINY, temporal=False)


def test_a_picture_model_codes_one_frame() -> None:
    model = Autoencoder(TINY_PICTURE)
    with torch.inference_mode():
        moments = model.encode(torch.rand(2, 3, 1, 16, 24))
        picture = model.decode(moments.chunk(2, dim=1)[0])
    assert moments.shape == (2, 2 * TINY.latent_channels, 1, 2, 3)
    assert picture.shape == (2, 3, 1, 16, 24)


def test_nothing_in_a_picture_model_reaches_beyond_its_frame() -> None:
    kernels = {name: p.shape for name, p in Autoencoder(TINY_PICTURE).named_parameters() if p.dim() == 5}
    assert all(shape[2] == 1 for shape in kernels.values())
    assert kernels["encoder.analysis.weight"][1] == kernels["decoder.synthesis.weight"][0] == 3 * 8 * 8
    assert kernels["encoder.patch_in.weight"][1] == kernels["decoder.patch_out.weight"][0] == 3 * 4 * 4
    video = {name: p.shape for name, p in Autoencoder(TINY).named_parameters() if p.dim() == 5}
    assert video.keys() == kernels.keys()
    assert {shape[2] for shape in video.values()} == {1, 2, 3}


@pytest.mark.parametrize("copied", [False, True])
def test_a_picture_model_refuses_video(copied: bool) -> None:
    model = Autoencoder(TINY_PICTURE)
    model = copy.deepcopy(model) if copied else model
    with pytest.raises(UsageError, match="one frame at a time, got 5"):
        model.encode(torch.zeros(1, 3, 5, 16, 16))
    with pytest.raises(UsageError, match="one frame at a time, got 2"):
        model.decode(torch.zeros(1, 4, 2, 2, 2))


def test_configs_stored_by_older_versions_mean_what_they_did() -> None:
    stored = config_to_dict(TINY)
    assert stored.pop("temporal") is True and stored.pop("synthesis_rank") == 0
    assert config_from_dict(stored) == TINY
    assert config_from_dict(config_to_dict(TINY_PICTURE)) == TINY_PICTURE
    assert load_model("default").config == CompactConfig(synthesis_rank=96)


def test_a_picture_model_is_saved_and_loaded(tmp_path: Path) -> None:
    model = Autoencoder(TINY_PICTURE)
    save_model(model, tmp_path / "picture.safetensors")
    loaded = load_model(tmp_path / "picture.safetensors")
    assert loaded.config == TINY_PICTURE
    x = torch.rand(1, 3, 1, 16, 16)
    with torch.inference_mode():
        assert torch.equal(loaded.encode(x), model.encode(x))


@pytest.mark.parametrize("reach", [VIDEO, PICTURE])
def test_blocks_are_counted_frame_by_frame(reach) -> None:
    x = torch.arange(2 * 3 * 4 * 16 * 8, dtype=torch.float32).view(2, 3, 4, 16, 8)
    blocks = space_to_channel(x, reach.block)
    frames = reach.block[0]
    assert blocks.shape == (2, 3 * 64 * frames, 4 // frames, 2, 1)
    last = blocks[:, -3 * 64 :].unflatten(1, (8, 8, 3))  # rows, columns, colours of a block's last frame
    assert torch.equal(last[:, :, :, 2, 0, 1, 0], x[:, 2, frames - 1, 8:, :])
    assert torch.equal(channel_to_space(blocks, reach.block), x)


def test_reach_follows_the_config() -> None:
    assert (reach_of(TINY), reach_of(TINY_PICTURE)) == (VIDEO, PICTURE)
