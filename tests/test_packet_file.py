"""Packets between encoder and container: what comes back, their decoding times, and what a crash leaves."""

import os
from fractions import Fraction
from itertools import permutations
from pathlib import Path

import av
import numpy as np
import pytest
from av.packet import Packet

from cvvae_cli.packet_file import PacketFile, decoding_times
from cvvae_cli.run_journal import RunJournal

RUN = {"a": 1}


def packet(pts: int, data: bytes, is_keyframe: bool = False) -> Packet:
    made = Packet(data)
    made.pts = made.dts = pts
    made.duration, made.is_keyframe = 7, is_keyframe
    return made


def contents(file: PacketFile) -> list[tuple]:
    return [(bytes(p), p.pts, p.dts, p.duration, p.is_keyframe) for p in file.packets()]


def test_packets_come_back(tmp_path: Path) -> None:
    file = PacketFile(tmp_path / "p", None)
    file.append([packet(0, b"first", True), packet(40, b"x" * 3_000_000), packet(20, b"b")], durations={40: 99, 5: 1})
    file.end_segment(3)
    assert contents(file) == [
        (b"first", 0, -20, 7, True), (b"x" * 3_000_000, 40, 0, 99, False), (b"b", 20, 20, 7, False),
    ]  # fmt: skip
    assert file.frames == 3
    file.close(keep=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("steps", [[1] * 6, [1, 5, 2, 9, 1, 1]])
def test_decoding_times_rise_and_come_in_time_with_the_least_delay(steps: list[int]) -> None:
    shown = np.cumsum(steps)
    for order in permutations(range(6)):
        pts = shown[list(order)]
        dts = decoding_times(pts)
        assert (np.diff(dts) > 0).all() and (dts <= pts).all()
        delay = max((place - rank for place, rank in enumerate(order)), default=0)
        assert np.array_equal(dts[delay:], shown[: 6 - delay])
    assert decoding_times(np.zeros(0, np.int64)).shape == (0,)


def test_decoding_times_are_an_encoder_s_own(tmp_path: Path) -> None:
    """x264 on 30 frames of uneven times, with single B-frames: then it holds back no more than it must."""
    context = av.CodecContext.create("libx264", "w")
    context.width = context.height = 64
    context.pix_fmt, context.time_base, context.framerate = "yuv420p", Fraction(1, 1000), Fraction(25)
    context.options = {"bf": "1"}
    rng = np.random.default_rng(0)
    ticks, packets = np.cumsum(rng.integers(1, 90, 30)), []
    for pts in ticks:
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), pts % 256, np.uint8), "rgb24")
        frame.pts = int(pts)
        packets += context.encode(frame)
    packets += context.encode(None)
    assert [p.pts for p in packets] != sorted(p.pts for p in packets)
    assert decoding_times(np.array([p.pts for p in packets])).tolist() == [p.dts for p in packets]


def test_finished_segments_are_taken_over(tmp_path: Path) -> None:
    journal = RunJournal(tmp_path / "a", RUN)
    file = PacketFile(tmp_path / "p", journal)
    file.append([packet(0, b"one", True), packet(1, b"two")], {})
    file.end_segment(2)
    file.append([packet(2, b"three", True)], {})
    file.end_segment(3)
    file.append([packet(3, b"lost", True)], {})
    journal.close(keep=True), file.close(keep=True)

    journal = RunJournal(tmp_path / "a", RUN)
    file = PacketFile(tmp_path / "p", journal)
    assert file.frames == 3 and [data for data, *_ in contents(file)] == [b"one", b"two", b"three"]
    file.append([packet(5, b"new", True)], {})
    file.end_segment(4)
    assert [(data, pts) for data, pts, *_ in contents(file)] == [(b"one", 0), (b"two", 1), (b"three", 2), (b"new", 5)]
    journal.close(keep=False), file.close(keep=False)
    assert not list(tmp_path.iterdir())


def test_segments_that_the_disk_lost_are_made_again(tmp_path: Path) -> None:
    def begun() -> tuple[RunJournal, PacketFile]:
        journal = RunJournal(tmp_path / "a", RUN)
        return journal, PacketFile(tmp_path / "p", journal)

    journal, file = begun()
    for index in range(3):
        file.append([packet(index, bytes([index]) * 50, True)], {})
        file.end_segment(index + 1)
    journal.close(keep=True), file.close(keep=True)
    size = (tmp_path / "p").stat().st_size
    with open(tmp_path / "p", "rb+") as raw:  # a power cut: the second segment is zeros, the third is not there
        raw.seek(size // 3)
        raw.write(bytes(size // 3))
    os.truncate(tmp_path / "p", size - 10)
    journal, file = begun()
    assert file.frames == 1 and len(contents(file)) == 1
    file.append([packet(8, b"again", True)], {})
    file.end_segment(2)
    journal.close(keep=True), file.close(keep=True)
    journal, file = begun()
    assert file.frames == 2 and [pts for _, pts, *_ in contents(file)] == [0, 8]
    journal.close(keep=False), file.close(keep=False)
