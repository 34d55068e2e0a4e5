"""The pipeline: frames -> chunks -> tiles -> moments -> latents, and back.

Everything is pulled: a consumer asks for the next latents or frames, and only what they need is read and
computed, so memory holds a chunk whatever the length. Tensors and files go through the same functions. This
module knows no command line and no metric.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from cvvae_cli.anchors import KeepAnchor, ReadAnchor, kept_anchors, with_anchors
from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.config import Tiling
from cvvae_cli.errors import DeviceError, UsageError
from cvvae_cli.geometry import SPATIAL_COMPRESSION_RATIO as CELL
from cvvae_cli.geometry import TEMPORAL_COMPRESSION_RATIO as STEP
from cvvae_cli.geometry import chunk_stride, latent_frame_count
from cvvae_cli.norm_contract import Prepare, run_chunk
from cvvae_cli.peak_memory import is_out_of_memory
from cvvae_cli.posterior import DiagonalGaussian
from cvvae_cli.stage_clock import StageClock
from cvvae_cli.tiling import (
    DECODE,
    ENCODE,
    Band,
    Direction,
    Network,
    RunChunk,
    assemble,
    cut_windows,
    run_chunks,
    smaller_tiling,
)

Progress = Callable[[int, int | None], None]
"""Called with the frames done and the frames expected (None where nobody knows)."""

# Tells the noise of an anchor from that of the latent frame in its place.
_OF_ANCHOR = 1


def no_progress(done: int, total: int | None) -> None:
    """Say nothing."""


class Plan:
    """How a run cuts its video. A device that runs out of memory makes the tiles smaller, and the run goes on.

    Args:
        tiling: to begin with.

    Attributes:
        tiling: now.
        notes: what was changed and why, a sentence each.
    """

    def __init__(self, tiling: Tiling) -> None:
        self.tiling = tiling
        self.notes: list[str] = []

    def retreat(self, error: RuntimeError, tiling: Tiling) -> Tiling:
        """A smaller tiling where the device ran out of memory: one tile at a time, then smaller tiles.

        Args:
            error: what the network raised.
            tiling: how it was cut then; larger than the plan's where another part of the run has retreated since.

        Raises:
            RuntimeError: `error`, where it is another one.
            DeviceError: nothing smaller is left.
        """
        if not is_out_of_memory(error):
            raise error
        if tiling != self.tiling:
            return self.tiling
        smaller = smaller_tiling(tiling)
        if smaller is None:
            advice = "free some memory or use another device"
            raise DeviceError(f"The device ran out of memory on a tile of {tiling.tile} px; {advice}.") from error
        self.tiling = smaller
        went_on = f"the run went on with tiles of {smaller.tile} px, {smaller.batch} at a time"
        self.notes.append(f"The device ran out of memory; {went_on}.")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return smaller


def encode_tensor(model: Autoencoder, x: Tensor, tiling: Tiling | None = None) -> Tensor:
    """Encode a whole video in chunks and tiles.

    Args:
        model: the autoencoder.
        x: (B, 3, T, H, W), floating in [-1, 1], or uint8, or uint16 with white 65535; any T >= 1, H and W. On any device.
        tiling: how to cut; None is the default.

    Returns:
        Moments (B, 2z, t, h, w) in float32 on the model's device, with t = 1 + ceil((T - 1) / 4), h and w = H and W
        divided by 8 and rounded up: the video is continued by repeating its last frame, row and column.

    Raises:
        UsageError: (a ValueError) the shape is not a video's.
        DeviceError: the device runs out of memory on the smallest tiles.
    """
    if x.dim() != 5 or x.shape[1] != 3 or 0 in x.shape:
        raise UsageError(f"A video must have the shape (B, 3, T, H, W), got {tuple(x.shape)}; add or move axes.")
    with torch.inference_mode():
        frames = (pad_to_cells(frame) for frame in x.split(1, dim=2))
        return torch.cat(list(encode_frames(model, frames, Plan(tiling or Tiling()))), dim=2)


def decode_tensor(model: Autoencoder, z: Tensor, tiling: Tiling | None = None) -> Tensor:
    """Decode a whole video's latents in chunks and tiles.

    Args:
        model: the autoencoder.
        z: (B, z, t, h, w), floating, unscaled; on any device.
        tiling: how to cut; None is the default.

    Returns:
        Video (B, 3, 1 + 4 (t - 1), 8h, 8w) in float32 on the model's device, RGB around [-1, 1], not clamped.

    Raises:
        UsageError: (a ValueError) the shape is not a latent's.
        DeviceError: the device runs out of memory on the smallest tiles.
    """
    if z.dim() != 5 or z.shape[1] != model.latent_channels or 0 in z.shape:
        raise UsageError(
            f"A latent must have the shape (B, {model.latent_channels}, t, h, w), got {tuple(z.shape)}; add or move axes."
        )
    with torch.inference_mode():
        bands = _decoded_bands(model, [z], Plan(tiling or Tiling()), 0, StageClock(), None)
        return torch.cat(list(_whole_frames(bands, Tensor.float, torch.float32)), dim=2)


def encode_frames(
    model: Autoencoder,
    frames: Iterable[Tensor],
    plan: Plan,
    first: int = 0,
    clock: StageClock | None = None,
    keep_anchor: KeepAnchor | None = None,
) -> Iterator[Tensor]:
    """Encode a stream.

    Args:
        model: the autoencoder.
        frames: consecutive (B, 3, n, H, W), uint8, uint16 or floating in [-1, 1], H and W multiples of 8.
        plan: how to cut.
        first: position of the first latent frame that the stream stands for, the start of a chunk.
        clock: counts the stages "to device", "encode" and "blend".
        keep_anchor: called for every chunk but the first, before the last of its moments are yielded; None drops anchors.

    Yields:
        Moments (B, 2z, n', h, w), float32, in order; together those of `encode_tensor`. A stream that starts after 0 begins
        with latent frame `first` + 1.
    """
    clock = clock or StageClock()

    def prepare(x: Tensor) -> Tensor:
        with clock.stage("to device"):
            return to_pixels(x.to(model.device), model.dtype)

    def network(x: Tensor) -> Tensor:
        x = prepare(x)
        with clock.stage("encode"):
            return model.encode(x)

    windows, run = cut_windows(frames, plan.tiling, ENCODE, first * STEP), _chunk_runner(model, prepare, clock, "encode")
    bands = run_chunks(network, windows, plan.tiling, ENCODE, plan.retreat, run)
    if keep_anchor is not None:
        bands = kept_anchors(bands, keep_anchor)
    yield from clock.timed("blend", _whole_frames(bands, Tensor.float, torch.float32))


def decode_frames(
    model: Autoencoder,
    latents: Iterable[Tensor],
    plan: Plan,
    first: int = 0,
    clock: StageClock | None = None,
    read_anchor: ReadAnchor | None = None,
    deep: bool = False,
) -> Iterator[Tensor]:
    """Decode a stream to frames of 8 or 16 bits.

    Args:
        model: the autoencoder.
        latents: consecutive (B, z, n, h, w), floating, unscaled.
        plan: how to cut.
        first: position of the stream's first latent frame, the start of a chunk.
        clock: counts the stages "decode", "blend" and "from device".
        read_anchor: gives every chunk but the video's first its own first latent; None leaves its neighbour's.
        deep: give 16 bits.

    Yields:
        uint8 (uint16 where `deep`) (B, 3, n', 8h, 8w) on the CPU, channels last in memory, in order. A stream that starts
        after 0 begins with frame 4 `first` + 1.
    """
    clock = clock or StageClock()
    bands = _decoded_bands(model, latents, plan, first, clock, read_anchor)
    convert, dtype = (to_words, torch.uint16) if deep else (to_bytes, torch.uint8)
    for frames in clock.timed("blend", _whole_frames(bands, convert, dtype)):
        with clock.stage("from device"):
            frames = frames.cpu()
        yield frames


def _decoded_bands(
    model: Autoencoder, latents: Iterable[Tensor], plan: Plan, first: int, clock: StageClock, read_anchor: ReadAnchor | None
) -> Iterator[Band]:
    def prepare(z: Tensor) -> Tensor:
        return z.to(model.device)

    def network(z: Tensor) -> Tensor:
        z = prepare(z)
        with clock.stage("decode"):
            return model.decode(z)

    windows, run = cut_windows(latents, plan.tiling, DECODE, first), _chunk_runner(model, prepare, clock, "decode")
    if read_anchor is not None:
        windows = with_anchors(windows, read_anchor)
    return run_chunks(network, windows, plan.tiling, DECODE, plan.retreat, run)


def _chunk_runner(model: Autoencoder, prepare: Prepare, clock: StageClock, stage: str) -> RunChunk:
    """`run_chunk` for a model; where its layers take turns, no network counts their time, and blending tiles is part of it."""

    def run(network: Network, x: Tensor, tiling: Tiling, direction: Direction) -> Iterator[tuple[int, Tensor]]:
        rows = run_chunk(model, prepare, network, x, tiling, direction)
        return rows if tiling.norm == "tile" else clock.timed(stage, rows)

    return run


def _whole_frames(bands: Iterable[Band], convert: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Iterator[Tensor]:
    """As `assemble`; smaller tiles do not help where a chunk's frames are too much."""
    try:
        yield from assemble(bands, convert, dtype)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError("The device ran out of memory on the frames of a chunk; pass a smaller --chunk or --size.") from error


def to_pixels(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 or uint16 to [-1, 1], computed in float32 and rounded once; (B, 3, n, H, W), channels last. Floating frames pass.

    Frame by frame, because the passes over one frame stay in a processor's cache.
    """
    if frames.is_floating_point():
        return frames
    half = 32767.5 if frames.dtype == torch.uint16 else 127.5
    pixels = torch.empty(frames.shape, dtype=dtype, device=frames.device, memory_format=torch.channels_last_3d)
    for source, target in zip(frames.unbind(2), pixels.unbind(2)):
        target.copy_(source.float().div_(half).sub_(1.0))
    return pixels


def to_bytes(values: Tensor) -> Tensor:
    """Pixels in [-1, 1], clamped and rounded to uint8; any shape and floating dtype, on their device."""
    return values.float().clamp(-1.0, 1.0).add_(1.0).mul_(127.5).round_().to(torch.uint8)


def to_words(values: Tensor) -> Tensor:
    """Pixels in [-1, 1], clamped and rounded to uint16; any shape and floating dtype, on their device."""
    return values.float().clamp(-1.0, 1.0).add_(1.0).mul_(32767.5).round_().to(torch.uint16)


def pad_to_cells(frames: Tensor) -> Tensor:
    """Repeat the last row and column until H and W are multiples of 8: (B, C, n, H, W) of any dtype."""
    height, width = frames.shape[3:]
    bottom, right = -height % CELL, -width % CELL
    if bottom:
        frames = torch.cat([frames, frames[..., -1:, :].expand(*frames.shape[:3], bottom, width)], dim=3)
    if right:
        frames = torch.cat([frames, frames[..., -1:].expand(*frames.shape[:4], right)], dim=4)
    return frames


def cropped_frames(pieces: Iterable[Tensor], height: int, width: int) -> Iterator[np.ndarray]:
    """Single frames [H, W, 3] out of uint8 or uint16 (1, 3, n, H', W') pieces, views of them where it can be."""
    for piece in pieces:
        for frame in piece[0].permute(1, 2, 3, 0).numpy():
            yield frame[:height, :width]


def draw_latents(moments: Iterable[Tensor], seed: int | None, first: int = 0) -> Iterator[Tensor]:
    """The posterior's mean, or a sample of it.

    Args:
        moments: consecutive (B, 2z, n, h, w), float32.
        seed: None for the mean. Noise of latent frame i depends on (seed, i) only, not on chunks.
        first: position of the first latent frame.

    Yields:
        (B, z, n, h, w), float32, of the same lengths.
    """
    position = first
    for piece in moments:
        posterior = DiagonalGaussian(piece)
        if seed is None:
            yield posterior.mode()
            continue
        noise = [
            torch.randn(posterior.mean[:, :, i].shape, generator=_generator(seed, position + i)) for i in range(piece.shape[2])
        ]
        yield posterior.mean + posterior.std * torch.stack(noise, dim=2).to(piece.device)
        position += piece.shape[2]


def draw_anchor(moments: Tensor, seed: int | None, start: int) -> Tensor:
    """The posterior's mean, or a sample of it, for a chunk's anchor.

    Args:
        moments: (B, 2z, 1, h, w), float32.
        seed: None for the mean. The noise depends on (seed, start) alone and is not that of latent frame `start`.
        start: latent frame at which the chunk starts.

    Returns:
        (B, z, 1, h, w), float32, on the moments' device.
    """
    posterior = DiagonalGaussian(moments)
    return posterior.mode() if seed is None else posterior.sample(_generator(seed, start, _OF_ANCHOR))


def _generator(*entropy: int) -> torch.Generator:
    mixed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed) >> 1)


def first_chunk_with(frame: int, tiling: Tiling) -> int:
    """Position of the first latent frame of the first chunk that gives `frame` as a full decode does."""
    stride = chunk_stride(tiling.chunk, tiling.chunk_overlap)
    length = latent_frame_count(tiling.chunk)
    return max(0, -(-(latent_frame_count(frame + 1) - length) // stride)) * stride
