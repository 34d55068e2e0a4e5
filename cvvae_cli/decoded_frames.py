"""The frames of latents, any span of them, from no more chunks than they need. It knows no video file."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.codec import Plan, cropped_frames, decode_frames, first_chunk_with
from cvvae_cli.config import Tiling
from cvvae_cli.geometry import TEMPORAL_COMPRESSION_RATIO as STEP
from cvvae_cli.geometry import chunk_stride, latent_frame_count
from cvvae_cli.latent_video import LatentVideo
from cvvae_cli.stage_clock import StageClock
from cvvae_cli.tiling import chunk_count

LATENTS_PER_READ = 8


def decoded_frames(
    latents: LatentVideo,
    model: Autoencoder,
    plan: Plan,
    first: int,
    stop: int,
    clock: StageClock | None = None,
    deep: bool = False,
) -> Iterator[np.ndarray]:
    """Frames `first` to `stop` as uint8 [H, W, 3], as a full decode gives them, reading only the chunks they need; `deep` uint16.

    The caller holds torch's inference mode.
    """
    clock = clock or StageClock()
    begin, end = _needed_latents(latents, plan.tiling, first, stop)
    anchors = latents.anchors() if latents.anchors_fit(plan.tiling) else None

    def pieces() -> Iterator[Tensor]:
        for start in range(begin, end, LATENTS_PER_READ):
            with clock.stage("read"):
                values = latents.read(start, min(start + LATENTS_PER_READ, end))
            yield torch.from_numpy(values).transpose(0, 1)[None]

    decoded = decode_frames(model, pieces(), plan, begin, clock, anchors.read if anchors else None, deep)
    frames = cropped_frames(decoded, latents.height, latents.width)
    skipped = first - (STEP * begin + 1 if begin else 0)
    return itertools.islice(frames, skipped, skipped + stop - first)


def lost_anchors(latents: LatentVideo, tiling: Tiling, first: int, stop: int) -> int:
    """How many of the chunks that give frames `first` to `stop` do without their anchor, because it is damaged.

    Args:
        latents: with anchors that fit `tiling`; `keep_going` was called.

    Raises:
        LatentFileError: none of the anchors can be used.
    """
    begin, end = _needed_latents(latents, tiling, first, stop)
    anchors, stride = latents.anchors(), chunk_stride(tiling.chunk, tiling.chunk_overlap)
    starts = [begin + number * stride for number in range(chunk_count(end - begin, tiling))]
    return sum(anchors.read(start) is None for start in starts if start)


def _needed_latents(latents: LatentVideo, tiling: Tiling, first: int, stop: int) -> tuple[int, int]:
    """The chunks that give frames `first` to `stop`: the first latent frame of the first, and one past the last of the last."""
    stride = chunk_stride(tiling.chunk, tiling.chunk_overlap)
    latest = latent_frame_count(stop) - 1
    # A chunk but the first gives nothing of its first latent frame.
    end = max(latest - 1, 0) // stride * stride + latent_frame_count(tiling.chunk)
    return first_chunk_with(first, tiling), min(latents.latent_frames, end)
