"""A video that comes on the standard input, kept in a file while it is used. What is in it is unknown here."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cvvae_cli.errors import OutputError, UsageError, VideoError

BLOCK = 1 << 20
"""Bytes that are copied at once."""


STANDARD_INPUT = Path("-")


@contextmanager
def source_path(source: Path, folder: Path) -> Iterator[Path]:
    """Lends a path under which a source can be opened as often as one likes: its own, or that of a copy of the standard input.

    A video is read in two passes (pictures, then sound) and from any moment on, and a pipe can be read once: what it
    gives is first copied to a file without a name, which is gone at the end however the process ends.

    Args:
        source: the path that the user gave; `-` is the standard input.
        folder: where the copy lies; it needs space for the whole video.

    Yields:
        The path.

    Raises:
        UsageError: the standard input is a terminal.
        VideoError: nothing came, or it cannot be read.
        OutputError: the folder cannot hold it.
    """
    if source != STANDARD_INPUT:
        yield source
        return
    if sys.stdin.isatty():
        raise UsageError("The standard input is a terminal; pipe a video into it: ffmpeg ... | cvvae encode - out.latent.")
    try:
        file = tempfile.TemporaryFile(dir=folder)
    except OSError as error:
        raise _not_kept(folder, error) from None
    with file:
        try:
            for block in _blocks(sys.stdin.buffer):
                file.write(block)
            file.flush()
        except OSError as error:
            raise _not_kept(folder, error) from None
        if not file.tell():
            raise VideoError("Nothing came on the standard input; check the program before the pipe.")
        yield Path(f"/dev/fd/{file.fileno()}")


def _blocks(source: BinaryIO) -> Iterator[bytes]:
    try:
        while block := source.read(BLOCK):
            yield block
    except OSError as error:
        raise VideoError(f"The standard input cannot be read ({error.strerror}); store the video in a file first.") from None


def _not_kept(folder: Path, error: OSError) -> OutputError:
    kept = f"The video from the standard input cannot be kept in {folder} ({error.strerror})"
    return OutputError(f"{kept}; free space or write elsewhere.")
