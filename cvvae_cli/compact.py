"""The compact family: a gated linear code of 4 x 8 x 8 px blocks plus a learned residual.

Encoder and decoder each add two parts. The first is a transform coder with a choice. Some latent channels,
the shared ones, hold the same projections of every causal 4 x 8 x 8 block. What they show of a block and its
neighbours (`CodeGate`: is it still, flat, textured, moving?) chooses among several bases for the remaining
channels, softly; the decoder sees the same shared channels and makes the same choice. `synthesis` predicts a
block from the 3 x 3 x 3 neighbourhood of gated coefficients. All of it is fitted in closed form, or nearly,
before training (`training.linear_code`). The second part is a small convolutional network whose last layer
starts at zero, so training begins at the code's quality and can only learn what it misses. Nothing spans
more positions than the receptive field, so tiles do not influence one another beyond it. This module knows
no files and no training.

Source of the idea of a linear path: space-to-channel shortcuts beside every down- and upsampling (DC-AE, Wan 2.2).
"""

import torch
from cvvae_kernels import pad3d
from torch import Tensor, nn
from torch.nn import functional as F

from cvvae_cli.config import CompactConfig
from cvvae_cli.convolution import Conv3d
from cvvae_cli.geometry import SPATIAL_COMPRESSION_RATIO, TEMPORAL_COMPRESSION_RATIO

BLOCK = (TEMPORAL_COMPRESSION_RATIO, SPATIAL_COMPRESSION_RATIO, SPATIAL_COMPRESSION_RATIO)
BLOCK_CHANNELS = 3 * BLOCK[0] * BLOCK[1] * BLOCK[2]
# An optimiser's step on an output layer shows directly in latents and pixels; this keeps its noise below the
# error that is left to learn (without it, 400 steps at 1e-3 only undid themselves).
RESIDUAL_GAIN = 0.3
GATE_FLOOR = 0.02  # of magnitudes before their logarithm; shared channels have unit variance
PATCH = (2, 4, 4)
PATCH_CHANNELS = 3 * PATCH[0] * PATCH[1] * PATCH[2]


def repeat_first_frame(x: Tensor, count: int) -> Tensor:
    """Put `count` copies of the first frame in front: (B, C, T, H, W) -> (B, C, T + count, H, W)."""
    return pad3d(x, (count, 0, 0, 0, 0, 0), "replicate", "zeros")


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
    """Norm, 3x3x3 convolution, norm, 3x3 convolution per frame, plus the input.

    Time is padded causally (two copies of the first frame in front) in the encoder and with one zero frame
    on each side in the decoder, as in `sd21`; space with zeros, which the convolution does itself.
    """

    def __init__(self, channels: int, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.norm1 = ChannelNorm(channels)
        self.conv1 = Conv3d(channels, channels, 3, padding=(0 if causal else 1, 1, 1))
        self.norm2 = ChannelNorm(channels)
        self.conv2 = Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1))
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        if self.causal:
            h = repeat_first_frame(h, 2)
        return x + self.conv2(self.norm2(self.conv1(h)))


def _stage(channels: int, blocks: int, causal: bool) -> nn.Sequential:
    return nn.Sequential(*[ResidualBlock(channels, causal) for _ in range(blocks)])


class CodeGate(nn.Module):
    """Weights of the bases, which sum to 1 at every position: (B, shared, t, h, w) -> (B, codes, t, h, w).

    Looks at the magnitudes of the shared channels at this and the latent frame before, in 3 x 3 cells.
    """

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.look = Conv3d(config.shared_channels, config.gate_channels, (2, 3, 3))
        self.choose = Conv3d(config.gate_channels, config.codes, 1)

    def forward(self, shared: Tensor) -> Tensor:
        energy = pad3d((shared.abs() + GATE_FLOOR).log(), (1, 0, 1, 1, 1, 1), "replicate", "replicate")
        return self.choose(F.silu(self.look(energy))).softmax(dim=1)


def spread(z: Tensor, gates: Tensor, shared: int) -> Tensor:
    """Put each gated channel into the slot of its basis: (B, z, t, h, w) -> (B, shared + codes (z - shared), t, h, w)."""
    slots = gates[:, :, None] * z[:, None, shared:]
    return torch.cat([z[:, :shared], slots.flatten(1, 2)], dim=1)


class CompactEncoder(nn.Module):
    """Causal encoder: (B, 3, T, H, W) in [-1, 1] -> moments (B, 2z, t, h, w)."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        c1, c2, c3 = config.encoder_channels
        n1, n2, n3 = config.encoder_blocks
        self.shared = config.shared_channels
        self.analysis = Conv3d(BLOCK_CHANNELS, config.spread_channels, 1)
        self.gate = CodeGate(config)
        self.patch_in = Conv3d(PATCH_CHANNELS, c1, 1)
        self.stage1 = _stage(c1, n1, causal=True)
        self.down2 = Conv3d(4 * c1, c2, 1)
        self.stage2 = _stage(c2, n2, causal=True)
        self.down3 = Conv3d(2 * c2, c3, 1)
        self.stage3 = _stage(c3, n3, causal=True)
        self.norm_out = ChannelNorm(c3)
        self.conv_out = Conv3d(c3, 2 * config.latent_channels, 3, padding=(0, 1, 1))
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x: Tensor) -> Tensor:
        projections = self.analysis(space_to_channel(repeat_first_frame(x, 3), BLOCK))
        h = self.stage1(self.patch_in(space_to_channel(repeat_first_frame(x, 1), PATCH)))
        h = self.stage2(self.down2(space_to_channel(h, (1, 2, 2))))
        h = self.stage3(self.down3(space_to_channel(repeat_first_frame(h, 1), (2, 1, 1))))
        mean, logvar = self.conv_out(repeat_first_frame(self.norm_out(h), 2)).chunk(2, dim=1)
        shared = projections[:, : self.shared] + RESIDUAL_GAIN * mean[:, : self.shared]
        gates = self.gate(shared)
        slots = projections[:, self.shared :].unflatten(1, (gates.shape[1], -1))
        gated = (gates[:, :, None] * slots).sum(dim=1) + RESIDUAL_GAIN * mean[:, self.shared :]
        return torch.cat([shared, gated, logvar], dim=1)


class CompactDecoder(nn.Module):
    """Decoder, not causal: (B, z, t, h, w) -> (B, 3, 4t - 3, 8h, 8w)."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        c1, c2, c3 = config.decoder_channels
        n1, n2, n3 = config.decoder_blocks
        self.shared = config.shared_channels
        self.gate = CodeGate(config)
        self.synthesis = Conv3d(config.spread_channels, BLOCK_CHANNELS, 3)
        self.conv_in = Conv3d(config.spread_channels, c3, 3, padding=1)
        self.stage3 = _stage(c3, n3, causal=False)
        self.up2 = Conv3d(c3, 2 * c2, 1)
        self.stage2 = _stage(c2, n2, causal=False)
        self.up1 = Conv3d(c2, 4 * c1, 1)
        self.stage1 = _stage(c1, n1, causal=False)
        self.norm_out = ChannelNorm(c1)
        self.patch_out = Conv3d(c1, PATCH_CHANNELS, 1)
        nn.init.zeros_(self.patch_out.weight)
        nn.init.zeros_(self.patch_out.bias)

    def forward(self, z: Tensor) -> Tensor:
        code = spread(z, self.gate(z[:, : self.shared]), self.shared)
        linear = self.synthesis(pad3d(code, (1, 1, 1, 1, 1, 1), "replicate", "replicate"))
        linear = channel_to_space(linear, BLOCK)[:, :, 3:]
        h = self.stage3(self.conv_in(code))
        h = self.stage2(channel_to_space(self.up2(h), (2, 1, 1))[:, :, 1:])
        h = self.stage1(channel_to_space(self.up1(h), (1, 2, 2)))
        return linear + RESIDUAL_GAIN * channel_to_space(self.patch_out(self.norm_out(h)), PATCH)[:, :, 1:]
