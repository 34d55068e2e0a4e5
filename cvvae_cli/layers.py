"""Building blocks of the official CV-VAE architectures, `sd21` and `sd3`.

What the two differ in is data: a `Style` names every padding, the norms' eps and the decoder's attention.
Activations are channels_last_3d throughout, so that frames, tokens and pixels are views and pointwise maps
are matrix products. Where norms are kernels of their own (CUDA), a residual sum gathers the statistics that the next
norm needs and hands them on. Memory: a block holds its input, one padded copy and one output; nothing is kept for
later unless autograd asks. This module knows blocks, not networks, names of weights or files.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from cvvae_kernels import (
    Moments,
    add_with_statistics,
    group_statistics,
    has_norm_kernels,
    norm_silu_pad,
    norms_while_padding,
    pad3d,
    silu_pad,
)
from torch import Tensor, nn
from torch.nn import functional as F

from cvvae_cli.config import Variant
from cvvae_cli.convolution import Conv3d

PadMode = Literal["replicate", "zeros"]
# Pixels per call of the attention over time: CUDA's kernels put them on a grid axis that ends at 65535.
TEMPORAL_ATTENTION_PIXELS = 32768


@dataclass(frozen=True)
class Padding:
    """What a 3x3x3 convolution reads beyond its input.

    Attributes:
        time: frames in front and behind.
        space: pixels at the top, bottom, left and right.
        time_mode, space_mode: repeat the border or read zeros.
    """

    time: tuple[int, int]
    space: tuple[int, int, int, int]
    time_mode: PadMode
    space_mode: PadMode


@dataclass(frozen=True)
class Style:
    """The details in which `sd21` and `sd3` differ.

    Attributes:
        eps: of every GroupNorm.
        encoder, decoder: paddings of their conv_in, residual and conv_out convolutions.
        downsample, upsample: paddings of the strided convolutions and of those after the upsampling.
        decoder_attends_time: the decoder's mid block attends over time after space.
    """

    eps: float
    encoder: Padding
    decoder: Padding
    downsample: Padding
    upsample: Padding
    decoder_attends_time: bool


AROUND = (1, 1, 1, 1)
CAUSAL = (2, 0)
CENTRED = (1, 1)

STYLES: dict[Variant, Style] = {
    "sd21": Style(
        eps=1e-5,
        encoder=Padding(CAUSAL, AROUND, "replicate", "zeros"),
        decoder=Padding(CENTRED, AROUND, "zeros", "zeros"),
        downsample=Padding(CAUSAL, (0, 1, 0, 1), "replicate", "zeros"),
        upsample=Padding(CENTRED, AROUND, "replicate", "zeros"),
        decoder_attends_time=True,
    ),
    "sd3": Style(
        eps=1e-6,
        encoder=Padding(CAUSAL, AROUND, "replicate", "replicate"),
        decoder=Padding(CENTRED, AROUND, "replicate", "replicate"),
        downsample=Padding(CAUSAL, AROUND, "replicate", "replicate"),
        upsample=Padding(CENTRED, AROUND, "replicate", "replicate"),
        decoder_attends_time=False,
    ),
}


def as_frames(x: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B T, C, H, W), a channels_last view of a channels_last_3d tensor."""
    return x.transpose(1, 2).flatten(0, 1)


def from_frames(frames: Tensor, batch: int) -> Tensor:
    """The inverse of `as_frames`, a view."""
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)


class GroupNorm(nn.GroupNorm):
    """GroupNorm over (C/groups, T, H, W), or per frame on a 4-D tensor, that keeps channels last.

    torch's CPU kernel works on channels_last as it is; the CUDA one answers in contiguous order, which every
    later view would have to copy, so it is brought back here once.
    """

    def forward(self, x: Tensor) -> Tensor:
        last = torch.channels_last_3d if x.dim() == 5 else torch.channels_last
        return super().forward(x).contiguous(memory_format=last)


class PaddedConv3d(Conv3d):
    """A 3x3x3 convolution with any `Padding`.

    Zeros that lie evenly on both sides are the convolution's own business and cost nothing; `pad` copies
    the input once for all the rest. `pad` and `convolve` are apart so that a caller can let go of the
    unpadded tensor in between.
    """

    def __init__(self, in_channels: int, out_channels: int, padding: Padding, stride: tuple[int, int, int] = (1, 1, 1)) -> None:
        own_time = padding.time_mode == "zeros" and padding.time[0] == padding.time[1]
        own_space = padding.space_mode == "zeros" and len(set(padding.space)) == 1
        own = (padding.time[0] if own_time else 0, *(2 * (padding.space[0] if own_space else 0,)))
        super().__init__(in_channels, out_channels, 3, stride, own)
        self.rest = (*((0, 0) if own_time else padding.time), *((0, 0, 0, 0) if own_space else padding.space))
        self.modes = (padding.time_mode, padding.space_mode)

    @property
    def pads_space(self) -> bool:
        """Whether `pad` adds pixels, not only frames."""
        return any(self.rest[2:])

    def pad(self, x: Tensor) -> Tensor:
        """Add what the convolution does not pad by itself; `x` itself where that is nothing."""
        return pad3d(x, self.rest, *self.modes) if any(self.rest) else x

    def convolve(self, padded: Tensor) -> Tensor:
        """The convolution of an input that went through `pad`; channels_last_3d, also where torch answers otherwise.

        For few channels or pixels in float32 torch's CPU falls back to a contiguous kernel; its answer would make
        every later step copy.
        """
        return super().forward(padded).contiguous(memory_format=torch.channels_last_3d)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pad(x)
        return self.convolve(x)


class FrameConv(nn.Conv2d):
    """A 3x3 convolution of each frame of (B, C, T, H, W), zeros around it in every variant, which it pads by itself."""

    rest = (0, 0, 0, 0, 0, 0)
    modes: tuple[PadMode, PadMode] = ("zeros", "zeros")

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # As in `PaddedConv3d.convolve`: for one small frame in float32 torch's CPU answers in contiguous order.
        frames = super().forward(as_frames(x)).contiguous(memory_format=torch.channels_last)
        return from_frames(frames, x.shape[0])


class Pointwise(nn.Linear):
    """A 1x1x1 convolution of (B, C, T, H, W), run as a matrix product."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class NormConv(nn.Module):
    """GroupNorm, SiLU, convolution.

    `prepare` and `convolve` are apart so that a caller can let go of the input in between.
    """

    def __init__(self, norm: GroupNorm, conv: PaddedConv3d | FrameConv) -> None:
        super().__init__()
        self.norm = norm
        self.conv = conv

    def prepare(self, x: Tensor, moments: Moments | None = None) -> Tensor:
        """Everything before the convolution: norm, SiLU, padding.

        Args:
            x: (B, C, T, H, W).
            moments: what to normalise with; those of x where they are not given.
        """
        norm, conv = self.norm, self.conv
        if moments is None and norms_while_padding(x, conv.rest):
            moments = group_statistics(x, norm.num_groups)
        if moments is None:
            return silu_pad(norm(x), conv.rest, *conv.modes)
        return norm_silu_pad(x, moments.mean, moments.rstd(norm.eps), norm.weight, norm.bias, conv.rest, *conv.modes)

    def convolve(self, prepared: Tensor) -> Tensor:
        """The convolution of what `prepare` gave."""
        return self.conv(prepared) if isinstance(self.conv, FrameConv) else self.conv.convolve(prepared)

    def forward(self, x: Tensor, moments: Moments | None = None) -> Tensor:
        x = self.prepare(x, moments)
        return self.convolve(x)


@dataclass(frozen=True)
class BlockOptions:
    """What all residual blocks of one encoder or decoder share.

    Attributes:
        padding: of the 3x3x3 convolutions.
        half_3d: the second convolution is 3x3 per frame.
        groups, eps: of the norms.
    """

    padding: Padding
    half_3d: bool
    groups: int
    eps: float

    def norm(self, channels: int) -> GroupNorm:
        return GroupNorm(self.groups, channels, self.eps)

    def conv(self, in_channels: int, out_channels: int) -> PaddedConv3d:
        return PaddedConv3d(in_channels, out_channels, self.padding)


class ResidualBlock(nn.Module):
    """Two norm-SiLU-convolution stages beside a shortcut: (B, in, T, H, W) -> (B, out, T, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, options: BlockOptions) -> None:
        super().__init__()
        self.first = NormConv(options.norm(in_channels), options.conv(in_channels, out_channels))
        second = FrameConv(out_channels, out_channels) if options.half_3d else options.conv(out_channels, out_channels)
        self.second = NormConv(options.norm(out_channels), second)
        self.shortcut = Pointwise(in_channels, out_channels) if in_channels != out_channels else None
        self.groups = options.groups

    def forward(self, x: Tensor) -> Tensor:
        return self.hand_on(x, None)[0]

    def hand_on(self, x: Tensor, moments: Moments | None) -> tuple[Tensor, Moments | None]:
        """The block's output for x, whose moments may be known, and the output's moments if they cost nothing."""
        # Step by step: each rebinding frees a tensor that a nested call would hold until it returns.
        h = self.first.prepare(x, moments)
        h = self.first.convolve(h)
        h = self.second.prepare(h)
        h = self.second.convolve(h)
        return residual_sum(h, x if self.shortcut is None else self.shortcut(x), self.groups)


def residual_sum(h: Tensor, x: Tensor, groups: int) -> tuple[Tensor, Moments | None]:
    """h + x, which overwrites h, and its moments where gathering them on the way saves reading it again."""
    if has_norm_kernels(h):
        return add_with_statistics(h, x, groups)
    # In place: no backward reads the output of a convolution or a linear map, so autograd allows it too.
    return h.add_(x), None


def run_block(block: ResidualBlock, x: Tensor, moments: Moments | None) -> tuple[Tensor, Moments | None]:
    """A residual block's output, and its moments if they cost nothing.

    With gradients it is called as a module, so that whoever wrapped its `forward` (to recompute it) is heard.
    """
    return (block(x), None) if torch.is_grad_enabled() else block.hand_on(x, moments)


class SpatialAttention(nn.Module):
    """One-head attention over the pixels of each frame: (B, C, T, H, W) to the same shape, input NOT added.

    Memory: O(T H W C); SDPA never lays out the H W x H W scores on CPU, nor on CUDA with its
    memory-efficient kernel, the only one there that takes a head of 512 channels.
    """

    def __init__(self, channels: int, options: BlockOptions) -> None:
        super().__init__()
        self.norm = options.norm(channels)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(as_frames(x)).flatten(2).transpose(1, 2).unsqueeze(1)
        mixed = F.scaled_dot_product_attention(self.query(tokens), self.key(tokens), self.value(tokens))
        frames = self.out(mixed.squeeze(1)).transpose(1, 2).unflatten(2, x.shape[3:])
        return from_frames(frames, x.shape[0])


class TemporalAttention(nn.Module):
    """LayerNorm and one-head attention over the frames at each pixel: (B, C, T, H, W) to the same shape, input NOT added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-5)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x.movedim(1, -1).flatten(2, 3))
        projected = [project(tokens).transpose(1, 2) for project in (self.query, self.key, self.value)]
        pieces = zip(*(p.split(TEMPORAL_ATTENTION_PIXELS, dim=1) for p in projected))
        mixed = torch.cat([F.scaled_dot_product_attention(*piece) for piece in pieces], dim=1)
        return self.out(mixed.transpose(1, 2)).unflatten(2, x.shape[3:]).movedim(-1, 1)


class MidBlock(nn.Module):
    """Residual block, attention, residual block on the smallest grid: (B, C, T, H, W) to the same shape, with moments if known."""

    def __init__(self, channels: int, options: BlockOptions, attends_time: bool) -> None:
        super().__init__()
        self.before = ResidualBlock(channels, channels, options)
        self.spatial = SpatialAttention(channels, options)
        self.temporal = TemporalAttention(channels) if attends_time else None
        self.after = ResidualBlock(channels, channels, options)

    def forward(self, x: Tensor, moments: Moments | None = None) -> tuple[Tensor, Moments | None]:
        x, _ = run_block(self.before, x, moments)
        h = self.spatial(x)
        if self.temporal is not None:
            h = self.temporal(h)
        x, moments = residual_sum(h, x, self.after.groups)
        return run_block(self.after, x, moments)
