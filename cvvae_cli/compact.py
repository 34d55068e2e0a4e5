"""The compact family: a linear code of 4 x 8 x 8 px blocks plus a learned residual.

Encoder and decoder each add two parts. The linear part is a plain transform coder: `analysis` projects
every causal 4 x 8 x 8 block on z coefficients, `synthesis` predicts the block back from the 3 x 3 x 3
neighbourhood of latents; both are fitted in closed form before training. The residual part is a small
convolutional network whose last layer starts at zero, so training begins at the linear code's quality and
can only learn what it misses. No normalisation spans positions, so tiles do not influence one another
beyond the receptive field. This module knows no files and no training.

Source of the idea: linear space-to-channel shortcuts beside every down- and upsampling (DC-AE, Wan 2.2).
"""

import torch
from cvvae_kernels import pad3d
from torch import Tensor, nn
from torch.nn import functional as F

from cvvae_cli.config import CompactConfig
from cvvae_cli.geometry import SPATIAL_COMPRESSION_RATIO, TEMPORAL_COMPRESSION_RATIO

BLOCK = (TEMPORAL_COMPRESSION_RATIO, SPATIAL_COMPRESSION_RATIO, SPATIAL_COMPRESSION_RATIO)
BLOCK_CHANNELS = 3 * BLOCK[0] * BLOCK[1] * BLOCK[2]
# An optimiser's step on an output layer shows directly in latents and pixels; this keeps its noise below the
# error that is left to learn (without it, 400 steps at 1e-3 only undid themselves).
RESIDUAL_GAIN = 0.1
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
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=(0 if causal else 1, 1, 1))
        self.norm2 = ChannelNorm(channels)
        self.conv2 = nn.Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1))
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        if self.causal:
            h = repeat_first_frame(h, 2)
        return x + self.conv2(self.norm2(self.conv1(h)))


def _stage(channels: int, blocks: int, causal: bool) -> nn.Sequential:
    return nn.Sequential(*[ResidualBlock(channels, causal) for _ in range(blocks)])


class CompactEncoder(nn.Module):
    """Causal encoder: (B, 3, T, H, W) in [-1, 1] -> moments (B, 2z, t, h, w)."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        c1, c2, c3 = config.encoder_channels
        n1, n2, n3 = config.encoder_blocks
        self.analysis = nn.Conv3d(BLOCK_CHANNELS, config.latent_channels, 1)
        self.patch_in = nn.Conv3d(PATCH_CHANNELS, c1, 1)
        self.stage1 = _stage(c1, n1, causal=True)
        self.down2 = nn.Conv3d(4 * c1, c2, 1)
        self.stage2 = _stage(c2, n2, causal=True)
        self.down3 = nn.Conv3d(2 * c2, c3, 1)
        self.stage3 = _stage(c3, n3, causal=True)
        self.norm_out = ChannelNorm(c3)
        self.conv_out = nn.Conv3d(c3, 2 * config.latent_channels, 3, padding=(0, 1, 1))
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x: Tensor) -> Tensor:
        linear = self.analysis(space_to_channel(repeat_first_frame(x, 3), BLOCK))
        h = self.stage1(self.patch_in(space_to_channel(repeat_first_frame(x, 1), PATCH)))
        h = self.stage2(self.down2(space_to_channel(h, (1, 2, 2))))
        h = self.stage3(self.down3(space_to_channel(repeat_first_frame(h, 1), (2, 1, 1))))
        mean, logvar = self.conv_out(repeat_first_frame(self.norm_out(h), 2)).chunk(2, dim=1)
        return torch.cat([RESIDUAL_GAIN * mean + linear, logvar], dim=1)


class CompactDecoder(nn.Module):
    """Decoder, not causal: (B, z, t, h, w) -> (B, 3, 4t - 3, 8h, 8w)."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        c1, c2, c3 = config.decoder_channels
        n1, n2, n3 = config.decoder_blocks
        self.synthesis = nn.Conv3d(config.latent_channels, BLOCK_CHANNELS, 3)
        self.conv_in = nn.Conv3d(config.latent_channels, c3, 3, padding=1)
        self.stage3 = _stage(c3, n3, causal=False)
        self.up2 = nn.Conv3d(c3, 2 * c2, 1)
        self.stage2 = _stage(c2, n2, causal=False)
        self.up1 = nn.Conv3d(c2, 4 * c1, 1)
        self.stage1 = _stage(c1, n1, causal=False)
        self.norm_out = ChannelNorm(c1)
        self.patch_out = nn.Conv3d(c1, PATCH_CHANNELS, 1)
        nn.init.zeros_(self.patch_out.weight)
        nn.init.zeros_(self.patch_out.bias)

    def forward(self, z: Tensor) -> Tensor:
        linear = self.synthesis(pad3d(z, (1, 1, 1, 1, 1, 1), "replicate", "replicate"))
        linear = channel_to_space(linear, BLOCK)[:, :, 3:]
        h = self.stage3(self.conv_in(z))
        h = self.stage2(channel_to_space(self.up2(h), (2, 1, 1))[:, :, 1:])
        h = self.stage1(channel_to_space(self.up1(h), (1, 2, 2)))
        return linear + RESIDUAL_GAIN * channel_to_space(self.patch_out(self.norm_out(h)), PATCH)[:, :, 1:]
