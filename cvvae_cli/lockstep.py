"""The official networks layer by layer over all parts of a frame, so that every norm knows the statistics of all of it.

A frame is computed as one or more *fields*. A field is what convolutions and attention see: they pad where it ends. With
one field, the frame itself, the result is that of the untiled network; with a field for each tile, only the norms
are shared. Either way a layer runs over all fields, in strips of rows that read their neighbours' border rows, before
the next layer starts; in between activations are parked. Nothing is computed twice. For inference: gradients would
keep everything. This module knows no tiling and no video.

Source of the pooling: `cvvae_kernels.merge_statistics`; each pixel of the frame counts once, whatever fields overlap.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
from cvvae_kernels import Moments, group_statistics, merge_statistics, norm_silu_pad, pad3d
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from cvvae_cli.autoencoder import Decoder, Encoder
from cvvae_cli.geometry import SPATIAL_COMPRESSION_RATIO as CELL
from cvvae_cli.geometry import Window
from cvvae_cli.layers import (
    GroupNorm,
    MidBlock,
    PaddedConv3d,
    ResidualBlock,
    SpatialAttention,
    TemporalAttention,
    as_frames,
    from_frames,
)
from cvvae_cli.parked_rows import ParkedRows, RowReader
from cvvae_cli.upsampling import Upsample
from cvvae_cli.window_convolution import KERNEL, WindowConvolution, window_convolution

# The plain kernel would lay out the scores of all pixels with all pixels: 31 GiB in bf16 for one frame of 4K.
_ATTENTION_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
# Tensors of a strip's input that are there at once: as it was parked, cut to what is read, padded; and of its output: as
# the convolution gives it, in another order or with the shortcut, and the strip before.
READ_COPIES, WRITTEN_COPIES = 3, 3


@dataclass(frozen=True)
class Field:
    """A part of the frame that is computed as if it were all there is, in cells of the frame.

    Attributes:
        rows, cols: what it covers.
        core_rows, core_cols: what its statistics are taken from; cores cover the frame, each cell once.
    """

    rows: Window
    cols: Window
    core_rows: Window
    core_cols: Window


@dataclass(frozen=True)
class Place:
    """Where activations are.

    Attributes:
        device: of the weights.
        park: where activations wait: `device`, or the CPU.
        strip_bytes: bytes of activations that a layer may take for one strip, at least one row; None for whole fields.
    """

    device: torch.device
    park: torch.device
    strip_bytes: int | None


class Activation:
    """What a layer gave.

    Attributes:
        fields: of each field, its rows.
        cell: positions per cell.
        moments: over the cores of all fields, None until something is there.
    """

    def __init__(self, fields: list[ParkedRows], cell: int) -> None:
        self.fields = fields
        self.cell = cell
        self.moments: Moments | None = None


@dataclass(frozen=True)
class Strip:
    """Some rows of a field that a convolution has computed.

    Attributes:
        field: index.
        start: first row within the field.
        own: the same rows of the input where input and output have the same grid.
        values: (B, C, T, n, W).
    """

    field: int
    start: int
    own: Tensor
    values: Tensor


class Lockstep:
    """One chunk on its way through a network.

    Args:
        fields: in the order in which results are wanted.
        groups: of every norm.
        place: where things are.

    Memory: on the device, `READ_COPIES` inputs and `WRITTEN_COPIES` outputs of a strip, bounded by `Place.strip_bytes`
        or one row, and up to as much again for strips that stick out of what is read; for attention a field at 1/8
        size three times and ten times one frame of it. A convolution's own workspace comes on top. Parked: twice the widest
        activation at most, because a strip is given back as soon as the last row that reads it is done.
    """

    def __init__(self, fields: list[Field], groups: int, place: Place) -> None:
        self.fields = fields
        self.groups = groups
        self.place = place

    def encoded(self, encoder: Encoder, chunk: Tensor, prepare: Callable[[Tensor], Tensor]) -> Iterator[Strip]:
        """Moments field by field, from top to bottom.

        Args:
            encoder: the network.
            chunk: (B, 3, T, H, W), anywhere.
            prepare: called with windows of it; gives floating pixels in [-1, 1] on the encoder's device.
        """
        x = self.enter(chunk, CELL, encoder.conv_in, prepare)
        for level in encoder.levels:
            for block in level.blocks:
                x = self.block(x, block)
            if level.downsample is not None:
                x = self.convolution(x, level.downsample)
        x = self.mid(x, encoder.mid)
        yield from self._strips(x, window_convolution(encoder.out.conv), encoder.out.norm)

    def decoded(self, decoder: Decoder, chunk: Tensor, prepare: Callable[[Tensor], Tensor]) -> Iterator[Strip]:
        """Pixels field by field, from top to bottom; arguments as for `encoded`, but the chunk is of latents."""
        x = self.enter(chunk, 1, decoder.conv_in, prepare)
        x = self.mid(x, decoder.mid)
        for level in decoder.levels:
            for block in level.blocks:
                x = self.block(x, block)
            if level.upsample is not None:
                x = self.convolution(x, level.upsample)
        yield from self._strips(x, window_convolution(decoder.out.conv), decoder.out.norm)

    def enter(self, chunk: Tensor, cell: int, layer: PaddedConv3d, prepare: Callable[[Tensor], Tensor]) -> Activation:
        """The first convolution, which reads its true neighbours in every field: the whole input is at hand."""
        conv, out = window_convolution(layer), self._empty(cell)
        height, width = chunk.shape[3:]
        for index, field in enumerate(self.fields):
            cols = conv.reach(field.cols.start * cell, field.cols.stop * cell, width)
            shape = (*chunk.shape[:3], field.rows.size * cell, field.cols.size * cell)
            for start, stop in self._cuts(conv, shape, layer.weight.element_size()):
                rows = conv.reach(field.rows.start * cell + start, field.rows.start * cell + stop, height)
                x = prepare(chunk[..., rows.start : rows.stop, cols.start : cols.stop])
                x = x.to(dtype=layer.weight.dtype, memory_format=torch.channels_last_3d)
                x = pad3d(x, (*conv.time, rows.before, rows.after, cols.before, cols.after), *conv.modes)
                self._append(out, index, conv.run(x))
        return out

    def convolution(self, x: Activation, layer: PaddedConv3d | Upsample) -> Activation:
        """A convolution without a norm before it, of any stride or growth."""
        conv = window_convolution(layer)
        out = self._empty(x.cell * conv.growth // conv.stride)
        for strip in self._strips(x, conv, None):
            self._append(out, strip.field, strip.values)
        return out

    def block(self, x: Activation, block: ResidualBlock) -> Activation:
        """A residual block. Its shortcut is taken while the first convolution reads the input, so two activations do."""
        h, shortcut = self._empty(x.cell), x if block.shortcut is None else self._empty(x.cell)
        for strip in self._strips(x, window_convolution(block.first.conv), block.first.norm, keep=block.shortcut is None):
            if block.shortcut is not None:
                shortcut.fields[strip.field].append(block.shortcut(strip.own))
            self._append(h, strip.field, strip.values)
        out = self._empty(x.cell)
        readers = [RowReader(rows) for rows in shortcut.fields]
        for strip in self._strips(h, window_convolution(block.second.conv), block.second.norm):
            stop = strip.start + strip.values.shape[3]
            self._append(out, strip.field, strip.values.add_(readers[strip.field].read(strip.start, stop)))
        return out

    def mid(self, x: Activation, mid: MidBlock) -> Activation:
        """The block on the smallest grid, whose attention sees a field at once."""
        x = self.block(x, mid.before)
        pooled = self._frame_moments(x)
        out = self._empty(x.cell)
        for index, rows in enumerate(x.fields):
            whole = RowReader(rows).read(0, rows.shape[3])
            h = _attend_space(mid.spatial, whole, pooled)
            if mid.temporal is not None:
                _attend_time(mid.temporal, h)
            self._append(out, index, h.add_(whole))
        return self.block(out, mid.after)

    def _frame_moments(self, x: Activation) -> Moments:
        """Moments of each frame, (B T, groups): the norm before attention is per frame."""
        pooled: Moments | None = None
        for index, rows in enumerate(x.fields):
            core = self._core(index, x.cell, 0, RowReader(rows, keep=True).read(0, rows.shape[3]))
            pooled = _merged(pooled, group_statistics(as_frames(core), self.groups))
        assert pooled is not None
        return pooled

    def _strips(self, x: Activation, conv: WindowConvolution, norm: GroupNorm | None, keep: bool = False) -> Iterator[Strip]:
        """A convolution over all fields, with norm and SiLU before it or without."""
        for index, rows in enumerate(x.fields):
            reader, cols = RowReader(rows, keep), conv.reach(0, rows.shape[4] // conv.stride, rows.shape[4])
            for start, stop in self._cuts(conv, rows.shape, rows.element_size):
                reach = conv.reach(start, stop, rows.shape[3])
                values = reader.read(reach.start, reach.stop)
                own = values[:, :, :, start - reach.start : stop - reach.start]
                padding = (*conv.time, reach.before, reach.after, cols.before, cols.after)
                if norm is None:
                    values = pad3d(values, padding, *conv.modes)
                else:
                    assert x.moments is not None
                    mean, rstd = x.moments.mean, x.moments.rstd(norm.eps)
                    values = norm_silu_pad(values, mean, rstd, norm.weight, norm.bias, padding, *conv.modes)
                yield Strip(index, start * conv.growth, own, conv.run(values))

    def _cuts(self, conv: WindowConvolution, shape: tuple[int, ...], element_size: int) -> Iterator[tuple[int, int]]:
        """Strips of the grid, nearly equal, whose tensors fit `Place.strip_bytes`; (B, C, T, H, W) is the input's shape."""
        batch, channels, frames, height, width = shape
        grid_rows, count = height // conv.stride, 1
        if self.place.strip_bytes is not None:
            line = batch * (frames + sum(conv.time)) * width * element_size
            read = READ_COPIES * channels * line
            row_bytes = read * conv.stride + WRITTEN_COPIES * conv.channels * line * conv.growth**2 // conv.stride
            rows = (self.place.strip_bytes - (KERNEL - 1) * read) // row_bytes
            count = math.ceil(grid_rows / max(1, rows))
        edges = [grid_rows * i // count for i in range(count + 1)]
        yield from pairwise(edges)

    def _empty(self, cell: int) -> Activation:
        return Activation([ParkedRows(self.place.device, self.place.park) for _ in self.fields], cell)

    def _append(self, out: Activation, index: int, values: Tensor) -> None:
        """Gather the statistics of a strip's core, then park it below the others."""
        core = self._core(index, out.cell, out.fields[index].shape[3], values)
        if core.numel():
            out.moments = _merged(out.moments, group_statistics(core, self.groups))
        out.fields[index].append(values)

    def _core(self, index: int, cell: int, start: int, values: Tensor) -> Tensor:
        """What of the rows from `start` on counts for statistics, a view."""
        field = self.fields[index]
        top, bottom = ((edge - field.rows.start) * cell - start for edge in (field.core_rows.start, field.core_rows.stop))
        left, right = ((edge - field.cols.start) * cell for edge in (field.core_cols.start, field.core_cols.stop))
        return values[:, :, :, max(top, 0) : max(bottom, 0), left:right]


def _merged(pooled: Moments | None, more: Moments) -> Moments:
    return more if pooled is None else merge_statistics(pooled, more)


def _attend_space(layer: SpatialAttention, x: Tensor, moments: Moments) -> Tensor:
    """The layer with given moments of each frame, frame by frame; its input is not added."""
    tokens = as_frames(x).flatten(2).transpose(1, 2)
    per_group = x.shape[1] // moments.mean.shape[1]
    scale = moments.rstd(layer.norm.eps).repeat_interleave(per_group, 1) * layer.norm.weight
    shift = layer.norm.bias - moments.mean.repeat_interleave(per_group, 1) * scale
    mixed = torch.empty_like(tokens, memory_format=torch.contiguous_format)
    with sdpa_kernel(_ATTENTION_KERNELS) if x.is_cuda else nullcontext():
        for i, frame in enumerate(tokens.unsqueeze(1).unsqueeze(1)):
            frame = torch.addcmul(shift[i], frame, scale[i]).to(x.dtype)
            mixed[i] = layer.out(F.scaled_dot_product_attention(layer.query(frame), layer.key(frame), layer.value(frame)))[0, 0]
    return from_frames(mixed.transpose(1, 2).unflatten(2, x.shape[3:]), x.shape[0])


def _attend_time(layer: TemporalAttention, x: Tensor) -> None:
    """Overwrite its input, so many rows at a time that all their frames make one frame: it sees one pixel of each."""
    for strip in x.split(math.ceil(x.shape[3] / x.shape[2]), dim=3):
        strip.copy_(layer(strip))
