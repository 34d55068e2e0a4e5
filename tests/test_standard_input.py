"""A pipe's bytes in a file without a name: whole, gone at the end, and one sentence where that fails."""

import contextlib
import io
import os
import pty
import resource
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvvae_cli.errors import OutputError, UsageError, VideoError
from cvvae_cli.standard_input import BLOCK, STANDARD_INPUT, source_path

DATA = bytes(range(256)) * (BLOCK // 256 * 2 + 3)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.BufferedWriter]:
    """The writing end of a pipe that is this process's standard input."""
    reading, writing = os.pipe()
    with open(reading, "rb") as source, open(writing, "wb") as target:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(source))
        yield target


def feed(target: io.BufferedWriter, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), target:
        target.write(data)


def test_all_bytes_are_there_as_often_as_one_likes_and_gone_at_the_end(tmp_path: Path, pipe: io.BufferedWriter) -> None:
    feeder = threading.Thread(target=feed, args=(pipe, DATA))
    feeder.start()
    with source_path(STANDARD_INPUT, tmp_path) as path:
        assert path.read_bytes() == path.read_bytes() == DATA
        assert not list(tmp_path.iterdir())
    feeder.join()
    assert not path.exists()


def test_other_sources_are_lent_as_they_are(tmp_path: Path) -> None:
    with source_path(tmp_path / "a.mp4", tmp_path / "nowhere") as path:
        assert path == tmp_path / "a.mp4"


def test_nothing_in_the_pipe_is_said(tmp_path: Path, pipe: io.BufferedWriter) -> None:
    pipe.close()
    with pytest.raises(VideoError, match="Nothing came on the standard input"), source_path(STANDARD_INPUT, tmp_path):
        pass


def test_a_full_disk_is_said(tmp_path: Path, pipe: io.BufferedWriter) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    feeder = threading.Thread(target=feed, args=(pipe, DATA))
    feeder.start()
    resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK, hard))
    try:
        with pytest.raises(OutputError) as failure, source_path(STANDARD_INPUT, tmp_path):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.stdin.buffer.read()
        feeder.join()
    assert str(failure.value).startswith(f"The video from the standard input cannot be kept in {tmp_path} (")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_said(tmp_path: Path, pipe: io.BufferedWriter) -> None:
    with pytest.raises(OutputError, match="cannot be kept in"), source_path(STANDARD_INPUT, tmp_path / "nowhere"):
        pass


def test_a_terminal_is_no_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    with open(master, "rb"), open(slave) as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        with pytest.raises(UsageError, match="is a terminal; pipe a video"), source_path(STANDARD_INPUT, tmp_path):
            pass
