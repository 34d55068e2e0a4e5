"""Exact times of packets as a short text: runs of equal steps and of equal durations.

For containers that count more coarsely than the source does. Streams and files are unknown here.
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, repeat

from cvvae_cli.checked_values import ratio_of
from cvvae_cli.errors import VideoError

_MAX_RUNS = 8192
"""Longest table; beyond it (hours of Vorbis out of an MP4) the container's own times must do."""

_RUN = re.compile(r"-?[0-9]{1,19}\*[0-9]{1,18}")
_FARTHEST = 2**62
"""Ticks; beyond it, times and their differences would not fit the 64 bits that FFmpeg has for them."""


class PacketTimes:
    """Collects the times of one stream's packets, one after the other.

    Memory: two numbers for each run, `_MAX_RUNS` runs at most of steps and of durations.

    Attributes:
        time_base: seconds per tick.
    """

    def __init__(self, time_base: Fraction) -> None:
        self.time_base = time_base
        self._first = self._last = self._earliest = 0
        self._steps: list[list[int]] = []
        self._durations: list[list[int]] = []

    def add(self, pts: int, duration: int) -> None:
        """Notes the next packet.

        Args:
            pts: when it is presented, ticks.
            duration: ticks, 0 where nobody knows.
        """
        if self._durations:
            _extend(self._steps, pts - self._last)
            self._earliest = min(self._earliest, pts)
        else:
            self._first = self._earliest = pts
        _extend(self._durations, duration)
        self._last = pts

    @property
    def earliest(self) -> Fraction:
        """The smallest time that was added, seconds."""
        return self._earliest * self.time_base

    def to_text(self) -> str:
        """The table "time_base first_pts steps durations", to be read by `parse_times`; empty where it is too long."""
        if len(self._steps) + len(self._durations) > _MAX_RUNS:
            return ""
        steps, durations = (
            ",".join(f"{value}*{count}" for value, count in runs) for runs in (self._steps, self._durations)
        )
        return f"{self.time_base} {self._first} {steps or '-'} {durations}"


def _extend(runs: list[list[int]], value: int) -> None:
    if runs and runs[-1][0] == value:
        runs[-1][1] += 1
    elif len(runs) <= _MAX_RUNS:  # once it is too long, the rest does not count any more
        runs.append([value, 1])


def parse_times(text: str) -> tuple[Fraction, Iterator[tuple[int, int]]]:
    """Reads what `PacketTimes.to_text` wrote, or a stranger in its stead.

    Returns:
        Seconds per tick, and (pts, duration) of each packet in ticks, within 62 bits.

    Raises:
        VideoError: it is no such table.
    """
    try:
        base, first, steps, durations = text.split(" ")
        time_base, begin, lengths = ratio_of(base), _runs(f"{first}*1")[0][0], _runs(durations)
        moves = [] if steps == "-" else _runs(steps)
        reach = abs(begin) + sum(abs(step) * count for step, count in moves)
        if max(reach, *(abs(length) for length, _ in lengths)) >= _FARTHEST:
            raise ValueError("times out of range")
    except ValueError as error:
        raise VideoError("The sound stored with the latents has damaged times; decode with --no-audio.") from error

    def times() -> Iterator[tuple[int, int]]:
        pts = begin
        for step, duration in zip(chain(_expand(moves), [0]), _expand(lengths), strict=False):
            yield pts, duration
            pts += step

    return time_base, times()


def _runs(text: str) -> list[tuple[int, int]]:
    """Values and how often each comes."""
    runs = text.split(",", _MAX_RUNS)
    if len(runs) > _MAX_RUNS or not all(map(_RUN.fullmatch, runs)):
        raise ValueError("no table of runs")
    return [(int(value), int(count)) for value, _, count in (run.partition("*") for run in runs)]


def _expand(runs: list[tuple[int, int]]) -> Iterator[int]:
    return chain.from_iterable(repeat(value, count) for value, count in runs)
