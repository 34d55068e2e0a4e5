"""The compact family: a gated linear code of 4 x 8 x 8 px blocks plus a learned residual.

Encoder and decoder each add two parts. The first is a transform coder with a choice. Some latent channels,
the shared ones, hold the same projections of every causal 4 x 8 x 8 block. What they show of a block and its
neighbours (`CodeGate`: is it still, flat, textured, moving?) chooses among several bases for the remaining
channels, softly; the decoder sees the same shared channels and makes the same choice. `synthesis` predicts a
block from the 3 x 3 x 3 neighbourhood of gated coefficients. All of it is fitted in closed form, or nearly,
before training (`training.linear_code`). The second part is a small convolutional network whose last layer
starts at zero, so training begins at the code's quality and can only learn what it misses. Nothing spans
more positions than the receptive field, so tiles do not influence one another beyond it. A picture autoencoder
(`CompactConfig.temporal = False`) is the same network with nothing that reaches beyond one frame. This module
knows no files and no training.

Source of the idea of a linear path: space-to-channel shortcuts beside every down- and upsampling (DC-AE, Wan 2.2).
"""

import math
from dataclasses import dataclass

import torch
from cvvae_kernels import pad3d
from torch import Tensor, nn
from torch.nn import functional as F

from cvvae_cli.config import CompactConfig
from cvvae_cli.convolution import Conv3d
from cvvae_cli.errors import UsageError
from cvvae_cli.geometry import RGB, SPATIAL_COMPRESSION_RATIO, TEMPORAL_COMPRESSION_RATIO

BLOCK = (TEMPORAL_COMPRESSION_RATIO, SPATIAL_COMPRESSION_RATIO, SPATIAL_COMPRESSION_RATIO)
BLOCK_CHANNELS = RGB * math.prod(BLOCK)
# An optimiser's step on an output layer shows directly in latents and pixels; this keeps its noise below the
# error that is left to learn (without it, 400 steps at 1e-3 only undid themselves).
RESIDUAL_GAIN = 0.3
GATE_FLOOR = 0.02  # of magnitudes before their logarithm; shared channels have unit variance


@dataclass(frozen=True)
class Reach:
    """How far each part of a network reaches in time. All that a video and a picture autoencoder differ in.

    Attributes:
        block, patch: frames, rows and columns of pixels that the linear code and the residual take in as one.
        halving: frames (and rows, columns) that the residual joins on its way to the latent grid.
        taps: frames that a 3x3 convolution reads.
        look: latent frames that the gate reads.
    """

    block: tuple[int, int, int]
    patch: tuple[int, int, int]
    halving: tuple[int, int, int]
    taps: int
    look: int


VIDEO = Reach(block=BLOCK, patch=(2, 4, 4), halving=(2, 1, 1), taps=3, look=2)
PICTURE = Reach(block=(1, *BLOCK[1:]), patch=(1, 4, 4), halving=(1, 1, 1), taps=1, look=1)


def reach_of(config: CompactConfig) -> Reach:
    """The reach of the networks that a config describes."""
    return VIDEO if config.temporal else PICTURE


def _check_frames(x: Tensor, reach: Reach) -> None:
    if reach == PICTURE and x.shape[2] != 1:
        raise UsageError(f"A picture autoencoder takes one frame at a time, got {x.shape[2]}; pass them as a batch of pictures.")


def repeat_first_frame(x: Tensor, count: int) -> Tensor:
    """Put `count` copies of the first frame in front: (B, C, T, H, W) -> (B, C, T + count, H, W); `x` itself for none."""
    return pad3d(x, (count, 0, 0, 0, 0, 0), "replicate", "zeros") if count else x


def space_to_channel(x: Tensor, block: tuple[int, int, int]) -> Tensor:
    """(B, C, T, H, W) -> (B, pt ph pw C, T/pt, H/ph, W/pw), channels_last_3d; channel order (pt, ph, pw, C)."""
    b, c, t, h, w = x.shape
    pt, ph, pw = block
    y = x.view(b, c, t // pt, pt, h // ph, ph, w // pw, pw).permute(0, 2, 4, 6, 3, 5, 7, 1)
    return y.reshape(b, t // pt, h // ph, w // pw, pt * ph * pw * c).permute(0, 4, 1, 2, 3)


def channel_to_space(x: Tensor, block: tuple[int, int, int]) -> Tensor:
    """The inverse of `space_to_channel`; the result is channels_last_3d."""
    b, c, t, h, w = x.shape
    pt, ph, pw = block
    c //= pt * ph * pw
    y = x.permute(0, 2, 3, 4, 1).reshape(b, t, h, w, pt, ph, pw, c).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return y.reshape(b, t * pt, h * ph, w * pw, c).permute(0, 4, 1, 2, 3)


def _join_causally(x: Tensor, block: tuple[int, int, int]) -> Tensor:
    """`space_to_channel` with the first frame repeated, so that it fills a block of its own."""
    return space_to_channel(repeat_first_frame(x, block[0] - 1), block)


def _split_causally(x: Tensor, block: tuple[int, int, int]) -> Tensor:
    """`channel_to_space` without the repetitions of the first frame."""
    return channel_to_space(x, block)[:, :, block[0] - 1 :]


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each position, then SiLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        last = F.layer_norm(x.permute(0, 2, 3, 4, 1), self.weight.shape, self.weight, self.bias, 1e-5)
        return F.silu(last).permute(0, 4, 1, 2, 3)


class ResidualBlock(nn.Module):
    """Norm, 3x3 convolution of `taps` frames, norm, 3x3 convolution per frame, plus the input.

    Time is padded causally (copies of the first frame in front) in the encoder and with zero frames evenly on
    both sides in the decoder, as in `sd21`; space with zeros, which the convolution does itself.
    """

    def __init__(self, channels: int, taps: int, causal: bool) -> None:
        super().__init__()
        self.front = taps - 1 if causal else 0
        self.norm1 = ChannelNorm(channels)
        self.conv1 = Conv3d(channels, channels, (taps, 3, 3), padding=(0 if causal else taps // 2, 1, 1))
        self.norm2 = ChannelNorm(channels)
        self.conv2 = Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1))
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = repeat_first_frame(self.norm1(x), self.front)
        return x + self.conv2(self.norm2(self.conv1(h)))


def _stage(channels: int, blocks: int, taps: int, causal: bool) -> nn.Sequential:
    return nn.Sequential(*[ResidualBlock(channels, taps, causal) for _ in range(blocks)])


class CodeGate(nn.Module):
    """Weights of the bases, which sum to 1 at every position: (B, shared, t, h, w) -> (B, codes, t, h, w).

    Looks at the magnitudes of the shared channels at this and, in video, the latent frame before, in 3 x 3 cells.
    """

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        look = reach_of(config).look
        self.front = look - 1
        self.look = Conv3d(config.shared_channels, config.gate_channels, (look, 3, 3))
        self.choose = Conv3d(config.gate_channels, config.codes, 1)

    def forward(self, shared: Tensor) -> Tensor:
        energy = pad3d((shared.abs() + GATE_FLOOR).log(), (self.front, 0, 1, 1, 1, 1), "replicate", "replicate")
        return self.choose(F.silu(self.look(energy))).softmax(dim=1)


def spread(z: Tensor, gates: Tensor, shared: int) -> Tensor:
    """Put each gated channel into the slot of its basis: (B, z, t, h, w) -> (B, shared + codes (z - shared), t, h, w)."""
    slots = gates[:, :, None] * z[:, None, shared:]
    return torch.cat([z[:, :shared], slots.flatten(1, 2)], dim=1)


class CompactEncoder(nn.Module):
    """Causal encoder: (B, 3, T, H, W) in [-1, 1] -> moments (B, 2z, t, h, w); T = 1 alone for pictures."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        c1, c2, c3 = config.encoder_channels
        n1, n2, n3 = config.encoder_blocks
        self.reach = reach = reach_of(config)
        self.shared = config.shared_channels
        self.analysis = Conv3d(RGB * math.prod(reach.block), config.spread_channels, 1)
        self.gate = CodeGate(config)
        self.patch_in = Conv3d(RGB * math.prod(reach.patch), c1, 1)
        self.stage1 = _stage(c1, n1, reach.taps, causal=True)
        self.down2 = Conv3d(4 * c1, c2, 1)
        self.stage2 = _stage(c2, n2, reach.taps, causal=True)
        self.down3 = Conv3d(reach.halving[0] * c2, c3, 1)
        self.stage3 = _stage(c3, n3, reach.taps, causal=True)
        self.norm_out = ChannelNorm(c3)
        self.conv_out = Conv3d(c3, 2 * config.latent_channels, (reach.taps, 3, 3), padding=(0, 1, 1))
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x: Tensor) -> Tensor:
        reach = self.reach
        _check_frames(x, reach)
        projections = self.analysis(_join_causally(x, reach.block))
        h = self.stage1(self.patch_in(_join_causally(x, reach.patch)))
        h = self.stage2(self.down2(space_to_channel(h, (1, 2, 2))))
        h = self.stage3(self.down3(_join_causally(h, reach.halving)))
        mean, logvar = self.conv_out(repeat_first_frame(self.norm_out(h), reach.taps - 1)).chunk(2, dim=1)
        shared = projections[:, : self.shared] + RESIDUAL_GAIN * mean[:, : self.shared]
        gates = self.gate(shared)
        slots = projections[:, self.shared :].unflatten(1, (gates.shape[1], -1))
        gated = (gates[:, :, None] * slots).sum(dim=1) + RESIDUAL_GAIN * mean[:, self.shared :]
        return torch.cat([shared, gated, logvar], dim=1)


class CompactDecoder(nn.Module):
    """Decoder, not causal: (B, z, t, h, w) -> (B, 3, 4t - 3, 8h, 8w); t = 1 alone for pictures."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        c1, c2, c3 = config.decoder_channels
        n1, n2, n3 = config.decoder_blocks
        self.reach = reach = reach_of(config)
        self.shared = config.shared_channels
        self.gate = CodeGate(config)
        block_channels, rank = RGB * math.prod(reach.block), config.synthesis_rank
        self.synthesis = Conv3d(config.spread_channels, rank or block_channels, (reach.taps, 3, 3), bias=not rank)
        self.synthesis_out = Conv3d(rank, block_channels, 1) if rank else nn.Identity()
        self.conv_in = Conv3d(config.spread_channels, c3, (reach.taps, 3, 3), padding=(reach.taps // 2, 1, 1))
        self.stage3 = _stage(c3, n3, reach.taps, causal=False)
        self.up2 = Conv3d(c3, reach.halving[0] * c2, 1)
        self.stage2 = _stage(c2, n2, reach.taps, causal=False)
        self.up1 = Conv3d(c2, 4 * c1, 1)
        self.stage1 = _stage(c1, n1, reach.taps, causal=False)
        self.norm_out = ChannelNorm(c1)
        self.patch_out = Conv3d(c1, RGB * math.prod(reach.patch), 1)
        nn.init.zeros_(self.patch_out.weight)
        nn.init.zeros_(self.patch_out.bias)

    def forward(self, z: Tensor) -> Tensor:
        _check_frames(z, self.reach)
        code = self.spread(z)
        return self.linear(code) + self.residual(code)

    def spread(self, z: Tensor) -> Tensor:
        """Latents with each gated channel in the slot of its basis: (B, z, t, h, w) -> (B, spread channels, t, h, w)."""
        return spread(z, self.gate(z[:, : self.shared]), self.shared)

    def linear(self, code: Tensor) -> Tensor:
        """The code's own prediction of the pixels, from what `spread` gave."""
        aside = self.reach.taps // 2
        blocks = self.synthesis(pad3d(code, (aside, aside, 1, 1, 1, 1), "replicate", "replicate"))
        return _split_causally(self.synthesis_out(blocks), self.reach.block)

    def residual(self, code: Tensor) -> Tensor:
        """What the network adds to it."""
        h = self.stage3(self.conv_in(code))
        h = self.stage2(_split_causally(self.up2(h), self.reach.halving))
        h = self.stage1(channel_to_space(self.up1(h), (1, 2, 2)))
        return RESIDUAL_GAIN * _split_causally(self.patch_out(self.norm_out(h)), self.reach.patch)
