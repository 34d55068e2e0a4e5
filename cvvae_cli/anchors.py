"""Anchors: for every chunk but the video's first, the latent that its encode makes of its first frame alone.

The decoder takes the first latent that it sees for one frame. In the middle of a video the latent in that place stands for
four; a chunk's anchor stands for one. Anchors are taken from bands on encode, and put into windows on decode. This module
knows no model, no video and no file.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from cvvae_cli.config import Tiling
from cvvae_cli.geometry import chunk_stride
from cvvae_cli.tiling import Band

KeepAnchor = Callable[[int, Tensor], None]
"""Called with the latent frame at which a chunk starts and the moments of its first frame alone, float32 (B, 2z, 1, h, w)."""
ReadAnchor = Callable[[int], Tensor | None]
"""Called with the latent frame at which a chunk starts; gives its anchor, (B, z, 1, h, w), None where the chunk does without."""


def kept_anchors(bands: Iterable[Band], keep: KeepAnchor) -> Iterator[Band]:
    """Pass on the bands of an encode.

    Args:
        bands: what `run_chunks` yields.
        keep: called once a chunk, before the last of its bands is passed on.
    """
    rows: list[Tensor] = []
    for band in bands:
        if band.dropped is not None:
            rows.append(band.dropped.to(torch.float32, copy=True))
            if band.row + band.dropped.shape[3] == band.height:
                keep(band.frame - 1, torch.cat(rows, dim=3))
                rows.clear()
        yield band


def with_anchors(windows: Iterable[tuple[int, Tensor]], read: ReadAnchor) -> Iterator[tuple[int, Tensor]]:
    """Windows of latents as `cut_windows` yields them, changed in place: each but the video's first begins with its anchor."""
    for start, z in windows:
        anchor = read(start) if start else None
        if anchor is not None:
            z[:, :, :1] = anchor
        yield start, z


class Anchors:
    """Anchors by the latent frame at which their chunk starts; they are numbered, that of the second chunk is 0.

    Args:
        tiling: how chunks are cut.
        read: gives the anchor of a number, float32 [z, h, w]; None where the chunk does without.
    """

    def __init__(self, tiling: Tiling, read: Callable[[int], np.ndarray | None]) -> None:
        self._stride = chunk_stride(tiling.chunk, tiling.chunk_overlap)
        self._read = read

    def number(self, start: int) -> int:
        """The number of the anchor of the chunk that starts at latent frame `start`, a multiple of the stride above 0."""
        chunk, rest = divmod(start, self._stride)
        assert chunk > 0 and not rest, f"no chunk but the first starts at latent frame {start}"
        return chunk - 1

    def read(self, start: int) -> Tensor | None:
        """The anchor of the chunk that starts at latent frame `start`, (1, z, 1, h, w), as a `ReadAnchor` gives it."""
        values = self._read(self.number(start))
        return None if values is None else torch.from_numpy(values)[None, :, None]
