"""Chapters and titles of a container: read from a source, kept as JSON, written into an output.

Streams and packets are unknown here; the language and title of a stream travel with the stream.
"""

import json
from dataclasses import dataclass
from fractions import Fraction

from av.container import InputContainer, OutputContainer

from cvvae_cli.checked_values import fraction_of, quoted
from cvvae_cli.errors import LatentFileError

FARTHEST = 2**40
"""Seconds from 0 that a chapter may be away; milliseconds of it fit FFmpeg's 64 bits."""

_OF_THE_FILE = {
    "encoder", "major_brand", "minor_version", "compatible_brands", "creation_time", "duration", "handler_name", "vendor_id",
    "cvvae_times", "cvvae_shift", "cvvae_notes",
}  # fmt: skip
"""Keys that describe the source file or the program that made it, and would be untrue of a copy (in small letters)."""


@dataclass(frozen=True)
class Chapter:
    """Attributes:
    start, end: seconds of the container's clock.
    metadata: the title and what else is there.
    """

    start: Fraction
    end: Fraction
    metadata: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ContainerTags:
    """Attributes:
    metadata: title, artist and the like.
    chapters: in the order of the file.
    """

    metadata: tuple[tuple[str, str], ...] = ()
    chapters: tuple[Chapter, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.metadata or self.chapters)

    def to_bytes(self) -> bytes:
        """As JSON in UTF-8; times are "n/d" strings of seconds."""
        chapters = [[str(c.start), str(c.end), dict(c.metadata)] for c in self.chapters]
        return json.dumps({"metadata": dict(self.metadata), "chapters": chapters}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "ContainerTags":
        """The inverse of `to_bytes`, of which nothing is believed.

        Raises:
            LatentFileError: the bytes are not of that form.
        """
        try:
            values = json.loads(data)
            chapters = tuple(Chapter(_moment(start), _moment(end), _texts(pairs)) for start, end, pairs in values["chapters"])
            return cls(_texts(values["metadata"]), chapters)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise LatentFileError("The chapters and titles in the latent file are damaged; encode the video again.") from None


def _moment(text: object) -> Fraction:
    seconds = fraction_of(text)
    if abs(seconds) >= FARTHEST:
        raise ValueError(f"{quoted(text)} s is no time of a video")
    return seconds


def _texts(pairs: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(pairs, dict) or not all(isinstance(value, str) for value in pairs.values()):
        raise ValueError(f"{quoted(pairs)} does not map texts to texts")
    return tuple(pairs.items())


def read_tags(container: InputContainer) -> ContainerTags:
    """Chapters and titles of an open file; empty where there are none."""
    chapters = tuple(
        Chapter(c["start"] * Fraction(c["time_base"]), c["end"] * Fraction(c["time_base"]), tuple(c["metadata"].items()))
        for c in container.chapters()
        if c["time_base"]
    )
    metadata = {key: value for key, value in container.metadata.items() if key.lower() not in _OF_THE_FILE and value}
    return ContainerTags(tuple(metadata.items()), chapters)


def write_tags(
    tags: ContainerTags, output: OutputContainer, origin: Fraction = Fraction(0), stop: Fraction | None = None
) -> None:
    """Gives titles and chapters to an output; call it before the first packet is muxed.

    Args:
        tags: what `read_tags` found.
        output: the container that is being written.
        origin: the moment of the source that is 0 in the output, seconds; chapters that end before it are left out.
        stop: chapters from this moment of the source on are left out, and one around it ends there; None keeps all.
    """
    output.metadata.update(dict(tags.metadata))
    kept = []
    for chapter in tags.chapters:
        start, end = max(chapter.start - origin, Fraction(0)), chapter.end - origin
        if stop is not None:
            end = min(end, stop - origin)
        if end > start:
            kept.append((start, end, chapter))
    output.set_chapters([_as_pyav(i, start, end, chapter) for i, (start, end, chapter) in enumerate(kept, 1)])


def _as_pyav(number: int, start: Fraction, end: Fraction, chapter: Chapter) -> dict:
    """A chapter as PyAV takes it; milliseconds are what MP4 and Matroska players show."""
    begin, stop = round(start * 1000), round(end * 1000)
    return {"id": number, "start": begin, "end": stop, "time_base": Fraction(1, 1000), "metadata": dict(chapter.metadata)}
