"""A latent file with holes: what is sound is kept, and the holes are filled as a ruler would."""

from pathlib import Path

import numpy as np
import pytest

from cvvae_cli.errors import LatentFileError
from cvvae_cli.latent_file import LatentReader
from cvvae_cli.latent_writer import LatentWriter
from cvvae_cli.mended_latents import MendedLatents

CHUNKS = (1, 3, 2, 4, 2)
ENDS = np.cumsum(CHUNKS)
STARTS = ENDS - CHUNKS
VALUES = np.random.default_rng(1).normal(size=(12, 2, 3, 5)).astype(np.float32)
FRAME_BYTES = 2 * 3 * 5 * 4


def holed(path: Path, *chunks: int) -> Path:
    """A file of `CHUNKS` in which some are damaged by one bit each."""
    with LatentWriter(path, 2, 3, 5, "float32", overwrite=True) as writer:
        for start, end in zip(STARTS, ENDS):
            writer.append(VALUES[start:end])
        writer.close({}, {})
    data = bytearray(path.read_bytes())
    for chunk in chunks:
        data[16 * 1024 + STARTS[chunk] * FRAME_BYTES + 7] ^= 0x40
    path.write_bytes(data)
    return path


def filled(*chunks: int) -> np.ndarray:
    """What must come out, frame by frame."""
    bad = {frame for chunk in chunks for frame in range(STARTS[chunk], ENDS[chunk])}
    out = VALUES.copy()
    for frame in bad:
        lower = next((n for n in range(frame, -1, -1) if n not in bad), None)
        upper = next((n for n in range(frame, 12) if n not in bad), None)
        if lower is None or upper is None:
            out[frame] = VALUES[upper if lower is None else lower]
        else:
            way = (frame - lower) / (upper - lower)
            out[frame] = VALUES[lower].astype(np.float64) * (1 - way) + VALUES[upper].astype(np.float64) * way
    return out


@pytest.mark.parametrize(
    ("chunks", "spans"),
    [
        ((), []),
        ((1,), [(1, 4)]),
        ((0,), [(0, 1)]),
        ((4,), [(10, 12)]),
        ((2, 3), [(4, 10)]),
        ((0, 1, 3), [(0, 4), (6, 10)]),
        ((1, 2, 3, 4), [(1, 12)]),
    ],
)
@pytest.mark.parametrize("step", [1, 5, 12])
def test_holes_are_filled_on_straight_lines_whatever_the_pieces(tmp_path, chunks, spans, step):
    with LatentReader(holed(tmp_path / "a", *chunks)) as reader:
        mended = MendedLatents(reader)
        found = np.concatenate([mended.read(start, min(start + step, 12)) for start in range(0, 12, step)])
    assert mended.replaced == spans
    np.testing.assert_allclose(found, filled(*chunks), atol=1e-6)
    sound = [frame for frame in range(12) if not any(start <= frame < stop for start, stop in spans)]
    assert np.array_equal(found[sound], VALUES[sound])


def test_holes_that_are_not_asked_for_do_not_count(tmp_path):
    with LatentReader(holed(tmp_path / "a", 1, 3)) as reader:
        mended = MendedLatents(reader)
        assert np.array_equal(mended.read(4, 6), VALUES[4:6]) and mended.replaced == []
        np.testing.assert_allclose(mended.read(7, 9), filled(1, 3)[7:9], atol=1e-6)
        assert mended.replaced == [(6, 10)]
        mended.look_over(0, 12)
        assert mended.replaced == [(1, 4), (6, 10)]


def test_where_nothing_is_sound_there_is_nothing_to_fill_with(tmp_path):
    with LatentReader(holed(tmp_path / "a", *range(5))) as reader, pytest.raises(LatentFileError, match="no sound chunk"):
        MendedLatents(reader).read(3, 4)
