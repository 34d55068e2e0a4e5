"""Threads ahead of their reader and behind their caller: order, bounds, errors, and that none is left."""

import signal
import threading
import time
from itertools import count

import pytest

from cvvae_cli.ahead import ahead, behind

LONG = 30  # seconds, where only a fault waits so long


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def wait_until(holds):
    end = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("depth", [1, 3, 100])
def test_items_come_in_order_and_in_full(depth):
    with ahead(iter(range(50)), depth) as items:
        assert list(items) == list(range(50))
        assert list(items) == []


def test_what_is_no_generator_is_run_through_as_well():
    with ahead([1, None, 3], 2) as items:
        assert list(items) == [1, None, 3]
    with ahead((), 1) as items:
        assert list(items) == []


@pytest.mark.parametrize("raised", [ValueError("third"), KeyboardInterrupt()])
def test_an_error_comes_in_its_place(raised):
    def two():
        yield 1
        yield 2
        raise raised

    got = []
    with pytest.raises(type(raised)) as caught, ahead(two(), 5) as items:
        for item in items:
            got.append(item)
    assert got == [1, 2] and caught.value is raised


def test_an_error_before_the_first_item():
    def none():
        raise ValueError("at once")
        yield

    with pytest.raises(ValueError, match="at once"), ahead(none(), 1) as items:
        next(items)


def test_an_error_nobody_reads_far_enough_for_is_no_error():
    def one():
        yield 1
        raise ValueError("never asked for")

    with ahead(one(), 5) as items:
        assert next(items) == 1


@pytest.mark.parametrize("depth", [1, 4])
def test_no_more_is_made_than_may_wait_and_one(depth):
    made = []
    with ahead((made.append(i) or i for i in count()), depth) as items:
        for taken in range(1, 6):
            next(items)
            wait_until(lambda: len(made) == taken + depth + 1)
            time.sleep(0.01)
            assert len(made) == taken + depth + 1


class Watched:
    """Counts for ever, and notes in which threads it ran and was closed."""

    def __init__(self):
        self.ran, self.closed = set(), []

    def items(self):
        try:
            for i in count():
                self.ran.add(threading.get_ident())
                yield i
        finally:
            self.closed.append(threading.get_ident())


def test_a_reader_that_stops_ends_the_thread_which_closes_the_generator():
    watched = Watched()
    with ahead(watched.items(), 3) as items:
        assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
        assert watched.closed == []
    assert len(watched.ran) == 1 and threading.get_ident() not in watched.ran
    assert set(watched.closed) == watched.ran and len(watched.closed) == 1


def test_a_reader_that_never_begins():
    watched = Watched()
    with ahead(watched.items(), 1):
        pass
    assert set(watched.closed) == watched.ran


@pytest.mark.parametrize("raised", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_of_the_reader_passes_and_ends_the_thread(raised):
    watched = Watched()
    with pytest.raises(raised), ahead(watched.items(), 2) as items:
        next(items)
        raise raised
    assert set(watched.closed) == watched.ran


def test_an_error_while_closing_leaves_no_reader_waiting():
    def stubborn():
        try:
            yield from range(3)
        finally:
            raise OSError("cannot close")

    with pytest.raises(OSError, match="cannot close"), ahead(stubborn(), 5) as items:
        assert [next(items) for _ in range(3)] == [0, 1, 2]
        next(items)
    with ahead(stubborn(), 1) as items:
        next(items)


def test_a_reader_after_the_end_is_not_kept_waiting():
    with ahead(count(), 2) as items:
        assert next(items) == 0
    assert 1 <= len(list(items)) <= 3


def test_a_signal_interrupts_a_reader_that_waits():
    asked, go_on = threading.Event(), threading.Event()

    def slow():
        asked.set()
        go_on.wait(LONG)
        yield 1

    def interrupt(*_):
        go_on.set()
        raise InterruptedError

    def send():
        asked.wait(LONG)
        time.sleep(0.02)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    old = signal.signal(signal.SIGUSR1, interrupt)
    sender = threading.Thread(target=send)
    try:
        with pytest.raises(InterruptedError), ahead(slow(), 1) as items:
            sender.start()
            next(items)
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, old)


@pytest.mark.parametrize("depth", [1, 3, 100])
def test_all_is_taken_in_order_in_another_thread(depth):
    taken, threads = [], set()

    def take(item):
        threads.add(threading.get_ident())
        taken.append(item)

    with behind(take, depth) as hand_over:
        for i in range(50):
            hand_over(i)
    assert taken == list(range(50))
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_nothing_to_take():
    with behind(pytest.fail, 1):
        pass


@pytest.mark.parametrize("depth", [1, 4])
def test_a_caller_waits_for_room(depth):
    go_on, taken, handed = threading.Semaphore(0), [], []

    def take(item):
        assert go_on.acquire(timeout=LONG)
        taken.append(item)

    def give():
        with behind(take, depth) as hand_over:
            for i in range(10):
                hand_over(i)
                handed.append(i)

    caller = threading.Thread(target=give)
    caller.start()
    for done in range(11):
        wait_until(lambda: len(handed) == min(10, done + depth) and len(taken) == done)
        time.sleep(0.005)
        assert len(handed) == min(10, done + depth)
        go_on.release()
    caller.join(LONG)
    assert taken == list(range(10))


@pytest.mark.parametrize("raised", [ValueError("fourth"), KeyboardInterrupt()])
def test_an_error_of_the_taker_comes_out_at_a_later_item(raised):
    taken, handed = [], []

    def take(item):
        if item == 3:
            raise raised
        taken.append(item)

    with pytest.raises(type(raised)) as caught, behind(take, 2) as hand_over:
        for i in range(10):
            hand_over(i)
            handed.append(i)
    assert caught.value is raised and taken == [0, 1, 2] and handed in ([0, 1, 2, 3], [0, 1, 2, 3, 4])


def test_an_error_at_the_last_item_comes_out_at_the_end():
    def take(item):
        raise ValueError(item)

    with pytest.raises(ValueError, match="9"), behind(take, 5) as hand_over:
        hand_over(9)


def test_an_error_of_the_caller_passes_and_drops_what_waits():
    begun, taken = threading.Event(), []

    def take(item):
        begun.set()
        time.sleep(0.001)
        taken.append(item)

    with pytest.raises(ZeroDivisionError), behind(take, 2000) as hand_over:
        for i in range(2000):
            hand_over(i)
        begun.wait(LONG)
        raise ZeroDivisionError
    assert 1 <= len(taken) < 2000 and taken == list(range(len(taken)))


def test_an_error_out_of_the_start_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal's exception may come right behind `Thread.start`, before the block is entered."""
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), behind(print, 2):
        pass
    assert not [thread for thread in threading.enumerate() if thread.name == "cvvae-ahead"]
