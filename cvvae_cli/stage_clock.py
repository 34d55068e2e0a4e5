"""Where the time of a pipeline goes, stage by stage. It knows no stage's work."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from threading import local
from time import perf_counter
from typing import TypeVar

T = TypeVar("T")


class StageClock:
    """Adds up the seconds of named stages; while a stage runs inside another, only the inner one's count.

    Threads may use one clock at the same time, each for stages of its own; their stages then add up to more than the wall's time.

    Args:
        settle: called wherever time is taken, in the thread that made the clock alone, e.g. to wait for a device that this
            thread uses; None takes the time as it is.

    Attributes:
        seconds: by stage, in order of first use.
    """

    def __init__(self, settle: Callable[[], None] | None = None) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._own = local()
        self._own.settle = settle

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what runs inside for the stage `name`."""
        stages: list[str] = self._own.__dict__.setdefault("stages", [])
        self._count(stages)
        stages.append(name)
        try:
            yield
        finally:
            self._count(stages)
            stages.pop()

    def timed(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """The items, the time of making each counted for the stage `name`."""
        iterator = iter(items)
        while True:
            with self.stage(name):
                item = next(iterator, self)
            if item is self:
                return
            yield item

    def _count(self, stages: list[str]) -> None:
        settle = getattr(self._own, "settle", None)
        if settle is not None:
            settle()
        now = perf_counter()
        if stages:
            self.seconds[stages[-1]] += now - self._own.since
        self._own.since = now
