"""Latents of a damaged file: what its sound chunks hold, and in place of the others what lies between their neighbours.

Knows chunks and latent frames; what they show is unknown here.
"""

from dataclasses import dataclass

import numpy as np

from cvvae_cli.errors import LatentFileError
from cvvae_cli.latent_file import LatentReader


@dataclass(frozen=True, eq=False)
class _Gap:
    """Damaged chunks side by side.

    Attributes:
        start, stop: their first latent frame, and one past their last.
        before, behind: the sound latent frames at their sides, [1, z, h, w] each; the same one twice where only one is there.
    """

    start: int
    stop: int
    before: np.ndarray
    behind: np.ndarray

    def filled(self, first: int, last: int) -> np.ndarray:
        """Latent frames `first` to `last`, on straight lines from `before` to `behind`."""
        way = (np.arange(first, last, dtype=np.float32) - self.start + 1) / (self.stop - self.start + 1)
        way = way[:, None, None, None]
        return (1 - way) * self.before + way * self.behind


class MendedLatents:
    """Reads a latent file as `LatentReader.read` does, but for its damaged chunks, which are filled by linear interpolation
    from the nearest sound latent frame before to the nearest behind, or repeat it where there is one side alone.

    Memory: two latent frames, and two numbers for each run of damaged chunks, beyond what `LatentReader` takes.
    """

    def __init__(self, reader: LatentReader) -> None:
        self._reader = reader
        self._gap: _Gap | None = None
        self._found: set[tuple[int, int]] = set()

    @property
    def replaced(self) -> list[tuple[int, int]]:
        """The latent frames that were missed so far: the first, and one past the last, of each run of damaged chunks."""
        return sorted(self._found)

    def look_over(self, start: int, stop: int) -> None:
        """Note what is damaged of latent frames `start` to `stop`.

        Raises:
            LatentFileError: as `read`.
        """
        for index, first, _ in self._reader.parts(start, stop):
            if self._reader.read_chunk(index, first, first) is None:
                self._gap_around(index)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Latent frames `start` to `stop`.

        Returns:
            float32 [stop - start, z, h, w].

        Raises:
            LatentFileError: no chunk is sound, or the damage is not in the chunks.
        """
        out = np.empty((stop - start, *self._reader.shape[1:]), np.float32)
        for index, first, last in self._reader.parts(start, stop):
            part = self._reader.read_chunk(index, first, last)
            out[first - start : last - start] = self._gap_around(index).filled(first, last) if part is None else part
        return out

    def _gap_around(self, index: int) -> _Gap:
        start, stop = self._reader.chunk_span(index)
        if self._gap is None or not self._gap.start <= start < self._gap.stop:
            self._gap = self._find(index)
            self._found.add((self._gap.start, self._gap.stop))
        return self._gap

    def _find(self, index: int) -> _Gap:
        start, stop = self._reader.chunk_span(index)
        before = behind = None
        for lower in reversed(range(index)):
            begin, end = self._reader.chunk_span(lower)
            before = self._reader.read_chunk(lower, end - 1, end)
            if before is not None:
                break
            start = begin
        for higher in range(index + 1, self._reader.num_chunks):
            begin, end = self._reader.chunk_span(higher)
            behind = self._reader.read_chunk(higher, begin, begin + 1)
            if behind is not None:
                break
            stop = end
        if before is None and behind is None:
            raise LatentFileError(f"{self._reader.path} has no sound chunk, so nothing can be decoded; encode the video again.")
        return _Gap(start, stop, *((behind, behind) if before is None else (before, before if behind is None else behind)))
