"""The official decoders' upsampling: nearest 2x in space, then a convolution that may double time.

Nothing is computed on copies of a pixel, nor for the frame that is dropped. This module knows no network.
"""

from collections.abc import Callable, Iterator

import torch
from cvvae_kernels import pad3d
from torch import Tensor, nn
from torch.nn import functional as F

from cvvae_cli.convolution import conv3d
from cvvae_cli.layers import AROUND, PaddedConv3d, Padding, as_frames, from_frames


class FoldedKernels:
    """What `fold_nearest` makes of one weight, kept while the weight stays what it is.

    Not part of a state dict, and left behind by copies and pickles. Memory: 16/9 of the weight.
    """

    def __init__(self) -> None:
        self._weight: Tensor | None = None
        self._version = 0
        self._kernels: list[tuple[int, int, Tensor]] = []

    def of(self, weight: Tensor) -> list[tuple[int, int, Tensor]]:
        """The kernels of `weight`, folded anew where it is another tensor or was changed in place (not through `.data`)."""
        # Inference tensors do not count their changes, and compilers cannot ask.
        if torch.compiler.is_compiling() or weight.is_inference():
            return list(fold_nearest(weight))
        if self._weight is not weight or self._version != weight._version:
            self._weight, self._version = weight, weight._version
            self._kernels = list(fold_nearest(weight))
        return self._kernels

    def forget(self) -> None:
        """Keep nothing."""
        self._weight, self._kernels = None, []

    def __reduce__(self) -> tuple[type["FoldedKernels"], tuple[()]]:
        return FoldedKernels, ()


class Upsample(nn.Module):
    """Nearest 2x in space, then a convolution that may also double time.

    (B, C, T, H, W) -> (B, C, T, 2H, 2W), or (B, C, 2T - 1, 2H, 2W): the convolution then emits two frames per
    frame, stacked on channels, and the first of all is dropped because the first latent stands for one frame.

    Without gradients the upsampled grid is never made: of the 3 x 3 pixels that a kernel reads there, several are
    copies of one, so four kernels of 2 x 2 on the small grid, one for each place within a pixel, do the same with
    4/9 of the multiplications. The frame that would be dropped is not computed either. In eval mode those kernels are
    kept, until the weight changes or moves.
    """

    def __init__(self, channels: int, padding: Padding, doubles_time: bool) -> None:
        super().__init__()
        self.doubles_time = doubles_time
        self.conv = PaddedConv3d(channels, 2 * channels if doubles_time else channels, padding)
        # The nearest neighbour of a border pixel is that pixel, and of zeros zero: the small grid is padded alike.
        self.small_padding = (*padding.time, *padding.space)
        assert padding.space == AROUND
        self._folded = FoldedKernels()

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            x = self._upsampled(x)
            return unstack_time(x) if self.doubles_time else x
        x = pad3d(x, self.small_padding, *self.conv.modes)
        return self.convolve(x)

    def train(self, mode: bool = True) -> "Upsample":
        self._folded.forget()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Upsample":
        self._folded.forget()
        return super()._apply(fn, recurse)

    def _upsampled(self, x: Tensor) -> Tensor:
        # Padding of time alone gives the same before the upsampling, where it copies a quarter.
        if not self.conv.pads_space:
            x = self.conv.pad(x)
        x = from_frames(F.interpolate(as_frames(x), scale_factor=2.0, mode="nearest"), x.shape[0])
        if self.conv.pads_space:
            x = self.conv.pad(x)
        return self.conv.convolve(x)

    def convolve(self, padded: Tensor) -> Tensor:
        """The result for a small grid that was padded by `small_padding`, without gradients; channels_last_3d."""
        batch, _, frames, height, width = (size - 2 if axis > 1 else size for axis, size in enumerate(padded.shape))
        groups = 2 if self.doubles_time else 1
        biases = self.conv.bias.chunk(groups)
        shape = (batch, groups * (frames - 1) + 1, 2 * height, 2 * width, self.conv.out_channels // groups)
        out = padded.new_empty(shape).movedim(-1, 1)
        for row, column, kernel in fold_nearest(self.conv.weight) if self.training else self._folded.of(self.conv.weight):
            piece = padded[..., row : row + height + 1, column : column + width + 1]
            # Convolutions copy what has gaps; both groups read this.
            piece = piece.contiguous(memory_format=torch.channels_last_3d)
            place = out[..., row::2, column::2]
            for group, weight in enumerate(kernel.chunk(groups)):
                # Group n of frame k becomes frame 2k + n - 1, so of frame 0 there is the last group alone.
                skipped = groups - 1 - group
                if frames > skipped:
                    place[:, :, skipped::groups] = conv3d(piece[:, :, skipped:], weight, biases[group])
        return out


def fold_nearest(weight: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """The kernels on the small grid that equal one on its nearest 2x upsampling, summed in float32 at least.

    Args:
        weight: (out, in, kt, 3, 3).

    Yields:
        row and column, 0 or 1, of an output pixel within its small pixel, and its kernel (out, in, kt, 2, 2): that of
        row 0 reads the small row above and its own, that of row 1 its own and the one below; columns alike.
    """

    def halves(kernel: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        first, second, third = kernel.unbind(axis)
        return torch.stack([first, second + third], axis), torch.stack([first + second, third], axis)

    exact = weight.to(torch.promote_types(weight.dtype, torch.float32))
    for row, rows in enumerate(halves(exact, 3)):
        for column, kernel in enumerate(halves(rows, 4)):
            yield row, column, kernel.to(weight.dtype).contiguous(memory_format=torch.channels_last_3d)


def unstack_time(x: Tensor) -> Tensor:
    """(B, 2C, T, H, W) -> (B, C, 2T - 1, H, W): channel group n of frame k becomes frame 2k + n, the first goes."""
    pairs = x.movedim(1, -1).unflatten(-1, (2, -1))
    frames = pairs.movedim(-2, 2).flatten(1, 2)[:, 1:]
    return frames.movedim(-1, 1).contiguous(memory_format=torch.channels_last_3d)
