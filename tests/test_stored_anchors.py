"""Anchors in the latent file: how they are stored, and what their damage costs."""

import json

import encoded_clip
import numpy as np
import pytest
import torch
from encoded_clip import decoded
from test_anchors import TILINGS, encode, stored_anchors
from test_latent_file import forge
from xxhash import xxh3_64_hexdigest, xxh3_64_intdigest

from cvvae_cli import latent_file
from cvvae_cli.anchors import Anchors
from cvvae_cli.config import Tiling
from cvvae_cli.decoding import DecodeOptions, decode_file
from cvvae_cli.encoding import encode_file
from cvvae_cli.errors import LatentFileError
from cvvae_cli.latent_file import LatentReader
from cvvae_cli.latent_writer import LatentWriter
from cvvae_cli.safetensors_header import read_exactly

folder, model = encoded_clip.folder, encoded_clip.model


@pytest.fixture(scope="module")
def whole(folder, model):
    """A file of 4 anchors, for the chunks that start at latent frames 1 to 4."""
    return encode(folder, model, folder / "whole", TILINGS[0])


def damage(path, target, number, byte=5):
    """A copy with a bit flipped in one anchor."""
    data = bytearray(path.read_bytes())
    anchors = np.float16(stored_anchors(path))
    place = data.find(anchors.tobytes())
    assert place > 0
    data[place + number * anchors[0].nbytes + byte] ^= 1
    target.write_bytes(data)
    return target


def without_sums(path, target):
    """A copy as it was written before anchors had checksums of their own: these now have a name that nobody knows."""

    def change(header):
        header["later"] = header.pop("anchors_xxh3")
        sums = json.loads(header["__metadata__"]["tensors_xxh3"])
        sums["later"] = sums.pop("anchors_xxh3")
        header["__metadata__"]["tensors_xxh3"] = json.dumps(sums)

    target.write_bytes(forge(path.read_bytes(), change))
    return target


def kept_going(path, model, **options):
    frames = []
    options = DecodeOptions(keep_going=True, **options)
    return decode_file(path, None, model=model, options=options, observe=lambda frame: frames.append(frame.copy())), frames


def test_a_damaged_anchor_is_refused_where_it_is_read_and_nowhere_else(model, whole, tmp_path):
    bad = damage(whole, tmp_path / "x", 1)
    with pytest.raises(LatentFileError, match="anchor 1 does not match its checksum; .*--keep-going"):
        decode_file(bad, tmp_path / "x.mp4", model=model)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    # Chunks of 9 frames start at frames 0, 4, 8, 12 and 16; a frame is of all that hold it.
    frames = decoded(whole, model)
    assert np.array_equal(decoded(bad, model, max_frames=8), frames[:8])
    assert np.array_equal(decoded(bad, model, start=1.4), frames[18:])
    for part in ({"start": 0.5, "max_frames": 4}, {"start": 0.33, "max_frames": 12}):
        with pytest.raises(LatentFileError, match="anchor 1"):
            decoded(bad, model, **part)


def test_a_part_reads_no_other_anchors_than_its_own(model, whole, monkeypatch):
    read, seen = LatentReader.read_anchor, []
    monkeypatch.setattr(LatentReader, "read_anchor", lambda self, number: seen.append(number) or read(self, number))
    monkeypatch.setattr(LatentReader, "_is_sound", lambda self, name: pytest.fail(f"all of {name} was hashed"))
    decoded(whole, model, start=1.4)
    assert seen == [2, 3]


def test_going_on_leaves_out_the_damaged_anchors_alone_and_tells(model, whole, tmp_path):
    bad = damage(whole, tmp_path / "x", 1)
    report, frames = kept_going(bad, model)
    told = f"Damaged anchors of {bad} are left out: 1 of those of the frames that were decoded."
    assert report.notes == report.damage == (told,) and report.replaced_frames == ()
    # The chunk of frames 8 to 16 gives 9 to 16; its neighbours are faded into it.
    sound = decoded(whole, model)
    assert np.array_equal(frames[:9], sound[:9]) and np.array_equal(frames[17:], sound[17:])
    assert all(not np.array_equal(a, b) for a, b in zip(frames[9:13], sound[9:13]))
    assert kept_going(bad, model, start=1.4)[0].notes == kept_going(bad, model, max_frames=8)[0].notes == ()


def test_damaged_checksums_of_anchors_leave_out_all(folder, model, whole, tmp_path):
    data = bytearray(whole.read_bytes())
    with LatentReader(whole) as reader:
        data[data.find(reader.tensor("anchors_xxh3").tobytes())] ^= 1
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(LatentFileError, match="'anchors_xxh3' does not match"):
        decoded(tmp_path / "x", model)
    report, frames = kept_going(tmp_path / "x", model)
    assert report.damage == (f"The anchors of {tmp_path / 'x'} are damaged and left out.",)
    encode_file(folder / "clip.mp4", tmp_path / "plain", model=model, tiling=TILINGS[0])
    assert np.array_equal(frames, decoded(tmp_path / "plain", model))


def test_a_file_without_checksums_of_each_is_read_and_checked_as_ever(folder, model, whole, tmp_path):
    old = without_sums(whole, tmp_path / "old")
    assert np.array_equal(decoded(old, model), decoded(whole, model))
    bad = damage(old, tmp_path / "bad", 3)
    with LatentReader(bad) as reader:
        assert reader.damaged_tensors() == ["anchors"]
    with pytest.raises(LatentFileError, match="anchor 0 does not match"):
        decoded(bad, model, max_frames=8)
    report, frames = kept_going(bad, model)
    assert [": 4 of those" in note for note in report.damage] == [True]
    encode_file(folder / "clip.mp4", tmp_path / "plain", model=model, tiling=TILINGS[0])
    assert np.array_equal(frames, decoded(tmp_path / "plain", model))


def test_too_few_anchors_are_refused(model, whole, monkeypatch):
    monkeypatch.setattr("cvvae_cli.latent_video.chunk_count", lambda latent_frames, tiling: 6)
    with pytest.raises(LatentFileError, match="holds 4 anchors") as caught:
        decode_file(whole, None, model=model, options=DecodeOptions(start=0.5))
    assert str(caught.value).count(". ") == 0


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("anchors", {"shape": [4, 4, 8, 6]}, "anchors of F16 .*, not like its latents"),
        ("anchors", {"shape": [4 * 4, 6, 8]}, "anchors of F16 .*, not like its latents"),
        ("anchors", {"dtype": "BF16"}, "anchors of BF16 .*, not like its latents"),
        ("anchors", {"shape": [8, 4, 6, 4]}, "not like its latents"),
        ("anchors_xxh3", {"dtype": "I64"}, "checksums of its anchors are not one for each"),
        ("anchors_xxh3", {"shape": [2, 2]}, "checksums of its anchors are not one for each"),
        ("anchors_xxh3", {"dtype": "U32", "shape": [8]}, "checksums of its anchors are not one for each"),
        ("anchors", None, "checksums of its anchors are not one for each"),
    ],
)
def test_hostile_anchors_are_refused_in_a_sentence(whole, tmp_path, name, change, error):
    def forgery(header):
        if change is not None:
            header[name] |= change
            return
        header["later"] = header.pop(name)
        header["__metadata__"]["tensors_xxh3"] = header["__metadata__"]["tensors_xxh3"].replace(f'"{name}"', '"later"')

    (tmp_path / "x").write_bytes(forge(whole.read_bytes(), forgery))
    with pytest.raises(LatentFileError, match=error) as caught:
        LatentReader(tmp_path / "x")
    assert str(caught.value).count(". ") == 0


def test_verifying_holds_a_block_and_no_anchor(whole, monkeypatch):
    sizes = []

    def counting(file, start, size, path):
        sizes.append(size)
        return read_exactly(file, start, size, path)

    with LatentReader(whole) as reader:
        monkeypatch.setattr(latent_file, "read_exactly", counting)
        monkeypatch.setattr(latent_file, "BLOCK", 64)
        assert reader.damaged_tensors() == []
        assert max(sizes) == 64 < reader.read_anchor(0).nbytes // 2


def test_verifying_finds_damage_to_anchors_and_checksums_of_others(whole, tmp_path):
    for number in range(4):
        with LatentReader(damage(whole, tmp_path / "x", number)) as reader:
            assert reader.damaged_tensors() == ["anchors"]
    data = whole.read_bytes()
    with LatentReader(whole) as reader:
        assert reader.verify() == []
        sums = reader.tensor("anchors_xxh3")
        assert sums.tolist() == [xxh3_64_intdigest(anchor.tobytes()) for anchor in np.float16(stored_anchors(whole))]
    other = sums.copy()
    other[2] += 1

    def change(header):
        texts = json.loads(header["__metadata__"]["tensors_xxh3"])
        header["__metadata__"]["tensors_xxh3"] = json.dumps(texts | {"anchors_xxh3": xxh3_64_hexdigest(other.tobytes())})

    (tmp_path / "x").write_bytes(forge(data.replace(sums.tobytes(), other.tobytes()), change))
    with LatentReader(tmp_path / "x") as reader:
        assert reader.damaged_tensors() == ["anchors_xxh3"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_anchors_come_back_rounded_to_the_files_type(tmp_path, dtype):
    values, kind = torch.randn(3, 4, 3, 5), getattr(torch, dtype)
    with LatentWriter(tmp_path / "x", 4, 3, 5, dtype) as writer:
        for value in values:
            writer.append_anchor(value.numpy())
            writer.append(value[None].numpy())
        writer.append(values[:1].numpy())
        rounded = values.to(kind).float().numpy()
        for number in (2, 0, 1):
            assert np.array_equal(writer.read_anchor(number), rounded[number])
            assert np.array_equal(writer.read(number, 3), rounded[number:])
        assert (writer.num_anchors, writer.latent_bytes) == (3, 7 * 60 * kind.itemsize)
        writer.close({}, {})
    with LatentReader(tmp_path / "x") as reader:
        assert (reader.num_anchors, reader.latent_bytes) == (3, 7 * 60 * kind.itemsize)
        anchors = Anchors(Tiling(chunk=25, chunk_overlap=12), reader.read_anchor)  # chunks start every 3 latent frames
        for number in (1, 2, 0):
            assert np.array_equal(anchors.read(3 * number + 3)[0, :, 0].numpy(), rounded[number])
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_more_anchors_than_chunks_can_be_are_refused(tmp_path):
    with LatentWriter(tmp_path / "x", 1, 1, 2) as writer:
        for _ in range(2):
            writer.append_anchor(np.zeros((1, 1, 2), np.float32))
            writer.append(np.zeros((1, 1, 1, 2), np.float32))
        writer.close({}, {})
    with pytest.raises(LatentFileError, match="2 anchors for 2 latent frames"):
        LatentReader(tmp_path / "x")


@pytest.mark.parametrize(("value", "dtype"), [(7e4, "float16"), (float("nan"), "bfloat16"), (float("inf"), "float32")])
def test_values_that_are_not_finite_are_refused(tmp_path, value, dtype):
    with LatentWriter(tmp_path / "x", 1, 1, 2, dtype) as writer:
        writer.append_anchor(np.zeros((1, 1, 2), np.float32))
        with pytest.raises(LatentFileError, match="Anchor 1 holds .*--latent-dtype float32") as caught:
            writer.append_anchor(np.array([[[0.0, value]]], np.float32))
        assert str(caught.value).count(". ") == 0 and writer.num_anchors == 1
