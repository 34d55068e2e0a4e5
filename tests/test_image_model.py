"""Picture autoencoders of every kind behind one interface, and everything that must be refused."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tiny_model import TINY, save_tiny_model
from torch import Tensor

from cvvae_cli import image_model
from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.checkpoint import load_model, save_model
from cvvae_cli.config import CVVAEConfig
from cvvae_cli.errors import ModelError, UsageError
from cvvae_cli.image_model import ImageModel, as_image_model, load_image_model

WEIGHTS = "diffusion_pytorch_model.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def picture_vae(levels: int = 4) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8, 8, 16, 16)[:levels],
        norm_num_groups=4,
    ).eval()


def temporal_vae() -> AutoencoderKLTemporalDecoder:
    torch.manual_seed(0)  # 32 norm groups are fixed in this class
    return AutoencoderKLTemporalDecoder(down_block_types=("DownEncoderBlock2D",) * 4, block_out_channels=(32,) * 4).eval()


@pytest.fixture(scope="module")
def picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kl")
    picture_vae().save_pretrained(folder)
    return folder


@pytest.fixture
def damaged(picture_folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder to damage."""
    for path in picture_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_autoencoder_kl(picture_folder: Path, pictures: Tensor) -> None:
    model, vae = load_image_model(str(picture_folder)), picture_vae()
    with torch.inference_mode():
        z = model.encode(pictures)
        assert torch.equal(z, vae.encode(pictures).latent_dist.mean)
        assert torch.equal(model.decode(z), vae.decode(z).sample)
    assert z.shape == (3, 4, 2, 3) and model.latent_channels == 4
    assert (model.name, model.dtype, model.device.type) == (str(picture_folder), torch.float32, "cpu")
    assert not model.training


def test_temporal_decoder_sees_single_pictures(tmp_path: Path, pictures: Tensor) -> None:
    vae = temporal_vae()
    vae.save_pretrained(tmp_path)
    model = load_image_model(str(tmp_path))
    with torch.inference_mode():
        z = model.encode(pictures)
        torch.testing.assert_close(z, vae.encode(pictures).latent_dist.mean)
        decoded = model.decode(z)
        for i in range(3):
            torch.testing.assert_close(decoded[i : i + 1], vae.decode(z[i : i + 1], num_frames=1).sample)
        assert not torch.allclose(decoded, vae.decode(z, num_frames=3).sample, atol=1e-3)
    assert decoded.shape == pictures.shape


@pytest.mark.parametrize(
    "config",
    [TINY, replace(TINY, temporal=False), CVVAEConfig("sd3", 16, (8, 8, 16, 16), 1, norm_groups=4)],
    ids=["video", "picture", "sd3"],
)
def test_our_own_sees_windows_of_one_frame(config, pictures: Tensor) -> None:
    torch.manual_seed(2)
    model = Autoencoder(config)
    images = as_image_model(model)
    with torch.inference_mode():
        z = images.encode(pictures)
        torch.testing.assert_close(z, model.encode(pictures[:, :, None])[:, : config.latent_channels, 0])
        torch.testing.assert_close(images.decode(z), model.decode(z[:, :, None])[:, :, 0])
    assert z.shape == (3, config.latent_channels, 2, 3) and images.latent_channels == config.latent_channels
    assert {id(p) for p in images.parameters()} == {id(p) for p in model.parameters()}


def test_a_file_and_a_name_of_our_own(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "tiny.safetensors")
    images, model = load_image_model(str(path)), load_model(path)
    assert (images.identity, images.name) == (model.identity.sha256, str(path))
    assert load_image_model("default").latent_channels == 16


def test_identity_follows_the_weights_alone(picture_folder: Path, damaged: Path, tmp_path: Path) -> None:
    first = load_image_model(str(picture_folder))
    again = load_image_model(str(damaged), dtype=torch.bfloat16)
    assert first.identity == again.identity and len(first.identity) == 64
    assert again.dtype == torch.bfloat16
    assert again.encode(torch.zeros(1, 3, 8, 8)).dtype == torch.bfloat16
    state = load_file(damaged / WEIGHTS)
    state["quant_conv.bias"] += 1
    save_file(state, damaged / WEIGHTS)
    assert load_image_model(str(damaged)).identity != first.identity
    unnamed = Autoencoder(TINY)
    assert as_image_model(unnamed).identity == save_model(unnamed, tmp_path / "same.safetensors")


def run_both(model: ImageModel, x: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruction, and the gradient of its squares."""
    x = x.clone().requires_grad_()
    y = model.decode(model.encode(x))
    y.square().sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


def test_large_batches_run_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_tiny()
    sizes: list[int] = []
    model.network.encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    x = torch.rand(5, 3, 16, 16)
    whole = run_both(model, x)
    assert sizes == [5]
    monkeypatch.setattr(image_model, "PIECE_PIXELS", 2 * 16 * 16 + 1)
    sizes.clear()
    pieces = run_both(model, x)
    assert sizes[:3] == [2, 2, 1] and len(sizes) == 6  # each piece once more in the backward pass
    for a, b in zip(whole, pieces):
        torch.testing.assert_close(a, b)
    sizes.clear()
    with torch.no_grad():
        model.encode(torch.rand(3, 3, 32, 32))
    assert sizes == [1, 1, 1]


def load_tiny() -> ImageModel:
    torch.manual_seed(4)
    return as_image_model(Autoencoder(TINY)).frozen()


def test_frozen_weights_get_no_gradient_but_pass_it_on(picture_folder: Path) -> None:
    model = load_image_model(str(picture_folder)).frozen()
    z = torch.randn(1, 4, 2, 2, requires_grad=True)
    model.decode(z).sum().backward()
    assert z.grad is not None and z.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("shape", [(1, 4, 16, 16), (3, 16, 16), (1, 3, 1, 16, 16), (0, 3, 16, 16)])
def test_encode_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="N, 3, H, W"):
        load_tiny().encode(torch.zeros(shape))


def test_encode_and_decode_refuse_sizes_channels_and_bytes() -> None:
    with pytest.raises(UsageError, match="20x16"):
        load_tiny().encode(torch.zeros(1, 3, 16, 20))
    with pytest.raises(UsageError, match="N, 4, H, W"):
        load_tiny().decode(torch.zeros(1, 3, 2, 2))
    with pytest.raises(UsageError, match="uint8"):
        load_tiny().encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_a_hub_id_comes_from_the_cache(picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="not in the local cache"):
        load_image_model("someone/some-vae/vae")
    base = tmp_path / "models--someone--some-vae"
    (base / "refs").mkdir(parents=True)
    (base / "refs" / "main").write_text(COMMIT)
    snapshot = base / "snapshots" / COMMIT / "vae"
    snapshot.mkdir(parents=True)
    for path in picture_folder.iterdir():
        (snapshot / path.name).write_bytes(path.read_bytes())
    model = load_image_model("someone/some-vae/vae")
    assert model.name == "someone/some-vae/vae"
    assert model.identity == load_image_model(str(picture_folder)).identity


def test_without_diffusers_there_is_one_sentence(picture_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ModelError, match=r"pip install 'cvvae\[compat\]'"):
        load_image_model(str(picture_folder))


def test_damaged_folders_are_refused(damaged: Path) -> None:
    state = load_file(damaged / WEIGHTS)
    save_file({name: t for name, t in state.items() if name != "decoder.conv_in.bias"}, damaged / WEIGHTS)
    with pytest.raises(ModelError, match="decoder.conv_in.bias"):
        load_image_model(str(damaged))
    save_file({**state, "surplus": torch.zeros(1)}, damaged / WEIGHTS)
    with pytest.raises(ModelError, match="surplus"):
        load_image_model(str(damaged))
    (damaged / WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(ModelError, match="cannot be read"):
        load_image_model(str(damaged))
    (damaged / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        load_image_model(str(damaged))


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"_class_name": "AutoencoderTiny"})])
def test_other_configs_are_refused(damaged: Path, text: str) -> None:
    (damaged / "config.json").write_text(text)
    with pytest.raises(ModelError, match="JSON|keys and values|AutoencoderTiny"):
        load_image_model(str(damaged))


def test_names_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nonsense"):
        load_image_model("nonsense")
    with pytest.raises(ModelError, match="gone.safetensors"):
        load_image_model(str(tmp_path / "gone.safetensors"))


def test_the_interface_alone_is_no_model() -> None:
    with pytest.raises(TypeError, match="abstract"):
        ImageModel("nothing", "none", 4)


def test_another_compression_is_refused(tmp_path: Path) -> None:
    picture_vae(levels=3).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="4 times"):
        load_image_model(str(tmp_path))
