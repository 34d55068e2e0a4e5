"""Round trips of one clip, cut in tiles and chunks and not cut, and the harm that the cuts do.

No latent file and no video codec lies between source and decoded frames; latents are posterior means in float32. It knows
no table and no command line.
"""

import time
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.codec import Plan, Progress, cropped_frames, decode_frames, draw_latents, encode_frames, no_progress, pad_to_cells
from cvvae_cli.config import SHORTEST_CHUNK, CompactConfig, Tiling
from cvvae_cli.errors import DeviceError, UsageError
from cvvae_cli.fidelity import Cut, Figures, cut_of, figures_of, ghosting, tiles_along
from cvvae_cli.geometry import SPATIAL_COMPRESSION_RATIO as CELL
from cvvae_cli.geometry import TEMPORAL_COMPRESSION_RATIO as STEP
from cvvae_cli.geometry import cell_count, chunk_stride, frame_count, latent_frame_count
from cvvae_cli.memory_model import measure_windows, memory_budget, tiling_bytes
from cvvae_cli.metrics import Comparison
from cvvae_cli.peak_memory import peak_memory
from cvvae_cli.video_io import VideoReader

MOST_PIXELS = 150_000_000
"""Of all frames of a clip, 65 frames of 1080p; source and decoded frames lie in memory, 3 bytes for each."""

@dataclass(frozen=True, eq=False)
class RoundTrip:
    """What came back, and what it took.

    Attributes:
        frames: uint8 RGB [T, H, W, 3].
        seconds, cpu_seconds: of encode and decode together: on the wall, and of all the process's threads.
        growth_mib: most memory that the run took beside weights, source and decoded frames; None where it cannot be read.
    """

    frames: np.ndarray
    seconds: float
    cpu_seconds: float
    growth_mib: float | None


class RoundTrips:
    """Round trips of one clip, each made once and kept.

    Args:
        model: the autoencoder.
        source: uint8 RGB [T, H, W, 3].
        progress: called after every frame of every run.

    Memory: the source and the frames of every run, 3 bytes a pixel.
    """

    def __init__(self, model: Autoencoder, source: np.ndarray, progress: Progress = no_progress) -> None:
        self.model, self.source = model, source
        self._progress = progress
        self._made: dict[tuple[Tiling, int], RoundTrip] = {}

    def run(self, tiling: Tiling, first: int = 0) -> RoundTrip:
        """The round trip of the frames from `first` on, cut by `tiling`.

        Raises:
            DeviceError: a window of it does not fit the device's memory.
        """
        key = tiling, first
        if key not in self._made:
            self._made[key] = self._run(tiling, self.source[first:])
        return self._made[key]

    def _run(self, tiling: Tiling, source: np.ndarray) -> RoundTrip:
        count, height, width, _ = source.shape
        self._require_memory(tiling, height, width)
        # Filled, so that its pages are there before the run's memory is read.
        decoded = np.full(source.shape, 128, np.uint8)

        def make() -> None:
            pictures = (pad_to_cells(torch.from_numpy(frame).permute(2, 0, 1)[None, :, None]) for frame in source)
            with torch.inference_mode():
                latents = draw_latents(encode_frames(self.model, pictures, plan), seed=None)
                pieces = decode_frames(self.model, latents, plan)
                for index, frame in enumerate(islice(cropped_frames(pieces, height, width), count)):
                    decoded[index] = frame
                    self._progress(index + 1, count)

        plan = Plan(tiling)
        began, began_cpu = time.perf_counter(), time.process_time()
        growth = peak_memory(self.model.device, make)[1]
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
        if plan.tiling != tiling:
            raise DeviceError(f"The device ran out of memory on a tile of {tiling.tile} px; pass a smaller --size or --chunk.")
        return RoundTrip(decoded, seconds, cpu_seconds, growth)

    def _require_memory(self, tiling: Tiling, height: int, width: int) -> None:
        """Fail before a system without memory ends the process."""
        device = self.model.device
        need, budget = tiling_bytes(tiling, height, width, measure_windows(self.model), device), memory_budget(device)
        if need > budget:
            rows, columns = (min(tiling.tile, CELL * cell_count(size)) for size in (height, width))
            window = f"A window of {columns}x{rows} px and {tiling.chunk} frames takes about {need / 2**30:.1f} GiB"
            advice = "pass a smaller --size, --chunk or --clip-frames"
            raise DeviceError(f"{window}, and {budget / 2**30:.1f} GiB may be taken; {advice}.")


@dataclass(frozen=True)
class Run:
    """One run's figures, measured at the places of the tiled run's cut.

    Attributes:
        figures: against the source.
        seconds, cpu_seconds, growth_mib: as in `RoundTrip`.
    """

    figures: Figures
    seconds: float
    cpu_seconds: float
    growth_mib: float | None


@dataclass(frozen=True)
class FidelityReport:
    """What tiles and chunks do to a clip.

    Attributes:
        frames, width, height: of the clip.
        tiling: how it was cut.
        tiles: rows and columns of tiles.
        chunks: how many.
        tiled: the run that is judged.
        untiled: the same chunks, each in one window over the whole frame.
        one_chunk: the same tiles, all frames in one chunk. None where there is one chunk only, and for a model that is made
            for short windows.
        psnr_loss_db: PSNR of `untiled` less that of `tiled`.
        psnr_tiled_to_untiled_db: PSNR of the tiled frames against the untiled ones.
        ghosting: as `fidelity.ghosting`; the frames inside a chunk come from `one_chunk`, else from chunks that begin
            `shift` frames later. None where nothing is crossfaded or no shift keeps crossfaded frames apart.
        shift: frames, or None.
    """

    frames: int
    width: int
    height: int
    tiling: Tiling
    tiles: tuple[int, int]
    chunks: int
    tiled: Run
    untiled: Run
    one_chunk: Run | None
    psnr_loss_db: float
    psnr_tiled_to_untiled_db: float
    ghosting: float | None
    shift: int | None

    def to_dict(self) -> dict:
        """A JSON-ready dictionary."""
        return asdict(self)


def read_clip(path: str | Path, max_frames: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """The first frames of a video, uint8 RGB [T, H, W, 3].

    Args:
        path: the video.
        max_frames: at most so many.
        size: (width, height) to resize to; None keeps the video's.

    Raises:
        VideoError: it cannot be read.
        UsageError: more pixels than `MOST_PIXELS`.
    """
    frames: list[np.ndarray] = []
    with VideoReader(path, max_frames=max_frames, size=size) as reader:
        most = MOST_PIXELS // (reader.width * reader.height)
        for frame in reader:
            if len(frames) >= most:
                held = f"The first {max_frames} frames of {path}, {reader.width}x{reader.height} px each"
                limit = f"are more than the {MOST_PIXELS // 10**6} million pixels that are kept in memory"
                advice = f"pass --clip-frames {most} or a smaller --size" if most else "pass a smaller --size"
                raise UsageError(f"{held}, {limit}; {advice}.")
            frames.append(frame.rgb)
    return np.stack(frames)


def measure_fidelity(trips: RoundTrips, tiling: Tiling, with_ghosts: bool = True) -> FidelityReport:
    """Measure what `tiling` does to a clip.

    Three round trips at most: as cut, untiled, and with chunks that end elsewhere or nowhere.

    Args:
        trips: of the clip.
        tiling: how it is cut.
        with_ghosts: False saves an official architecture the round trip that ghosts are told by.

    Raises:
        DeviceError: a window, above all an untiled one, does not fit the device's memory.
    """
    source = trips.source
    frames, height, width, _ = source.shape
    cut = cut_of(tiling, frames, height, width)
    tiled, untiled = trips.run(tiling), trips.run(untiled_tiling(tiling, height, width))
    one_chunk, shift, inside = None, None, None
    if cut.crossfades and isinstance(trips.model.config, CompactConfig):
        one_chunk = trips.run(one_chunk_tiling(tiling, frames))
        inside = one_chunk.frames
    elif with_ghosts and cut.crossfades and (shift := shift_of(tiling)):
        inside = np.concatenate([source[:shift], trips.run(tiling, shift).frames])
    runs = [None if run is None else _judged(run, source, cut) for run in (tiled, untiled, one_chunk)]
    assert runs[0] is not None and runs[1] is not None
    return FidelityReport(
        frames=frames, width=width, height=height, tiling=tiling,
        tiles=(len(tiles_along(tiling, height)), len(tiles_along(tiling, width))), chunks=len(cut.crossfades) + 1,
        tiled=runs[0], untiled=runs[1], one_chunk=runs[2],
        psnr_loss_db=runs[1].figures.psnr_db - runs[0].figures.psnr_db,
        psnr_tiled_to_untiled_db=_psnr(untiled.frames, tiled.frames),
        ghosting=None if inside is None else ghosting(source, tiled.frames, inside, cut.crossfaded), shift=shift,
    )  # fmt: skip


def untiled_tiling(tiling: Tiling, height: int, width: int) -> Tiling:
    """The same chunks, each in one plain window over frames of `height` x `width` pixels."""
    side = max(CELL * cell_count(height), CELL * cell_count(width), tiling.tile)
    return replace(tiling, mode="blend", norm="tile", tile=side, overlap=0, batch=1)


def one_chunk_tiling(tiling: Tiling, frames: int) -> Tiling:
    """The same tiles, with all frames in one chunk."""
    return replace(tiling, chunk=max(SHORTEST_CHUNK, frame_count(latent_frame_count(frames))), chunk_overlap=0)


def shift_of(tiling: Tiling) -> int | None:
    """How many frames later chunks begin so that crossfaded frames lie inside a chunk; None where nothing does it.

    Whole latent frames, so that each frame keeps its place within one.
    """
    stride = STEP * chunk_stride(tiling.chunk, tiling.chunk_overlap)
    shift = stride // 2 // STEP * STEP
    return shift if tiling.chunk_overlap and shift >= tiling.chunk_overlap else None


def _judged(run: RoundTrip, source: np.ndarray, cut: Cut) -> Run:
    return Run(figures_of(source, run.frames, cut), run.seconds, run.cpu_seconds, run.growth_mib)


def _psnr(reference: np.ndarray, decoded: np.ndarray) -> float:
    comparison = Comparison(with_ssim=False)
    for a, b in zip(reference, decoded):
        comparison.add(a, b)
    return comparison.result().psnr_db
