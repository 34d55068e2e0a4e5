"""Work in a thread of its own, a bounded number of items ahead of the caller or behind it. It knows no item's kind.

What the threads hand over goes through `SimpleQueue`, whose locks are no Python code: a signal's exception cannot
leave one locked.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")

_END = object()
# Longer than a thread takes to begin.
_START_SECONDS = 1.0


@contextlib.contextmanager
def ahead(items: Iterable[T], depth: int, stop: Callable[[], None] | None = None) -> Iterator[Iterator[T]]:
    """Produce items in a thread while the caller works on earlier ones.

    Whatever `items` needs from its thread (torch's inference mode) it must set itself. When the context is left, also by an
    error, the thread stops behind the item at hand and has closed the generator.

    Args:
        items: run through once, in the thread alone.
        depth: most items that wait, >= 1; one more may be in the making.
        stop: called before the thread is waited for, to end a wait of `items`.

    Yields:
        An iterator over the items; an error in the thread is raised from it, in its place among the items.
    """
    made: SimpleQueue[tuple[object, BaseException | None]] = SimpleQueue()
    room: SimpleQueue[None] = SimpleQueue()
    for _ in range(depth):
        room.put(None)
    running, wanted = Event(), True

    def produce() -> None:
        running.set()
        error: BaseException | None = None
        try:
            try:
                for item in items if wanted else ():
                    room.get()
                    if not wanted:
                        break
                    made.put((item, None))
            finally:
                close = getattr(items, "close", None)
                if close is not None:
                    close()
        except BaseException as raised:  # noqa: BLE001 - handed to the reader, who decides
            error = raised
        made.put((_END, error))

    def consume() -> Iterator[T]:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if item is _END:
                return
            room.put(None)
            yield item

    thread = Thread(target=produce, name="cvvae-ahead", daemon=True)
    try:
        thread.start()
        yield consume()
    finally:
        wanted = False
        room.put(None)
        if stop is not None:
            stop()
        # A signal's exception may have come out of `start`, with the thread on its way or not yet asked for.
        if running.wait(_START_SECONDS):
            thread.join()


@contextlib.contextmanager
def behind(
    take: Callable[[T], object], depth: int, give_up: Callable[[], None] = lambda: None
) -> Iterator[Callable[[T], None]]:
    """Let a thread take items while the caller makes later ones.

    When the context is left, all items have been taken; left by an error, the thread stops behind the item at hand.

    Args:
        take: called with one item after the other, in the thread alone.
        depth: most items that wait or are being taken, >= 1.
        give_up: called where the context is left by an error, to end a wait of `take`, before the thread is waited for.

    Yields:
        A function that hands an item over, once there is room. What `take` raises comes out of it at a later item, or
        where the context is left.
    """
    waiting: SimpleQueue[object] = SimpleQueue()
    begun, whole = 0, False

    def taken() -> Iterator[None]:
        while (item := waiting.get()) is not _END:
            take(item)
            yield

    def stop() -> None:
        if not whole:
            give_up()
        waiting.put(_END)

    # The thread's wait is ended by `ahead` itself, which a signal may leave before it comes to the block below.
    with ahead(taken(), depth, stop) as done:

        def hand_over(item: T) -> None:
            nonlocal begun
            if begun == depth:
                next(done)
            else:
                begun += 1
            waiting.put(item)

        yield hand_over
        waiting.put(_END)
        for _ in done:
            pass
        whole = True
