"""The building blocks against slow references that follow the description word by word."""

import dataclasses
import itertools
from collections.abc import Iterable

import pytest
import torch
from cvvae_kernels import Moments, group_statistics, pad3d_reference
from layer_references import slow_pad, video
from torch import Tensor
from torch.nn import functional as F

from cvvae_cli import layers
from cvvae_cli.layers import (
    STYLES,
    BlockOptions,
    FrameConv,
    GroupNorm,
    MidBlock,
    NormConv,
    PaddedConv3d,
    Padding,
    Pointwise,
    ResidualBlock,
    SpatialAttention,
    TemporalAttention,
    as_frames,
    from_frames,
    run_block,
)
from cvvae_cli.upsampling import Upsample

PADDINGS = [
    pytest.param(getattr(style, name), id=f"{variant}-{name}")
    for variant, style in STYLES.items()
    for name in ("encoder", "decoder", "downsample", "upsample")
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("frames", [1, 3])
def test_padded_convolution(padding: Padding, frames: int) -> None:
    x, conv = video(2, 4, frames, 4, 6), PaddedConv3d(4, 5, padding, (2, 2, 2))
    expected = F.conv3d(slow_pad(x, padding), conv.weight, conv.bias, stride=(2, 2, 2))
    torch.testing.assert_close(conv(x), expected)


def test_zeros_on_both_sides_are_never_copied() -> None:
    x = video(1, 4, 3, 4, 4)
    assert PaddedConv3d(4, 4, STYLES["sd21"].decoder).pad(x) is x
    assert PaddedConv3d(4, 4, STYLES["sd21"].encoder).pad(x).shape == (1, 4, 5, 4, 4)


def test_causal_paddings_never_look_ahead() -> None:
    for style in STYLES.values():
        for padding in (style.encoder, style.downsample):
            x, conv = video(1, 4, 5, 4, 4), PaddedConv3d(4, 4, padding)
            later = x.clone()
            later[:, :, 3:] += 1
            assert torch.equal(conv(x)[:, :, :3], conv(later)[:, :, :3])
            assert not torch.equal(conv(x)[:, :, 3], conv(later)[:, :, 3])


def slow_norm_silu(x: Tensor, norm: GroupNorm) -> Tensor:
    groups = x.contiguous().double().view(x.shape[0], norm.num_groups, -1)
    variance, mean = torch.var_mean(groups, dim=2, keepdim=True, correction=0)
    flat = ((groups - mean) / (variance + norm.eps).sqrt()).view(x.shape)
    shape = (1, -1, *(1,) * (x.dim() - 2))
    y = flat * norm.weight.double().view(shape) + norm.bias.double().view(shape)
    return (y * torch.sigmoid(y)).to(x.dtype)


@pytest.mark.parametrize("size", [2, 48])
@pytest.mark.parametrize("padding", [*PADDINGS, None])
def test_what_a_convolution_after_a_norm_reads(padding: Padding | None, size: int) -> None:
    """With a graph and without, tiny and large enough (1.7 MB) for SiLU to write into the padded tensor itself."""
    conv = FrameConv(64, 4) if padding is None else PaddedConv3d(64, 4, padding)
    layer = NormConv(GroupNorm(4, 64, 1e-2), conv)
    torch.nn.init.normal_(layer.norm.weight)
    torch.nn.init.normal_(layer.norm.bias)
    x = video(1, 64, 3, size, size) * 3 + 1
    before = x.clone()
    expected = pad3d_reference(slow_norm_silu(x, layer.norm), conv.rest, *conv.modes)
    torch.testing.assert_close(layer.prepare(x), expected)
    with torch.no_grad():
        for moments in (None, group_statistics(x, 4)):
            prepared = layer.prepare(x, moments)
            torch.testing.assert_close(prepared, expected)
            assert prepared.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(x, before)


def test_norms_take_moments_from_outside() -> None:
    layer = NormConv(GroupNorm(4, 8, 0.5), FrameConv(8, 4))
    x = video(2, 8, 3, 4, 4)
    whole = torch.cat([x, x + 3], dim=4)  # a frame of which x is the left half
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            expected = slow_norm_silu(whole, layer.norm)[..., :4]
            torch.testing.assert_close(layer.prepare(x, group_statistics(whole, 4)), expected)


@pytest.mark.parametrize("variant", ["sd21", "sd3"])
@pytest.mark.parametrize("half_3d", [True, False])
def test_residual_block(variant: str, half_3d: bool) -> None:
    padding = STYLES[variant].encoder
    block = ResidualBlock(8, 12, BlockOptions(padding, half_3d, 4, 1e-2))
    for norm in (block.first.norm, block.second.norm):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    x = video(2, 8, 3, 4, 4)
    before = x.clone()
    h = F.conv3d(slow_pad(slow_norm_silu(x, block.first.norm), padding), block.first.conv.weight, block.first.conv.bias)
    h = slow_norm_silu(h, block.second.norm)
    if half_3d:
        frames = [F.conv2d(f, block.second.conv.weight, block.second.conv.bias, padding=1) for f in h.unbind(2)]
        h = torch.stack(frames, dim=2)
    else:
        h = F.conv3d(slow_pad(h, padding), block.second.conv.weight, block.second.conv.bias)
    expected = h + torch.einsum("oc,bcthw->bothw", block.shortcut.weight, x) + block.shortcut.bias.view(1, -1, 1, 1, 1)
    torch.testing.assert_close(block(x), expected)
    with torch.no_grad():
        out = block(x)
    torch.testing.assert_close(out, expected)
    assert torch.equal(x, before), "in-place steps must not reach the caller's tensor"
    assert out.is_contiguous(memory_format=torch.channels_last_3d)


def test_residual_block_without_change_of_width_adds_its_input() -> None:
    block = ResidualBlock(8, 8, BlockOptions(STYLES["sd3"].decoder, True, 4, 1e-6))
    assert block.shortcut is None
    torch.nn.init.zeros_(block.second.conv.weight)
    torch.nn.init.zeros_(block.second.conv.bias)
    x = video(1, 8, 2, 4, 4)
    assert torch.equal(block(x), x)


@torch.no_grad()
def test_what_is_padded_is_normalised_into_its_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = NormConv(GroupNorm(4, 8), PaddedConv3d(8, 8, STYLES["sd3"].encoder))
    x = video(1, 8, 3, 4, 4)
    expected = pad3d_reference(F.silu(layer.norm(x)), layer.conv.rest, *layer.conv.modes)
    monkeypatch.setattr(layers, "silu_pad", pytest.fail)
    torch.testing.assert_close(layer.prepare(x), expected)


def in_turn(blocks: Iterable[ResidualBlock], x: Tensor, moments: Moments | None) -> tuple[Tensor, Moments | None]:
    for block in blocks:
        x, moments = run_block(block, x, moments)
    return x, moments


@torch.no_grad()
def test_blocks_hand_on_the_moments_of_their_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    options = BlockOptions(STYLES["sd21"].decoder, True, 4, 1e-5)
    x = video(2, 8, 3, 4, 4)
    blocks = torch.nn.ModuleList([ResidualBlock(8, 12, options), ResidualBlock(12, 12, options)])
    middle = MidBlock(12, options, attends_time=True)
    expected, nothing = middle(in_turn(blocks, x, None)[0])
    assert nothing is None
    monkeypatch.setattr(layers, "has_norm_kernels", lambda x: True)
    monkeypatch.setattr(layers, "norms_while_padding", lambda x, padding: True)
    out, moments = middle(*in_turn(blocks, x, None))
    torch.testing.assert_close(out, expected)
    assert moments is not None
    found = group_statistics(out, 4)
    assert moments.count == found.count
    torch.testing.assert_close((moments.mean, moments.m2), (found.mean, found.m2))
    # Moments that are given are believed: of twice the deviations, they halve what the first norm gives.
    given = group_statistics(x, 4)
    wrong, _ = in_turn(blocks, x, dataclasses.replace(given, m2=4 * given.m2))
    assert not torch.allclose(wrong, in_turn(blocks, x, given)[0], atol=1e-2)


def test_with_gradients_blocks_run_as_modules() -> None:
    """So that a `forward` that was wrapped, to compute the block again on the way back, is what runs."""
    block = ResidualBlock(8, 8, BlockOptions(STYLES["sd3"].decoder, True, 4, 1e-6))
    x, forward = video(1, 8, 2, 4, 4), block.forward
    expected = block(x)
    block.forward = lambda x: -forward(x)
    out, moments = run_block(block, x, None)
    assert torch.equal(out, -expected) and moments is None


def test_gradients_pass_through_every_block() -> None:
    options = BlockOptions(STYLES["sd21"].decoder, True, 4, 1e-5)
    upsample = Upsample(8, STYLES["sd21"].upsample, doubles_time=True)
    modules = torch.nn.ModuleList([MidBlock(8, options, attends_time=True), upsample, ResidualBlock(8, 12, options)])
    middle, upsample, block = modules

    def network(x: Tensor) -> Tensor:
        return block(upsample(middle(x)[0]))

    x = video(1, 8, 2, 2, 2).requires_grad_()
    network(x).square().sum().backward()
    for name, parameter in modules.named_parameters():
        # A key's bias shifts all scores of a query alike, which softmax does not see.
        assert "key.bias" in name or parameter.grad.abs().max() > 0, name
    direction = torch.randn_like(x)
    with torch.no_grad():
        step = 1e-2
        rise = network(x + step * direction).double().square().sum() - network(x - step * direction).double().square().sum()
    assert (rise / (2 * step)).item() == pytest.approx((x.grad.double() * direction).sum().item(), rel=2e-2)


def slow_attention(tokens: Tensor, block: SpatialAttention | TemporalAttention) -> Tensor:
    """One head over a (n, C) list of tokens that are normed already."""
    query, key, value = block.query(tokens), block.key(tokens), block.value(tokens)
    weights = torch.softmax(query @ key.T / tokens.shape[1] ** 0.5, dim=1)
    return block.out(weights @ value)


def test_spatial_attention_is_per_frame() -> None:
    block = SpatialAttention(8, BlockOptions(STYLES["sd3"].decoder, True, 4, 1e-6))
    x = video(2, 8, 3, 4, 5) * 3 + 1
    expected = torch.empty_like(x)
    for b, t in itertools.product(range(2), range(3)):
        tokens = F.group_norm(x[b : b + 1, :, t].contiguous(), 4, block.norm.weight, block.norm.bias, 1e-6)[0].flatten(1).T
        expected[b, :, t] = slow_attention(tokens, block).T.view(8, 4, 5)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("pixels_per_call", [3, 32768])
def test_temporal_attention_is_per_pixel(pixels_per_call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "TEMPORAL_ATTENTION_PIXELS", pixels_per_call)
    block = TemporalAttention(8)
    x = video(2, 8, 3, 4, 5) * 3 + 1
    expected = torch.empty_like(x)
    for b, h, w in itertools.product(range(2), range(4), range(5)):
        expected[b, :, :, h, w] = slow_attention(block.norm(x[b, :, :, h, w].T), block).T
    torch.testing.assert_close(block(x), expected)


def test_mid_block_adds_its_attention_to_the_input_once() -> None:
    block = MidBlock(8, BlockOptions(STYLES["sd21"].decoder, True, 4, 1e-5), attends_time=True)
    x = video(1, 8, 2, 3, 3)
    before = block.before(x)
    out, moments = block(x)
    torch.testing.assert_close(out, block.after(before + block.temporal(block.spatial(before))))
    assert moments is None


def test_frames_in_float32_stay_channels_last() -> None:
    """One small frame goes to a kernel of torch that answers in contiguous order."""
    conv, x = FrameConv(8, 8), video(1, 8, 1, 4, 4)
    out = conv(x)
    assert out.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(out[:, :, 0], F.conv2d(x[:, :, 0].contiguous(), conv.weight, conv.bias, padding=1))


def test_pointwise_is_a_convolution_of_size_one() -> None:
    x, map_ = video(2, 4, 3, 2, 5), Pointwise(4, 6)
    torch.testing.assert_close(map_(x), F.conv3d(x, map_.weight[:, :, None, None, None], map_.bias))


def test_frames_are_views() -> None:
    x = video(2, 4, 3, 5, 6)
    frames = as_frames(x)
    assert frames.data_ptr() == x.data_ptr() and frames.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(frames[4], x[1, :, 1])
    assert from_frames(frames, 2).data_ptr() == x.data_ptr() and torch.equal(from_frames(frames, 2), x)
