"""Sound and subtitles: the same packets at the same times on the other side."""

import io
import os
import resource
import subprocess
import sys
import wave
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import pytest
from clips import moving_pictures, sound_packets, write_sine, write_video
from writers import open_writer

from cvvae_cli.errors import OutputError, VideoError
from cvvae_cli.latent_writer import LatentWriter
from cvvae_cli.sidecar import SidecarCopy
from cvvae_cli.video_io import VideoReader, write_sidecar
from cvvae_cli.video_writer import VideoWriter

BASE = Fraction(1, 12800)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return moving_pictures(25, 64, 48)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, pictures: list[np.ndarray]) -> Path:
    """One second of pictures, one and a half of sound."""
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", pictures, sound_seconds=1.5)


def sidecar_of(path: Path, start: float = 0.0, stop: float | None = None) -> BinaryIO | None:
    file = io.BytesIO()
    return file if write_sidecar(path, file, start, stop) else None


def copy(path: Path, pictures: list[np.ndarray], sidecar: BinaryIO | None, **options: object) -> VideoWriter:
    with open_writer(path, 64, 48, Fraction(25), BASE, sidecar=sidecar, **options) as writer:
        for index, picture in enumerate(pictures):
            writer.write(picture, index * 512, 512)
    return writer


def times(packets: list[tuple[Fraction, bytes]]) -> list[float]:
    return [float(time) for time, _ in packets]


def test_packets_come_back_bit_for_bit_at_the_same_times(tmp_path: Path, clip: Path, pictures: list[np.ndarray]) -> None:
    source = sound_packets(clip)
    assert source[0][0] < 0, "the encoder's delay comes before zero"
    for name in ("a.mp4", "a.mov"):
        writer = copy(tmp_path / name, pictures, sidecar_of(clip))
        assert sound_packets(tmp_path / name) == source
        assert writer.notes == []
    copy(tmp_path / "a.mkv", pictures, sidecar_of(clip))
    back = sound_packets(tmp_path / "a.mkv")
    assert [data for _, data in back] == [data for _, data in source]
    assert np.abs(np.subtract(times(back), times(source))).max() < 0.001
    with VideoReader(tmp_path / "a.mkv") as reader:
        assert next(iter(reader)).pts == 0, "the sound's delay must not move the pictures"


def test_the_sidecar_is_a_file_that_players_open(clip: Path) -> None:
    sidecar = sidecar_of(clip)
    size = sidecar.seek(0, os.SEEK_END)
    sidecar.seek(0)
    with av.open(sidecar) as container:
        assert container.format.name.startswith("matroska")
        assert [stream.codec_context.name for stream in container.streams] == ["aac"]
        assert sum(frame.samples for frame in container.decode(audio=0)) > 1.4 * 44100
    assert size < 1.3 * sum(len(data) for _, data in sound_packets(clip)) + 2000


def test_sound_is_interleaved_with_pictures(tmp_path: Path, clip: Path, pictures: list[np.ndarray]) -> None:
    path = tmp_path / "a.mp4"
    copy(path, pictures, sidecar_of(clip), options={"tune": "zerolatency"})
    with av.open(str(path)) as container:
        order = [(p.pos, float(p.dts * p.time_base)) for p in container.demux() if p.size]
    order.sort()
    moments = [time for _, time in order]
    assert max(np.maximum.accumulate(moments) - moments) < 0.2


def test_a_span_takes_its_packets_and_origin_moves_them(tmp_path: Path, clip: Path, pictures: list[np.ndarray]) -> None:
    source = sound_packets(clip)
    wanted = [(time, data) for time, data in source if Fraction(2, 5) <= time < Fraction(4, 5)]
    sidecar = sidecar_of(clip, start=0.4, stop=0.8)
    path = tmp_path / "a.mp4"
    with open_writer(path, 64, 48, Fraction(25), BASE, sidecar=sidecar, origin=Fraction(2, 5)) as writer:
        for index in range(10, 20):
            writer.write(pictures[index], index * 512, 512)
    back = sound_packets(path)
    assert [data for _, data in back] == [data for _, data in wanted]
    assert np.abs(np.subtract(times(back), times(wanted)) + 0.4).max() < 1e-4  # MP4 delays a track in ticks of the pictures
    with VideoReader(path) as reader:
        assert [frame.pts for frame in reader] == [index * 512 for index in range(10)]


def test_no_sound_is_none(tmp_path: Path, clip: Path, pictures: list[np.ndarray]) -> None:
    assert sidecar_of(write_video(tmp_path / "silent.mp4", pictures[:2])) is None
    assert sidecar_of(clip, start=50) is None
    with pytest.raises(VideoError, match="does not exist"):
        sidecar_of(tmp_path / "none.mp4")


def test_what_a_container_cannot_hold_is_encoded_anew(tmp_path: Path, clip: Path, pictures: list[np.ndarray]) -> None:
    writer = copy(tmp_path / "a.webm", pictures, sidecar_of(clip))
    assert len(writer.notes) == 1 and "libopus" in writer.notes[0]
    with av.open(str(tmp_path / "a.webm")) as container:
        sound = container.streams.audio[0]
        assert sound.codec_context.codec.canonical_name == "opus"
        frames = list(container.decode(sound))
        heard = np.concatenate([frame.to_ndarray()[0] for frame in frames])
        assert abs(len(heard) / frames[0].sample_rate - 1.5) < 0.06
        assert 0.5 < np.sqrt(np.mean(heard[2000:60000] ** 2)) < 0.9  # a sine's 0.71
    assert copy(tmp_path / "a.png", pictures[:1], sidecar_of(clip)).notes


def test_sound_with_times_that_overlap_can_be_encoded_anew(tmp_path: Path, clip: Path, pictures: list[np.ndarray]) -> None:
    """An AVI's damaged header may say that each piece of 23 ms follows the last after one."""
    hasty = tmp_path / "hasty.mp4"
    with av.open(str(clip)) as source, av.open(str(hasty), "w") as output:
        streams = {stream.index: output.add_stream_from_template(stream) for stream in source.streams}
        heard = 0
        for packet in source.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "audio":
                packet.pts = packet.dts = 44 * heard
                heard += 1
            packet.stream = streams[packet.stream_index]
            output.mux(packet)
    copy(tmp_path / "a.webm", pictures, sidecar_of(hasty))
    with av.open(str(tmp_path / "a.webm")) as container:
        seconds = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
    assert abs(seconds - 1.5) < 0.06


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
    sidecar = sidecar_of(source)
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
        copy(tmp_path / "a.mp4", pictures, io.BytesIO(b"not a sidecar at all" * 40))
    assert not list(tmp_path.iterdir())


def test_streams_stored_one_after_the_other_come_back(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    """Beyond the ten seconds in which the muxer puts streams in order nothing may be lost either."""
    source = tmp_path / "s.mkv"
    with av.open(str(source), "w", options={"max_interleave_delta": "1"}) as output:
        for stream in [output.add_stream("aac", rate=44100, layout="mono") for _ in range(2)]:
            write_sine(output, stream, 12)
    with av.open(str(source)) as container:
        order = [packet.stream_index for packet in container.demux() if packet.size]
        assert sum(a != b for a, b in zip(order, order[1:])) < 100, "the streams are not apart"
        wanted = stream_packets(source)
    for name in ("a.mkv", "a.mp4"):
        copy(tmp_path / name, pictures, sidecar_of(source))
        back = stream_packets(tmp_path / name)
        assert [[data for _, data in packets] for packets in back] == [[data for _, data in packets] for packets in wanted]
        for packets, again in zip(wanted, back, strict=True):
            assert np.abs(np.subtract(times(packets), times(again))).max() < 0.001


def stream_packets(path: Path) -> list[list[tuple[Fraction, bytes]]]:
    """As `clips.sound_packets`, of every audio stream."""
    with av.open(str(path)) as container:
        found = {stream.index: [] for stream in container.streams.audio}
        for packet in container.demux(container.streams.audio):
            if packet.size:
                found[packet.stream_index].append((packet.pts * packet.time_base, bytes(packet)))
        return list(found.values())


def test_a_full_disk_is_said_and_cleaned_up(tmp_path: Path) -> None:
    source = write_wave(tmp_path / "s.wav", 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OutputError, match="a.latent cannot be written: File too large"):
            with LatentWriter(tmp_path / "a.latent", 1, 1, 1) as writer, writer.scratch_file() as file:
                write_sidecar(source, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["s.wav"]


def write_wave(path: Path, mebibytes: int) -> Path:
    """Noise, 48 kHz, two channels of 16 bits: 5.5 s in a mebibyte."""
    block = np.random.default_rng(0).bytes(2**20)
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, 48000, 0, "NONE", ""))
        for _ in range(mebibytes):
            file.writeframes(block)
    return path


THERE_AND_BACK = """
import re, sys
from pathlib import Path
from fractions import Fraction
import numpy as np
from cvvae_cli.latent_file import LatentReader
from cvvae_cli.latent_writer import LatentWriter
from cvvae_cli.video_container import Beside
from cvvae_cli.video_encoder import Pictures
from cvvae_cli.video_io import write_sidecar
from cvvae_cli.video_writer import VideoWriter

source, latents, output = sys.argv[1:]
with LatentWriter(latents, 1, 1, 1) as writer, writer.scratch_file() as file:
    writer.append(np.zeros((1, 1, 1, 1), np.float32))
    assert write_sidecar(source, file)
    writer.close({}, {"sidecar": file})
with LatentReader(latents) as reader:
    pictures = Pictures(16, 16, Fraction(1), Fraction(1))
    with VideoWriter(Path(output), pictures, beside=Beside(reader.open_tensor("sidecar"))) as writer:
        writer.write(np.zeros((16, 16, 3), np.uint8), 0, 1)
print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
"""
"""Prints its peak of resident memory, KiB; the kernel's `ru_maxrss` would count this test's own memory too."""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux to tell the peak")
def test_memory_does_not_depend_on_the_length_of_the_sound(tmp_path: Path) -> None:
    peaks = []
    for mebibytes in (4, 84):
        paths = [write_wave(tmp_path / "s.wav", mebibytes), tmp_path / "s.latent", tmp_path / "s.mkv"]
        command = [sys.executable, "-c", THERE_AND_BACK, *map(str, paths)]
        ran = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
        assert all(path.stat().st_size > mebibytes * 2**20 for path in paths)
        peaks.append(int(ran.stdout) / 2**10)
        for path in paths:
            path.unlink()
    assert peaks[1] < peaks[0] + 20, peaks


def test_a_sidecar_that_names_other_files_opens_none(
    tmp_path: Path, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(Path("secret.mp4"), pictures, sound_seconds=1.0)
    Path("forged").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with av.open("forged") as believed:
        assert believed.streams.audio  # FFmpeg itself opens it
    with open("forged", "rb") as file, av.open("out.mkv", "w") as output, pytest.raises(VideoError, match="is damaged"):
        SidecarCopy(file, output, Fraction(0))
