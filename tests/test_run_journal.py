"""The journal of an unfinished run: what it gives back, what it drops, and whom it keeps out."""

import os
from pathlib import Path

import pytest

from cvvae_cli.errors import DeviceError, OutputError, UsageError, VideoError
from cvvae_cli.run_journal import RunJournal, may_go_on

RUN = {"tile": 256, "source": {"bytes": 5}}


def journal_of(target: Path, *entries: list) -> Path:
    """The journal that a run leaves that was stopped behind these entries."""
    journal = RunJournal(target, RUN)
    for entry in entries:
        journal.add(entry)
    journal.close(keep=True)
    return journal.path


def test_a_run_of_the_same_description_goes_on(tmp_path: Path) -> None:
    path = journal_of(tmp_path / "a.mp4", ["chunk", 5, 2**64 - 1], ["tiling", {"tile": 256}])
    assert path == tmp_path / ".a.mp4.journal"
    journal = RunJournal(tmp_path / "a.mp4", {"source": {"bytes": 5}, "tile": 256})
    assert journal.entries == [["chunk", 5, 2**64 - 1], ["tiling", {"tile": 256}]] and not journal.replaces
    journal.add(["chunk", 9, 1])
    journal.close(keep=True)
    journal = RunJournal(tmp_path / "a.mp4", RUN)
    assert [entry[0] for entry in journal.entries] == ["chunk", "tiling", "chunk"]
    journal.close(keep=False)
    assert not list(tmp_path.iterdir())


def test_a_run_of_another_description_begins_anew(tmp_path: Path) -> None:
    journal_of(tmp_path / "a", ["chunk", 5, 1])
    journal = RunJournal(tmp_path / "a", RUN | {"tile": 128})
    assert journal.entries == [] and journal.replaces
    journal.add(["chunk", 3, 1])
    journal.close(keep=True)
    journal = RunJournal(tmp_path / "a", RUN)
    assert journal.entries == [] and journal.replaces
    journal.add(["chunk", 2, 1])
    journal.close(keep=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", [True, False])
def test_a_run_that_was_refused_does_not_cost_another_one(tmp_path: Path, keep: bool) -> None:
    journal_of(tmp_path / "a", ["chunk", 5, 1])
    RunJournal(tmp_path / "a", RUN | {"tile": 128}).close(keep)
    journal = RunJournal(tmp_path / "a", RUN)
    assert journal.entries == [["chunk", 5, 1]] and not journal.replaces
    journal.close(keep=False)
    RunJournal(tmp_path / "a", RUN).close(keep=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lost", range(1, 40))
def test_a_torn_line_is_dropped(tmp_path: Path, lost: int) -> None:
    path = journal_of(tmp_path / "a", ["chunk", 5, 1], ["chunk", 9, 2])
    last = len(path.read_bytes().splitlines(keepends=True)[-1])
    os.truncate(path, path.stat().st_size - lost)
    journal = RunJournal(tmp_path / "a", RUN)
    whole = [["chunk", 5, 1]] if lost <= last else []
    assert journal.entries == whole
    journal.add(["chunk", 8, 3])
    journal.close(keep=True)
    assert RunJournal(tmp_path / "a", RUN).entries == [*whole, ["chunk", 8, 3]]


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    path = journal_of(tmp_path / "a", ["chunk", 5, 1], ["chunk", 9, 2])
    sound = path.read_bytes()
    second = sound.index(b"\n", sound.index(b"\n") + 1) + 1
    for place in range(second, len(sound)):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 4]) + sound[place + 1 :])
        journal = RunJournal(tmp_path / "a", RUN)
        assert journal.entries == [["chunk", 5, 1]], place
        journal.close(keep=True)


def test_what_is_not_there_can_be_forgotten(tmp_path: Path) -> None:
    journal_of(tmp_path / "a", ["chunk", 5, 1], ["tiling", {}], ["chunk", 9, 2], ["chunk", 13, 3])
    journal = RunJournal(tmp_path / "a", RUN)
    asked = []

    def is_there(end: int, digest: int) -> bool:
        asked.append(end)
        return end == 5

    journal.agree({"chunk": is_there, "anchor": is_there})
    assert journal.entries == [["chunk", 5, 1], ["tiling", {}]] and asked == [5, 9]
    journal.add(["chunk", 7, 4])
    journal.close(keep=True)
    journal = RunJournal(tmp_path / "a", RUN)
    assert journal.entries == [["chunk", 5, 1], ["tiling", {}], ["chunk", 7, 4]]
    journal.agree({"chunk": lambda end, digest: True})
    assert len(journal.entries) == 3
    journal.agree({"chunk": lambda end, digest: False})
    assert journal.entries == []


def test_one_process_writes_an_output(tmp_path: Path) -> None:
    first = RunJournal(tmp_path / "a", RUN)
    with pytest.raises(OutputError, match="is being written by another process; wait for it"):
        RunJournal(tmp_path / "a", RUN)
    first.add(["chunk", 5, 1])
    first.close(keep=True)
    second = RunJournal(tmp_path / "a", RUN)
    assert second.entries == [["chunk", 5, 1]]
    second.close(keep=False)
    first.close(keep=False)  # once closed, nothing of another's is removed
    RunJournal(tmp_path / "a", RUN).close(keep=False)


def test_what_may_go_on() -> None:
    assert all(may_go_on(error) for error in (KeyboardInterrupt(), SystemExit(143), MemoryError(), OutputError(), DeviceError()))
    assert not any(may_go_on(error) for error in (None, UsageError(), VideoError()))
