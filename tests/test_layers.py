"""The building blocks against slow references that follow the description word by word."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cvvae_cli import layers
from cvvae_cli.layers import (
    STYLES,
    BlockOptions,
    GroupNorm,
    MidBlock,
    PaddedConv3d,
    Padding,
    Pointwise,
    ResidualBlock,
    SpatialAttention,
    TemporalAttention,
    Upsample,
    as_frames,
    from_frames,
    unstack_time,
)

PADDINGS = [
    pytest.param(getattr(style, name), id=f"{variant}-{name}")
    for variant, style in STYLES.items()
    for name in ("encoder", "decoder", "downsample", "upsample")
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def video(*shape: int) -> Tensor:
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last_3d)


def slow_pad(x: Tensor, padding: Padding) -> Tensor:
    """Index by index: what lies outside is the nearest inside, or zero."""
    sizes = x.shape[2:]
    before = (padding.time[0], padding.space[0], padding.space[2])
    after = (padding.time[1], padding.space[1], padding.space[3])
    modes = (padding.time_mode, padding.space_mode, padding.space_mode)
    out = x.new_zeros(*x.shape[:2], *(b + n + a for b, n, a in zip(before, sizes, after)))
    for place in itertools.product(*(range(n) for n in out.shape[2:])):
        inside = [p - b for p, b in zip(place, before)]
        outside = [not 0 <= i < n for i, n in zip(inside, sizes)]
        if not any(o and mode == "zeros" for o, mode in zip(outside, modes)):
            t, h, w = (min(max(i, 0), n - 1) for i, n in zip(inside, sizes))
            out[(..., *place)] = x[:, :, t, h, w]
    return out


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


@pytest.mark.parametrize("variant", ["sd21", "sd3"])
@pytest.mark.parametrize("doubles_time", [True, False])
def test_upsample(variant: str, doubles_time: bool) -> None:
    padding = STYLES[variant].upsample
    up, x = Upsample(4, padding, doubles_time), video(2, 4, 3, 3, 2)
    large = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
    expected = F.conv3d(slow_pad(large, padding), up.conv.weight, up.conv.bias)
    if doubles_time:
        frames = [expected[:, 4 * n : 4 * n + 4, k] for k in range(3) for n in range(2)]
        expected = torch.stack(frames[1:], dim=2)
    torch.testing.assert_close(up(x), expected)
    with torch.no_grad():
        folded = up(x)
        assert folded.is_contiguous(memory_format=torch.channels_last_3d)
        torch.testing.assert_close(folded, expected)
    up, x = up.double(), x.double()
    with torch.no_grad():
        folded = up(x)
    torch.testing.assert_close(folded, up(x), rtol=1e-12, atol=1e-12)


def test_unstack_time_keeps_one_frame_of_a_picture() -> None:
    x = video(2, 6, 1, 2, 2)
    assert torch.equal(unstack_time(x), x[:, 3:])


def test_pointwise_is_a_convolution_of_size_one() -> None:
    x, map_ = video(2, 4, 3, 2, 5), Pointwise(4, 6)
    torch.testing.assert_close(map_(x), F.conv3d(x, map_.weight[:, :, None, None, None], map_.bias))


def test_frames_are_views() -> None:
    x = video(2, 4, 3, 5, 6)
    frames = as_frames(x)
    assert frames.data_ptr() == x.data_ptr() and frames.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(frames[4], x[1, :, 1])
    assert from_frames(frames, 2).data_ptr() == x.data_ptr() and torch.equal(from_frames(frames, 2), x)
