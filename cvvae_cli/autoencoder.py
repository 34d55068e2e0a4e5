"""Encoder, Decoder and the Autoencoder that a config describes.

An `Autoencoder` sees one window at a time: every frame and pixel of its input at once. It knows no tiles, no
chunks, no scale of a diffusion model and no file; `identity` is a label that whoever loads weights sticks on.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cvvae_cli.compact import CompactDecoder, CompactEncoder
from cvvae_cli.config import CompactConfig, CVVAEConfig, ModelConfig
from cvvae_cli.errors import ModelError, UsageError
from cvvae_cli.geometry import RGB, SPATIAL_COMPRESSION_RATIO, TEMPORAL_COMPRESSION_RATIO
from cvvae_cli.layers import STYLES, BlockOptions, MidBlock, NormConv, PaddedConv3d, Padding, ResidualBlock, run_block
from cvvae_cli.upsampling import Upsample

# Time halves at the first and third of the three downsamplings, and doubles at the mirrored upsamplings.
DOWNSAMPLE_STRIDES = ((2, 2, 2), (1, 2, 2), (2, 2, 2))


@dataclass(frozen=True)
class ModelIdentity:
    """Which weights a model carries.

    Attributes:
        name: the name, folder or file that was loaded.
        sha256: of the weights' names, dtypes, shapes and bytes as stored, whatever file held them.
        revision: commit of the hub repository, None elsewhere.
        config: the architecture.
    """

    name: str
    sha256: str
    revision: str | None
    config: ModelConfig


class EncoderLevel(nn.Module):
    """Residual blocks at one grid size, then a strided convolution unless this is the smallest grid.

    It has no `forward`: its caller would hold the level's input until the last block is done.
    """

    def __init__(self, blocks: list[ResidualBlock], downsample: PaddedConv3d | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample


class DecoderLevel(nn.Module):
    """Residual blocks at one grid size, then an upsampling unless this is the largest grid. Without `forward`, as `EncoderLevel`."""

    def __init__(self, blocks: list[ResidualBlock], upsample: Upsample | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.upsample = upsample


def _block_options(config: CVVAEConfig, padding: Padding) -> BlockOptions:
    return BlockOptions(padding, config.half_3d, config.norm_groups, STYLES[config.variant].eps)


def _blocks(in_channels: int, out_channels: int, count: int, options: BlockOptions) -> list[ResidualBlock]:
    return [ResidualBlock(in_channels if i == 0 else out_channels, out_channels, options) for i in range(count)]


class Encoder(nn.Module):
    """Official encoder, causal in its convolutions: (B, 3, T, H, W) in [-1, 1] -> moments (B, 2z, t, h, w)."""

    def __init__(self, config: CVVAEConfig) -> None:
        super().__init__()
        style, channels = STYLES[config.variant], config.channels
        options = _block_options(config, style.encoder)
        self.conv_in = PaddedConv3d(RGB, channels[0], style.encoder)
        levels = []
        for i, width in enumerate(channels):
            blocks = _blocks(channels[max(i - 1, 0)], width, config.blocks_per_level, options)
            last = i == len(channels) - 1
            down = None if last else PaddedConv3d(width, width, style.downsample, DOWNSAMPLE_STRIDES[i])
            levels.append(EncoderLevel(blocks, down))
        self.levels = nn.ModuleList(levels)
        self.mid = MidBlock(channels[-1], options, attends_time=False)
        self.out = NormConv(options.norm(channels[-1]), options.conv(channels[-1], 2 * config.latent_channels))

    def forward(self, x: Tensor) -> Tensor:
        x, moments = self.conv_in(x), None
        for level in self.levels:
            for block in level.blocks:
                x, moments = run_block(block, x, moments)
            if level.downsample is not None:
                x, moments = level.downsample(x), None
        x, moments = self.mid(x, moments)
        return self.out(x, moments)


class Decoder(nn.Module):
    """Official decoder, not causal: (B, z, t, h, w) -> (B, 3, 4t - 3, 8h, 8w). `levels.0` is the smallest grid."""

    def __init__(self, config: CVVAEConfig) -> None:
        super().__init__()
        style, channels = STYLES[config.variant], config.channels[::-1]
        options = _block_options(config, style.decoder)
        self.conv_in = PaddedConv3d(config.latent_channels, channels[0], style.decoder)
        self.mid = MidBlock(channels[0], options, style.decoder_attends_time)
        strides = DOWNSAMPLE_STRIDES[::-1]
        levels = []
        for i, width in enumerate(channels):
            blocks = _blocks(channels[max(i - 1, 0)], width, config.blocks_per_level + 1, options)
            last = i == len(channels) - 1
            levels.append(DecoderLevel(blocks, None if last else Upsample(width, style.upsample, strides[i][0] == 2)))
        self.levels = nn.ModuleList(levels)
        self.out = NormConv(options.norm(channels[-1]), options.conv(channels[-1], RGB))

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv_in(z)
        x, moments = self.mid(x)
        for level in self.levels:
            for block in level.blocks:
                x, moments = run_block(block, x, moments)
            if level.upsample is not None:
                x, moments = level.upsample(x), None
        return self.out(x, moments)


class Autoencoder(nn.Module):
    """A causal video autoencoder: 4x in time, 8x in space.

    Args:
        config: which family member; weights are random until loaded.

    Attributes:
        config: as given.
        identity: which weights it carries, None while nobody has said.
    """

    encoder: nn.Module
    decoder: nn.Module

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.identity: ModelIdentity | None = None
        if isinstance(config, CompactConfig):
            self.encoder, self.decoder = CompactEncoder(config), CompactDecoder(config)
            return
        odd = [width for width in config.channels if width % config.norm_groups]
        if odd:
            raise ModelError(f"{odd[0]} channels cannot be split into {config.norm_groups} norm groups; correct the config.")
        self.encoder, self.decoder = Encoder(config), Decoder(config)

    @property
    def latent_channels(self) -> int:
        """z, the channels of a latent."""
        return self.config.latent_channels

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype, in which `encode` and `decode` answer."""
        return next(self.parameters()).dtype

    def encode(self, x: Tensor) -> Tensor:
        """Encode one window of video.

        Args:
            x: (B, 3, T, H, W) floating, RGB in [-1, 1], on the model's device; T = 1 + 4k, H and W multiples of 8.

        Returns:
            Moments (B, 2z, t, h, w) in the model's dtype: mean, then log-variance, stacked on channels.

        Raises:
            UsageError: (a ValueError) the shape or dtype breaks one of these rules.
        """
        _check_rank(x, "video", RGB)
        frames, height, width = x.shape[2:]
        if frames % TEMPORAL_COMPRESSION_RATIO != 1:
            raise UsageError(f"{frames} frames are not 1 + 4k; pad or cut the video in time, or use encode_tensor, which does.")
        if height < 1 or width < 1 or height % SPATIAL_COMPRESSION_RATIO or width % SPATIAL_COMPRESSION_RATIO:
            raise UsageError(f"Frame size {width}x{height} is not a multiple of 8; pad or crop it, or use encode_tensor.")
        return self.encoder(self._prepare(x))

    def decode(self, z: Tensor) -> Tensor:
        """Decode one window of latents.

        Args:
            z: (B, z, t, h, w) floating, unscaled latents on the model's device.

        Returns:
            Video (B, 3, 4t - 3, 8h, 8w) in the model's dtype, RGB around [-1, 1], not clamped.

        Raises:
            UsageError: (a ValueError) the shape or dtype breaks one of these rules.
        """
        _check_rank(z, "latent", self.latent_channels)
        if 0 in z.shape:
            raise UsageError(f"Latent of shape {tuple(z.shape)} is empty; every size must be at least 1.")
        return self.decoder(self._prepare(z))

    def _prepare(self, x: Tensor) -> Tensor:
        return x.to(dtype=self.dtype, memory_format=torch.channels_last_3d)


def _check_rank(x: Tensor, what: str, channels: int) -> None:
    if x.dim() != 5 or x.shape[1] != channels:
        raise UsageError(f"A {what} must have the shape (B, {channels}, T, H, W), got {tuple(x.shape)}; add or move axes.")
    if not x.is_floating_point():
        raise UsageError(f"A {what} must be floating point, got {x.dtype}; convert it (pixels to [-1, 1]).")
