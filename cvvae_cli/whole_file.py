"""Files that appear whole or not at all. What is in them, and what to tell the user of a failure, is their writers' affair."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a name beside the target to write to; on success it becomes the target, on any failure it is removed.

    The name holds the process's number, so that several processes may write one target at once: the last one's file
    stays. A process that is killed leaves its `NAME.NUMBER.part` behind.

    Args:
        path: the target; an existing file is replaced, and kept until then.

    Yields:
        The path to write to.

    Raises:
        OSError: nothing was written there, the disk does not take it, or the target cannot be replaced.
    """
    target = Path(path)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        yield part
        put_in_place(part, target)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def put_in_place(part: Path, target: Path) -> None:
    """Give a finished file its name; an existing file of that name is replaced.

    Raises:
        OSError: the disk does not take it, or the target cannot be replaced.
    """
    with part.open("rb+") as file:
        os.fsync(file.fileno())  # else a power cut may leave the new name on an empty file
    part.replace(target)
    with contextlib.suppress(OSError):  # some network file systems cannot sync a folder
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
