"""Why an output cannot be written, in one sentence. Opens nothing."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from av.error import FFmpegError

from cvvae_cli.errors import OutputError

_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def exists_already(path: Path) -> OutputError:
    """The error to raise where an output is there and may not be replaced."""
    return OutputError(f"{path} exists already; pass -y (overwrite=True in Python) to replace it.")


@contextlib.contextmanager
def told_on_failure(path: Path) -> Iterator[None]:
    """Has a failure of FFmpeg or the system come out as the sentence for it.

    Raises:
        OutputError: for either.
        BrokenPipeError: as it is; a reader that leaves is no failure of the writer.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except (FFmpegError, OSError) as error:
        raise not_written(path, error) from None


def not_written(path: Path, error: FFmpegError | OSError) -> OutputError:
    """Turns a failure on an output into one sentence.

    Args:
        path: the output.
        error: what FFmpeg or the system raised.

    Returns:
        The error to raise.
    """
    if error.errno in _FULL_DISK:
        return OutputError(f"{path} cannot be written: no space left; free some or write elsewhere.")
    if error.errno in _FORBIDDEN:
        return OutputError(f"{path} cannot be written: no permission for {path.parent}; write elsewhere.")
    return OutputError(f"{path} cannot be written ({error.strerror}); try another container or codec, or --no-audio.")
