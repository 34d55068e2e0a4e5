"""The plain form against the official code's tensors, and the models against the plain form where rounding cannot hide much."""

from dataclasses import replace

import pytest
import torch
from golden_weights import golden_case, golden_state_dict, relative_error
from safetensors.torch import save_file
from tiny_model import TINY
from torch import Tensor

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.checkpoint import load_model
from cvvae_cli.config import CVVAEConfig, ModelConfig, Variant
from cvvae_cli.plain_form import PlainForm

SD21 = CVVAEConfig(channels=(8, 8, 16, 16), blocks_per_level=1, norm_groups=4)
SD3 = CVVAEConfig("sd3", 16, (8, 16, 16, 24), 1, norm_groups=4)
CONFIGS = {
    "sd21": SD21,
    "sd21-two-blocks": replace(SD21, channels=(8, 16, 16, 16), blocks_per_level=2),
    "sd21-all-3d": replace(SD21, half_3d=False),
    "sd3": SD3,
    "compact": TINY,
    "compact-deep": replace(TINY, encoder_blocks=(2, 1, 2), decoder_blocks=(1, 2, 2), encoder_channels=(4, 8, 12)),
    "picture": replace(TINY, temporal=False),
    "compact-narrow": replace(TINY, synthesis_rank=7),
}
SIZES = [(1, 1, 8, 8), (2, 5, 16, 24), (1, 9, 24, 8)]
FLOAT64_ORDER = 1e-12  # another order of sums moved at most 6e-15
GOLDEN_TOLERANCE = 1e-4  # as in test_autoencoder.py


def random_model(config: ModelConfig) -> Autoencoder:
    """Weights among which none is zero or one, as those of norms and last layers start."""
    torch.manual_seed(0)
    model = Autoencoder(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def inputs(config: ModelConfig, size: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    batch, frames, height, width = size
    video = torch.rand(batch, 3, frames, height, width, dtype=torch.float64) * 2 - 1
    latents = torch.randn(batch, config.latent_channels, 1 + frames // 4, height // 8, width // 8, dtype=torch.float64)
    return video, latents


@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_models_equal_their_plain_form(name: str) -> None:
    config = CONFIGS[name]
    model = random_model(config)
    plain = PlainForm(model, torch.float64)
    for batch, frames, height, width in SIZES:
        video, latents = inputs(config, (batch, 1 if name == "picture" else frames, height, width))
        for output, truth in ((model.encode(video), plain.encode(video)), (model.decode(latents), plain.decode(latents))):
            assert output.shape == truth.shape and truth.is_contiguous() and truth.dtype == torch.float64
            assert relative_error(output, truth) < FLOAT64_ORDER


@pytest.mark.parametrize("variant", ["sd21", "sd3"])
@torch.inference_mode()
def test_golden_tensors(variant: Variant, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("golden") / "weights.safetensors"
    save_file(golden_state_dict(variant), path)
    plain = PlainForm(load_model(path))
    for case in ("image", "clip"):
        golden = golden_case(variant, case)
        assert relative_error(plain.encode(golden.video), golden.moments) < GOLDEN_TOLERANCE
        assert relative_error(plain.decode(golden.moments.chunk(2, dim=1)[0]), golden.reconstruction) < GOLDEN_TOLERANCE


@torch.inference_mode()
def test_it_computes_in_its_own_dtype() -> None:
    model = random_model(SD21).bfloat16()
    video, latents = inputs(SD21, (1, 5, 16, 16))
    whole = PlainForm(model)
    assert whole.encode(video.bfloat16()).dtype == whole.decode(latents).dtype == whole.dtype == torch.float32
    half = PlainForm(model, torch.bfloat16)
    assert half.encode(video).dtype == torch.bfloat16
    assert 1e-4 < relative_error(half.decode(latents), whole.decode(latents)) < 0.1


@torch.inference_mode()
def test_its_weights_are_its_own() -> None:
    model = random_model(TINY).float()
    plain = PlainForm(model)
    assert plain.weights_bytes == 4 * sum(parameter.numel() for parameter in model.parameters())
    latents = inputs(TINY, (1, 5, 8, 8))[1].float()
    before = plain.decode(latents)
    for parameter in model.parameters():
        parameter.zero_()
    assert torch.equal(plain.decode(latents), before) and before.any()


@torch.inference_mode()
def test_inputs_stay_as_they_are() -> None:
    for config in (SD21, SD3, TINY):
        plain = PlainForm(random_model(config), torch.float64)
        video, latents = inputs(config, (1, 5, 16, 16))
        copies = video.clone(), latents.clone()
        plain.encode(video), plain.decode(latents)
        assert torch.equal(video, copies[0]) and torch.equal(latents, copies[1])
