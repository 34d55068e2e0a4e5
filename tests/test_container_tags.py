"""Titles and chapters: from a container through bytes into another."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import moving_pictures

from cvvae_cli.container_tags import Chapter, ContainerTags, read_tags, write_tags
from cvvae_cli.errors import LatentFileError

CHAPTERS = (
    Chapter(Fraction(0), Fraction(1), (("title", "Start"),)),
    Chapter(Fraction(1), Fraction(5, 2), (("title", "Mitte – größer"),)),
    Chapter(Fraction(5, 2), Fraction(4), (("title", "End"),)),
)
TAGS = ContainerTags((("title", 'A "title"'), ("artist", "Someone")), CHAPTERS)


def write(path: Path, tags: ContainerTags, **span: Fraction) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libvpx-vp9" if path.suffix == ".webm" else "libx264", rate=1, width=32, height=32)
        stream.pix_fmt = "yuv420p"
        write_tags(tags, output, **span)
        for picture in moving_pictures(4, 32, 32):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        output.mux(stream.encode(None))
    return path


def tags_of(path: Path) -> ContainerTags:
    with av.open(str(path)) as container:
        return read_tags(container)


def lower(tags: ContainerTags) -> dict[str, str]:
    return {key.lower(): value for key, value in tags.metadata}


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov", ".webm"])
def test_tags_come_back(tmp_path: Path, suffix: str) -> None:
    found = tags_of(write(tmp_path / f"a{suffix}", TAGS))
    assert lower(found) == dict(TAGS.metadata)
    assert [(c.start, c.end, dict(c.metadata)["title"]) for c in found.chapters] == [
        (c.start, c.end, dict(c.metadata)["title"]) for c in CHAPTERS
    ]


def test_bytes_hold_everything() -> None:
    assert ContainerTags.from_bytes(TAGS.to_bytes()) == TAGS
    assert ContainerTags.from_bytes(np.frombuffer(TAGS.to_bytes(), np.uint8).tobytes()) == TAGS
    assert TAGS and not ContainerTags()


def test_chapters_of_a_part_are_moved_and_cut(tmp_path: Path) -> None:
    found = tags_of(write(tmp_path / "a.mkv", TAGS, origin=Fraction(3, 2), stop=Fraction(3)))
    assert [(c.start, c.end) for c in found.chapters] == [(0, 1), (1, Fraction(3, 2))]


def test_what_is_true_of_the_source_file_alone_stays_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write(path, ContainerTags((("creation_time", "2026-01-01T00:00:00Z"), ("title", "x"))))
    assert lower(tags_of(path)) == {"title": "x"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"metadata": 3, "chapters": []}',
        b'{"metadata": {}, "chapters": [["1/0", "1", {}]]}',
        b'{"metadata": {}, "chapters": [["1e999999999", "1", {}]]}',
        b'{"metadata": {"title": 3}, "chapters": []}',
        b'{"metadata": {}, "chapters": [["0", "99999999999999999999", {}]]}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_damaged_bytes_are_one_sentence(data: bytes) -> None:
    with pytest.raises(LatentFileError, match="titles in the latent file are damaged"):
        ContainerTags.from_bytes(data)
