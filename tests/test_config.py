"""Configs and tilings as dictionaries: the way there and back, and what is not believed."""

import json
from dataclasses import asdict

import pytest
from tiny_model import TINY, TINY_PICTURE

from cvvae_cli.config import SD3, SD21, CVVAEConfig, Tiling, config_from_dict, config_to_dict, tiling_from_dict
from cvvae_cli.errors import ModelError, UsageError


@pytest.mark.parametrize("config", [SD21, SD3, TINY, TINY_PICTURE])
def test_a_config_survives_json(config):
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"channels": (8, 8, 8)}, "channels is wrong .it must have 4 numbers"),
        ({"channels": [8, 8, 8, 8]}, "must have 4 numbers"),
        ({"channels": (8, 8, 8, 10**9)}, "1000000000 is no whole number from 1 to 8192"),
        ({"blocks_per_level": 10**9}, "from 0 to 64"),
        ({"norm_groups": 0}, "norm_groups is wrong"),
        ({"half_3d": 1}, "neither true nor false"),
        ({"variant": "sd9"}, "variant 'sd9' is unknown"),
        ({"variant": []}, "variant a list is unknown"),
        ({"scaling_factor": 0.0}, "not above 0"),
        ({"scaling_factor": float("inf")}, "no finite number"),
        ({"shift_factor": "0"}, "shift_factor is wrong"),
    ],
)
def test_values_that_no_model_has(change, words):
    with pytest.raises(ModelError, match=words):
        CVVAEConfig(**change)


@pytest.mark.parametrize("data", [None, [], "compact", {}, {"family": None}, {"family": {}}, {"family": "other"}])
def test_what_is_no_config(data):
    with pytest.raises(ModelError, match="family .* is unknown; this version knows cv-vae, compact"):
        config_from_dict(data)


@pytest.mark.parametrize("tiling", [Tiling(), Tiling(128, 32, 8, 33, batch=3, norm="global"), Tiling.official()])
def test_a_tiling_survives_json_and_keys_of_later_versions(tiling):
    assert tiling_from_dict(json.loads(json.dumps(asdict(tiling))) | {"later": [1]}) == tiling
    assert tiling_from_dict({"chunk": 33}) == Tiling(chunk=33)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"chunk": 1029}, "Chunk 1029 must be 1 \\+ 4k frames, 5 to 1025"),
        ({"chunk": 17.0}, "no whole number"),
        ({"tile": float("nan")}, "no whole number"),
        ({"batch": 10**400}, "a huge number is no whole number"),
        ({"mode": "other"}, "'other' is unknown"),
        ({"norm": []}, "no short text"),
    ],
)
def test_a_tiling_is_not_believed(change, words):
    with pytest.raises(ValueError, match=words):
        tiling_from_dict(asdict(Tiling()) | change)
    with pytest.raises((TypeError, KeyError)):
        tiling_from_dict(None)


def test_a_chunk_has_a_longest():
    assert Tiling(chunk=1025).chunk == 1025
    with pytest.raises(UsageError, match="5 to 1025"):
        Tiling(chunk=2**20 + 1)
