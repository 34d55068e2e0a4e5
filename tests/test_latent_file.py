"""Latent files as they are read: what went in comes out, and every damaged byte is found."""

import io
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from latent_files import CHUNKS, METADATA, latents, read_everything, small_tensors, write
from test_safetensors_header import JSON, fuzz, only_typed_errors, peak_below
from xxhash import xxh3_64_hexdigest

from cvvae_cli import latent_file, latent_writer
from cvvae_cli.errors import LatentFileError
from cvvae_cli.latent_file import LatentReader, is_latent_file
from cvvae_cli.latent_writer import LatentWriter


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """What torch makes of float32 values in `dtype`, as float32."""
    return torch.from_numpy(values).to(getattr(torch, dtype)).float().numpy()


def header_of(data: bytes) -> dict:
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])


def forge(data: bytes, change: Callable[[dict], object]) -> bytes:
    """A file whose header was changed on purpose and whose header checksum was then made right again."""
    size = struct.unpack("<Q", data[:8])[0]
    header = header_of(data)
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode().ljust(size)
    at = re.search(rb'"header_xxh3":"([0-9a-f]{16})"', text).start(1)
    text = text[:at] + b"0" * 16 + text[at + 16 :]
    digest = xxh3_64_hexdigest(struct.pack("<Q", len(text)) + text).encode()
    return struct.pack("<Q", len(text)) + text[:at] + digest + text[at + 16 :] + data[8 + size :]


def add_empty(header: dict, shape: list[int]) -> None:
    """Adds a tensor without bytes that is right in all but its shape."""
    sums = json.loads(header["__metadata__"]["tensors_xxh3"])
    header["__metadata__"]["tensors_xxh3"] = json.dumps({**sums, "empty": xxh3_64_hexdigest(b"")})
    header["empty"] = {"dtype": "U8", "shape": shape, "data_offsets": [0, 0]}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a small file with every kind of tensor, a pad among them, and some free header."""
    path = tmp_path_factory.mktemp("sound") / "a.latent"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent_writer, "HEADER_RESERVE", 1408)
        with LatentWriter(path, 3, 1, 3) as writer:
            for frames in (1, 4):
                writer.append(latents(frames, (3, 1, 3), seed=frames))
            writer.close(METADATA, small_tensors(5, 3))
    data = path.read_bytes()
    assert "_pad" in header_of(data) and len(data) < 1700 and b"  " in data[:1408]
    return data


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(4, 3, 5), (3, 1, 3)])
def test_round_trip_and_the_safetensors_library(tmp_path: Path, dtype: str, shape: tuple[int, int, int]) -> None:
    path = tmp_path / "clip.anything"
    values = rounded(write(path, dtype, shape), dtype)
    with LatentReader(path) as reader:
        assert reader.shape == values.shape and reader.dtype == dtype and reader.num_chunks == len(CHUNKS)
        assert reader.metadata == METADATA
        assert reader.payload_bytes == values.size * (4 if dtype == "float32" else 2)
        assert reader.file_bytes == path.stat().st_size
        assert reader.read(0, 11).dtype == np.float32
        for start in range(12):
            for stop in range(start, 12):
                assert np.array_equal(reader.read(start, stop), values[start:stop])
        for name, tensor in small_tensors().items():
            assert np.array_equal(reader.tensor(name), tensor) and reader.tensor(name).dtype == tensor.dtype
        assert set(reader.tensor_names) == {"pts", "durations", "sidecar", "chunk_end", "chunk_xxh3"}
        assert reader.tensor("chunk_end").tolist() == [1, 5, 9, 11]
        assert reader.verify() == []

    loaded = safetensors.torch.load_file(path)
    assert loaded["latents"].dtype == getattr(torch, dtype)
    assert np.array_equal(loaded["latents"].float().numpy(), values)
    assert np.array_equal(loaded["pts"].numpy(), small_tensors()["pts"])
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.metadata()["format"] == "cvvae-latent" and file.metadata()["format_version"] == "1"
        assert file.metadata()["model"] == METADATA["model"]
        assert np.array_equal(file.get_slice("latents")[3:9].float().numpy(), values[3:9])
    assert all(entry["data_offsets"][0] % 8 == 0 for name, entry in header_of(path.read_bytes()).items()
               if name not in ("__metadata__", "_pad", "sidecar"))  # fmt: skip


def test_a_tensor_can_be_read_as_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_file, "BLOCK", 64)
    path, tensors = tmp_path / "a.latent", small_tensors(sidecar=1000)
    with LatentWriter(path, 4, 3, 5) as writer:
        writer.append(latents(3))
        writer.close({}, tensors | {"nothing": np.zeros(0, np.uint8)})
    rng = np.random.default_rng(0)
    with LatentReader(path) as reader:
        for name, tensor in tensors.items():
            assert reader.open_tensor(name).read() == tensor.tobytes()
        assert reader.open_tensor("nothing").read() == b""
        file, model = reader.open_tensor("sidecar"), io.BytesIO(tensors["sidecar"])
        other, other_model = reader.open_tensor("pts"), io.BytesIO(tensors["pts"])
        assert file.readable() and file.seekable() and not file.writable()
        for whence, offset, count in rng.integers((0, 0, 0), (3, 400, 300), (200, 3)).tolist():
            offset = -offset if whence == os.SEEK_END else min(offset, 1000 - model.tell()) if whence else offset
            assert file.seek(offset, whence) == model.seek(offset, whence)
            assert other.read(1) == other_model.read(1), "two open files disturb each other"
            assert file.read(count) == model.read(count) and file.tell() == model.tell()
        assert file.seek(2000) == 2000 and file.read(5) == b""
        with pytest.raises(LatentFileError, match="no tensor 'picture'"):
            reader.open_tensor("picture")


def test_payload_begins_at_a_page_and_can_be_mapped(tmp_path: Path) -> None:
    path = tmp_path / "a.latent"
    values = write(path, "float32")
    assert np.array_equal(np.memmap(path, "<f4", "r", 16384, values.shape), values)


def test_memory_stays_flat_over_many_chunks(tmp_path: Path) -> None:
    path, chunk = tmp_path / "a.latent", latents(4, (4, 32, 32))
    with LatentWriter(path, 4, 32, 32, dtype="float32") as writer:
        writer.append(chunk)
        with peak_below(6 * chunk.nbytes):
            for _ in range(99):
                writer.append(chunk)
            writer.close({}, {})
    assert path.stat().st_size > 6 * 2**20
    with LatentReader(path) as reader, peak_below(2**20):
        assert reader.verify() == []
        for start in range(0, reader.shape[0] - 8, 40):
            reader.read(start, start + 8)


def test_one_huge_chunk_is_checked_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_file, "BLOCK", 2**16)
    path, values = tmp_path / "a.latent", latents(64, (4, 32, 32))
    with LatentWriter(path, 4, 32, 32, dtype="float32") as writer:
        writer.append(values)
        writer.close({}, {})
    with LatentReader(path) as reader, peak_below(values.nbytes / 2):
        assert np.array_equal(reader.read(31, 33), values[31:33])


# ---- damage


def test_every_byte_counts_and_at_the_front_every_bit(tmp_path: Path, sound: bytes) -> None:
    path = tmp_path / "a.latent"
    path.write_bytes(sound)
    read_everything(path)
    assert is_latent_file(path)
    data = bytearray(sound)
    with open(path, "r+b", buffering=0) as file:
        for position in range(len(sound)):
            for bit in range(8) if position < 120 else (position % 8,):
                data[position] ^= 1 << bit
                os.pwrite(file.fileno(), data[position : position + 1], position)
                assert is_latent_file(path)  # else it would be read as a plain file, unchecked
                found = []
                try:
                    with LatentReader(path) as reader:
                        found = reader.verify()
                except LatentFileError:
                    found = ["refused"]
                assert found, f"bit {bit} of byte {position}"
                data[position] ^= 1 << bit
            os.pwrite(file.fileno(), sound[position : position + 1], position)
    read_everything(path)


def test_a_read_finds_the_damage_that_it_meets(tmp_path: Path) -> None:
    path = tmp_path / "a.latent"
    values = rounded(write(path), "float16")
    data = bytearray(path.read_bytes())
    frame_bytes = 4 * 3 * 5 * 2
    data[16384 + 6 * frame_bytes] ^= 16  # in latent frame 6, chunk 2 of frames 5 to 8
    path.write_bytes(data)
    with LatentReader(path) as reader:
        assert reader.verify() == [2]
        for start in range(12):
            for stop in range(start, 12):
                if start < 9 and stop > 5 and start < stop:
                    with pytest.raises(LatentFileError, match=r"chunk 2 \(latent frames 5 to 8\)"):
                        reader.read(start, stop)
                else:
                    assert np.array_equal(reader.read(start, stop), values[start:stop])


def test_a_damaged_small_tensor_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.latent"
    values = rounded(write(path), "float16")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # the sidecar lies last
    path.write_bytes(data)
    with LatentReader(path) as reader:
        assert np.array_equal(reader.read(0, 11), values)
        assert np.array_equal(reader.tensor("pts"), small_tensors()["pts"])
        with pytest.raises(LatentFileError, match="'sidecar' does not match"):
            reader.tensor("sidecar")
        with pytest.raises(LatentFileError, match="'sidecar' does not match"):
            reader.open_tensor("sidecar")
        with pytest.raises(LatentFileError, match="'sidecar' does not match"):
            reader.verify()


def test_damage_after_opening_is_found(tmp_path: Path, sound: bytes) -> None:
    path = tmp_path / "a.latent"
    path.write_bytes(sound)
    with LatentReader(path) as reader:
        file = reader.open_tensor("sidecar")
        os.truncate(path, len(sound) - 1)
        with pytest.raises(LatentFileError, match="cut off"):
            reader.verify()
        with pytest.raises(LatentFileError, match="cut off"):
            file.read()


def test_what_is_refused_at_opening(tmp_path: Path, sound: bytes) -> None:
    path = tmp_path / "a.latent"

    def refused(data: bytes, message: str) -> None:
        path.write_bytes(data)
        with pytest.raises(LatentFileError, match=message) as caught:
            LatentReader(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)

    refused(b"", "no latent file")
    refused(b"hello, world, this is text", "no latent file")
    refused(sound[:700], "cut off")
    refused(sound[:-1], "cut off")
    refused(sound[:1450], "cut off")
    refused(sound + b"\0", "goes on after its end")
    refused(struct.pack("<Q", 2**60) + sound[8:], "states a header of")
    refused(sound.replace(b'"format_version":"1"', b'"format_version":"2"'), "version 2, but this program reads 1; upgrade")
    refused(sound.replace(b"cvvae-latent", b"cvvae-latenz"), "damaged header, or another program rewrote it")
    refused(sound.replace(b':12}"', b':13}"'), "does not match its checksum")
    refused(sound.replace(b"   ", b" \t ", 1), "does not match its checksum")
    refused(safetensors.numpy.save({"latents": latents(2)}), "is a safetensors file, but no latent file of cvvae")
    assert not is_latent_file(path)
    path.unlink()
    with pytest.raises(LatentFileError, match="does not exist"):
        LatentReader(path)
    with pytest.raises(LatentFileError, match="is not a file"):
        LatentReader(tmp_path)
    os.mkfifo(path)
    with pytest.raises(LatentFileError, match="is not a file"):
        LatentReader(path)
    assert not is_latent_file(path) and not is_latent_file(tmp_path) and not is_latent_file(tmp_path / "nothing")


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["latents"].update(shape=[5, 3, 1, 4]),
        lambda h: h["latents"].update(shape=[5, 9, 1]),
        lambda h: h["latents"].update(dtype="F8_E4M3"),
        lambda h: h["latents"].update(dtype="U16"),
        lambda h: h["latents"].update(data_offsets=[0, 10**15]),
        lambda h: h["latents"].update(shape=[10**9, 10**9, 10**9, 10**9], data_offsets=[0, 2 * 10**36]),
        lambda h: h["latents"].update(shape=[True, 15, 1, 3]),
        lambda h: h["latents"].update(shape=[5.0, 3, 1, 3]),
        lambda h: h["pts"].update(data_offsets=h["durations"]["data_offsets"]),
        lambda h: add_empty(h, [0, 2**62, 2**62]),
        lambda h: h["chunk_end"].update(dtype="U64"),
        lambda h: h["chunk_xxh3"].update(shape=[2, 1]),
        lambda h: h.pop("latents"),
        lambda h: h.pop("chunk_end"),
        lambda h: h.update(pts=None),
        lambda h: h.update(pts=[1, 2]),
        lambda h: h["pts"].pop("dtype"),
        lambda h: h["__metadata__"].update(tensors_xxh3="{}"),
        lambda h: h["__metadata__"].update(tensors_xxh3="[" * 100_000),
        lambda h: h["__metadata__"].pop("tensors_xxh3"),
        lambda h: h["__metadata__"].update(model=3),
    ],
)
def test_a_forged_header_is_not_believed(tmp_path: Path, sound: bytes, change: Callable[[dict], object]) -> None:
    path = tmp_path / "a.latent"
    path.write_bytes(forge(sound, lambda header: add_empty(header, [0, 5])))
    read_everything(path)  # the forger's hand is steady: with a harmless change the file is sound
    path.write_bytes(forge(sound, change))
    with pytest.raises(LatentFileError):
        LatentReader(path)


def test_an_unknown_feature_is_refused_by_name_before_all_that_it_may_change(tmp_path: Path, sound: bytes) -> None:
    path = tmp_path / "a.latent"

    def require(text: str, **more: object) -> None:
        path.write_bytes(forge(sound, lambda header: [header["__metadata__"].update(requires=text), header.update(more)]))

    require("[]")
    read_everything(path)
    with LatentReader(path) as reader:
        assert reader.metadata == METADATA
    require('["sparse-chunks", "other"]', latents={"dtype": "F4", "planes": 3})
    with pytest.raises(LatentFileError, match="requires 'sparse-chunks', which this version .* does not know; upgrade cvvae"):
        LatentReader(path)
    require(json.dumps(["x" * 100_000]))
    with pytest.raises(LatentFileError, match="requires 'x{80}', which"):
        LatentReader(path)
    for malformed in ("", "{}", '"x"', "[1]", "[[]]", "null", "[" * 100_000):
        require(malformed)
        with pytest.raises(LatentFileError, match="what it requires is no list"):
            LatentReader(path)


def test_what_a_later_version_may_add_is_kept_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.latent"
    with LatentWriter(path, 4, 3, 5) as writer:
        writer.append(latents(3))
        later = {"chapters": '["one"]', "words": "no JSON"}
        writer.close(METADATA | later, small_tensors() | {"depth": np.arange(7, dtype=np.uint16)})
    with LatentReader(path) as reader:
        assert reader.metadata == METADATA | later and reader.verify() == []
        assert reader.tensor("depth").tolist() == list(range(7))
    data = bytearray(path.read_bytes())
    data[data.rindex(bytes([0, 0, 1, 0, 2, 0, 3, 0]))] ^= 1
    path.write_bytes(data)
    with LatentReader(path) as reader:
        assert reader.read(0, 3).shape == (3, 4, 3, 5) and reader.damaged_tensors() == ["depth"] and reader.damaged_chunks() == []


@pytest.mark.parametrize("ends", [[5, 5], [0, 5], [-1, 5], [1, 6], [1, 4], [2**62, 5]])
def test_a_forged_table_of_chunks_is_not_believed(tmp_path: Path, sound: bytes, ends: list[int]) -> None:
    start, stop = header_of(sound)["chunk_end"]["data_offsets"]
    table = np.array(ends, "<i8").tobytes()
    base = len(sound) - max(entry["data_offsets"][1] for name, entry in header_of(sound).items() if name != "__metadata__")

    def change(header: dict) -> None:
        sums = json.loads(header["__metadata__"]["tensors_xxh3"])
        header["__metadata__"]["tensors_xxh3"] = json.dumps({**sums, "chunk_end": xxh3_64_hexdigest(table)})

    path = tmp_path / "a.latent"
    path.write_bytes(forge(sound[: base + start] + table + sound[base + stop :], change))
    with LatentReader(path) as reader:
        with pytest.raises(LatentFileError, match="do not cover its 5 latent frames"):
            reader.read(0, 5)
        with pytest.raises(LatentFileError, match="do not cover"):
            reader.verify()


@fuzz()
@given(data=st.data())
def test_fuzz_changed_headers(tmp_path: Path, sound: bytes, data: st.DataObject) -> None:
    def change(header: dict) -> None:
        name = data.draw(st.sampled_from(sorted(header)))
        key = data.draw(st.sampled_from(sorted(header[name]) + [""]))
        if name == "__metadata__" and key in ("format", "format_version", "header_xxh3", ""):
            key = "tensors_xxh3"  # the forger needs the others where they are
        if key == "":
            header[name] = data.draw(JSON)
        else:
            header[name][key] = data.draw(JSON | st.lists(st.integers(-1, 2**64), min_size=2, max_size=4))

    only_typed_errors(tmp_path / "a", forge(sound, change), read_everything)


@fuzz()
@given(data=st.data())
def test_fuzz_changed_bytes(tmp_path: Path, sound: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(sound)))
    stop = data.draw(st.integers(start, min(start + 40, len(sound))))
    changed = sound[:start] + data.draw(st.binary(max_size=40)) + sound[stop:]
    only_typed_errors(tmp_path / "a", changed, read_everything)
    if changed != sound:
        with pytest.raises(LatentFileError):
            read_everything(tmp_path / "a")


def test_reading_a_latent_file_does_not_import_torch(tmp_path: Path) -> None:
    write(tmp_path / "a.latent")
    code = (
        "import sys; from cvvae_cli.latent_file import LatentReader\n"
        "r = LatentReader(sys.argv[1]); print(r.read(0, 3).shape, len(r.verify()), 'torch' in sys.modules)"
    )
    root = Path(latent_file.__file__).parents[1]
    command = [sys.executable, "-c", code, tmp_path / "a.latent"]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert ran.stdout == "(3, 4, 3, 5) 0 False\n"
