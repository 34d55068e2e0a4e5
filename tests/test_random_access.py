"""A few frames from the middle of a long file cost the chunks that hold them, and no others."""

import json

import encoded_clip
import numpy as np
import pytest
from encoded_clip import TILING, decoded

from cvvae_cli import latent_file
from cvvae_cli.errors import LatentFileError
from cvvae_cli.geometry import chunk_stride
from cvvae_cli.latent_file import LatentReader
from cvvae_cli.latent_writer import LatentWriter
from cvvae_cli.safetensors_header import read_exactly

folder, model = encoded_clip.folder, encoded_clip.model
FRAMES = 12_001
LATENTS = 3001
PAYLOAD = 16 * 1024
SHOWN = (10_000, 10_100)
HELD = (2500, 2526)
"""The latent frames that stand for them: 2500 for frames 9997 to 10000, 2525 for 10097 to 10100."""


@pytest.fixture(scope="module")
def long(folder):
    """A latent file of 12 001 frames of 16 x 16 pixels, in the chunks that encoding writes."""
    with LatentReader(folder / "clip.latent") as reader:
        metadata = {key: json.loads(text) for key, text in reader.metadata.items()}
    metadata["video"] |= {"num_frames": FRAMES, "width": 16, "height": 16}
    tensors = {"pts": 512 * np.arange(FRAMES), "durations": np.full(FRAMES, 512)}
    values = np.random.default_rng(0).normal(size=(LATENTS, 4, 2, 2)).astype(np.float32)
    stride = chunk_stride(TILING.chunk, TILING.chunk_overlap)
    with LatentWriter(folder / "long.latent", 4, 2, 2, overwrite=True) as writer:
        for start in range(0, LATENTS, stride):
            writer.append(values[start : start + stride])
        writer.close({key: json.dumps(value) for key, value in metadata.items()}, tensors)
    return folder / "long.latent"


def with_damage_outside(path, target, first, stop):
    """A copy whose every chunk without a latent frame of `first` to `stop` is damaged; and how many those are."""
    data = bytearray(path.read_bytes())
    damaged = 0
    with LatentReader(path) as reader:
        frame_bytes = reader.payload_bytes // reader.shape[0]
        for index in range(reader.num_chunks):
            begin, end = reader.chunk_span(index)
            if end <= first or begin >= stop:
                data[PAYLOAD + begin * frame_bytes] ^= 1
                damaged += 1
    target.write_bytes(data)
    return damaged


def part(path, model):
    first, stop = SHOWN
    return decoded(path, model, start=first * 512 / 12800, max_frames=stop - first)


def test_frames_ten_thousand_to_ten_thousand_one_hundred_touch_only_their_chunks(long, model, tmp_path):
    whole = part(long, model)
    # A chunk of 17 frames is 5 latent frames: a frame may need 3 before its own and 3 behind.
    first, stop = HELD[0] - 3, HELD[1] + 3
    damaged = with_damage_outside(long, tmp_path / "x", first, stop)
    with LatentReader(tmp_path / "x") as reader:
        assert reader.num_chunks - damaged <= (stop - first) // 3 + 2 and len(reader.damaged_chunks()) == damaged > 980
    assert whole.shape == (100, 16, 16, 3) and np.array_equal(part(tmp_path / "x", model), whole)


def test_each_of_their_chunks_is_touched(long, model, tmp_path):
    data = long.read_bytes()
    with LatentReader(long) as reader:
        frame_bytes = reader.payload_bytes // reader.shape[0]
        needed = {index for index, _, _ in reader.parts(*HELD)}
        spans = {index: reader.chunk_span(index) for index in needed}
    for begin, _ in spans.values():
        changed = bytearray(data)
        changed[PAYLOAD + begin * frame_bytes] ^= 1
        (tmp_path / "x").write_bytes(changed)
        with pytest.raises(LatentFileError, match=f"latent frames {begin} to"):
            part(tmp_path / "x", model)


def test_the_reader_reads_no_more_bytes_than_the_chunks_have(long, monkeypatch):
    taken = []

    def counting(file, start, size, path):
        taken.append((start, start + size))
        return read_exactly(file, start, size, path)

    with LatentReader(long) as reader:
        reader.tensor("chunk_end"), reader.tensor("chunk_xxh3"), reader.read(0, 1)
        frame_bytes = reader.payload_bytes // reader.shape[0]
        spans = [reader.chunk_span(index) for index, _, _ in reader.parts(*HELD)]
        monkeypatch.setattr(latent_file, "read_exactly", counting)
        reader.read(*HELD)
    assert sum(stop - start for start, stop in taken) == (spans[-1][1] - spans[0][0]) * frame_bytes
    assert (taken[0][0], taken[-1][1]) == tuple(PAYLOAD + frame * frame_bytes for frame in (spans[0][0], spans[-1][1]))
