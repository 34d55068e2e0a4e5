"""The table of exact times: what was added comes out, and it stays short."""

from fractions import Fraction

import numpy as np
import pytest
from test_safetensors_header import peak_below

from cvvae_cli import packet_times
from cvvae_cli.errors import VideoError
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


@pytest.mark.parametrize(
    "text",
    [
        "", "1/1000 0 -", "1/1000 0 - 1*1 1*1", "1e999999999 0 - 1*1", "1/0 0 - 1*1", "0 0 - 1*1", "-1/5 0 - 1*1", "x 0 - 1*1",
        "1/1000 x - 1*1", "1/1000 1/2 - 1*1", "1/1000 1e9 - 1*1", "1/1000 0 1 1*1", "1/1000 0 1* 1*1", "1/1000 0 *1 1*1",
        "1/1000 0 1*-1 1*1", "1/1000 0 1.5*2 1*1", "1/1000 0 -,1*1 1*1", "1/1000 0 , 1*1", "1/1000 0 1*1*1 1*1",
        "1/1000 " + "9" * 5000 + " - 1*1", "1/1000 0 - " + "9" * 5000 + "*1",
        "1/1000 0 999999999999999999*999999999999999999 1*1",
        "1/1000 0 - " + ",".join(["1*1"] * 9000),
        "1/1000 4611686018427387904 - 1*1", "1/1000 0 - 4611686018427387904*1", "1/1000 0 - ١*١",
    ],
)  # fmt: skip
def test_a_strangers_table_is_refused_at_once(text):
    with peak_below(2 * 2**20), pytest.raises(VideoError, match="damaged times; decode with --no-audio"):
        parse_times(text)


def test_a_table_of_very_many_packets_takes_no_memory():
    time_base, times = parse_times("1/1000 5 2*100000000000000000 0*100000000000000000")
    with peak_below(2**20):
        assert [next(times) for _ in range(3)] == [(5, 0), (7, 0), (9, 0)]
