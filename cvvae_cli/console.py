"""What people and programs see: tables and JSON on stdout, progress and messages on stderr.

This module knows how a number, a table and a run's progress are said, not what they are about.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from cvvae_cli.host_memory import resident_bytes

WIDTH_WITHOUT_TERMINAL = 200
"""Columns that a table may take in a file or a pipe, unless COLUMNS says otherwise."""

GRID_WIDTH = 80
"""Columns that a table with a head may take, on a wide terminal too: the width that a terminal opens with."""

SECONDS_BETWEEN_LINES = 10
"""Where stderr is no terminal, progress is a plain line this often, and at the end."""


def counted(count: int, noun: str) -> str:
    """A number of things: "1 frame", "2 frames"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def digits(value: float) -> str:
    """A positive number to three digits, to more only before the point: "0.00191", "12.3", "1235"."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"


def size_text(size: float) -> str:
    """`size` bytes in steps of 1024: "17 B", "192 KiB", "1.25 MiB"."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    step = next((i for i in range(len(units)) if size / 1024**i < 1023.5), len(units) - 1)
    return f"{digits(size / 1024**step)} {units[step]}"


Callback = Callable[[int, int | None], None]
"""Progress as the pipeline reports it: frames done, frames expected or None."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} frames/s", style="progress.data.speed")


class _Memory(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_memory_text(), style="progress.data.speed")


def _memory_text() -> str:
    held = resident_bytes()
    return "" if held is None else size_text(held)


class Reporter:
    """One command's voice.

    Args:
        as_json: the answer is one JSON object instead of a table.
        quiet: say nothing on stderr but errors.
    """

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet
        self._already = 0
        self.out, self.err = Console(), Console(stderr=True)
        if not self.out.is_terminal and "COLUMNS" not in os.environ:
            self.out = Console(width=WIDTH_WITHOUT_TERMINAL)

    def note(self, *sentences: str) -> None:
        """What the user should know, a line for each sentence."""
        if not self.quiet:
            for sentence in sentences:
                self.err.print(sentence, highlight=False, markup=False, soft_wrap=True)

    def resumed(self, frame: int) -> None:
        """Say that the run goes on where an earlier one was stopped."""
        self._already = frame
        self.note(f"resumed at frame {frame}")

    def answer(self, values: dict, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """The result: `values` as JSON, or `rows` as a table."""
        if self.as_json:
            print(json.dumps(values))
        elif not self.quiet:
            table = Table(title=Text(title), show_header=False, title_justify="left")
            table.add_column(style="bold")
            table.add_column(overflow="fold")
            for name, value in rows:
                table.add_row(name, Text(value))
            self.out.print(table)

    def grid(self, values: dict, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """The result as JSON, or as a table with a head, at most `GRID_WIDTH` wide."""
        if self.as_json:
            print(json.dumps(values))
        elif not self.quiet:
            table = Table(title=Text(title), title_justify="left")
            for i, name in enumerate(head):
                numbers = all(row[i][:1].isdigit() for row in rows)
                table.add_column(name, justify="right" if numbers else "left", overflow="fold")
            for row in rows:
                table.add_row(*(Text(cell) for cell in row))
            self.out.print(table, width=min(GRID_WIDTH, self.out.width))

    @contextmanager
    def progress(self, *passes: str) -> Iterator[Callback]:
        """A bar with frames/s, time left and memory on a terminal, lines elsewhere, nothing if quiet.

        Notes of an error that ends the run are said.

        Args:
            passes: what is done with the frames, a word for each time that their count starts again.
        """
        try:
            with self._progress(passes) as progress:
                yield progress
        except BaseException as error:
            self.note(*getattr(error, "__notes__", ()))
            raise

    @contextmanager
    def _progress(self, passes: Sequence[str]) -> Iterator[Callback]:
        if self.quiet:
            yield lambda done, total: None
        elif self.err.is_terminal:
            share = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            columns = (*share, _Rate(), TimeRemainingColumn(), _Memory())
            with Progress(*columns, console=self.err, transient=True) as bar:
                yield _on_bar(bar, passes)
        else:
            lines = _Lines(self.note, passes, lambda: self._already)
            yield lines.update
            lines.end()


def _on_bar(bar: Progress, passes: Sequence[str]) -> Callback:
    names = iter(passes)
    task = bar.add_task(next(names), total=None)
    last = 0

    def update(done: int, total: int | None) -> None:
        nonlocal last
        if done < last:
            bar.reset(task, description=next(names))
        last = done
        bar.update(task, completed=done, total=total)

    return update


class _Lines:
    """Progress in plain lines: one now and then, and one that says the whole when a pass is over."""

    def __init__(self, say: Callable[[str], None], passes: Sequence[str], already: Callable[[], int]) -> None:
        """`already` gives the frames of an earlier run, which this one did not do."""
        self._say, self._names, self._already = say, iter(passes), already
        self._name = next(self._names)
        self._began = self._said = self._updated = time.monotonic()
        self._done, self._unsaid = 0, False
        self._total: int | None = None

    def update(self, done: int, total: int | None) -> None:
        if done < self._done:
            self.end()
            self._name = next(self._names)
            self._began = self._said = self._updated
        self._updated = time.monotonic()
        self._done, self._total, self._unsaid = done, total, True
        if self._updated - self._said >= SECONDS_BETWEEN_LINES:
            self._line()

    def end(self) -> None:
        """Say that the pass is over, whatever its length was thought to be, unless the last line did."""
        if self._unsaid or self._total not in (None, self._done):
            self._total = self._done
            self._line()

    def _line(self) -> None:
        done, total = self._done, self._total
        rate = (done - self._already()) / max(self._updated - self._began, 1e-3)
        share = f"{done} of {counted(total, 'frame')}" if total else counted(done, "frame")
        left = f", {(total - done) / rate:.0f} s left" if total and total > done and rate > 0 else ""
        memory = f", {_memory_text()}" if left else ""
        self._say(f"{self._name}: {share}, {rate:.1f} frames/s{left}{memory}")
        self._said, self._unsaid = self._updated, False


def fail(message: str) -> None:
    """An error, in one sentence on stderr."""
    print(f"cvvae: {message}", file=sys.stderr)
