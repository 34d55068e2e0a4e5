"""A writer of video files from flat words, for tests that vary one at a time."""

from collections.abc import Mapping
from dataclasses import fields
from fractions import Fraction
from pathlib import Path

from cvvae_cli.video_container import Beside
from cvvae_cli.video_encoder import Encoding, Pictures
from cvvae_cli.video_writer import VideoWriter, default_codec


def open_writer(path: Path, width: int, height: int, rate: Fraction, base: Fraction, **words: object) -> VideoWriter:
    """Fields of `Pictures`, `Encoding` (its options as a mapping) and `Beside`, and the writer's own arguments."""

    def taken(kind: type) -> dict[str, object]:
        return {field.name: words.pop(field.name) for field in fields(kind) if field.name in words}

    pictures = Pictures(width, height, rate, base, **taken(Pictures))
    wanted = taken(Encoding)
    if isinstance(wanted.get("options"), Mapping):
        wanted["options"] = tuple(wanted["options"].items())
    # An unknown extension is the writer's to refuse.
    encoding = Encoding(**{"codec": default_codec(path), **wanted}) if wanted else None
    return VideoWriter(path, pictures, encoding, Beside(**taken(Beside)), **words)
