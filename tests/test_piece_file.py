"""Pieces in a hidden file: what a later run finds of them, whatever the disk lost."""

import os
from pathlib import Path

import numpy as np
import pytest

from cvvae_cli.piece_file import PieceFile
from cvvae_cli.run_journal import RunJournal

PIECES = [np.arange(size, dtype=np.uint16) for size in (3, 1, 5)]
ENDS = [6, 8, 18]


def written(folder: Path, kinds: str = "aaa") -> None:
    """What a run leaves that wrote the pieces, each to the file of its kind, and was killed."""
    journal = RunJournal(folder / "x", {})
    files = {kind: PieceFile(folder / kind, kind, offset=4) for kind in kinds}
    for piece, kind in zip(PIECES, kinds, strict=True):
        files[kind].append(piece, journal)
    journal.close(keep=True)
    for file in files.values():
        file.close(keep=True)


def found(folder: Path, kinds: str = "a") -> tuple[list[PieceFile], RunJournal]:
    """What a later run takes over."""
    journal, files = RunJournal(folder / "x", {}), [PieceFile(folder / kind, kind, offset=4) for kind in kinds]
    for file in files:
        if file.path.exists():
            file.reopen()
    journal.agree({kind: file.take_over for kind, file in zip(kinds, files)})
    for file in files:
        file.drop_rest()
    return files, journal


def test_pieces_are_found_again_and_more_go_behind_them(tmp_path: Path) -> None:
    written(tmp_path)
    (file,), journal = found(tmp_path)
    assert file.ends == ENDS and file.nbytes == 18 and (tmp_path / "a").stat().st_size == 4 + 18
    file.append(PIECES[1], journal)
    assert file.ends == [*ENDS, 20] and file.sums[3] == file.sums[1] != file.sums[0]
    assert file.read(6, 8) == file.read(18, 20) == PIECES[1].tobytes() and file.read(0, 99) == file.read(0, 20)
    file.close(keep=False)
    assert file.file is None and not (tmp_path / "a").exists()


@pytest.mark.parametrize("size", range(4 + 18))
def test_a_file_that_lost_its_end_keeps_what_is_whole(tmp_path: Path, size: int) -> None:
    written(tmp_path)
    os.truncate(tmp_path / "a", size)
    (file,), journal = found(tmp_path)
    whole = sum(4 + end <= size for end in ENDS)
    assert file.ends == ENDS[:whole] and [entry[1] for entry in journal.entries] == ENDS[:whole]
    for piece in PIECES[whole:]:
        file.append(piece, journal)
    assert file.read(0, 99) == b"".join(piece.tobytes() for piece in PIECES)


@pytest.mark.parametrize("place", range(4, 4 + 18))
def test_a_changed_byte_is_noticed(tmp_path: Path, place: int) -> None:
    written(tmp_path)
    data = bytearray((tmp_path / "a").read_bytes())
    data[place] ^= 1
    (tmp_path / "a").write_bytes(data)
    (file,), _ = found(tmp_path)
    assert file.ends == [end for end in ENDS if 4 + end <= place] and (tmp_path / "a").stat().st_size == 4 + file.nbytes


def test_what_one_file_lost_costs_what_came_later_in_another(tmp_path: Path) -> None:
    written(tmp_path, "aba")
    (a, b), journal = found(tmp_path, "ab")
    assert (a.ends, b.ends) == ([6, 16], [2])
    for file in (a, b):
        file.close(keep=True)
    journal.close(keep=True)
    (tmp_path / "b").unlink()
    (a, b), journal = found(tmp_path, "ab")
    assert (a.ends, b.ends, b.file) == ([6], [], None) and journal.entries[0][0] == "a" and len(journal.entries) == 1
    b.append(PIECES[1], journal)
    assert b.ends == [2] and (tmp_path / "b").read_bytes() == bytes(4) + PIECES[1].tobytes()


def test_a_file_of_another_writer_is_left_alone(tmp_path: Path) -> None:
    first, second = PieceFile(tmp_path / "a", "a"), PieceFile(tmp_path / "a", "a")
    first.begin()
    second.append(PIECES[0], None)
    assert second.is_own() and not first.is_own()
    first.close(keep=False)
    assert second.is_own()
    second.close(keep=False)
    assert not second.path.exists()
