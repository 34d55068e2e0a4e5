"""Encoded frames on their way into a video: packets in a hidden file, segment by segment, until the container is written.

A segment is encoded by an encoder of its own, so segments can be made by several processes one after the other, and
joined without encoding again. This module opens no container.
"""

import struct
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from av.packet import Packet
from xxhash import xxh3_64

from cvvae_cli.run_journal import RunJournal

_RECORD = struct.Struct("<qqI?")  # pts, duration, bytes, whether it is a keyframe
_BLOCK = 1024 * 1024


class PacketFile:
    """Packets in the order of decoding.

    Args:
        path: the file; what an earlier run left there is taken over as far as the journal and the disk agree.
        journal: told of every finished segment; None keeps nothing of an unfinished run.

    Attributes:
        frames: of the finished segments.

    Raises:
        OSError: the disk does not take it.

    Memory: 8 bytes per packet.
    """

    def __init__(self, path: Path, journal: RunJournal | None) -> None:
        self.path = path
        self.frames = 0
        self._journal = journal
        self._times = array("q")
        self._digest = xxh3_64()
        continues = journal is not None and bool(journal.entries) and path.exists()
        self._file = open(path, "rb+" if continues else "wb+")
        if journal is not None and continues:
            self._restore(journal)
        elif journal is not None:
            journal.claim()

    def _restore(self, journal: RunJournal) -> None:
        begin = 0

        def take_over(frames: int, end: int, digest: int) -> bool:
            nonlocal begin
            if self._digest_of(begin, end) != digest:
                return False
            self.frames, begin = frames, end
            return True

        journal.agree({"segment": take_over})
        self._file.truncate(begin)
        self._times.extend(pts for pts, _, _, _ in self._records())
        self._file.seek(begin)

    def _digest_of(self, start: int, stop: int) -> int:
        digest = xxh3_64()
        self._file.seek(start)
        while start < stop and (block := self._file.read(min(_BLOCK, stop - start))):
            digest.update(block)
            start += len(block)
        return digest.intdigest()

    def append(self, packets: Iterable[Packet], durations: dict[int, int]) -> None:
        """Add packets as they leave the encoder.

        Args:
            packets: of one stream and time base.
            durations: ticks by presentation time; what is used is taken out.

        Raises:
            OSError: the disk does not take it.
        """
        for packet in packets:
            data = bytes(packet)
            head = _RECORD.pack(packet.pts, durations.pop(packet.pts, packet.duration or 0), len(data), packet.is_keyframe)
            for piece in (head, data):
                self._file.write(piece)
                self._digest.update(piece)
            self._times.append(packet.pts)

    def end_segment(self, frames: int) -> None:
        """Note that the segment is whole.

        Args:
            frames: of the video so far.

        Raises:
            OSError: the disk does not take it.
        """
        self._file.flush()
        if self._journal is not None:
            self._journal.add(["segment", frames, self._file.tell(), self._digest.intdigest()])
        self.frames, self._digest = frames, xxh3_64()

    def packets(self) -> Iterator[Packet]:
        """All packets, with decoding times that rise and come no later than the frames."""
        decoding = decoding_times(np.frombuffer(self._times, np.int64))
        for (pts, duration, data, is_keyframe), dts in zip(self._records(), decoding):
            packet = Packet(data)
            packet.pts, packet.dts, packet.duration, packet.is_keyframe = pts, int(dts), duration, is_keyframe
            yield packet

    def _records(self) -> Iterator[tuple[int, int, bytes, bool]]:
        self._file.seek(0)
        while head := self._file.read(_RECORD.size):
            pts, duration, size, is_keyframe = _RECORD.unpack(head)
            yield pts, duration, self._file.read(size), is_keyframe

    def close(self, keep: bool) -> None:
        """Let go of the file.

        Args:
            keep: leave it for a later run.
        """
        if not self._file.closed and not keep:
            self.path.unlink(missing_ok=True)
        self._file.close()


def decoding_times(pts: np.ndarray) -> np.ndarray:
    """When each packet is due, for a decoder that holds no more frames back than it has to.

    Args:
        pts: int64 [n], distinct, in the order of decoding.

    Returns:
        int64 [n], strictly rising, each at most its `pts`: the sorted times, as many places late as the order of
        decoding runs ahead of that of showing; the first ones continue backwards.
    """
    shown = np.sort(pts)
    ahead = int(np.max(np.arange(len(pts)) - np.searchsorted(shown, pts), initial=0))
    early = shown[:ahead] - (shown[ahead] - shown[0]) if ahead else shown[:0]
    return np.concatenate([early, shown[: len(pts) - ahead]])
