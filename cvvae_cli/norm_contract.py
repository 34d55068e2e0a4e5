"""One chunk under a norm contract: `Tiling.norm`.

`tile` is what networks do by themselves: the statistics of each tile normalise it. `global`: those of all tiles together
do. `exact`: the untiled network's result, computed in strips. The compact family has no statistics of positions: there
`global` is `tile`, and for `exact` its tiles overlap as far as it sees and are cut instead of blended. This module
knows no video and no chunk but the one at hand.
"""

import math
from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor

from cvvae_cli.autoencoder import Autoencoder, Decoder, Encoder
from cvvae_cli.config import CompactConfig, CVVAEConfig, Tiling
from cvvae_cli.errors import DeviceError, UsageError
from cvvae_cli.geometry import SPATIAL_COMPRESSION_RATIO as CELL
from cvvae_cli.geometry import Window, frame_count, tile_windows
from cvvae_cli.host_memory import available_bytes, return_freed_memory
from cvvae_cli.lockstep import Field, Lockstep, Place
from cvvae_cli.lockstep_memory import ChunkShape, parked_bytes, strip_bytes, working_bytes
from cvvae_cli.tiling import DECODE, ENCODE, Direction, Network, blended_bands, core_windows, run_tiles

Prepare = Callable[[Tensor], Tensor]
"""A window of a chunk to floating numbers on the network's device."""

GIB = 1 << 30


def run_chunk(
    model: Autoencoder, prepare: Prepare, network: Network, x: Tensor, tiling: Tiling, direction: Direction
) -> Iterator[tuple[int, Tensor]]:
    """Run one side of a model over one chunk.

    Args:
        model: the autoencoder.
        prepare: what is done with a window before the network sees it.
        network: a window through `prepare` and the model; called where tiles need nothing of each other.
        x: (B, C, n, H, W), frames for ENCODE and latents for DECODE, anywhere.
        tiling: size and overlap of tiles, and the contract; for `exact` a strip may take as much memory as a tile.
        direction: ENCODE or DECODE.

    Yields:
        (first row, (B, C', n', rows, W') floating) from top to bottom, every row once.

    Raises:
        UsageError: (a ValueError) a compact model's encoder or decoder sees farther than the tile reaches.
        DeviceError: activations that have to wait do not fit the machine's memory.
    """
    if tiling.norm == "exact" and isinstance(model.config, CompactConfig):
        _require_reach(model.config, tiling, max(x.shape[3:]) // direction.read_cell)
        yield from run_tiles(network, x, tiling, direction, cells_seen(model.config, direction))
    elif tiling.norm == "tile" or isinstance(model.config, CompactConfig):
        yield from run_tiles(network, x, tiling, direction)
    else:
        yield from _in_lockstep(model, model.config, prepare, x, tiling, direction)


@torch.no_grad()
def _in_lockstep(
    model: Autoencoder, config: CVVAEConfig, prepare: Prepare, x: Tensor, tiling: Tiling, direction: Direction
) -> Iterator[tuple[int, Tensor]]:
    size = [positions // direction.read_cell for positions in x.shape[3:]]
    if tiling.norm == "exact":
        rows, cols = ([Window(0, cells)] for cells in size)
    else:
        rows, cols = (tile_windows(cells, tiling.tile_cells, tiling.overlap_cells) for cells in size)
    place = _place(model, config, x, [sum(window.size for window in axis) for axis in (rows, cols)], tiling, direction)
    run = Lockstep(fields_of(rows, cols), config.norm_groups, place)
    if direction == ENCODE:
        assert isinstance(model.encoder, Encoder)
        strips = run.encoded(model.encoder, x, prepare)
    else:
        assert isinstance(model.decoder, Decoder)
        strips = run.decoded(model.decoder, x, prepare)
    if tiling.norm == "exact":
        yield from ((strip.start, strip.values) for strip in strips)
    else:
        outputs = (strip.values for strip in strips)
        yield from blended_bands(lambda row, cols: islice(outputs, len(cols)), rows, cols, direction.write_cell)


def fields_of(rows: list[Window], cols: list[Window]) -> list[Field]:
    """A field for each tile, row by row."""
    row_cores, col_cores = zip(rows, core_windows(rows)), list(zip(cols, core_windows(cols)))
    return [Field(row, col, row_core, col_core) for row, row_core in row_cores for col, col_core in col_cores]


def _place(model: Autoencoder, config: CVVAEConfig, x: Tensor, cells: list[int], tiling: Tiling, direction: Direction) -> Place:
    """Activations wait on the device where they fit, else in the machine's memory.

    Args:
        cells: height and width of all fields together.
    """
    frames = x.shape[2] if direction == ENCODE else frame_count(x.shape[2])
    chunk = ChunkShape(x.shape[0], frames, *cells, torch.finfo(model.dtype).bits // 8)
    limit = strip_bytes(config, direction, tiling, chunk)
    strips = limit if tiling.norm == "exact" else None
    parked, working = parked_bytes(config, direction, chunk), working_bytes(config, direction, chunk, limit)
    if model.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(model.device)
        free += torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
        # Page-locked memory is the driver's affair: it refuses what it does not have.
        return Place(model.device, model.device if parked + working <= free else torch.device("cpu"), strips)
    if not _fits(parked + working):
        size = math.ceil((parked + working) / GIB)
        raise DeviceError(
            f"Norm {tiling.norm} keeps {size} GiB of activations for this frame size, more than is free; "
            "pass --norm tile or a smaller --size."
        )
    return Place(model.device, model.device, strips)


def _fits(size: int) -> bool:
    free = available_bytes()
    if free is not None and free < size:
        # What the last chunk gave back may still be held by this process.
        return_freed_memory()
        free = available_bytes()
    return free is None or free >= size


def _require_reach(config: CompactConfig, tiling: Tiling, cells: int) -> None:
    """Refuse a tile that does not hold all that one output depends on.

    Both directions count, because a file is decoded with the tiles that it was encoded with.

    Args:
        cells: of the frame's longer side; a tile that holds it all is never too small.
    """
    seen = 2 * max(cells_seen(config, direction) for direction in (ENCODE, DECODE))
    if tiling.tile_cells <= seen and tiling.tile_cells < cells:
        least = CELL * (seen + 1)
        raise UsageError(f"Tile {tiling.tile} px is too small for an exact result of this model; pass --tile {least}.")


def cells_seen(config: CompactConfig, direction: Direction) -> int:
    """How many cells to each side an output of a compact network depends on.

    A residual block sees two positions around: of 1/4 size two of which make a cell, or cells. The output or input convolution
    sees one more, and so does the gate.
    """
    quarter, *eighths = config.encoder_blocks if direction == ENCODE else config.decoder_blocks
    return quarter + 2 * sum(eighths) + 2
