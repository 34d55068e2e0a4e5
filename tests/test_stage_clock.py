"""Stage times by a clock that the tests move by hand."""

import threading

import pytest

from cvvae_cli import stage_clock
from cvvae_cli.stage_clock import StageClock


class Time:
    """Seconds that pass only when told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def work(self, seconds):
        self.now += seconds


@pytest.fixture
def time(monkeypatch):
    time = Time()
    monkeypatch.setattr(stage_clock, "perf_counter", time)
    return time


def test_an_inner_stage_is_not_counted_twice(time):
    clock = StageClock()
    time.work(100)
    with clock.stage("outer"):
        time.work(1)
        with clock.stage("inner"):
            time.work(2)
            with clock.stage("innermost"):
                time.work(4)
            time.work(8)
        time.work(16)
    time.work(100)
    with clock.stage("outer"):
        time.work(32)
    assert clock.seconds == {"outer": 49, "inner": 10, "innermost": 4}
    assert list(clock.seconds) == ["outer", "inner", "innermost"]


def test_a_stage_inside_itself_counts_once(time):
    clock = StageClock()
    with clock.stage("a"):
        time.work(1)
        with clock.stage("a"):
            time.work(2)
        time.work(4)
    assert clock.seconds == {"a": 7}


def test_an_error_ends_its_stages(time):
    clock = StageClock()
    with pytest.raises(KeyError), clock.stage("outer"):
        time.work(1)
        with clock.stage("inner"):
            time.work(2)
            raise KeyError
    time.work(100)
    with clock.stage("later"):
        time.work(4)
    assert clock.seconds == {"outer": 1, "inner": 2, "later": 4}


def test_the_making_of_items_is_timed_and_their_use_is_not(time):
    clock = StageClock()

    def items():
        for i in range(3):
            time.work(1)
            yield i
        time.work(8)

    got = []
    with clock.stage("use"):
        for item in clock.timed("make", items()):
            got.append(item)
            time.work(100)
    assert got == [0, 1, 2] and clock.seconds == {"use": 300, "make": 11}
    assert list(clock.timed("make", [])) == []


def test_timed_streams_feed_each_other(time):
    """As the pipeline has it: blending asks the network, which asks for frames."""
    clock = StageClock()

    def frames():
        for i in range(4):
            time.work(1)
            yield i

    def blended(frames):
        for frame in frames:
            with clock.stage("encode"):
                time.work(10)
            time.work(100)
            yield frame

    for _ in clock.timed("blend", blended(clock.timed("read", frames()))):
        time.work(1000)
    assert clock.seconds == {"blend": 400, "read": 4, "encode": 40}


def test_an_error_while_an_item_is_made_passes(time):
    clock = StageClock()

    def items():
        time.work(2)
        yield 1
        time.work(3)
        raise OSError

    with pytest.raises(OSError):
        list(clock.timed("make", items()))
    assert clock.seconds == {"make": 5}


def test_a_stream_that_is_left_is_closed():
    closed = []

    def items():
        try:
            yield from range(9)
        finally:
            closed.append(True)

    stream = StageClock().timed("make", items())
    assert next(stream) == 0
    stream.close()
    assert closed == [True]


def test_threads_count_side_by_side(time):
    clock = StageClock()
    turns = [threading.Event() for _ in range(3)]

    def other():
        with clock.stage("read"):
            turns[0].set()
            turns[1].wait(30)
        turns[2].set()

    thread = threading.Thread(target=other)
    with clock.stage("outer"):
        thread.start()
        turns[0].wait(30)
        time.work(5)  # of both threads
        with clock.stage("inner"):
            time.work(2)
            turns[1].set()
            turns[2].wait(30)
            time.work(1)
    thread.join()
    assert clock.seconds == {"outer": 5, "inner": 3, "read": 7}


def test_what_is_still_under_way_belongs_to_the_stage_that_began_it(time):
    waiting = []

    def settle():
        time.work(sum(waiting))
        waiting.clear()

    clock = StageClock(settle)
    waiting.append(500)  # begun before any stage
    with clock.stage("outer"):
        waiting.append(1)
        with clock.stage("inner"):
            waiting.append(2)
            time.work(4)
        waiting.append(8)
    assert clock.seconds == {"outer": 9, "inner": 6}


def test_only_the_thread_that_made_the_clock_waits_for_the_device(time):
    settled = []
    clock = StageClock(lambda: settled.append(threading.get_ident()))

    def other():
        with clock.stage("write"):
            pass

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert settled == [] and clock.seconds == {"write": 0}
    with clock.stage("decode"):
        pass
    assert set(settled) == {threading.get_ident()}
