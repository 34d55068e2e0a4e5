"""How numbers, tables and progress are said: plurals, sizes, 80 columns, and lines that end with the whole."""

import json
import re
from collections.abc import Callable

import pytest

from cvvae_cli import console
from cvvae_cli.commands import bench, models
from cvvae_cli.console import Reporter, counted, digits, size_text
from cvvae_cli.model_names import KNOWN_MODELS


def test_one_is_singular() -> None:
    assert [counted(count, "frame") for count in (0, 1, 2)] == ["0 frames", "1 frame", "2 frames"]


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (196_992, "192 KiB"),
        (1023.6 * 2**10, "1 MiB"),
        (1.25 * 2**20, "1.25 MiB"),
        (12.34 * 2**30, "12.3 GiB"),
        (5000 * 2**40, "5000 TiB"),
    ],
)
def test_sizes_are_told_in_steps_of_1024(size: float, said: str) -> None:
    assert size_text(size) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0019123, "0.00191"), (0.5, "0.5"), (12.345, "12.3"), (99.94, "99.9"), (99.96, "100"), (12345.6, "12346")],
)
def test_numbers_have_three_digits(value: float, said: str) -> None:
    assert digits(value) == said


def lines_of(run: Callable[[console.Callback], None], capsys: pytest.CaptureFixture[str], *passes: str) -> list[str]:
    """What stderr, no terminal here, got of a run, without the rate that a clock decides."""
    with Reporter().progress(*passes) as progress:
        run(progress)
    said = capsys.readouterr()
    assert said.out == "" and all(line.endswith(" frames/s") for line in said.err.splitlines())
    return [line.rsplit(", ", 1)[0] for line in said.err.splitlines()]


def test_the_last_line_of_progress_says_the_whole(capsys: pytest.CaptureFixture[str]) -> None:
    def run(progress: console.Callback) -> None:
        for done in (17, 30, 72):
            progress(done, 72)

    assert lines_of(run, capsys, "encode") == ["encode: 72 of 72 frames"]
    assert lines_of(lambda progress: progress(1, 1), capsys, "decode") == ["decode: 1 of 1 frame"]
    assert lines_of(lambda progress: progress(5, None), capsys, "check") == ["check: 5 of 5 frames"]
    assert lines_of(lambda progress: progress(70, 72), capsys, "encode") == ["encode: 70 of 70 frames"]  # a container miscounted
    assert lines_of(lambda progress: None, capsys, "check") == []


def test_both_halves_of_a_round_trip_end_with_the_whole(capsys: pytest.CaptureFixture[str]) -> None:
    def run(progress: console.Callback) -> None:
        for done in (5, 9, 3, 9):
            progress(done, 9)

    assert lines_of(run, capsys, "encode", "decode") == ["encode: 9 of 9 frames", "decode: 9 of 9 frames"]


def test_lines_on_the_way_tell_the_time_left_and_the_last_is_not_said_twice(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0)
    with Reporter().progress("decode") as progress:
        progress(1, 2)
        progress(2, 2)
    first, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"decode: 1 of 2 frames, \d+\.\d frames/s, \d+ s left, \d+ MiB", first)
    assert last.startswith("decode: 2 of 2 frames, ") and last.endswith(" frames/s")


def test_an_interrupted_run_does_not_claim_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), Reporter().progress("encode") as progress:
        progress(17, 72)
        raise KeyboardInterrupt
    assert capsys.readouterr().err == ""


def test_the_bar_of_a_terminal_names_both_halves(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Reporter().progress("encode", "decode") as progress:
        for done in (9, 9, 2, 9):
            progress(done, 9)
    said = capsys.readouterr()
    assert "decode" in said.err and "9/9" in said.err and "of 9 frames" not in said.err
    assert said.out == ""


def grid_lines(head: list[str], rows: list[list[str]], capsys: pytest.CaptureFixture[str]) -> list[str]:
    Reporter().grid({}, "title", head, rows)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("columns", ["80", "200"])
def test_tables_with_a_head_fit_in_80_columns(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    widest = ["8192", "encode", "0.00123", "0.00123", "123456", "100 %", "1023 MiB", "1.17 GiB"]
    lines = grid_lines(bench.HEAD, [widest], capsys)
    assert max(map(len, lines)) <= 80
    assert all(any(cell in line for line in lines) for cell in widest)  # none is folded
    rows = [[known.name, "yes", models.about(known)] for known in KNOWN_MODELS.values()]
    lines = grid_lines(models.HEAD, rows, capsys)
    assert max(map(len, lines)) <= 80
    assert all(any(name in line for line in lines) for name in KNOWN_MODELS)
    assert any("AILab-CVC/CV-VAE/vae3d_v1-1" in line for line in lines)


def test_answers_are_one_object_or_a_table_or_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter(as_json=True).answer({"a": 1}, "title", [("a", "one")])
    assert json.loads(capsys.readouterr().out) == {"a": 1}
    Reporter().answer({"a": 1}, "title", [("a", "[one]")])
    assert "[one]" in capsys.readouterr().out
    quiet = Reporter(quiet=True)
    quiet.answer({"a": 1}, "title", [("a", "one")])
    quiet.grid({"a": 1}, "title", ["a"], [["one"]])
    quiet.note("a sentence")
    with quiet.progress("encode") as progress:
        progress(1, 1)
    assert capsys.readouterr() == ("", "")


def test_notes_are_lines_on_stderr_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter().note("[bold] is no markup. " * 9, "Another.")
    assert capsys.readouterr() == ("", "[bold] is no markup. " * 9 + "\nAnother.\n")


def test_what_ends_a_run_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    error = KeyboardInterrupt()
    error.add_note("The same command goes on.")
    for quiet, said in ((False, "resumed at frame 96\nThe same command goes on.\n"), (True, "")):
        reporter = Reporter(quiet=quiet)
        with pytest.raises(KeyboardInterrupt), reporter.progress("decode"):
            reporter.resumed(96)
            raise error
        assert capsys.readouterr().err == said
