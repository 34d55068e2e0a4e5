"""Numbered pictures, `frames/%04d.png`, as one video: which files they are. Opens none.

FFmpeg looks only a few numbers ahead for the first picture and stops in silence at a missing one; here the folder is
read, so that sequences may begin anywhere and what is left out is known.
"""

import os
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from cvvae_cli.errors import VideoError

DEFAULT_RATE = Fraction(24)
"""Pictures per second where nobody says."""

_NUMBER = re.compile(r"%(?:0(\d{1,2}))?d")


@dataclass(frozen=True)
class PictureSequence:
    """Attributes:
    pattern: the path as FFmpeg wants it: every % doubled but that of the number.
    first: number of the first picture.
    count: pictures whose numbers follow one another without a gap.
    missing: the first missing number where pictures come behind it, else None.
    left_out: pictures behind it.
    """

    pattern: str
    first: int
    count: int
    missing: int | None
    left_out: int


def is_sequence(path: Path) -> bool:
    """Whether a path stands for numbered pictures: its name has one number's place and is no file's name itself."""
    return len(_NUMBER.findall(path.name)) == 1 and not path.exists()


def find_sequence(path: Path) -> PictureSequence:
    """Which pictures a pattern stands for.

    Raises:
        VideoError: there is none, or the folder cannot be read.
    """
    try:
        numbers = picture_numbers(path)
    except OSError:
        raise VideoError(f"The folder {path.parent} cannot be read; check the path {path}.") from None
    if not numbers:
        raise VideoError(f"There is no picture of the name {path}; check folder, number of digits and extension.")
    count = next((i for i, number in enumerate(numbers) if number != numbers[0] + i), len(numbers))
    left_out = len(numbers) - count
    before, number, after = _parts(path)
    pattern = os.path.join(path.parent, before).replace("%", "%%") + number + after.replace("%", "%%")
    return PictureSequence(pattern, numbers[0], count, numbers[0] + count if left_out else None, left_out)


def picture_numbers(path: Path) -> list[int]:
    """Numbers of the pictures of a pattern that are there, rising.

    Raises:
        OSError: the folder cannot be read.
    """
    name = _names_of(path)
    return sorted(int(match.group(1)) for entry in path.parent.iterdir() if (match := name.fullmatch(entry.name)))


def is_picture_of(path: Path, pattern: Path) -> bool:
    """Whether a file that is there is one of a pattern's pictures."""
    named_so = _names_of(pattern).fullmatch(path.name)
    return bool(named_so) and pattern.parent.is_dir() and path.parent.samefile(pattern.parent)


def picture_path(path: Path, number: int) -> Path:
    """The picture of a pattern that has this number, 0 or more."""
    before, place, after = _parts(path)
    return path.with_name(f"{before}{place % number}{after}")


def _names_of(path: Path) -> re.Pattern[str]:
    before, number, after = _parts(path)
    width = int(number[1:-1] or 1)
    return re.compile(rf"{re.escape(before)}(\d{{{width}}}|[1-9]\d{{{width},}}){re.escape(after)}")


def _parts(path: Path) -> tuple[str, str, str]:
    """The name of a pattern: what comes before the number's place, the place, what comes behind."""
    place = _NUMBER.search(path.name)
    assert place is not None
    return path.name[: place.start()], place.group(0), path.name[place.end() :]
