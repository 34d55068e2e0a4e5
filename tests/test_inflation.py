"""What an inflated network computes, against its picture source; each known difference of the official ones alone."""

import copy
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL
from golden_weights import relative_error
from tiny_model import TINY, TINY_PICTURE, random_model
from torch import Tensor, nn

from cvvae_cli.autoencoder import Autoencoder, Decoder
from cvvae_cli.config import CompactConfig, CVVAEConfig, Variant
from cvvae_cli.errors import ModelError, UsageError
from cvvae_cli.layers import GroupNorm
from cvvae_cli.training.inflation import inflate, inflate_official, place_kernel, start_temporal_attention

OFFICIAL: dict[Variant, CVVAEConfig] = {
    "sd21": CVVAEConfig("sd21", 4, (8, 8, 16, 24), 1, norm_groups=4),
    "sd3": CVVAEConfig("sd3", 16, (8, 8, 16, 24), 1, norm_groups=4),
}
EXACT = 1e-12
DOWNSAMPLE_SHIFT = 1 + 2 + 4  # px: one pixel of each downsampling's input


def random_pictures(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """(N, 3, H, W) float64 in [-1, 1]."""
    return torch.rand(count, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def picture_model() -> Autoencoder:
    return random_model(TINY_PICTURE).double()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, EXACT), (torch.float32, 1e-5)])
def test_pictures_are_coded_as_by_the_source(picture_model: Autoencoder, dtype: torch.dtype, tolerance: float) -> None:
    image = copy.deepcopy(picture_model).to(dtype)
    video = inflate(image, TINY)
    x = random_pictures(2, 40, 24)[:, :, None].to(dtype)
    with torch.inference_mode():
        moments = image.encode(x)
        z = moments.chunk(2, dim=1)[0]
        assert moments.std() > 0.1
        torch.testing.assert_close(video.encode(x), moments, rtol=0, atol=tolerance)
        torch.testing.assert_close(video.decode(z), image.decode(z), rtol=0, atol=tolerance)
    assert video.config == TINY and video.identity is None and video.dtype == dtype


def test_video_starts_as_the_last_frame_of_each_group(picture_model: Autoencoder) -> None:
    video = inflate(picture_model, TINY)
    x = random_pictures(18, 24, 16, seed=1).unflatten(0, (2, 9)).transpose(1, 2)
    with torch.inference_mode():
        moments = video.encode(x)
        expected = torch.cat([picture_model.encode(x[:, :, 4 * k : 4 * k + 1]) for k in range(3)], dim=2)
        torch.testing.assert_close(moments, expected, rtol=0, atol=EXACT)
        z = moments.chunk(2, dim=1)[0]
        shown = [picture_model.decode(z[:, :, k : k + 1]).expand(-1, -1, 4 if k else 1, -1, -1) for k in range(3)]
        torch.testing.assert_close(video.decode(z), torch.cat(shown, dim=2), rtol=0, atol=EXACT)


def test_one_basis_becomes_several() -> None:
    target = replace(TINY, codes=3, gate_channels=5)
    image = random_model(replace(TINY_PICTURE, codes=1)).double()
    video, x = inflate(image, target), random_pictures(2, 24, 16, seed=1)[:, :, None]
    with torch.inference_mode():
        moments = image.encode(x)
        torch.testing.assert_close(video.encode(x), moments, rtol=0, atol=EXACT)
        z = moments.chunk(2, dim=1)[0]
        torch.testing.assert_close(video.decode(z), image.decode(z), rtol=0, atol=EXACT)


def test_every_weight_can_learn(picture_model: Autoencoder) -> None:
    """Zero taps are a start, not an end: each gets a gradient."""
    video = inflate(picture_model, TINY)
    x = random_pictures(9, 16, 16, seed=2).transpose(0, 1)[None]
    (video.decode(video.encode(x).chunk(2, dim=1)[0]) - x).square().mean().backward()
    logvar = [n for n, p in video.named_parameters() if n.startswith("encoder.conv_out")]  # its second half is not read
    dead = [n for n, p in video.named_parameters() if n not in logvar and p.grad is not None and (p.grad == 0).all()]
    assert not dead
    taps = video.encoder.stage1[0].conv1.weight.grad
    assert taps is not None and (taps.abs().sum(dim=(0, 1, 3, 4)) > 0).all()


@pytest.mark.parametrize(
    ("source", "target", "word"),
    [
        (TINY, TINY, "temporal"),
        (TINY_PICTURE, TINY_PICTURE, "temporal"),
        (TINY_PICTURE, replace(TINY, codes=3), r"codes \(2 and 3\)"),
        (OFFICIAL["sd21"], TINY, "compact"),
    ],
)
def test_configs_that_do_not_belong_together(source, target: CompactConfig, word: str) -> None:
    with pytest.raises(ModelError, match=word):
        inflate(Autoencoder(source), target)


def test_scale_and_shift_are_the_new_config_s(picture_model: Autoencoder) -> None:
    assert inflate(picture_model, replace(TINY, scaling_factor=2.0, shift_factor=-1.0)).config.scaling_factor == 2.0


def test_kernels_by_hand() -> None:
    kernel = torch.arange(1.0, 5.0).view(2, 2, 1, 1)
    causal = place_kernel(kernel, torch.Size((2, 2, 3, 1, 1)), causal=True)[..., 0, 0]
    assert causal.tolist() == [[[0, 0, 1], [0, 0, 2]], [[0, 0, 3], [0, 0, 4]]]
    centred = place_kernel(kernel, torch.Size((4, 2, 3, 1, 1)), causal=False)[..., 0, 0]
    assert centred.tolist() == 2 * [[[0, 1, 0], [0, 2, 0]], [[0, 3, 0], [0, 4, 0]]]
    joined = place_kernel(kernel[:, :, None], torch.Size((2, 4, 1, 1, 1)), causal=True).flatten(1)
    assert joined.tolist() == [[0, 0, 1, 2], [0, 0, 3, 4]]
    assert place_kernel(torch.tensor([1.0, 2.0]), torch.Size((4,)), causal=True).tolist() == [1, 2, 1, 2]
    assert place_kernel(kernel, torch.Size((2, 2)), causal=True).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("shape", [(3, 2, 3, 3, 3), (2, 3, 3, 3, 3), (2, 2, 3, 1, 1), (2, 2), (2,)])
def test_kernels_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="does not fit"):
        place_kernel(torch.zeros(2, 2, 3, 3), torch.Size(shape), causal=True)


def picture_vae(variant: Variant, seed: int = 0) -> AutoencoderKL:
    """A tiny Stable Diffusion picture autoencoder in float64, random in every weight and bias."""
    config = OFFICIAL[variant]
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=config.channels,
        layers_per_block=config.blocks_per_level,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        use_quant_conv=variant == "sd21",
        use_post_quant_conv=variant == "sd21",
    ).double()
    with torch.no_grad():
        for name, p in vae.named_parameters():
            scale = 0.1 if p.dim() == 1 else p[0].numel() ** -0.5
            p.normal_(0, scale).add_(1 if "norm" in name and name.endswith("weight") else 0)
    return vae.eval().requires_grad_(False)


def match_eps(video: Autoencoder) -> Autoencoder:
    """Give every GroupNorm the eps of diffusers' picture autoencoders."""
    for module in video.modules():
        if isinstance(module, GroupNorm):
            module.eps = 1e-6
    return video


@torch.no_grad()
def silence_attention(vae: AutoencoderKL) -> AutoencoderKL:
    """Turn off the decoder's attention, which sd21's temporal attention cannot pass on."""
    out = vae.decoder.mid_block.attentions[0].to_out[0]
    out.weight.zero_()
    out.bias.zero_()
    return vae


def without_norms(model: nn.Module) -> nn.Module:
    """Take out the norms, which carry what happens at the border to every pixel, and the attentions for the same reason."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
            if name in ("spatial", "attentions"):
                out = child.out if name == "spatial" else child[0].to_out[0]
                nn.init.zeros_(out.weight)
                nn.init.zeros_(out.bias)
    return model


def moments_of(video: Autoencoder, pictures: Tensor) -> Tensor:
    """Moments of pictures; with a graph, because in-place SiLU without one would reach too far where norms are out."""
    return video.encode(pictures[:, :, None])[:, :, 0].detach()


def differences(video: Autoencoder, vae: AutoencoderKL, x: Tensor) -> tuple[float, float]:
    """Relative errors of the moments and of the decode of the source's latents, (N, 3, H, W) pictures."""
    with torch.no_grad():
        posterior = vae.encode(x).latent_dist
        moments = video.encode(x[:, :, None])[:, :, 0]
        decoded = video.decode(posterior.mean[:, :, None])[:, :, 0]
        return relative_error(moments, posterior.parameters), relative_error(decoded, vae.decode(posterior.mean).sample)


def test_sd21_encodes_as_its_source_but_for_eps() -> None:
    vae, x = picture_vae("sd21"), random_pictures(2, 48, 64)
    video = inflate_official(vae, OFFICIAL["sd21"])
    assert EXACT < differences(video, vae, x)[0] < 1e-4
    assert differences(match_eps(video), vae, x)[0] < EXACT


def test_sd21_decodes_as_its_source_where_attention_and_post_quant_bias_are_silent() -> None:
    vae, x = silence_attention(picture_vae("sd21")), random_pictures(2, 48, 64)
    with_bias = differences(match_eps(inflate_official(vae, OFFICIAL["sd21"])), vae, x)[1]
    vae.post_quant_conv.bias.zero_()
    assert differences(match_eps(inflate_official(vae, OFFICIAL["sd21"])), vae, x)[1] < EXACT
    assert 1e-3 < with_bias < 0.3


def test_post_quant_bias_differs_at_the_border_alone() -> None:
    """Folded, it is missing where the first convolution reads its padding: a ring of one latent."""
    vae = picture_vae("sd21")
    video = inflate_official(vae, OFFICIAL["sd21"])
    assert isinstance(video.decoder, Decoder)
    z = torch.randn(1, 4, 6, 7, dtype=torch.float64)
    ours = video.decoder.conv_in(z[:, :, None])[:, :, 0]
    theirs = vae.decoder.conv_in(vae.post_quant_conv(z))
    torch.testing.assert_close(ours[:, :, 1:-1, 1:-1], theirs[:, :, 1:-1, 1:-1], rtol=0, atol=EXACT)
    ring = (ours - theirs).detach().abs().amax(dim=(0, 1))
    ring[1:-1, 1:-1] = 1
    assert (ring > 1e-3).all()


def test_temporal_attention_of_sd21_starts_best_from_fitted_latents() -> None:
    """Zero drops the spatial attention, the bare norm distorts it, the fit keeps most of it."""
    vae, x = picture_vae("sd21"), random_pictures(2, 48, 64)
    vae.post_quant_conv.bias.zero_()
    with torch.no_grad():
        latents = vae.encode(random_pictures(4, 64, 64, seed=5)).latent_dist.mean
    fitted = match_eps(inflate_official(vae, OFFICIAL["sd21"], latents))
    zero, bare = inflate_official(vae, OFFICIAL["sd21"]), inflate_official(vae, OFFICIAL["sd21"])
    nn.init.eye_(bare.decoder.mid.temporal.out.weight)
    fit, norm_alone, nothing = (differences(match_eps(video), vae, x)[1] for video in (fitted, bare, zero))
    assert fit < 0.3 and 0.45 < norm_alone < nothing < 0.9


@torch.no_grad()
def test_temporal_attention_of_sd21_starts_looking_at_its_own_frame() -> None:
    """Unrelated frames leave it nearer to what it gives for pictures alone than to their mean, even at a width of 24."""
    latents = torch.randn(4, 4, 8, 8, dtype=torch.float64)
    mid = inflate_official(picture_vae("sd21"), OFFICIAL["sd21"], latents).decoder.mid
    tokens = torch.randn(1, 24, 4, 8, 8, dtype=torch.float64)
    alone = torch.cat([mid.temporal(tokens[:, :, k : k + 1]) for k in range(4)], dim=2)
    mean = alone.mean(dim=2, keepdim=True).expand_as(alone)
    assert relative_error(mid.temporal(tokens), alone) < 0.2 * relative_error(mean, alone)


def test_latents_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(UsageError, match="N, 4, h, w"):
        inflate_official(picture_vae("sd21"), OFFICIAL["sd21"], torch.zeros(1, 16, 4, 4))
    video = inflate_official(picture_vae("sd3"), OFFICIAL["sd3"])
    before = {name: tensor.clone() for name, tensor in video.state_dict().items()}
    start_temporal_attention(video, None)  # sd3 has none
    assert all(torch.equal(tensor, before[name]) for name, tensor in video.state_dict().items())


def test_sd3_sees_pictures_moved_by_seven_pixels() -> None:
    """Downsampling pads both sides instead of right and bottom: one pixel at 1, 1/2 and 1/4 of the size."""
    vae = picture_vae("sd3")
    video = inflate_official(vae, OFFICIAL["sd3"])
    without_norms(vae), without_norms(video)
    x = random_pictures(1, 200, 200) * 0.1
    moved = x.roll((-DOWNSAMPLE_SHIFT, -DOWNSAMPLE_SHIFT), dims=(2, 3))
    inner = slice(11, 13)  # what no border reaches
    theirs = vae.encode(x).latent_dist.parameters[..., inner, inner]
    torch.testing.assert_close(moments_of(video, moved)[..., inner, inner], theirs, rtol=0, atol=EXACT)
    assert relative_error(moments_of(video, x)[..., inner, inner], theirs) > 0.1


def test_sd3_decodes_as_its_source_away_from_the_border() -> None:
    vae = picture_vae("sd3")
    video = inflate_official(vae, OFFICIAL["sd3"])
    without_norms(vae), without_norms(video)
    z = torch.randn(1, 16, 32, 32, dtype=torch.float64) * 0.1
    theirs, ours = vae.decode(z).sample, video.decode(z[:, :, None])[:, :, 0].detach()
    inner = slice(8 * 14, 8 * 18)
    torch.testing.assert_close(ours[..., inner, inner], theirs[..., inner, inner], rtol=0, atol=EXACT)
    assert relative_error(ours[..., :8, :8], theirs[..., :8, :8]) > 1e-3


def test_sd3_as_it_is_differs_everywhere() -> None:
    vae = picture_vae("sd3")
    moments, decoded = differences(inflate_official(vae, OFFICIAL["sd3"]), vae, random_pictures(1, 64, 64))
    assert moments > 0.5 and 0.01 < decoded < 1


def test_all_3d_network_is_inflated_too() -> None:
    vae, config = silence_attention(picture_vae("sd21")), replace(OFFICIAL["sd21"], half_3d=False)
    vae.post_quant_conv.bias.zero_()
    assert max(differences(match_eps(inflate_official(vae, config)), vae, random_pictures(1, 32, 32))) < EXACT


def test_a_still_video_starts_as_its_picture() -> None:
    vae = silence_attention(picture_vae("sd21"))
    vae.post_quant_conv.bias.zero_()
    video = match_eps(inflate_official(vae, OFFICIAL["sd21"]))
    x = random_pictures(1, 32, 32)
    with torch.no_grad():
        posterior = vae.encode(x).latent_dist
        moments = video.encode(x[:, :, None].expand(-1, -1, 9, -1, -1))
        frames = video.decode(posterior.mean[:, :, None].expand(-1, -1, 3, -1, -1))
        picture = vae.decode(posterior.mean).sample[:, :, None]
    torch.testing.assert_close(moments, posterior.parameters[:, :, None].expand_as(moments), rtol=0, atol=EXACT)
    torch.testing.assert_close(frames, picture.expand_as(frames), rtol=0, atol=EXACT)


def test_a_moving_video_starts_as_its_last_frames_but_for_norms_over_time() -> None:
    vae = picture_vae("sd21")
    video = match_eps(inflate_official(vae, OFFICIAL["sd21"]))
    x = random_pictures(9, 32, 32) * torch.linspace(0.05, 0.5, 9, dtype=torch.float64)[:, None, None, None]
    clip = x.transpose(0, 1)[None]

    def error() -> float:
        pictures = vae.encode(x[::4]).latent_dist.parameters
        return relative_error(video.encode(clip)[0].transpose(0, 1).detach(), pictures)

    assert error() > 0.01
    without_norms(vae), without_norms(video)
    assert error() < EXACT


def test_a_state_dict_serves_as_well() -> None:
    vae = picture_vae("sd3")
    one, two = (inflate_official(source, OFFICIAL["sd3"]) for source in (vae, vae.state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (replace(OFFICIAL["sd3"], blocks_per_level=2), "64 tensors .*up_blocks.0.resnets.2"),
        (replace(OFFICIAL["sd3"], channels=(16, 16, 32, 48)), "conv_in"),
        (replace(OFFICIAL["sd3"], latent_channels=8), "conv_"),
        (replace(OFFICIAL["sd3"], norm_groups=8), "4 norm groups, the config 8"),
    ],
)
def test_sizes_that_do_not_agree(config: CVVAEConfig, word: str) -> None:
    with pytest.raises(ModelError, match=word):
        inflate_official(picture_vae("sd3"), config)
