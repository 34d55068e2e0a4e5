"""Times that are missing, fall or begin anew."""

from itertools import pairwise

from cvvae_cli.frame_clock import FrameClock


def test_clock_fills_gaps_and_survives_restarts() -> None:
    clock = FrameClock(step=40, second=1000)
    given = [(0, None), (None, None), (80, None), (80, None), (5000, None), (0, None), (40, None)]
    assert [clock.place(*times) for times in given] == [0, 40, 80, 81, 5000, 5040, 5080]
    assert clock.repaired == 3


def test_clock_prefers_decoding_times_when_they_are_the_sound_ones() -> None:
    clock = FrameClock(step=1, second=30)
    times = [clock.place(pts, dts) for pts, dts in zip([2, 3, 5, 4, 6, 9, 8, 10, 7], range(3, 12), strict=True)]
    assert all(a < b for a, b in pairwise(times))
    assert times[-1] == 11


def test_clock_knows_a_stream_without_any_times() -> None:
    clock = FrameClock(step=40, second=1000)
    assert [clock.place(None, None) for _ in range(3)] == [0, 40, 80]
    assert clock.untimed and clock.repaired == 3
    clock.place(120, None)
    assert not clock.untimed
