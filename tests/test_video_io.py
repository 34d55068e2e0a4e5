"""The reader against clips whose every pixel and timestamp is known."""

import gc
import json
import struct
import subprocess
import sys
import weakref
import zlib
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from clips import deep_pictures, moving_pictures, write_sine, write_video

from cvvae_cli.colour import FrameToRgb
from cvvae_cli.errors import UsageError, VideoError
from cvvae_cli.video_io import VideoInfo, VideoReader, probe

TICKS = 512  # of 1/12800 s, between frames at 25 per second


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return moving_pictures(24, 64, 48)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, pictures: list[np.ndarray]) -> Path:
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", pictures, sound_seconds=1.2)


def test_every_frame_comes_back_exactly_and_in_time(clip: Path, pictures: list[np.ndarray]) -> None:
    with VideoReader(clip) as reader:
        frames = list(reader)
    assert len(frames) == len(pictures)
    for index, (frame, picture) in enumerate(zip(frames, pictures, strict=True)):
        assert np.array_equal(frame.rgb, picture)
        assert (frame.pts, frame.duration) == (index * TICKS, TICKS)
        assert frame.rgb.flags.c_contiguous
    assert (reader.broken_packets, reader.changed_frames, reader.repaired_times) == (0, 0, 0)


def test_info_says_what_the_file_is(clip: Path) -> None:
    info = probe(clip)
    assert (info.width, info.height, info.num_frames, info.codec) == (64, 48, 24, "h264")
    assert (info.frame_rate, info.time_base) == (25, Fraction(1, 12800))
    assert info.duration_seconds == pytest.approx(0.96)
    assert (info.audio_codecs, info.subtitle_codecs) == (("aac",), ())
    assert (info.sample_aspect_ratio, info.rotation, info.bit_depth) == (1, 0, 8)
    assert VideoInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info
    assert info.to_dict()["frame_rate"] == "25/1"


@pytest.mark.parametrize("start", [0.0, 0.2, 0.21, 0.6])
def test_start_is_exact_between_keyframes(clip: Path, pictures: list[np.ndarray], start: float) -> None:
    first = int(np.ceil(round(start * 25, 6)))
    with VideoReader(clip, start=start, duration=0.16) as reader:
        frames = list(reader)
    assert [frame.pts // TICKS for frame in frames] == list(range(first, first + 4))
    assert all(np.array_equal(frame.rgb, pictures[frame.pts // TICKS]) for frame in frames)


def test_max_frames_stops_and_keeps_durations(clip: Path) -> None:
    with VideoReader(clip, max_frames=3) as reader:
        assert [(frame.pts, frame.duration) for frame in reader] == [(0, TICKS), (TICKS, TICKS), (2 * TICKS, TICKS)]


def test_frames_that_are_skipped_have_times_and_are_not_converted(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with VideoReader(clip, max_frames=9) as reader:
        whole = list(reader)
    convert, converted = FrameToRgb.__call__, []
    monkeypatch.setattr(FrameToRgb, "__call__", lambda self, frame: converted.append(frame.pts) or convert(self, frame))
    for count in (0, 1, 5, 8, 9, 20):
        converted.clear()
        with VideoReader(clip, max_frames=9) as reader:
            times, rest = list(reader.skip(count)), list(reader)
            assert list(reader.skip(1)) == list(reader) == []
        assert times == [(frame.pts, frame.duration) for frame in whole[:count]]
        assert [frame.pts for frame in rest] == converted == [frame.pts for frame in whole[count:]]
        assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(rest, whole[count:]))


def test_a_closed_reader_is_gone_without_the_garbage_collector(clip: Path) -> None:
    """Its decoder has threads; freed later, in a forked child that lacks them, it would hang or crash."""
    gc.collect()
    gc.disable()
    try:
        with VideoReader(clip) as reader:
            next(iter(reader))
        gone = weakref.ref(reader)
        del reader
        assert gone() is None
    finally:
        gc.enable()


def test_start_without_an_index_reads_from_the_beginning(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    path = write_video(tmp_path / "raw.h264", pictures)
    with VideoReader(path, start=0.4) as reader:
        frames = list(reader)
    assert len(frames) == 14
    assert np.array_equal(frames[0].rgb, pictures[10])
    assert reader.info.frame_rate == 25 and reader.info.num_frames is None


def test_irregular_times_and_a_late_beginning_are_kept(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    pts = [6400, 6500, 7000, 9000, 9001, 12000]
    path = write_video(tmp_path / "vfr.mp4", pictures[:6], pts=pts)
    with VideoReader(path) as reader:
        frames = list(reader)
    assert [frame.pts for frame in frames] == pts
    assert [frame.duration for frame in frames[:-1]] == list(np.diff(pts))


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotated_frames_come_upright(tmp_path: Path, pictures: list[np.ndarray], rotation: int) -> None:
    path = write_video(tmp_path / "turned.mp4", pictures[:2], rotation=rotation, aspect=Fraction(4, 3))
    with VideoReader(path) as reader:
        frame = next(iter(reader))
    expected = np.rot90(pictures[0], rotation // 90)
    assert np.array_equal(frame.rgb, expected)
    assert (reader.info.height, reader.info.width) == expected.shape[:2]
    assert reader.info.rotation == rotation
    assert reader.info.sample_aspect_ratio == (Fraction(4, 3) if rotation == 180 else Fraction(3, 4))


def test_mirrored_frames_come_unmirrored(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    path = write_video(tmp_path / "mirror.mp4", pictures[:2], rotation=0, flips=(False, True))
    with VideoReader(path) as reader:
        assert np.array_equal(next(iter(reader)).rgb, pictures[0][::-1])


@pytest.mark.parametrize(("width", "height"), [(33, 17), (1, 1), (35, 64)])
def test_odd_sizes_are_whole(tmp_path: Path, width: int, height: int) -> None:
    pictures = moving_pictures(2, width, height)
    path = write_video(tmp_path / "odd.mkv", pictures, codec="ffv1")
    with VideoReader(path) as reader:
        assert all(np.array_equal(frame.rgb, picture) for frame, picture in zip(reader, pictures, strict=True))


def test_resize_is_to_the_upright_size(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    path = write_video(tmp_path / "turned.mp4", pictures[:1], rotation=90)
    with VideoReader(path, size=(24, 32)) as reader:
        small = next(iter(reader)).rgb
    assert small.shape == (32, 24, 3)
    means = np.rot90(pictures[0]).reshape(32, 2, 24, 2, 3).mean((1, 3))
    assert np.abs(small[9:, :] - means[9:, :]).mean() < 2
    assert (reader.width, reader.height, reader.info.width) == (24, 32, 48)


def test_one_frame_and_pictures(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    video = write_video(tmp_path / "one.mp4", pictures[:1])
    still = tmp_path / "still.png"
    with av.open(str(still), "w", format="image2", options={"update": "1"}) as output:
        stream = output.add_stream("png", width=64, height=48, pix_fmt="rgb24")
        output.mux([*stream.encode(av.VideoFrame.from_ndarray(pictures[0], "rgb24")), *stream.encode(None)])
    for path in (video, still):
        with VideoReader(path) as reader:
            frames = list(reader)
        assert len(frames) == 1 and np.array_equal(frames[0].rgb, pictures[0])
        assert frames[0].duration * reader.info.time_base == Fraction(1, 25)


def test_damage_in_the_middle_loses_little(tmp_path: Path, pictures: list[np.ndarray], clip: Path) -> None:
    data = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    position, size = packets[12]
    data[position : position + size] = bytes(size)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(data)
    with VideoReader(broken) as reader:
        frames = list(reader)
    assert reader.broken_packets >= 1
    assert len(pictures) - 3 <= len(frames) < len(pictures)
    assert np.array_equal(frames[-1].rgb, pictures[-1])  # the last keyframe heals it
    assert all(a.pts < b.pts for a, b in pairwise(frames))


def test_frames_of_another_size_are_fitted_and_counted(tmp_path: Path) -> None:
    first = write_video(tmp_path / "a.h264", moving_pictures(3, 64, 48))
    second = write_video(tmp_path / "b.h264", moving_pictures(3, 32, 32))
    joined = tmp_path / "joined.h264"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    with VideoReader(joined) as reader:
        shapes = [frame.rgb.shape for frame in reader]
    assert shapes == [(48, 64, 3)] * 6
    assert reader.changed_frames == 3


def test_deep_sources_give_16_bits_where_they_are_asked_for(tmp_path: Path, clip: Path) -> None:
    pictures = deep_pictures(3, 64, 48)
    path = write_video(tmp_path / "deep.mkv", pictures, codec="ffv1", pix_fmt="gbrp16le")
    with VideoReader(path, deep=True) as reader:
        assert reader.deep and reader.info.bit_depth == 16
        assert all(np.array_equal(frame.rgb, picture) for frame, picture in zip(reader, pictures, strict=True))
    with VideoReader(path, size=(32, 24), deep=True) as reader:
        small = next(iter(reader)).rgb
    means = pictures[0].reshape(24, 2, 32, 2, 3).mean((1, 3))
    assert small.dtype == np.uint16 and np.abs(small[13:] - means[13:]).mean() < 2 * 257
    for source, deep in ((path, False), (clip, True)):
        with VideoReader(source, deep=deep) as reader:
            assert not reader.deep and {frame.rgb.dtype for frame in reader} == {np.dtype(np.uint8)}


def test_deep_frames_of_another_size_are_fitted_and_counted(tmp_path: Path) -> None:
    parts = [tmp_path / "a.h264", tmp_path / "b.h264"]
    for path, width in zip(parts, (64, 32), strict=True):
        grey = [np.full((48, width, 3), 20000 + width, np.uint16)] * 3
        write_video(path, grey, codec="libx264", pix_fmt="yuv444p10le")
    joined = tmp_path / "joined.h264"
    joined.write_bytes(b"".join(path.read_bytes() for path in parts))
    with VideoReader(joined, deep=True) as reader:
        frames = [frame.rgb for frame in reader]
    assert [(frame.shape, frame.dtype) for frame in frames] == [((48, 64, 3), np.uint16)] * 6
    assert reader.changed_frames == 3 and all(frame.min() == frame.max() for frame in frames)
    assert np.abs(np.array([frame[0, 0, 0] for frame in frames]) - 20000.0).max() < 200


def test_milliseconds_do_not_pass_for_a_frame_rate(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    """FLV states no rate at all, and FFmpeg reports 1000 per second."""
    path = tmp_path / "talk.flv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=1000, width=64, height=48)
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = round(index * 1001 / 30), Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert abs(probe(path).frame_rate - Fraction(30000, 1001)) < Fraction(1, 20)


def test_reading_streams(clip: Path) -> None:
    """Frames are decoded as they are asked for: no more than a handful are ahead of the consumer."""
    with VideoReader(clip) as reader:
        iterator = iter(reader)
        next(iterator)
        decoded_ahead = len(list(reader._frames))
    assert decoded_ahead >= 20


def test_cut_off_and_foreign_files_say_why(tmp_path: Path, clip: Path) -> None:
    whole = clip.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("hello\n" * 1000)
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    with av.open(str(tmp_path / "sound.m4a"), "w", format="mp4") as output:
        write_sine(output, output.add_stream("aac", rate=44100, layout="mono"), 0.2)
    for name, words in {
        "cut.mp4": "without its index (moov)",
        "empty.mp4": "is empty",
        "notes.txt": "is a text file",
        "noise.mp4": "not a video",
        "sound.m4a": "no video stream",
        "nothing.mp4": "does not exist",
        ".": "is a folder",
    }.items():
        with pytest.raises(VideoError) as failure:
            probe(tmp_path / name)
        assert words in str(failure.value) and str(tmp_path) in str(failure.value), name
        assert "\n" not in str(failure.value)


def test_cover_art_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as output:
        art = output.add_stream("png", width=16, height=16, pix_fmt="rgb24")
        art.disposition = av.stream.Disposition.attached_pic
        sound = output.add_stream("aac", rate=44100, layout="mono")
        output.mux([*art.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), "rgb24")), *art.encode(None)])
        write_sine(output, sound, 0.2)
    with av.open(str(path)) as container:
        attached = bool(container.streams.video[0].disposition & av.stream.Disposition.attached_pic)
    assert attached
    with pytest.raises(VideoError, match="no video stream"):
        probe(path)


def test_a_span_past_the_end_is_an_error(clip: Path) -> None:
    with VideoReader(clip, start=60) as reader, pytest.raises(VideoError, match="no frame in the span"):
        list(reader)


def test_names_with_colons_and_dashes_are_names(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("-odd:name.mp4", "http:x.mp4", "50%d.mp4", "größe 1.mp4"):
        Path(name).write_bytes(clip.read_bytes())
        assert probe(name).num_frames == 24


@pytest.mark.parametrize("wrong", [{"start": -1}, {"start": float("nan")}, {"duration": 0}, {"max_frames": 0}, {"size": (0, 8)}])
def test_spans_out_of_range_are_refused(clip: Path, wrong: dict) -> None:
    with pytest.raises(UsageError):
        VideoReader(clip, **wrong)


def test_a_picture_with_a_colour_profile_does_no_harm(tmp_path: Path) -> None:
    """PyAV frees the name of such a profile twice if anyone looks at the frame's side data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    picture = moving_pictures(1, 8, 4)[0]
    rows = b"".join(b"\0" + row.tobytes() for row in picture)
    header = struct.pack(">IIBBBBB", 8, 4, 8, 2, 0, 0, 0)
    profile = b"a profile\0\0" + zlib.compress(bytes(200))
    path = tmp_path / "profile.png"
    chunks = chunk(b"IHDR", header) + chunk(b"iCCP", profile) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    script = (
        "import gc, sys; from cvvae_cli.video_io import VideoReader\n"
        "for _ in range(20):\n"
        "    with VideoReader(sys.argv[1]) as reader: frames = list(reader)\n"
        "    del reader; gc.collect()\n"
        "print(frames[0].rgb.sum())"
    )
    ran = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (0, str(picture.sum())), ran.stderr


def test_a_file_that_names_other_files_opens_none(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "secret.mp4").write_bytes(clip.read_bytes())
    texts = {
        "list.mp4": "ffconcat version 1.0\nfile secret.mp4\n",
        "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nsecret.mp4\n#EXT-X-ENDLIST\n",
        "list.sdp": "v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(VideoError, match="names other files instead of holding a video"):
            VideoReader(tmp_path / name)
