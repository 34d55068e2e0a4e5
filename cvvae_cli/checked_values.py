"""Values out of files that a stranger may have written: of the right type and size, or a ValueError that quotes them.

What the values mean is their readers' affair.
"""

import math
import re
from fractions import Fraction

INT32 = 2**31 - 1
"""Largest number in FFmpeg's fractions."""
_FRACTION = re.compile(r"(-?[0-9]{1,24})(?:/([0-9]{1,24}))?")


def quoted(value: object) -> str:
    """A value for a message: the first characters of a text, a number, or the type of what may be long or deep."""
    if isinstance(value, str):
        return repr(value[:40])
    short = value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**64)
    return repr(value) if short else "a huge number" if isinstance(value, int) else f"a {type(value).__name__}"


def whole_of(value: object, least: int, most: int) -> int:
    """A whole number from `least` to `most`.

    Raises:
        ValueError: something else.
    """
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{quoted(value)} is no whole number from {least} to {most}")
    return value


def number_of(value: object) -> float:
    """A finite number.

    Raises:
        ValueError: something else.
    """
    if type(value) not in (int, float) or not -1e300 < value < 1e300 or not math.isfinite(value):
        raise ValueError(f"{quoted(value)} is no finite number")
    return float(value)


def fraction_of(text: object) -> Fraction:
    """A fraction as `str(Fraction)` writes it: "n" or "n/d", of 24 digits each at most.

    Python's own reader takes "1e999999999" too, and would fill the memory with its digits.

    Raises:
        ValueError: something else.
    """
    match = _FRACTION.fullmatch(text) if isinstance(text, str) else None
    if match is None or (match[2] and not int(match[2])):
        raise ValueError(f"{quoted(text)} is no fraction")
    return Fraction(int(match[1]), int(match[2] or 1))


def ratio_of(text: object) -> Fraction:
    """A fraction above 0 that FFmpeg can hold.

    Raises:
        ValueError: something else.
    """
    ratio = fraction_of(text)
    if ratio <= 0 or max(ratio.numerator, ratio.denominator) > INT32:
        raise ValueError(f"{quoted(text)} is no fraction above 0 of at most {INT32}")
    return ratio


def text_of(value: object) -> str:
    """A short line of text.

    Raises:
        ValueError: something else.
    """
    if type(value) is not str or len(value) > 200 or not value.isprintable():
        raise ValueError(f"{quoted(value)} is no short text")
    return value
