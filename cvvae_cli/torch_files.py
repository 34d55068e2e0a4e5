"""Files of `torch.save`, which may come from a stranger: no code is run, and they take no more memory than they are large.

What the tensors are is the business of whoever asks for them.
"""

import io
import os
import warnings
import zipfile
from collections.abc import Iterable

import torch
from torch import Tensor


def load_torch_file(path: str | os.PathLike[str]) -> object:
    """What a file of `torch.save` holds, loaded by torch's restricted loader, on the CPU.

    Raises:
        ValueError: an archive that unpacks to more than its own size, which `torch.save` never makes.
        Exception: anything else that the loader makes of damaged or hostile bytes.
    """
    with _Bounded(path) as file:
        zipped = file.peek(4)[:4] == b"PK\x03\x04"
        if zipped:
            with zipfile.ZipFile(file) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > os.path.getsize(path):
                raise ValueError(f"it unpacks to {unpacked} bytes, more than its own size")
        with warnings.catch_warnings():
            # Torch wonders aloud about unusual pickles; what comes of them is said by the caller.
            warnings.simplefilter("ignore")
            # By its name an archive is read without a copy.
            return torch.load(path if zipped else file, map_location="cpu", weights_only=True)


class _Bounded(io.BufferedReader):
    """A file of which no more is read than it has: room is made for that much beforehand, and pickles state lengths."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(io.FileIO(path))
        self._size = os.path.getsize(path)

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def are_stored(tensors: Iterable[Tensor], path: str | os.PathLike[str]) -> bool:
    """Whether tensors of a file are dense and their values are all in it, none of them many times over (strides of 0, say)."""
    left = os.path.getsize(path)
    for tensor in tensors:
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            return False
        left -= tensor.numel() * tensor.element_size()
    return left >= 0
