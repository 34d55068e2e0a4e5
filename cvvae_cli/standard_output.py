"""A video that goes to the standard output, as it is made. What is in it is unknown here."""

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cvvae_cli.errors import UsageError

STANDARD_OUTPUT = Path("-")

READER_GONE = 128 + signal.SIGPIPE
"""Exit status of a run whose reader left, as shells report programs that a closed pipe ends."""

_DESCRIPTOR = 1
_SECONDS_BETWEEN_LOOKS = 0.1


class StandardOutput:
    """Takes bytes in order and passes each call's on at once.

    Raises:
        UsageError: the standard output is a terminal.
    """

    def __init__(self) -> None:
        refuse_terminal()
        self._open = True

    def write(self, data: bytes) -> int:
        """Wait until all of it is taken, and say how much it was.

        Raises:
            BrokenPipeError: the reader is gone, or the output was shut.
            OSError: the bytes cannot be written.
        """
        rest = memoryview(data)
        while rest:
            self._wait()
            # What a pipe that is ready takes without waiting: the reader may never take another byte.
            rest = rest[os.write(_DESCRIPTOR, rest[: select.PIPE_BUF]) :]
        return len(data)

    def _wait(self) -> None:
        ready = False
        while not ready:
            if not self._open:
                raise BrokenPipeError
            ready = bool(select.select((), (_DESCRIPTOR,), (), _SECONDS_BETWEEN_LOOKS)[1])

    def shut(self) -> None:
        """Take no more, from any thread, so that a stream that is given up is not ended as if it were whole."""
        self._open = False


def refuse_terminal() -> None:
    """See that a video may go there.

    Raises:
        UsageError: the standard output is a terminal.
    """
    if os.isatty(_DESCRIPTOR):
        raise UsageError("The standard output is a terminal; pipe the video on: cvvae decode x.latent - | ffplay -.")


@contextmanager
def ended_by_reader() -> Iterator[None]:
    """Ends the process in silence where the reader of its output is gone: it has seen what it wanted."""
    try:
        yield
    except BrokenPipeError:
        raise SystemExit(READER_GONE) from None
