"""The table of exact times: what was added comes out, and it stays short."""

from fractions import Fraction

import numpy as np

from cvvae_cli import packet_times
from cvvae_cli.packet_times import PacketTimes, parse_times

TICK = Fraction(1, 44100)


def collected(times: list[tuple[int, int]]) -> PacketTimes:
    table = PacketTimes(TICK)
    for pts, duration in times:
        table.add(pts, duration)
    return table


def test_a_table_by_hand():
    table = collected([(-1024, 1024), (0, 1024), (1024, 1024), (2048, 500), (2000, 0)])
    assert table.to_text() == "1/44100 -1024 1024*3,-48*1 1024*3,500*1,0*1"
    assert table.earliest == Fraction(-1024, 44100)
    assert collected([(7, 3)]).to_text() == "1/44100 7 - 3*1"


def test_any_times_come_back():
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 500):
        times = [(int(pts), int(duration)) for pts, duration in zip(rng.integers(-9, 9, count), rng.integers(0, 3, count))]
        table = collected(times)
        time_base, parsed = parse_times(table.to_text())
        assert (time_base, list(parsed)) == (TICK, times)
        assert table.earliest == min(pts for pts, _ in times) * TICK


def test_a_table_that_is_too_long_is_left_out_and_takes_no_memory(monkeypatch):
    monkeypatch.setattr(packet_times, "_MAX_RUNS", 10)
    squares = [(n * n, 5) for n in range(100)]  # every step differs
    assert collected(squares[:10]).to_text() != ""  # 9 runs of steps, 1 of durations
    table = collected(squares)
    assert table.to_text() == "" and table.earliest == 0
    assert len(table._steps) <= 11
