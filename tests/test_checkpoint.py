"""Loading and saving: every container, both dialects, and everything that must be refused."""

import json
import os
import pickle
import resource
from pathlib import Path

import pytest
import torch
from golden_weights import key_list, official_config
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tiny_model import TINY as TINY_COMPACT

from cvvae_cli import checkpoint, model_names
from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.checkpoint import load_model, official_state_dict, resolve_device, save_model, weights_sha256
from cvvae_cli.config import CompactConfig, CVVAEConfig, Variant, config_to_dict
from cvvae_cli.errors import DeviceError, ModelError, OutputError
from cvvae_cli.model_names import KNOWN_MODELS, cached_path
from cvvae_cli.official_names import config_from_official, config_from_shapes, official_layout

VARIANTS: tuple[Variant, ...] = ("sd21", "sd3")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def small_official_config(variant: Variant) -> dict:
    """The full key set at about a quarter of the width."""
    narrow = {"sd21": {"ch": 32, "ch_mult": [1, 2, 3, 3]}, "sd3": {"block_out_channels": [32, 64, 96, 96]}}
    return {**official_config(variant), **narrow[variant]}


def write_folder(folder: Path, config: dict, model: Autoencoder) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    state = {name: t.contiguous() for name, t in official_state_dict(model).items()}
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.fixture(scope="module", params=VARIANTS)
def small(request: pytest.FixtureRequest) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(config_from_official(small_official_config(request.param))).bfloat16()


@pytest.fixture(scope="module")
def folder(small: Autoencoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("hub") / "vae3d", small_official_config(small.config.variant), small)


@pytest.fixture(scope="module")
def tiny() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(CVVAEConfig("sd3", 4, (32, 32, 32, 32), 1))


def same_weights(a: Autoencoder, b: Autoencoder) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k].float(), right[k].float()) for k in left)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", ["official", "small"])
def test_names_and_shapes_are_the_official_ones(variant: Variant, size: str) -> None:
    keys = key_list(f"{variant}-{size}")
    config = config_from_shapes(keys)
    if size == "official":
        assert config == config_from_official(official_config(variant))
    with torch.device("meta"):
        model = Autoencoder(config)
    layout = official_layout(config, {name: tuple(t.shape) for name, t in model.state_dict().items()})
    assert {entry.name: entry.shape for entry in layout.values()} == keys
    assert {name: tuple(t.shape) for name, t in official_state_dict(model).items()} == keys


def test_folder_loads_with_the_full_key_set(small: Autoencoder, folder: Path) -> None:
    stored = load_file(folder / "diffusion_pytorch_model.safetensors")
    assert stored.keys() == key_list(f"{small.config.variant}-official").keys()
    model = load_model(folder)
    assert model.config == small.config and model.dtype == torch.float32
    assert same_weights(model, small)
    assert model.identity is not None and model.identity.name == str(folder) and model.identity.revision is None
    assert all(p.requires_grad and p.device.type == "cpu" for p in model.parameters())
    assert model.encoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last_3d)
    back = official_state_dict(load_model(folder, dtype=torch.bfloat16))
    assert back.keys() == stored.keys() and all(torch.equal(back[name], stored[name]) for name in stored)


def test_shards_and_single_files_hold_the_same_model(small: Autoencoder, folder: Path, tmp_path: Path) -> None:
    state = {name: t.contiguous() for name, t in official_state_dict(small).items()}
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    (sharded / "config.json").write_text((folder / "config.json").read_text())
    halves = {"diffusion_pytorch_model-1.safetensors": "encoder.", "diffusion_pytorch_model-2.safetensors": "decoder."}
    for file, side in halves.items():
        save_file({n: t for n, t in state.items() if n.startswith(side)}, sharded / file)
    index = {"weight_map": {name: next(f for f, side in halves.items() if name.startswith(side)) for name in state}}
    (sharded / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    torch.save(state, tmp_path / "model.bin")
    torch.save({"state_dict": {**state, "loss.logvar": torch.zeros(1)}, "epoch": 3}, tmp_path / "model.ckpt")
    save_model(small, tmp_path / "ours.safetensors")
    expected = load_model(folder).identity
    for path in (sharded, tmp_path / "model.bin", tmp_path / "model.ckpt", tmp_path / "ours.safetensors"):
        identity = load_model(path).identity
        assert identity is not None and expected is not None
        assert (identity.sha256, identity.config) == (expected.sha256, expected.config), path
    index["weight_map"]["encoder.conv_in.bias"] = "../elsewhere.safetensors"
    (sharded / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="elsewhere"):
        load_model(sharded)


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_3d_folder_loads(variant: Variant, tmp_path: Path) -> None:
    config = {**small_official_config(variant), "half_3d": False, "num_res_blocks": 1, "layers_per_block": 1}
    model = Autoencoder(config_from_official(config)).bfloat16()
    loaded = load_model(write_folder(tmp_path / "full", config, model))
    assert isinstance(loaded.config, CVVAEConfig) and not loaded.config.half_3d
    assert same_weights(loaded, model)
    assert same_weights(load_model(tmp_path / "full" / "diffusion_pytorch_model.safetensors"), model)


@pytest.mark.parametrize("config", [TINY_COMPACT, CVVAEConfig("sd3", 4, (32, 32, 32, 32), 1, half_3d=False, scaling_factor=2.0)])
def test_our_file_round_trip(config: CVVAEConfig | CompactConfig, tmp_path: Path) -> None:
    model, path = Autoencoder(config), tmp_path / "model.safetensors"
    digest = save_model(model, path, {"steps": "12"}, dtype=torch.float16)
    loaded = load_model(path)
    assert loaded.identity is not None and loaded.identity.sha256 == digest and loaded.config == config
    assert same_weights(loaded, model.half())
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_saving_where_there_is_no_place_leaves_nothing(tiny: Autoencoder, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="absent"):
        save_model(tiny, tmp_path / "absent" / "model.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(OutputError, match="folder"):
        save_model(tiny, tmp_path / "folder.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.safetensors"]


def test_a_failed_save_keeps_the_file_that_was_there(tiny: Autoencoder, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("precious")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OutputError, match="model.safetensors' cannot be written .*choose another path"):
            save_model(tiny, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "precious" and [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_default_model_is_the_packaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = Autoencoder(TINY_COMPACT), tmp_path / "default.safetensors"
    monkeypatch.setattr(model_names, "packaged_weights", lambda name: path)
    assert cached_path("default") is None
    with pytest.raises(ModelError, match="default"):
        load_model()
    digest = save_model(model, path)
    loaded = load_model()
    assert cached_path("default") == path
    assert loaded.identity is not None and (loaded.identity.name, loaded.identity.sha256) == ("default", digest)


def test_fingerprint_sees_names_dtypes_shapes_and_bytes() -> None:
    base = {"a": torch.arange(4.0), "b": torch.ones(2)}
    others = [
        {"a": torch.arange(4.0), "c": torch.ones(2)},
        {"a": torch.arange(4.0).double(), "b": torch.ones(2)},
        {"a": torch.arange(4.0).view(2, 2), "b": torch.ones(2)},
        {"a": torch.arange(4.0) + 1, "b": torch.ones(2)},
    ]
    assert weights_sha256(base) == weights_sha256(dict(reversed(base.items())))
    assert len({weights_sha256(base), *map(weights_sha256, others)}) == 5


class Payload:
    """Would run a command when unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt"])
@pytest.mark.parametrize("legacy", [True, False])
def test_pickled_code_is_refused_and_named(suffix: str, legacy: bool, tmp_path: Path) -> None:
    path, trace = tmp_path / f"model{suffix}", tmp_path / "trace"
    content = {"encoder.conv_in.bias": torch.zeros(1), "evil": Payload(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ModelError, match=r"posix\.system|nt\.system"):
        load_model(path)
    assert not trace.exists()


def test_raw_pickles_and_noise_are_one_sentence(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "raw.bin").write_bytes(pickle.dumps(Payload(trace)))
    (tmp_path / "noise.bin").write_bytes(b"not a checkpoint at all")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "noise.safetensors").write_bytes(b"\xff" * 64)
    (tmp_path / "weights.txt").write_text("1 2 3")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    save_file({"x": torch.zeros(1)}, tmp_path / "strangers.safetensors")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ModelError) as caught:
            load_model(path)
        assert path.name in str(caught.value) or "weights" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not trace.exists()


def test_every_misfit_is_named_in_one_error(tiny: Autoencoder, tmp_path: Path) -> None:
    state = {name: t.contiguous() for name, t in official_state_dict(tiny).items()}
    for name in [n for n in state if n.startswith("encoder.mid_block")][:11]:
        del state[name]
    state["decoder.extra"] = torch.zeros(2)
    state["decoder.conv_in.bias"] = torch.zeros(7)
    path = tmp_path / "bad.safetensors"
    save_file(state, path)
    with pytest.raises(ModelError) as caught:
        load_model(path)
    message = str(caught.value)
    assert "11 missing (" in message and "and 3 more" in message and message.count("encoder.mid_block") == 8
    assert "1 not expected (decoder.extra)" in message
    assert "decoder.conv_in.bias is [7] not [32]" in message


@pytest.mark.parametrize(
    ("variant", "change", "word"),
    [
        ("sd21", {"causal_encoder": False}, "causal_encoder"),
        ("sd21", {"decoder_attn_type": "vanilla"}, "decoder_attn_type"),
        ("sd21", {"ch_mult": [1, 2, 4]}, "ch_mult"),
        ("sd21", {"_class_name": "AutoencoderKL"}, "AutoencoderKL"),
        ("sd3", {"act_fn": "gelu"}, "gelu"),
        ("sd3", {"layers_per_block": 0}, "layers_per_block"),
        ("sd3", {"norm_num_groups": "many"}, "norm_num_groups"),
        ("sd3", {"causal_decoder": True}, "causal_decoder"),
    ],
)
def test_contradicting_configs_are_refused(variant: Variant, change: dict, word: str) -> None:
    with pytest.raises(ModelError, match=word):
        config_from_official({**official_config(variant), **change})


def test_config_keys_reach_the_architecture() -> None:
    changes = {"ch": 32, "ch_mult": [1, 1, 2, 3], "num_res_blocks": 3, "half_3d": False, "z_channels": 8}
    sd21 = config_from_official({**official_config("sd21"), **changes})
    assert sd21 == CVVAEConfig("sd21", 8, (32, 32, 64, 96), 3, half_3d=False)
    sd3 = config_from_official({**official_config("sd3"), "out_channels": 8, "norm_num_groups": 16, "layers_per_block": 1})
    assert sd3 == CVVAEConfig("sd3", 8, (128, 256, 512, 512), 1, norm_groups=16, scaling_factor=1.5305, shift_factor=0.0609)


def test_damaged_headers_and_folders(tiny: Autoencoder, tmp_path: Path) -> None:
    state = {name: t.contiguous() for name, t in tiny.state_dict().items()}
    newer = {**config_to_dict(tiny.config), "new": 1}
    for i, config in enumerate(["{", "[]", json.dumps({"family": "other"}), json.dumps(newer)]):
        save_file(state, tmp_path / f"{i}.safetensors", {"config": config})
        with pytest.raises(ModelError, match="config|family"):
            load_model(tmp_path / f"{i}.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"config\.json"):
        load_model(tmp_path / "empty")
    write_folder(tmp_path / "broken", {}, tiny)
    (tmp_path / "broken" / "config.json").write_text("{")
    with pytest.raises(ModelError, match="JSON"):
        load_model(tmp_path / "broken")


def test_unknown_names_say_what_is_known() -> None:
    for name in ("cv-vae-sd22", "models/missing.safetensors", "nothing here"):
        with pytest.raises(ModelError, match="cv-vae-sd21-v1.1"):
            load_model(name)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_hub_models_without_network_are_one_sentence(hub_cache: Path) -> None:
    for name in ("cv-vae-sd21", "somebody/something", "somebody/something/vae"):
        assert cached_path(name) is None
        with pytest.raises(ModelError, match="cannot be fetched") as caught:
            load_model(name, revision="v9")
        assert "\n" not in str(caught.value) and "v9" in str(caught.value)


def test_hub_models_come_from_the_cache(hub_cache: Path, tiny: Autoencoder) -> None:
    config = {**official_config("sd3"), "out_channels": 4, "block_out_channels": [32] * 4, "layers_per_block": 1}
    for subfolder, repo in (("vae3d_sd3", "AILab-CVC--CV-VAE"), ("vae", "somebody--something")):
        base = hub_cache / f"models--{repo}"
        (base / "refs").mkdir(parents=True)
        (base / "refs" / "main").write_text(COMMIT)
        write_folder(base / "snapshots" / COMMIT / subfolder, config, tiny)
    assert cached_path("cv-vae-sd3") == hub_cache / "models--AILab-CVC--CV-VAE" / "snapshots" / COMMIT / "vae3d_sd3"
    assert cached_path("cv-vae-sd21") is None
    for name, revision in (("cv-vae-sd3", None), ("cv-vae-sd3", COMMIT), ("somebody/something/vae", None)):
        model = load_model(name, revision=revision)
        assert model.identity is not None
        assert (model.identity.name, model.identity.revision) == (name, COMMIT)
        assert same_weights(model, tiny)


def test_the_table_names_published_subfolders() -> None:
    assert {n: k.hub and f"{k.hub.repo}/{k.hub.subfolder}" for n, k in KNOWN_MODELS.items()} == {
        "default": None,
        "default-image": None,
        "default-z4": None,
        "cv-vae-sd21": "AILab-CVC/CV-VAE/vae3d",
        "cv-vae-sd21-v1.1": "AILab-CVC/CV-VAE/vae3d_v1-1",
        "cv-vae-sd3": "AILab-CVC/CV-VAE/vae3d_sd3",
    }


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(DeviceError, match="toaster"):
        resolve_device("toaster")
    with pytest.raises(DeviceError, match="cuda:99"):
        load_model(device="cuda:99")


def test_no_random_numbers_are_drawn(tiny: Autoencoder, tmp_path: Path) -> None:
    save_model(tiny, tmp_path / "model.safetensors")
    state = torch.get_rng_state()
    checkpoint.load_model(tmp_path / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
