"""Anchors: for every chunk but the video's first, the latent that its encode makes of its first frame alone.

The decoder takes the first latent that it sees for one frame. In the middle of a video the latent in that place stands for
four; a chunk's anchor stands for one. Anchors are taken from bands on encode, put into windows on decode, and kept in a
file between. This module knows no model and no video.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from cvvae_cli.errors import LatentFileError
from cvvae_cli.latent_file import LATENT_DTYPES
from cvvae_cli.safetensors_header import NUMPY_TYPES, to_float, to_stored
from cvvae_cli.small_tensor import SmallTensor
from cvvae_cli.tiling import Band

KeepAnchor = Callable[[int, Tensor], None]
"""Called with the latent frame at which a chunk starts and the moments of its first frame alone, float32 (B, 2z, 1, h, w)."""
ReadAnchor = Callable[[int], Tensor]
"""Called with the latent frame at which a chunk starts; gives its anchor, (B, z, 1, h, w)."""


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
        if start:
            z[:, :, :1] = read(start)
        yield start, z


class Anchors:
    """Anchors one after the other in a file, that of the second chunk first. Memory: one of them.

    Args:
        file: open for reading, and for writing where `write` is called.
        shape: (z, h, w) of an anchor.
        dtype: what they are stored as: "float16", "float32" or "bfloat16".
        stride: latent frames from the start of a chunk to the start of the next.
    """

    def __init__(self, file: BinaryIO, shape: tuple[int, int, int], dtype: str, stride: int) -> None:
        self.file, self._shape, self._stride = file, shape, stride
        self._dtype = LATENT_DTYPES[dtype]
        self._bytes = math.prod(shape) * np.dtype(NUMPY_TYPES[self._dtype]).itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all anchors."""
        return self.file.seek(0, os.SEEK_END)

    @property
    def count(self) -> int:
        """How many anchors the file holds."""
        return self.nbytes // self._bytes

    @property
    def tensor(self) -> SmallTensor:
        """All anchors as the latent file stores them, [n, z, h, w]."""
        return SmallTensor(self._dtype, (self.count, *self._shape), self.file)

    def write(self, start: int, latent: Tensor) -> None:
        """Store the anchor of the chunk that starts at latent frame `start`.

        Args:
            start: a multiple of the stride, above 0.
            latent: (1, z, 1, h, w), floating, unscaled, on any device.

        Raises:
            LatentFileError: a value is not finite, or not in the file's dtype.
        """
        stored = to_stored(latent[0, :, 0].float().cpu().numpy(), self._dtype)
        if not np.isfinite(to_float(stored, self._dtype)).all():
            raise LatentFileError(
                f"The anchor at latent frame {start} holds a value that is not finite in {self._dtype}; "
                "pass --latent-dtype float32 or drop --anchors."
            )
        self._seek(start)
        self.file.write(stored.tobytes())

    def read(self, start: int) -> Tensor:
        """The anchor of the chunk that starts at latent frame `start`: (1, z, 1, h, w), float32, on the CPU."""
        self._seek(start)
        data = self.file.read(self._bytes)
        assert len(data) == self._bytes, f"no anchor at latent frame {start}"
        values = to_float(np.frombuffer(data, NUMPY_TYPES[self._dtype]), self._dtype)
        return torch.from_numpy(values.reshape(self._shape))[None, :, None]

    def _seek(self, start: int) -> None:
        index, rest = divmod(start, self._stride)
        assert index > 0 and not rest, f"no chunk but the first starts at latent frame {start}"
        self.file.seek((index - 1) * self._bytes)
