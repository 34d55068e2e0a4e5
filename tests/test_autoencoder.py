"""The whole networks against the official code's outputs, and the promises of encode and decode."""

import dataclasses
import itertools
import weakref

import pytest
import torch
from golden_weights import SMALL, golden_case, golden_state_dict, relative_error
from safetensors.torch import save_file
from tiny_model import TINY as TINY_COMPACT
from torch import nn

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.checkpoint import load_model
from cvvae_cli.config import CVVAEConfig, ModelConfig, Variant
from cvvae_cli.errors import ModelError, UsageError
from cvvae_cli.layers import GroupNorm

TINY: dict[Variant, CVVAEConfig] = {
    "sd21": CVVAEConfig(channels=(8, 8, 16, 16), blocks_per_level=1, norm_groups=4),
    "sd3": CVVAEConfig("sd3", 16, (8, 8, 16, 16), 1, norm_groups=4),
}
VARIANTS: tuple[Variant, ...] = ("sd21", "sd3")
# What the golden README allows; we are near 2e-6, so a wrong eps or padding at one place does not hide in it.
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=VARIANTS)
def golden_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Autoencoder:
    path = tmp_path_factory.mktemp("golden") / "weights.safetensors"
    save_file(golden_state_dict(request.param), path)
    return load_model(path)


@pytest.mark.parametrize("case", ["image", "clip"])
def test_golden_tensors(golden_model: Autoencoder, case: str) -> None:
    assert isinstance(golden_model.config, CVVAEConfig)
    golden = golden_case(golden_model.config.variant, case)
    with torch.inference_mode():
        moments = golden_model.encode(golden.video)
        reconstruction = golden_model.decode(golden.moments.chunk(2, dim=1)[0])
    assert moments.shape == golden.moments.shape and reconstruction.shape == golden.reconstruction.shape
    assert relative_error(moments, golden.moments) < TOLERANCE
    assert relative_error(reconstruction, golden.reconstruction) < TOLERANCE


def test_golden_config_is_inferred(golden_model: Autoencoder) -> None:
    assert golden_model.config == SMALL[golden_model.config.variant]


def test_training_mode_computes_the_same(golden_model: Autoencoder) -> None:
    video = golden_case(golden_model.config.variant, "image").video[..., :16, :16]
    with torch.inference_mode():
        expected = golden_model.encode(video)
    moments = golden_model.encode(video)
    assert moments.requires_grad
    torch.testing.assert_close(moments.detach(), expected)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_no_level_holds_its_input_to_its_end(variant: Variant) -> None:
    model = Autoencoder(dataclasses.replace(TINY[variant], blocks_per_level=2))
    seen: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []
    for network, resample in ((model.encoder, "downsample"), (model.decoder, "upsample")):
        for before, level in itertools.pairwise(network.levels):
            getattr(before, resample).register_forward_hook(lambda module, inputs, out: seen.append(weakref.ref(out)))
            # The second of the level's blocks works on the first one's output.
            level.blocks[1].second.conv.register_forward_pre_hook(lambda module, inputs: alive.append(seen[-1]() is not None))
    model.encode(torch.randn(1, 3, 5, 16, 16))
    model.decode(torch.randn(1, TINY[variant].latent_channels, 2, 2, 2))
    assert alive == [False] * 6


@pytest.mark.parametrize("config", [*TINY.values(), TINY_COMPACT], ids=["sd21", "sd3", "compact"])
@pytest.mark.parametrize("frames", [1, 5, 9])
def test_shapes(config: ModelConfig, frames: int) -> None:
    model = Autoencoder(config)
    with torch.inference_mode():
        moments = model.encode(torch.rand(2, 3, frames, 16, 24))
        video = model.decode(torch.rand(2, config.latent_channels, 1 + frames // 4, 2, 3))
    assert moments.shape == (2, 2 * config.latent_channels, 1 + frames // 4, 2, 3)
    assert video.shape == (2, 3, frames, 16, 24)
    assert (model.latent_channels, model.dtype, model.device.type) == (config.latent_channels, torch.float32, "cpu")
    assert model.identity is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_batch_items_do_not_mix(variant: Variant) -> None:
    model, x, z = Autoencoder(TINY[variant]), torch.rand(2, 3, 5, 16, 16), torch.rand(2, TINY[variant].latent_channels, 2, 2, 2)
    with torch.inference_mode():
        torch.testing.assert_close(model.encode(x)[1:], model.encode(x[1:]))
        torch.testing.assert_close(model.decode(z)[1:], model.decode(z[1:]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_encoder_is_causal_but_for_its_norms(variant: Variant) -> None:
    model = Autoencoder(TINY[variant])
    for module in list(model.encoder.modules()):
        if isinstance(getattr(module, "norm", None), GroupNorm):
            module.norm = nn.Identity()
    # Small, because without norms (Identity) in-place SiLU would also reach the shortcut's input.
    x = torch.rand(1, 3, 9, 16, 16) * 0.1
    later = x.clone()
    later[:, :, 5:] += 0.5
    moments, changed = model.encode(x), model.encode(later)
    assert torch.equal(moments[:, :, :2], changed[:, :, :2])
    assert not torch.allclose(moments[:, :, 2], changed[:, :, 2])


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_3d_row_runs(variant: Variant) -> None:
    half = TINY[variant]
    full = CVVAEConfig(half.variant, half.latent_channels, half.channels, half.blocks_per_level, half_3d=False, norm_groups=4)
    model = Autoencoder(full)
    kernels = {n: p.dim() for n, p in model.named_parameters() if n.endswith("second.conv.weight")}
    assert len(kernels) == 4 + 2 + 8 + 2 and set(kernels.values()) == {5}
    with torch.inference_mode():
        assert model.decode(model.encode(torch.rand(1, 3, 5, 16, 16)).chunk(2, dim=1)[0]).shape == (1, 3, 5, 16, 16)


def test_full_size_has_the_published_number_of_parameters() -> None:
    for config, millions in ((CVVAEConfig(), (68.749, 113.698)), (CVVAEConfig("sd3", 16), (69.081, 112.812))):
        with torch.device("meta"):
            model = Autoencoder(config)
        counted = tuple(round(sum(p.numel() for p in side.parameters()) / 1e6, 3) for side in (model.encoder, model.decoder))
        assert counted == millions


@pytest.mark.parametrize(
    ("shape", "word"),
    [
        ((1, 3, 4, 16, 16), "4 frames"),
        ((1, 3, 0, 16, 16), "0 frames"),
        ((1, 3, 5, 12, 16), "16x12"),
        ((1, 3, 5, 16, 20), "20x16"),
        ((1, 3, 5, 0, 16), "16x0"),
        ((1, 4, 5, 16, 16), "4, 5, 16, 16"),
        ((3, 5, 16, 16), "3, 5, 16, 16"),
    ],
)
def test_encode_refuses_other_shapes(shape: tuple[int, ...], word: str) -> None:
    with pytest.raises(ValueError, match=word) as caught:
        Autoencoder(TINY_COMPACT).encode(torch.zeros(shape))
    assert isinstance(caught.value, UsageError)


@pytest.mark.parametrize("shape", [(1, 3, 2, 2, 2), (4, 2, 2, 2), (1, 4, 0, 2, 2), (1, 4, 1, 2, 0)])
def test_decode_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="latent|Latent"):
        Autoencoder(TINY["sd21"]).decode(torch.zeros(shape))


def test_bytes_are_not_pixels() -> None:
    with pytest.raises(UsageError, match="uint8"):
        Autoencoder(TINY_COMPACT).encode(torch.zeros(1, 3, 1, 8, 8, dtype=torch.uint8))


def test_widths_must_fit_the_norm_groups() -> None:
    with pytest.raises(ModelError, match="40"):
        Autoencoder(CVVAEConfig(channels=(32, 40, 64, 64)))
