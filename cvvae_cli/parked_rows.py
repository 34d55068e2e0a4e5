"""Activations that wait for the next layer in strips of rows, each of which travels to the device once.

It knows no layer: who writes and who reads walk from the top row to the bottom row, and that is all there is to know.
"""

from collections import deque

import torch
from torch import Tensor


class ParkedRows:
    """The rows of one activation, (B, C, T, H, W), as they were computed: strip after strip from the top.

    Args:
        device: where they are computed with.
        place: where they wait; the CPU's memory (page-locked where the device is another), or the device itself.

    Attributes:
        shape: (B, C, T, H, W) of the rows so far, H = 0 before the first.
        element_size: bytes.
    """

    def __init__(self, device: torch.device, place: torch.device) -> None:
        self.shape = (0, 0, 0, 0, 0)
        self.element_size = 0
        self._device, self._place = device, place
        self._strips: list[Tensor | None] = []

    def append(self, strip: Tensor) -> None:
        """Put (B, C, T, n, W), channels_last_3d and from now on not the caller's, below what is there."""
        self.shape = (*strip.shape[:3], self.shape[3] + strip.shape[3], strip.shape[4])
        self.element_size = strip.element_size()
        if self._place.type != self._device.type:
            # Whole strips in their own order of memory: such copies need no buffer, so the device need not be waited for.
            waiting = torch.empty_like(strip, device=self._place, pin_memory=True)
            strip = waiting.copy_(strip, non_blocking=True)
        self._strips.append(strip)

    def take(self, index: int, keep: bool) -> Tensor:
        """Strip `index` on the device; it is forgotten here unless `keep`."""
        strip = self._strips[index]
        assert strip is not None, "rows were read again after they had been given away"
        if not keep:
            self._strips[index] = None
        return strip.to(self._device, non_blocking=True)


class RowReader:
    """Reads windows of rows that go down and may overlap.

    Args:
        rows: all of them written.
        keep: they will be read again by another reader; otherwise memory is given back on the way.
    """

    def __init__(self, rows: ParkedRows, keep: bool = False) -> None:
        self._rows, self._keep = rows, keep
        self._held: deque[tuple[int, Tensor]] = deque()  # first row of each strip that is on the device
        self._next = self._end = 0

    def read(self, start: int, stop: int) -> Tensor:
        """(B, C, T, stop - start, W) on the device, to be read only; no row above `start` can be read afterwards."""
        while self._held and self._held[0][0] + self._held[0][1].shape[3] <= start:
            self._held.popleft()
        while self._end < stop:
            strip = self._rows.take(self._next, self._keep)
            self._held.append((self._end, strip))
            self._next, self._end = self._next + 1, self._end + strip.shape[3]
        pieces = [(max(first, start), strip[:, :, :, max(start - first, 0) : stop - first]) for first, strip in self._held]
        if len(pieces) == 1:
            return pieces[0][1]
        top = pieces[0][1]
        shape = (*top.shape[:3], stop - start, top.shape[4])
        window = torch.empty(shape, dtype=top.dtype, device=top.device, memory_format=torch.channels_last_3d)
        for first, piece in pieces:
            window[:, :, :, first - start : first - start + piece.shape[3]] = piece
        return window
