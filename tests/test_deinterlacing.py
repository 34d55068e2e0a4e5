"""Interlaced video: a word about it, and whole pictures on request, one for one and in time."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from cvvae_cli.reading import Reading
from cvvae_cli.video_io import VideoReader

FIELDS = 16
PTS = [512 * sum(1 + i % 3 for i in range(n)) for n in range(FIELDS // 2)]


def field(time: float) -> np.ndarray:
    """A bright bar that moves to the right by 3 pixels in each field, on a soft ground."""
    y, x = np.mgrid[0:48, 0:64].astype(float)
    grey = 60 + 20 * np.sin(y / 9) + 120 / (1 + np.exp(-(8 - np.abs(x - 10 - 3 * time))))
    return np.repeat(grey[..., None], 3, 2).round().astype(np.uint8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of variable rate, woven from sixteen fields, bottom field first (FFmpeg's x264 signals no other)."""
    path = tmp_path_factory.mktemp("interlaced") / "clip.mp4"
    with av.open(str(path), "w") as output:
        options = {"qp": "0", "x264-params": "bff=1"}
        stream = output.add_stream("libx264", rate=25, width=64, height=48, pix_fmt="yuv420p", options=options)
        stream.time_base = stream.codec_context.time_base = Fraction(1, 12800)
        for index, pts in enumerate(PTS):
            woven = field(2 * index)
            woven[::2] = field(2 * index + 1)[::2]
            frame = av.VideoFrame.from_ndarray(woven, "rgb24")
            frame.pts, frame.time_base = pts, Fraction(1, 12800)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def error(frames: list, index: int) -> float:
    return float(np.abs(frames[index].rgb.astype(float) - field(2 * index)).mean())


def test_interlaced_video_is_said_and_left_as_it_is(clip: Path) -> None:
    with VideoReader(clip) as reader:
        frames = list(reader)
    assert any("--deinterlace makes whole pictures" in note for note in reader.notes(to_end=True))
    assert np.abs(frames[4].rgb[1::2].astype(int) - field(8)[1::2]).max() <= 4
    assert np.abs(frames[4].rgb[::2].astype(int) - field(9)[::2]).max() <= 4


def test_deinterlacing_keeps_count_and_times_and_takes_the_combs_out(clip: Path) -> None:
    with VideoReader(clip) as reader:
        combed = list(reader)
    with VideoReader(clip, reading=Reading(deinterlace=True)) as reader:
        frames = list(reader)
    assert [(frame.pts, frame.duration) for frame in frames] == [(frame.pts, frame.duration) for frame in combed]
    assert [frame.pts for frame in frames] == PTS
    assert not any("deinterlace" in note for note in reader.notes(to_end=True))
    assert all(error(frames, index) < 0.1 * error(combed, index) for index in range(1, 7))


def test_deinterlacing_from_a_moment_on_gives_the_same_frames(clip: Path) -> None:
    whole = Reading(deinterlace=True)
    with VideoReader(clip, reading=whole) as reader:
        frames = list(reader)
    with VideoReader(clip, start=PTS[5] / 12800, reading=whole) as reader:
        late = list(reader)
    assert [frame.pts for frame in late] == PTS[5:]
    assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(late, frames[5:], strict=True))


def test_whole_pictures_pass_unchanged_and_sizes_may_change(tmp_path: Path, clip: Path) -> None:
    parts = []
    for size in (48, 32):
        path = tmp_path / f"{size}.h264"
        with av.open(str(path), "w") as output:
            stream = output.add_stream("libx264", rate=25, width=64, height=size, pix_fmt="yuv420p", options={"qp": "0"})
            for index in range(4):
                output.mux(stream.encode(av.VideoFrame.from_ndarray(field(2 * index)[:size], "rgb24")))
            output.mux(stream.encode(None))
        parts.append(path.read_bytes())
    joined = tmp_path / "joined.h264"
    joined.write_bytes(b"".join(parts))
    with VideoReader(joined) as plain, VideoReader(joined, reading=Reading(deinterlace=True)) as reader:
        pairs = list(zip(plain, reader, strict=True))
    assert len(pairs) == 8 and all(np.array_equal(a.rgb, b.rgb) for a, b in pairs)
