"""A file is there whole, as it was, or not at all: whatever goes wrong, and whoever else writes it."""

import errno
import os
import resource
from pathlib import Path

import pytest

from cvvae_cli.whole_file import written_whole


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that is there already, alone in its folder."""
    (tmp_path / "a.bin").write_text("old")
    return tmp_path / "a.bin"


def content_of(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    with written_whole(str(tmp_path / "a.bin")) as part:
        part.write_text("new")
        assert part.parent == tmp_path and not (tmp_path / "a.bin").exists()
    assert content_of(tmp_path) == {"a.bin": "new"}


def test_an_existing_file_is_kept_until_then(path: Path) -> None:
    with written_whole(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert content_of(path.parent) == {"a.bin": "new"}


def test_the_file_is_as_open_to_others_as_any(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with written_whole(tmp_path / "a.bin") as part:
        part.touch()
    assert (tmp_path / "a.bin").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("failure", [ZeroDivisionError, KeyboardInterrupt, OSError])
def test_a_writer_that_fails_leaves_nothing(path: Path, failure: type[BaseException]) -> None:
    with pytest.raises(failure), written_whole(path) as part:
        part.write_text("half")
        raise failure
    assert content_of(path.parent) == {"a.bin": "old"}


def test_a_disk_that_takes_no_more_leaves_nothing(path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError) as caught, written_whole(path) as part:
            part.write_bytes(bytes(60_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert content_of(path.parent) == {"a.bin": "old"}


def test_what_has_not_reached_the_disk_gets_no_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), written_whole(path) as part:
        part.write_text("new")
    assert content_of(path.parent) == {"a.bin": "old"}


def test_a_writer_that_writes_nothing_is_an_error(path: Path) -> None:
    with pytest.raises(FileNotFoundError), written_whole(path):
        pass
    assert content_of(path.parent) == {"a.bin": "old"}


def test_targets_that_cannot_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError), written_whole(tmp_path / "folder") as part:
        part.write_text("new")
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "missing" / "a.bin") as part:
        part.write_text("new")
    assert os.listdir(tmp_path) == ["folder"]


def test_processes_that_write_one_file_do_not_mix(path: Path) -> None:
    with written_whole(path) as part:
        part.write_text("first, ")
        process = os.fork()
        if process == 0:
            try:
                with written_whole(path) as other:
                    other.write_text("second")
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
        assert path.read_text() == "second"
        with part.open("a") as file:
            file.write("first")
    assert content_of(path.parent) == {"a.bin": "first, first"}
