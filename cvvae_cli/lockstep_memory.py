"""What a network takes that runs layer by layer over a chunk: activations that wait, and what one strip needs.

Formulas from the architecture; `lockstep.py` keeps to them and the tests count bytes. Kernels laid out anew and a
convolution's own workspace are not in them.
"""

import math
from dataclasses import dataclass

from cvvae_cli.autoencoder import DOWNSAMPLE_STRIDES
from cvvae_cli.config import CVVAEConfig, Tiling
from cvvae_cli.geometry import SPATIAL_COMPRESSION_RATIO as CELL
from cvvae_cli.geometry import latent_frame_count
from cvvae_cli.lockstep import READ_COPIES, WRITTEN_COPIES
from cvvae_cli.tiling import ENCODE, Direction
from cvvae_cli.window_convolution import KERNEL

# Frames added by the widest padding in time, and what else attention holds: tensors of one frame, and of the whole field.
_TIME_PADDING, _ATTENTION_FRAMES, _ATTENTION_FIELDS = 2, 10, 3
# Of the widest layer's input, what a network takes for a tile: the input, its padded copy, the output and a spare.
_TILE_COPIES = 4


@dataclass(frozen=True)
class ChunkShape:
    """A chunk and how its numbers are stored.

    Attributes:
        batch: videos.
        frames: 1 + 4k.
        height, width: in cells.
        element_size: bytes of a number.
    """

    batch: int
    frames: int
    height: int
    width: int
    element_size: int


@dataclass(frozen=True)
class _Level:
    """Channels that a level reads and has; its frames and positions per cell."""

    read: int
    channels: int
    frames: int
    cell: int


def parked_bytes(config: CVVAEConfig, direction: Direction, chunk: ChunkShape) -> int:
    """Most bytes of activations that wait at once: of the level where it is most, B T H W max(C_in, 2 C) numbers.

    A block's input waits beside the output of its first convolution; the second convolution's output takes their place
    strip by strip. At full size that is the level with the most pixels: 2 x 128 channels for encode, 256 for decode.

    Args:
        config: an official architecture.
        direction: ENCODE or DECODE.
        chunk: its height and width are those of all fields together; overlapping tiles count as often as they overlap.
    """
    cells = chunk.batch * chunk.height * chunk.width * chunk.element_size
    levels = _levels(config, direction, chunk)
    return max(cells * level.frames * level.cell**2 * max(level.read, 2 * level.channels) for level in levels)


def strip_bytes(config: CVVAEConfig, direction: Direction, tiling: Tiling, chunk: ChunkShape) -> int:
    """What one strip may take: about what the network would take for a tile."""
    widest = max(level.frames * level.cell**2 * max(level.read, level.channels) for level in _levels(config, direction, chunk))
    return _TILE_COPIES * chunk.batch * tiling.tile_cells**2 * widest * chunk.element_size


def working_bytes(config: CVVAEConfig, direction: Direction, chunk: ChunkShape, limit: int) -> int:
    """Most bytes of activations on the device for one field, beside those that wait.

    The most of two: twice `limit`, or twice one row's layer where that is more (a row of the output, the rows it reads);
    and attention over a field of h x w cells and t frames: B C h w (3 t + 10) numbers.
    """
    size, rows = chunk.batch * chunk.element_size, []
    for level in _levels(config, direction, chunk):
        line = size * (level.frames + _TIME_PADDING) * level.cell * chunk.width
        # The resampling convolution reads two rows more or writes two, of twice the width and twice the channels.
        rows.append(line * level.channels * (READ_COPIES * (KERNEL + 1) + WRITTEN_COPIES * 8))
        rows.append(line * (level.read * READ_COPIES * KERNEL + level.channels * WRITTEN_COPIES))
    frames = _ATTENTION_FIELDS * latent_frame_count(chunk.frames) + _ATTENTION_FRAMES
    attention = size * config.channels[-1] * chunk.height * chunk.width * frames
    return max(2 * max(limit, *rows), attention)


def _levels(config: CVVAEConfig, direction: Direction, chunk: ChunkShape) -> list[_Level]:
    """From the largest grid to the smallest."""
    levels, frames, widths = [], chunk.frames, config.channels
    for i, width in enumerate(widths):
        before = i - 1 if direction == ENCODE else i + 1
        levels.append(_Level(widths[min(max(before, 0), len(widths) - 1)], width, frames, CELL >> i))
        if i < len(DOWNSAMPLE_STRIDES):
            frames = math.ceil(frames / DOWNSAMPLE_STRIDES[i][0])
    return levels
