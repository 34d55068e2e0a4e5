"""Which tiles fit a device's memory, from what two small windows are seen to take. It cuts nothing and runs nothing else."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.config import SHORTEST_CHUNK, CompactConfig, Tiling
from cvvae_cli.geometry import RGB, cell_count, chunk_stride, latent_frame_count, tile_windows
from cvvae_cli.geometry import SPATIAL_COMPRESSION_RATIO as CELL
from cvvae_cli.geometry import TEMPORAL_COMPRESSION_RATIO as STEP
from cvvae_cli.host_memory import available_bytes, keep_freed_memory
from cvvae_cli.peak_memory import MIB, is_out_of_memory, peak_memory
from cvvae_cli.tiling import smaller_tiling

FRAMES = 17
# Pixels: quick at full size, and large enough to stand out in a process's memory.
COMPACT_CALIBRATION, NORMED_CALIBRATION = (128, 256), (64, 96)
LEAST_SLOPE = 0.5
# A card is there for the network; a machine has other work too, and large windows gain little.
SHARE_OF_CARD, SHARE_OF_MACHINE = 0.8, 0.5
UNKNOWN_BYTES = 2 << 30
# Frames of a chunk lie in memory as read, as cut, as decoded and as written, and their rows once more in float32.
# That is four times a byte for each colour, or two bytes where frames have 16 bits.
HOST_BYTES_PER_PIXEL, HOST_BYTES_PER_DEEP_PIXEL = 24, 36
# On a card, beside the bytes of a chunk's frames, two rows of tiles are blended in float32.
BLENDED_BYTES_PER_PIXEL = 2 * 4 * RGB
# GroupNorm sees a whole window: 17 frames are what the official weights were trained on, 576 px what the release uses.
NORMED_TILES, NORMED_CHUNK = (576, 512, 448, 384, 320, 256, 192, 128, 64), 17
# The compact family looks only a few cells and latent frames around, so larger windows cost memory and nothing else.
FREE_TILES, FREE_CHUNKS = (2048, 1536, 1024, 768, 512, 384, 256, 128, 64), (33, 17)

# Bytes. Clearing new pages costs the compact family's time. The official networks compute far longer on a block than that takes,
# and of theirs much would be kept in pieces that fit nothing.
KEPT_BLOCK, KEPT_NORMED_BLOCK = 1 << 30, 64 << 20

_MEASURED: "WeakKeyDictionary[Autoencoder, dict[tuple[torch.device, torch.dtype], WindowMemory]]" = WeakKeyDictionary()


def keep_memory(model: Autoencoder) -> None:
    """On a CPU, have the process keep what the model frees, as far as that pays."""
    if model.device.type == "cpu":
        keep_freed_memory(KEPT_BLOCK if isinstance(model.config, CompactConfig) else KEPT_NORMED_BLOCK)


@dataclass(frozen=True)
class WindowMemory:
    """What a window takes beside weights and input: the greater of encode and decode.

    Attributes:
        fixed: bytes whatever the window's size, such as kernels laid out anew.
        per_pixel: bytes for each pixel of all its frames.
    """

    fixed: float
    per_pixel: float

    def bytes_for(self, pixels: float) -> float:
        """Bytes that windows of so many pixels take."""
        return self.fixed + self.per_pixel * pixels


def measure_windows(model: Autoencoder) -> WindowMemory:
    """Run a small and a larger window each way and see what they take; zeros where memory cannot be read or is full.

    Once for each model, device and dtype.
    """
    place = (model.device, model.dtype)
    known = _MEASURED.setdefault(model, {})
    if place not in known:
        known[place] = _measure_windows(model)
    return known[place]


def _measure_windows(model: Autoencoder) -> WindowMemory:
    small, large = COMPACT_CALIBRATION if isinstance(model.config, CompactConfig) else NORMED_CALIBRATION
    pixels = [FRAMES * tile**2 for tile in (small, large)]
    found = []
    with torch.inference_mode():
        for network, channels, frames, scale in (
            (model.encode, RGB, FRAMES, 1),
            (model.decode, model.latent_channels, latent_frame_count(FRAMES), CELL),
        ):
            taken = [_window_bytes(network, model, (1, channels, frames, tile // scale, tile // scale)) for tile in (small, large)]
            # Memory is read from outside on a CPU, so a difference of two readings may even be negative.
            per_pixel = max((taken[1] - taken[0]) / (pixels[1] - pixels[0]), LEAST_SLOPE * taken[1] / pixels[1])
            found.append(WindowMemory(max(0.0, taken[1] - per_pixel * pixels[1]), per_pixel))
    return max(found, key=lambda memory: memory.bytes_for(pixels[1]))


def _window_bytes(network: Callable[[Tensor], Tensor], model: Autoencoder, shape: tuple[int, ...]) -> float:
    try:
        x = torch.zeros(shape, dtype=model.dtype, device=model.device)
        return MIB * (peak_memory(model.device, lambda: network(x))[1] or 0.0)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return 0.0  # the run itself retreats as far as it can, and says where it cannot


def memory_budget(device: torch.device) -> int:
    """Bytes that windows may take on the device: most of what is free on a card, up to half on a CPU.

    Rounded down to a power of two, so that a few MiB more or less do not change the plan.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return _power_of_two((free + held) * SHARE_OF_CARD)
    free = available_bytes()
    return UNKNOWN_BYTES if free is None else _power_of_two(free * SHARE_OF_MACHINE)


def _power_of_two(size: float) -> int:
    return 1 << (max(1, int(size)).bit_length() - 1)


def fitting_tiling(model: Autoencoder, height: int, width: int, deep: bool = False) -> Tiling:
    """The tiling with the least double work whose windows fit the device's memory, one for encode and decode.

    The default where memory cannot be read or is full.

    Args:
        model: on the device; runs one small window each way.
        height, width: of the video in pixels.
        deep: its frames have 16 bits.
    """
    memory = measure_windows(model)
    return best_tiling(model, height, width, memory, memory_budget(model.device), deep) if memory.per_pixel else Tiling()


def tiling_within(
    model: Autoencoder, tiling: Tiling | None, frames: int, height: int, width: int, deep: bool = False
) -> Tiling:
    """`tiling`, or the same with smaller tiles, or else shorter chunks, where it would not fit the device's memory; a new one for None.

    The release's algorithm keeps its tiles, which are part of its result. Chunks do not get shorter than `NORMED_CHUNK`.

    Args:
        model: on the device; runs one small window each way.
        tiling: as recorded.
        frames: of the video, 1 + 4k; a chunk holds no more.
        height, width: of the video in pixels.
        deep: its frames have 16 bits.
    """
    if tiling is None:
        return fitting_tiling(model, height, width, deep)
    memory, budget = measure_windows(model), memory_budget(model.device)
    longest = max(SHORTEST_CHUNK, frames)
    fitting = tiling
    while tiling_bytes(_in_chunks_of(longest, fitting), height, width, memory, model.device, deep) > budget:
        smaller = smaller_tiling(fitting) if tiling.mode == "blend" else None
        if smaller is None:
            held = min(tiling.chunk, longest)
            tiling = _in_chunks_of(max(NORMED_CHUNK, 1 + (held - 1) // 2 // STEP * STEP), tiling)
            if tiling.chunk >= fitting.chunk:
                break
            smaller = tiling
        fitting = smaller
    return fitting


def _in_chunks_of(longest: int, tiling: Tiling) -> Tiling:
    """The same with chunks of `longest` frames, 1 + 4k, where they are longer; they keep their overlap where they can."""
    chunk = min(tiling.chunk, longest)
    return replace(tiling, chunk=chunk, chunk_overlap=min(tiling.chunk_overlap, chunk - 1 - STEP))


def best_tiling(model: Autoencoder, height: int, width: int, memory: WindowMemory, budget: int, deep: bool = False) -> Tiling:
    """As `fitting_tiling`, from what windows take and a budget in bytes.

    Where not even the smallest fits, the smallest.
    """

    def need(tiling: Tiling) -> float:
        return tiling_bytes(tiling, height, width, memory, model.device, deep)

    compact = isinstance(model.config, CompactConfig)
    tiles, chunks = (FREE_TILES, FREE_CHUNKS) if compact else (NORMED_TILES, (NORMED_CHUNK,))
    candidates = [Tiling(tile=tile, overlap=min(64, tile // 4), chunk=chunk) for chunk in chunks for tile in tiles]
    fitting = [c for c in candidates if need(c) <= budget]
    if not fitting:
        return min(candidates, key=need)
    best = min(fitting, key=lambda c: (double_work(c, height, width), c.tile * c.chunk))
    if model.device.type != "cuda":
        return best
    columns = len(tile_windows(cell_count(width), best.tile_cells, best.overlap_cells))
    batches = [replace(best, batch=n) for n in range(columns, 0, -1)]
    return next((b for b in batches if need(b) <= budget), best)


def tiling_bytes(
    tiling: Tiling, height: int, width: int, memory: WindowMemory, device: torch.device, deep: bool = False
) -> float:
    """Bytes that a chunk takes on the device: its windows in the network, and its frames around it, of 16 bits where `deep`."""
    rows, columns = (min(tiling.tile, CELL * cell_count(size)) for size in (height, width))
    if device.type == "cuda":
        beside = tiling.chunk * width * ((2 if deep else 1) * RGB * height + BLENDED_BYTES_PER_PIXEL * rows)
    else:
        beside = (HOST_BYTES_PER_DEEP_PIXEL if deep else HOST_BYTES_PER_PIXEL) * tiling.chunk * height * width
    return memory.bytes_for(tiling.chunk * tiling.batch * rows * columns) + beside


def double_work(tiling: Tiling, height: int, width: int) -> float:
    """Pixels that the network computes for each pixel of the video, at least 1."""
    pixels = 1.0
    for size in (height, width):
        windows = tile_windows(cell_count(size), tiling.tile_cells, tiling.overlap_cells)
        pixels *= sum(window.size for window in windows) / cell_count(size)
    return pixels * tiling.chunk / (STEP * chunk_stride(tiling.chunk, tiling.chunk_overlap))
