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
    place = _NUMBER.search(path.name)
    assert place is not None
    width = int(place.group(1) or 1)
    before, after = path.name[: place.start()], path.name[place.end() :]
    digits = rf"(\d{{{width}}}|[1-9]\d{{{width},}})"
    name = re.compile(re.escape(before) + digits + re.escape(after))
    try:
        numbers = sorted(int(match.group(1)) for entry in path.parent.iterdir() if (match := name.fullmatch(entry.name)))
    except OSError:
        raise VideoError(f"The folder {path.parent} cannot be read; check the path {path}.") from None
    if not numbers:
        raise VideoError(f"There is no picture of the name {path}; check folder, number of digits and extension.")
    count = next((i for i, number in enumerate(numbers) if number != numbers[0] + i), len(numbers))
    left_out = len(numbers) - count
    pattern = os.path.join(path.parent, before).replace("%", "%%") + place.group(0) + after.replace("%", "%%")
    return PictureSequence(pattern, numbers[0], count, numbers[0] + count if left_out else None, left_out)
