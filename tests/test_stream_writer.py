"""Video on the standard output: a Matroska stream with sound, passed on as it is made, and a quiet end where nobody reads."""

import contextlib
import fcntl
import io
import os
import pty
import resource
import signal
import sys
import termios
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import command_line
import encoded_clip
import numpy as np
import pytest
from clips import moving_pictures
from encoded_clip import PTS, TICK, decoded

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.decoding import DecodeOptions, decode_file
from cvvae_cli.errors import OutputError, UsageError
from cvvae_cli.standard_output import READER_GONE, StandardOutput
from cvvae_cli.stream_writer import StreamWriter
from cvvae_cli.video_container import Beside
from cvvae_cli.video_encoder import Encoding, Pictures

folder, model, cvvae = encoded_clip.folder, encoded_clip.model, command_line.cvvae
LOSSLESS = DecodeOptions(codec="ffv1")


@contextlib.contextmanager
def standard_output(descriptor: int) -> Iterator[None]:
    """Puts another file in the place of the standard output."""
    kept = os.dup(1)
    os.dup2(descriptor, 1)
    os.close(descriptor)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


class Reader(threading.Thread):
    """Reads a pipe to its end, or so many bytes and closes it."""

    def __init__(self, limit: int = -1) -> None:
        super().__init__()
        self._source, self.target = os.pipe()
        self._limit, self.data = limit, b""
        self.start()

    def run(self) -> None:
        with open(self._source, "rb") as file:
            self.data = file.read(self._limit)


def test_the_stream_holds_every_frame_its_time_and_the_sound(folder: Path, model: Autoencoder) -> None:
    reader = Reader()
    with standard_output(reader.target):
        report = decode_file(folder / "clip.latent", "-", model=model, options=LOSSLESS)
    reader.join()
    assert report.frames == len(PTS) and report.notes == ()
    with av.open(io.BytesIO(reader.data)) as container:
        assert container.format.name == "matroska,webm"
        frames = list(container.decode(video=0))
    found = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    assert np.array_equal(found, decoded(folder / "clip.latent", model))
    assert all(abs(frame.pts * frame.time_base - pts * TICK) <= Fraction(1, 1999) for frame, pts in zip(frames, PTS, strict=True))
    with av.open(io.BytesIO(reader.data)) as stream, av.open(str(folder / "clip.mp4")) as source:
        assert [bytes(p) for p in stream.demux(audio=0) if p.size] == [bytes(p) for p in source.demux(audio=0) if p.size]


def writer(**options: object) -> StreamWriter:
    pictures = Pictures(41, 30, Fraction(25), Fraction(1, 25))
    return StreamWriter(StandardOutput(), pictures, Encoding(**({"codec": "libx264"} | options)), Beside())


def test_bytes_come_while_frames_are_still_to_come() -> None:
    frames, reader = moving_pictures(1, 41, 30) * 100, Reader(1000)
    with standard_output(reader.target), pytest.raises(BrokenPipeError), writer(options=(("tune", "zerolatency"),)) as stream:
        for index, frame in enumerate(frames):
            stream.write(frame, index, 1)
            if index == 60:
                reader.join(30)
                assert not reader.is_alive(), "two seconds of video, and not 1000 bytes"
    assert len(reader.data) == 1000 and stream.frames < 100


def test_what_is_given_up_is_not_ended() -> None:
    """A reader can tell: nothing comes behind the last whole cluster."""
    sizes = []
    for ends in (True, False):
        reader = Reader()
        with contextlib.suppress(ZeroDivisionError), standard_output(reader.target), writer() as stream:
            stream.write(moving_pictures(1, 41, 30)[0], 0, 1)
            if not ends:
                raise ZeroDivisionError
        os.fstat(1)
        reader.join()
        sizes.append(len(reader.data))
    assert sizes[0] > 500 and sizes[1] == 0


def test_a_full_disk_is_said_and_no_frame_is_too(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 41, 3), np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with (
            standard_output(os.open(tmp_path / "a", os.O_WRONLY | os.O_CREAT)),
            pytest.raises(OutputError, match="The standard output cannot be written: no space left"),
            writer(codec="ffv1") as stream,
        ):
            for index in range(200):
                stream.write(noise, index, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(OutputError, match="no frame"), standard_output(Reader().target), writer():
        pass


def test_a_reader_that_stands_still_does_not_hold_up_an_interrupt(folder: Path, model: Autoencoder) -> None:
    source, target = os.pipe()
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)
    rescued = threading.Event()

    def interrupt_when_full() -> None:
        waiting, looks = bytearray(4), [0]
        while not looks[-1] or looks[-5:] != looks[-1:] * 5:  # it takes no more
            rescued.wait(0.1)
            fcntl.ioctl(source, termios.FIONREAD, waiting)
            looks.append(int.from_bytes(waiting, sys.byteorder))
        os.kill(os.getpid(), signal.SIGINT)

    def read_on() -> None:  # so that a run that waits for its reader fails here, and does not hang
        rescued.set()
        with open(source, "rb", closefd=False) as file:
            file.read()

    rescue = threading.Timer(30, read_on)
    try:
        threading.Thread(target=interrupt_when_full).start()
        rescue.start()
        with standard_output(target), pytest.raises(KeyboardInterrupt):
            decode_file(folder / "clip.latent", "-", model=model, options=LOSSLESS)
        assert not rescued.is_set()
    finally:
        rescue.cancel()
        signal.signal(signal.SIGINT, kept)
        os.close(source)


def test_impossible_wishes_are_refused() -> None:
    for words, wish in (("no encoder", {"codec": "nonsense"}), ("no option sharpness", {"options": (("sharpness", "9"),)})):
        reader = Reader()
        with standard_output(reader.target), pytest.raises(UsageError, match=words):
            writer(**wish)
        reader.join()
        assert reader.data == b""


def test_a_terminal_and_json_are_refused(folder: Path, cvvae: command_line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CVVAE_MODEL", "no model is loaded")
    control, terminal = pty.openpty()
    with standard_output(terminal):
        status, _, err = cvvae("decode", "clip.latent", "-")
    os.close(control)
    assert status == 2 and "The standard output is a terminal" in err and err.count("\n") == 1
    status, out, err = cvvae("decode", "clip.latent", "-", "--json")
    assert (status, out) == (2, "") and "--json" in err and err.count("\n") == 1


def test_the_command_says_nothing_beside_the_stream_and_ends_with_its_reader(folder: Path, cvvae: command_line) -> None:
    words, reader = ["decode", "clip.latent", "-", "--model", "tiny.safetensors", "--codec", "ffv1"], Reader()
    with standard_output(reader.target):
        status, out, err = cvvae(*words)
    reader.join()
    assert (status, out) == (0, "") and "24 frames of 61x45" in err
    with av.open(io.BytesIO(reader.data)) as container:
        assert len(list(container.decode(video=0))) == len(PTS)
    reader = Reader(0)
    reader.join()
    with standard_output(reader.target):
        assert cvvae(*words, "-q") == (READER_GONE, "", "") and READER_GONE == 141
