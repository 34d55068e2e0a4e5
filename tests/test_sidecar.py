"""Sound and subtitles: the same packets at the same times on the other side."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import moving_pictures, sound_packets, write_sine, write_video

from cvvae_cli.errors import VideoError
from cvvae_cli.sidecar import _decode_times, _encode_times
from cvvae_cli.video_io import VideoReader, VideoWriter, read_sidecar

BASE = Fraction(1, 12800)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return moving_pictures(25, 64, 48)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, pictures: list[np.ndarray]) -> Path:
    """One second of pictures, one and a half of sound."""
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", pictures, sound_seconds=1.5)


def copy(path: Path, pictures: list[np.ndarray], sidecar: bytes | None, **options: object) -> VideoWriter:
    with VideoWriter(path, 64, 48, Fraction(25), BASE, sidecar=sidecar, **options) as writer:
        for index, picture in enumerate(pictures):
            writer.write(picture, index * 512, 512)
    return writer


def times(packets: list[tuple[Fraction, bytes]]) -> list[float]:
    return [float(time) for time, _ in packets]


def test_packets_come_back_bit_for_bit_at_the_same_times(tmp_path: Path, clip: Path, pictures: list[np.ndarray]) -> None:
    source = sound_packets(clip)
    assert source[0][0] < 0, "the encoder's delay comes before zero"
    for name in ("a.mp4", "a.mov"):
        writer = copy(tmp_path / name, pictures, read_sidecar(clip))
        assert sound_packets(tmp_path / name) == source
        assert writer.notes == []
    copy(tmp_path / "a.mkv", pictures, read_sidecar(clip))
    back = sound_packets(tmp_path / "a.mkv")
    assert [data for _, data in back] == [data for _, data in source]
    assert np.abs(np.subtract(times(back), times(source))).max() < 0.001
    with VideoReader(tmp_path / "a.mkv") as reader:
        assert next(iter(reader)).pts == 0, "the sound's delay must not move the pictures"


def test_the_sidecar_is_a_file_that_players_open(clip: Path) -> None:
    sidecar = read_sidecar(clip)
    with av.open(io.BytesIO(sidecar)) as container:
        assert container.format.name.startswith("matroska")
        assert [stream.codec_context.name for stream in container.streams] == ["aac"]
        assert sum(frame.samples for frame in container.decode(audio=0)) > 1.4 * 44100
    assert len(sidecar) < 1.3 * sum(len(data) for _, data in sound_packets(clip)) + 2000


def test_sound_is_interleaved_with_pictures(tmp_path: Path, clip: Path, pictures: list[np.ndarray]) -> None:
    path = tmp_path / "a.mp4"
    copy(path, pictures, read_sidecar(clip), encoder_options={"tune": "zerolatency"})
    with av.open(str(path)) as container:
        order = [(p.pos, float(p.dts * p.time_base)) for p in container.demux() if p.size]
    order.sort()
    moments = [time for _, time in order]
    assert max(np.maximum.accumulate(moments) - moments) < 0.2


def test_a_span_takes_its_packets_and_origin_moves_them(tmp_path: Path, clip: Path, pictures: list[np.ndarray]) -> None:
    source = sound_packets(clip)
    wanted = [(time, data) for time, data in source if Fraction(2, 5) <= time < Fraction(4, 5)]
    sidecar = read_sidecar(clip, start=0.4, stop=0.8)
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 64, 48, Fraction(25), BASE, sidecar=sidecar, time_origin=Fraction(2, 5)) as writer:
        for index in range(10, 20):
            writer.write(pictures[index], index * 512, 512)
    back = sound_packets(path)
    assert [data for _, data in back] == [data for _, data in wanted]
    assert np.abs(np.subtract(times(back), times(wanted)) + 0.4).max() < 1e-4  # MP4 delays a track in ticks of the pictures
    with VideoReader(path) as reader:
        assert [frame.pts for frame in reader] == [index * 512 for index in range(10)]


def test_no_sound_is_none(tmp_path: Path, clip: Path, pictures: list[np.ndarray]) -> None:
    assert read_sidecar(write_video(tmp_path / "silent.mp4", pictures[:2])) is None
    assert read_sidecar(clip, start=50) is None
    with pytest.raises(VideoError, match="does not exist"):
        read_sidecar(tmp_path / "none.mp4")


def test_what_a_container_cannot_hold_is_encoded_anew(tmp_path: Path, clip: Path, pictures: list[np.ndarray]) -> None:
    writer = copy(tmp_path / "a.webm", pictures, read_sidecar(clip))
    assert len(writer.notes) == 1 and "libopus" in writer.notes[0]
    with av.open(str(tmp_path / "a.webm")) as container:
        sound = container.streams.audio[0]
        assert sound.codec_context.codec.canonical_name == "opus"
        frames = list(container.decode(sound))
        heard = np.concatenate([frame.to_ndarray()[0] for frame in frames])
        assert abs(len(heard) / frames[0].sample_rate - 1.5) < 0.06
        assert 0.5 < np.sqrt(np.mean(heard[2000:60000] ** 2)) < 0.9  # a sine's 0.71
    assert copy(tmp_path / "a.png", pictures[:1], read_sidecar(clip)).notes


def subtitled(path: Path, pictures: list[np.ndarray]) -> Path:
    words = b"1\n00:00:00,200 --> 00:00:00,700\nHello\n\n2\n00:00:00,800 --> 00:00:00,900\nBye\n\n"
    with av.open(io.BytesIO(words), format="srt") as texts, av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=25, width=64, height=48)
        sound = output.add_stream("flac", rate=44100, layout="mono")
        lines = output.add_stream_from_template(texts.streams[0])
        lines.metadata["language"] = "deu"
        for packet in texts.demux():
            if packet.dts is not None:
                packet.stream = lines
                output.mux(packet)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        samples = np.zeros((1, 4608), np.int16)
        for begin in range(0, 40000, 4608):
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 44100, begin, Fraction(1, 44100)
            output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    return path


def test_subtitles_travel_with_their_language_or_are_named(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    source = subtitled(tmp_path / "s.mkv", pictures)
    sidecar = read_sidecar(source)
    writer = copy(tmp_path / "a.mkv", pictures, sidecar)
    for kind in ("subtitle", "audio"):
        assert sound_packets(source, kind)
        assert sound_packets(tmp_path / "a.mkv", kind) == sound_packets(source, kind)
    assert writer.notes == []
    with av.open(str(tmp_path / "a.mkv")) as container:
        assert container.streams.subtitles[0].metadata["language"] in ("deu", "ger")
    writer = copy(tmp_path / "a.mp4", pictures, sidecar)
    assert len(writer.notes) == 1 and "subrip" in writer.notes[0]
    assert [data for _, data in sound_packets(tmp_path / "a.mp4")] == [data for _, data in sound_packets(source)]


def test_a_damaged_sidecar_is_an_error(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    with pytest.raises(VideoError, match="sound"):
        copy(tmp_path / "a.mp4", pictures, b"not a sidecar at all" * 40)
    assert not list(tmp_path.iterdir())


def test_times_are_exact_through_the_table() -> None:
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        write_sine(output, output.add_stream("aac", rate=44100, layout="mono"), 0.5)
    with av.open(io.BytesIO(buffer.getvalue())) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.size]
    moments = np.cumsum(rng.integers(900, 1100, len(packets))) - 5000
    for packet, pts in zip(packets, moments, strict=True):
        packet.pts = packet.dts = int(pts)
        packet.duration = int(rng.integers(0, 3))
    time_base, decoded = _decode_times(_encode_times(packets, False))
    assert time_base == Fraction(1, 44100)
    assert list(decoded) == [(packet.pts, packet.duration) for packet in packets]
