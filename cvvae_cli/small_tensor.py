"""What a latent file stores beside its latents: arrays, or the bytes of a file that is too large for memory."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from cvvae_cli.latent_file import BLOCK
from cvvae_cli.safetensors_header import NUMPY_TYPES

STORED_NAMES = {np.dtype(code): name for name, code in NUMPY_TYPES.items() if name != "BF16"}
"""Names of the numpy types that can be stored."""


@dataclass(frozen=True, eq=False)
class SmallTensor:
    """A tensor to be stored whole.

    Attributes:
        dtype: a key of `NUMPY_TYPES`.
        shape: of the tensor.
        source: its values, little-endian and contiguous, or a file of its bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    source: np.ndarray | BinaryIO

    @classmethod
    def of(cls, source: np.ndarray | BinaryIO) -> "SmallTensor":
        if not isinstance(source, np.ndarray):
            return cls("U8", (source.seek(0, os.SEEK_END),), source)
        values = np.asarray(source, source.dtype.newbyteorder("<"), order="C")
        return cls(STORED_NAMES[values.dtype], values.shape, values)

    @property
    def itemsize(self) -> int:
        return np.dtype(NUMPY_TYPES[self.dtype]).itemsize

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.itemsize

    def blocks(self) -> Iterator[np.ndarray | bytes]:
        """All the bytes, a file's in pieces."""
        if isinstance(self.source, np.ndarray):
            yield self.source
            return
        self.source.seek(0)
        while block := self.source.read(BLOCK):
            yield block
