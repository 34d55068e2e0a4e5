"""The pipeline: frames -> chunks -> tiles -> moments -> latents, and back.

Everything is pulled: a consumer asks for the next latents or frames, and only what they need is read and
computed, so memory holds a chunk whatever the length. Tensors and files go through the same functions. This
module knows no command line and no metric.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.config import Tiling
from cvvae_cli.errors import DeviceError, UsageError
from cvvae_cli.geometry import SPATIAL_COMPRESSION_RATIO as CELL
from cvvae_cli.geometry import chunk_stride, latent_frame_count
from cvvae_cli.posterior import DiagonalGaussian
from cvvae_cli.tiling import DECODE, ENCODE, Band, Network, assemble, cut_windows, run_chunks

Progress = Callable[[int, int | None], None]
"""Called with the frames done and the frames expected (None where nobody knows)."""


def no_progress(done: int, total: int | None) -> None:
    """Say nothing."""


def encode_tensor(model: Autoencoder, x: Tensor, tiling: Tiling | None = None) -> Tensor:
    """Encode a whole video in chunks and tiles.

    Args:
        model: the autoencoder.
        x: (B, 3, T, H, W), floating in [-1, 1], or uint8; any T >= 1, H and W. On any device.
        tiling: how to cut; None is the default.

    Returns:
        Moments (B, 2z, t, h, w) in float32 on the model's device, with t = 1 + ceil((T - 1) / 4), h and w = H and W
        divided by 8 and rounded up: the video is continued by repeating its last frame, row and column.

    Raises:
        UsageError: (a ValueError) the shape is not a video's.
    """
    if x.dim() != 5 or x.shape[1] != 3 or 0 in x.shape:
        raise UsageError(f"A video must have the shape (B, 3, T, H, W), got {tuple(x.shape)}; add or move axes.")
    with torch.inference_mode():
        frames = (pad_to_cells(frame) for frame in x.split(1, dim=2))
        return torch.cat(list(encode_frames(model, frames, tiling or Tiling())), dim=2)


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
    """
    if z.dim() != 5 or z.shape[1] != model.latent_channels or 0 in z.shape:
        wanted = f"(B, {model.latent_channels}, t, h, w)"
        raise UsageError(f"A latent must have the shape {wanted}, got {tuple(z.shape)}; add or move axes.")
    with torch.inference_mode():
        bands = _decoded_bands(model, [z], tiling or Tiling(), 0)
        return torch.cat(list(assemble(bands, lambda values: values)), dim=2)


def encode_frames(model: Autoencoder, frames: Iterable[Tensor], tiling: Tiling) -> Iterator[Tensor]:
    """Encode a stream.

    Args:
        frames: consecutive (B, 3, n, H, W), uint8 or floating in [-1, 1], H and W multiples of 8.

    Yields:
        Moments (B, 2z, n', h, w), float32, in order; together those of `encode_tensor`.
    """

    def network(x: Tensor) -> Tensor:
        x = x.to(model.device)
        return _guarded(model.encode, x if x.is_floating_point() else x.float() / 127.5 - 1.0, tiling)

    yield from assemble(run_chunks(network, cut_windows(frames, tiling, ENCODE), tiling, ENCODE), lambda values: values)


def decode_frames(model: Autoencoder, latents: Iterable[Tensor], tiling: Tiling, first: int = 0) -> Iterator[Tensor]:
    """Decode a stream to 8-bit frames.

    Args:
        latents: consecutive (B, z, n, h, w), floating, unscaled.
        tiling: how to cut.
        first: position of the stream's first latent frame, the start of a chunk.

    Yields:
        uint8 (B, 3, n', 8h, 8w) on the CPU, channels last in memory, in order. A stream that starts after 0 begins
        with frame 4 `first` + 1.
    """
    yield from assemble(_decoded_bands(model, latents, tiling, first), to_bytes)


def _decoded_bands(model: Autoencoder, latents: Iterable[Tensor], tiling: Tiling, first: int) -> Iterator[Band]:
    def network(z: Tensor) -> Tensor:
        return _guarded(model.decode, z.to(model.device), tiling)

    return run_chunks(network, cut_windows(latents, tiling, DECODE, first), tiling, DECODE)


def _guarded(network: Network, x: Tensor, tiling: Tiling) -> Tensor:
    try:
        return network(x)
    except torch.OutOfMemoryError as error:
        raise DeviceError(f"Device {x.device} ran out of memory on a tile of {tiling.tile} px; pass a smaller --tile.") from error


def to_bytes(values: Tensor) -> Tensor:
    """Pixels in [-1, 1], clamped and rounded to uint8, on the CPU."""
    return ((values.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8).cpu()


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
    """Single frames uint8 [H, W, 3] out of uint8 (1, 3, n, H', W') pieces."""
    for piece in pieces:
        for frame in piece[0].permute(1, 2, 3, 0).numpy():
            yield np.ascontiguousarray(frame[:height, :width])


def draw_latents(moments: Iterable[Tensor], seed: int | None) -> Iterator[Tensor]:
    """The posterior's mean, or a sample of it.

    Args:
        moments: consecutive (B, 2z, n, h, w), float32.
        seed: None for the mean. Noise of latent frame i depends on (seed, i) only, not on chunks.

    Yields:
        (B, z, n, h, w), float32, of the same lengths.
    """
    position = 0
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


def _generator(seed: int, position: int) -> torch.Generator:
    mixed = np.random.SeedSequence((seed, position)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed) >> 1)


def first_chunk_with(frame: int, tiling: Tiling) -> int:
    """Position of the first latent frame of the first chunk that gives `frame` as a full decode does."""
    stride = chunk_stride(tiling.chunk, tiling.chunk_overlap)
    length = latent_frame_count(tiling.chunk)
    return max(0, -(-(latent_frame_count(frame + 1) - length) // stride)) * stride
