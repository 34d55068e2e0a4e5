"""The networks' convolutions on a window of their output, from the pixels that it reads.

A layer pads all sides of what it is given. Here the caller pads: borders of a frame as the layer would, and
nothing where a neighbour's pixels are at hand. It knows layers of `layers`, not how they make a network.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from cvvae_kernels import PadMode
from torch import Tensor
from torch.nn import functional as F

from cvvae_cli.convolution import conv3d
from cvvae_cli.layers import FrameConv, PaddedConv3d, as_frames, from_frames
from cvvae_cli.upsampling import Upsample

KERNEL = 3


@dataclass(frozen=True)
class Reach:
    """What a window of the output reads along one axis of the input.

    Attributes:
        start, stop: positions of the input.
        before, after: positions to be padded because the input ends there.
    """

    start: int
    stop: int
    before: int
    after: int


@dataclass(frozen=True)
class WindowConvolution:
    """A convolution whose input comes padded.

    Attributes:
        stride: rows and columns read per one of the grid.
        growth: rows and columns written per one of the grid: 2 for an upsampling, whose grid is its input.
        channels: numbers written at each place for every frame read, at most.
        time: frames to be padded in front and behind.
        before: rows to be padded at the top of a frame, and columns at its left.
        modes: of the padding in time and in space.
        run: (B, in, T', H', W'), padded, to (B, out, T, H, W), channels_last_3d.
    """

    stride: int
    growth: int
    channels: int
    time: tuple[int, int]
    before: int
    modes: tuple[PadMode, PadMode]
    run: Callable[[Tensor], Tensor]

    def reach(self, start: int, stop: int, size: int) -> Reach:
        """What positions `start` to `stop` of the grid read of an input of `size` positions."""
        first = start * self.stride - self.before
        last = (stop - 1) * self.stride + KERNEL - self.before
        return Reach(max(first, 0), min(last, size), max(-first, 0), max(last - size, 0))


def window_convolution(layer: PaddedConv3d | FrameConv | Upsample) -> WindowConvolution:
    """The layer's convolution without its padding in space."""
    if isinstance(layer, FrameConv):
        return WindowConvolution(1, 1, layer.out_channels, (0, 0), 1, ("zeros", "zeros"), _of_frames(layer))
    if isinstance(layer, Upsample):
        front, back, top, *_ = layer.small_padding
        return WindowConvolution(1, 2, layer.conv.out_channels, (front, back), top, layer.conv.modes, layer.convolve)
    # What the layer leaves to the convolution itself is zeros, evenly on both sides.
    own_time, own_space, _ = layer.padding
    front, back, top, *_ = layer.rest

    def run(x: Tensor) -> Tensor:
        out = conv3d(x, layer.weight, layer.bias, (own_time, 0, 0), layer.stride)
        return out.contiguous(memory_format=torch.channels_last_3d)

    return WindowConvolution(layer.stride[1], 1, layer.out_channels, (front, back), top + own_space, layer.modes, run)


def _of_frames(layer: FrameConv) -> Callable[[Tensor], Tensor]:
    return lambda x: from_frames(F.conv2d(as_frames(x), layer.weight, layer.bias), x.shape[0])
