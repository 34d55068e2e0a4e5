"""What the reader says of a source, and where --strict stops instead."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import moving_pictures, write_video

from cvvae_cli.errors import UsageError, VideoError
from cvvae_cli.reading import Reading
from cvvae_cli.video_io import VideoReader

PICTURES = moving_pictures(12, 64, 48)
STRICT = Reading(strict=True)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", PICTURES)


def notes(path: Path, **options: object) -> tuple[str, ...]:
    with VideoReader(path, **options) as reader:
        for _ in reader:
            pass
        return reader.notes(to_end=True)


def damaged(clip: Path, path: Path) -> Path:
    """The clip with its seventh packet overwritten by zeros."""
    data = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        packet = [(p.pos, p.size) for p in container.demux(video=0) if p.size][6]
    data[packet[0] : sum(packet)] = bytes(packet[1])
    path.write_bytes(data)
    return path


def two_videos(path: Path) -> Path:
    """A file with two videos of three frames, 64x48 and 32x32."""
    with av.open(str(path), "w") as output:
        streams = [output.add_stream("libx264", rate=25, width=w, height=h, pix_fmt="yuv420p") for w, h in ((64, 48), (32, 32))]
        for stream in streams:
            for picture in moving_pictures(3, stream.width, stream.height):
                output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            output.mux(stream.encode(None))
    return path


def test_a_sound_file_has_no_notes_and_strict_reads_it(clip: Path) -> None:
    assert notes(clip) == ()
    with VideoReader(clip, reading=STRICT) as reader:
        assert len(list(reader)) == 12


def test_damage_is_counted_or_stops(tmp_path: Path, clip: Path) -> None:
    broken = damaged(clip, tmp_path / "broken.mp4")
    told = notes(broken)
    assert any("damaged packet" in note and note.endswith("passed over.") for note in told)
    assert any(note.startswith("The container counts 12 frames, of which ") for note in told)
    with VideoReader(broken, reading=STRICT) as reader, pytest.raises(VideoError) as failure:
        list(reader)
    assert "has a damaged packet at 0.240 s; leave out --strict" in str(failure.value) and str(broken) in str(failure.value)


def test_a_file_that_breaks_off_stops_where_nothing_may_be_lost(tmp_path: Path) -> None:
    cut = write_video(tmp_path / "cut.avi", PICTURES, codec="ffv1", time_base=Fraction(1, 25))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    assert any("The container counts 12 frames, of which" in note for note in notes(cut))
    with VideoReader(cut, reading=STRICT) as reader, pytest.raises(VideoError, match="--strict"):
        list(reader)


def test_half_a_picture_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as output:
        stream = output.add_stream("mjpeg", width=64, height=48, pix_fmt="yuvj420p")
        frame = av.VideoFrame.from_ndarray(PICTURES[0], "rgb24").reformat(format="yuvj420p")
        output.mux([*stream.encode(frame), *stream.encode(None)])
    whole = path.read_bytes()
    with VideoReader(path, reading=STRICT) as reader:
        assert len(list(reader)) == 1
    path.write_bytes(whole[: len(whole) * 2 // 3])
    assert notes(path) == ()
    with pytest.raises(VideoError, match="has a damaged packet"):
        VideoReader(path, reading=STRICT)


def test_hidden_frames_of_an_edit_list_are_not_lost(tmp_path: Path) -> None:
    """A cut without encoding anew: the copy holds frames from a keyframe on, and its edit list hides the first of them."""
    source = write_video(tmp_path / "source.mp4", moving_pictures(20, 64, 48))
    cut = tmp_path / "cut.mp4"
    with av.open(str(source)) as container, av.open(str(cut), "w") as output:
        stream = output.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(video=0):
            if packet.dts is not None:
                packet.pts, packet.dts = packet.pts - 4 * 512, packet.dts - 4 * 512
                packet.stream = stream
                output.mux(packet)
    with VideoReader(cut, reading=STRICT) as reader:
        frames = list(reader)
    assert reader.info.num_frames == 20 and len(frames) < 20 and frames[0].pts == 0
    assert reader.notes(to_end=True) == ()


def test_falling_times_are_repaired_or_stop(tmp_path: Path) -> None:
    path = tmp_path / "falling.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate=25, width=64, height=48, pix_fmt="bgr0")
        packets = []
        for picture in PICTURES:
            packets += stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24"))
        packets += stream.encode(None)
        for index, packet in enumerate(packets):
            packet.time_base, packet.pts, packet.dts = Fraction(1, 1000), 40 * index, 40 * index
            if index == 5:
                packet.pts = packet.dts = 160
            output.mux(packet)
    assert "1 missing or falling timestamp was repaired." in notes(path)
    with VideoReader(path, reading=STRICT) as reader, pytest.raises(VideoError, match="falling timestamp near frame"):
        list(reader)


def test_a_raw_stream_has_no_times_and_is_not_wrong_for_that(tmp_path: Path) -> None:
    path = write_video(tmp_path / "raw.h264", PICTURES)
    assert "The file holds no timestamps; 25 frames per second were assumed." in notes(path)
    with VideoReader(path, reading=STRICT) as reader:
        assert len(list(reader)) == 12


def test_one_of_several_videos_is_chosen_and_said(tmp_path: Path) -> None:
    path = two_videos(tmp_path / "two.mkv")
    assert "The file has the video streams 0 and 1; 0 was read, --stream N reads another." in notes(path)
    with VideoReader(path, reading=Reading(stream=1)) as reader:
        assert next(iter(reader)).rgb.shape == (32, 32, 3)
    assert not any("video streams" in note for note in reader.notes(to_end=True))
    with pytest.raises(UsageError, match="has no video stream 2; choose --stream from 0, 1"):
        VideoReader(path, reading=Reading(stream=2))


def test_a_matrix_that_nobody_states_is_said(tmp_path: Path) -> None:
    path = two_videos(tmp_path / "two.mp4")
    assert "The source does not state its colour matrix; BT.601 was assumed, as players do for its size." in notes(path)


def test_transparency_is_said_where_there_is_any(tmp_path: Path) -> None:
    for alpha, told in ((255, ()), (90, ("The transparency (alpha) was left out.",))):
        path = tmp_path / f"{alpha}.mkv"
        with av.open(str(path), "w") as output:
            stream = output.add_stream("ffv1", rate=25, width=32, height=32, pix_fmt="bgra")
            pixels = np.dstack([moving_pictures(1, 32, 32)[0], np.full((32, 32), alpha, np.uint8)])
            frame = av.VideoFrame.from_ndarray(pixels, "rgba")
            output.mux([*stream.encode(frame.reformat(format="bgra")), *stream.encode(None)])
        assert notes(path) == told


def test_a_reading_comes_back_from_its_record() -> None:
    for reading in (Reading(), Reading(2, Fraction(30000, 1001), True)):
        assert Reading.from_dict(reading.to_dict()) == reading
