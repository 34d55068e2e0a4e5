"""Weights, configs and lists of shards from a stranger: refused in a sentence before they cost more than they are large."""

import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from tiny_model import TINY as TINY_COMPACT

from cvvae_cli.checkpoint import load_model
from cvvae_cli.config import config_to_dict
from cvvae_cli.errors import ModelError


def deflated(path: Path, target: Path) -> Path:
    """The same archive with its records compressed."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in source.infolist():
            archive.writestr(entry.filename, source.read(entry))
    return target


def test_weights_that_take_more_memory_than_their_file_are_refused(tmp_path: Path) -> None:
    zeros = {"decoder.conv_in.weight": torch.zeros(1000, 1000)}
    torch.save(zeros, tmp_path / "plain.pt")
    torch.save({name: tensor[:1, :1].clone().expand(10**6, 10**6) for name, tensor in zeros.items()}, tmp_path / "strides.pt")
    torch.save({name: tensor.to_sparse() for name, tensor in zeros.items()}, tmp_path / "sparse.pt")
    torch.save({name: tensor.to("meta") for name, tensor in zeros.items()}, tmp_path / "meta.pt")
    one = torch.zeros(1000)
    torch.save({f"{n}": one for n in range(1000)}, tmp_path / "shared.pt")
    for name in ("strides.pt", "sparse.pt", "meta.pt", "shared.pt"):
        with pytest.raises(ModelError, match="sparse or larger than the file"):
            load_model(str(tmp_path / name))
    with pytest.raises(ModelError, match="unpacks to .* bytes, more than its own size"):
        load_model(str(deflated(tmp_path / "plain.pt", tmp_path / "bomb.pt")))


@pytest.mark.parametrize(
    "change",
    [
        {"encoder_blocks": [10**9, 1, 1]},
        {"gate_channels": 10**12},
        {"codes": -1},
        {"encoder_channels": [8, 8]},
        {"decoder_channels": 8},
        {"latent_channels": "16"},
        {"latent_channels": 16.0},
        {"shared_channels": True},
        {"temporal": "yes"},
        {"scaling_factor": float("nan")},
        {"scaling_factor": 0},
        {"shift_factor": 10**400},
        {"shift_factor": None},
        {"family": ["compact"]},
        {"family": "cv-vae", "variant": ["sd3"]},
        {"unknown": 1},
    ],
)
def test_a_config_that_no_model_has_is_refused_before_anything_is_built(change: dict, tmp_path: Path) -> None:
    config = config_to_dict(TINY_COMPACT) | change
    if config["family"] == "cv-vae":
        config = {"family": "cv-vae", "variant": change["variant"]}
    text = json.dumps(config)
    (tmp_path / "a.safetensors").write_bytes(save({"a": torch.zeros(1)}, {"config": text}))
    with pytest.raises(ModelError) as caught:
        load_model(str(tmp_path / "a.safetensors"))
    assert str(caught.value).endswith(".") and len(str(caught.value)) < 400
    if "family" not in change and "unknown" not in change:
        assert f"Model config {next(iter(change))} is wrong" in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[]", "3", " " * 5_000_000 + "{}"])
def test_hostile_json_is_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(save({"a": torch.zeros(1)}, {"config": text[:200_000]}))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text(text)
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(save({"a": torch.zeros(1)}))
    for path in (tmp_path / "a.safetensors", folder):
        with pytest.raises(ModelError) as caught:
            load_model(str(path))
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_shard_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text('{"_class_name": "CVVAEModel"}')
    (tmp_path / "outside.safetensors").write_bytes(save({"a": torch.zeros(1)}))
    for shard in ("../outside.safetensors", str(tmp_path / "outside.safetensors"), "..", 3):
        index = folder / "diffusion_pytorch_model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"a": shard}}))
        with pytest.raises(ModelError, match="is not a file in its folder"):
            load_model(str(folder))
