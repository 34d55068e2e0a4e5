"""What people and programs see: tables and JSON on stdout, progress and messages on stderr."""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

WIDTH_WITHOUT_TERMINAL = 200
"""Columns that a table may take in a file or a pipe, unless COLUMNS says otherwise."""

SECONDS_BETWEEN_LINES = 10
"""Where stderr is no terminal, progress is a plain line this often."""


class Callback(Protocol):
    """Progress as the pipeline reports it: frames done, frames expected or None."""

    def __call__(self, done: int, total: int | None) -> None: ...


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} frames/s", style="progress.data.speed")


class Reporter:
    """One command's voice.

    Args:
        as_json: the answer is one JSON object instead of a table.
        quiet: say nothing on stderr but errors.
    """

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet
        self.out, self.err = Console(), Console(stderr=True)
        if not self.out.is_terminal and "COLUMNS" not in os.environ:
            self.out = Console(width=WIDTH_WITHOUT_TERMINAL)

    def note(self, text: str) -> None:
        """A sentence that the user should know."""
        if not self.quiet:
            self.err.print(text, highlight=False, markup=False, soft_wrap=True)

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
        """The result as JSON, or as a table with a head."""
        if self.as_json:
            print(json.dumps(values))
        elif not self.quiet:
            table = Table(title=Text(title), title_justify="left")
            for i, name in enumerate(head):
                numbers = all(row[i][:1].isdigit() for row in rows)
                table.add_column(name, justify="right" if numbers else "left", overflow="fold")
            for row in rows:
                table.add_row(*(Text(cell) for cell in row))
            self.out.print(table)

    @contextmanager
    def progress(self, what: str) -> Iterator[Callback]:
        """A bar with frames/s and time left on a terminal, a line now and then elsewhere, nothing if quiet."""
        if self.quiet:
            yield lambda done, total: None
        elif self.err.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
            with Progress(*columns, console=self.err, transient=True) as bar:
                yield _on_bar(bar, what)
        else:
            yield _in_lines(self, what)


def _on_bar(bar: Progress, what: str) -> Callback:
    task = bar.add_task(what, total=None)
    last = 0

    def update(done: int, total: int | None) -> None:
        nonlocal last
        if done < last:  # the second half of a round trip starts again
            bar.reset(task)
        last = done
        bar.update(task, completed=done, total=total)

    return update


def _in_lines(reporter: Reporter, what: str) -> Callback:
    began = said = time.monotonic()
    last = 0

    def update(done: int, total: int | None) -> None:
        nonlocal began, said, last
        now = time.monotonic()
        if done < last:
            began = said = now
        last = done
        if now - said < SECONDS_BETWEEN_LINES:
            return
        said = now
        rate = done / (now - began)
        left = f", {(total - done) / rate:.0f} s left" if total and total >= done else ""
        reporter.note(f"{what}: {done}{f' of {total}' if total else ''} frames, {rate:.1f} frames/s{left}")

    return update


def fail(message: str) -> None:
    """An error, in one sentence on stderr."""
    print(f"cvvae: {message}", file=sys.stderr)
