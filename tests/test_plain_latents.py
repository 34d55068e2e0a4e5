"""Latents of other programs: every kind is read as its own library reads it, and nothing else gets through."""

import json
import os
import re
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_safetensors_header import JSON, fuzz, only_typed_errors, peak_below

from cvvae_cli.errors import LatentFileError, UsageError
from cvvae_cli.plain_latents import PlainHeader, is_plain_tensor, read_plain_header, read_plain_latents, readings, to_tzhw


def latents(frames: int) -> np.ndarray:
    """float32 [frames, 4, 3, 5]."""
    return np.random.default_rng(0).normal(0, 3, (frames, 4, 3, 5)).astype(np.float32)


def test_plain_npy(tmp_path: Path) -> None:
    values = latents(3)
    for array in (values.astype(np.float16), values, values.astype(np.float64), np.asfortranarray(values)):
        np.save(tmp_path / "a.npy", array)
        found = read_plain_latents(tmp_path / "a.npy")
        assert found.values.dtype == np.float32 and found.key == "" and found.multiplied_by == 1.0
        assert np.array_equal(found.values, array.astype(np.float32))
    np.save(tmp_path / "a.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(LatentFileError, match="npy"):
        read_plain_latents(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.arange(4))
    with pytest.raises(LatentFileError, match="int64, not floating-point"):
        read_plain_latents(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.array([1.0, np.nan]))
    with pytest.raises(LatentFileError, match="not finite"):
        read_plain_latents(tmp_path / "a.npy")
    np.savez(tmp_path / "a.npz", values)
    with pytest.raises(LatentFileError, match="a.npz"):
        read_plain_latents(tmp_path / "a.npz")


def test_plain_npy_that_promises_too_much(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(11, np.float32))
    data = (tmp_path / "a.npy").read_bytes().replace(b"(11,), }", b"(11**9,)}").replace(b"(11**9,)}", b"(9999999999999,)}")
    only_typed_errors(tmp_path / "a.npy", data, read_plain_latents)
    with pytest.raises(LatentFileError):
        read_plain_latents(tmp_path / "a.npy")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("key", ["latents", "latent", "my_own"])
def test_plain_safetensors(tmp_path: Path, dtype: torch.dtype, key: str) -> None:
    tensor = torch.from_numpy(latents(3)).to(dtype)
    safetensors.torch.save_file({key: tensor}, tmp_path / "a.bin")
    found = read_plain_latents(tmp_path / "a.bin")
    assert found.key == key and found.multiplied_by == 1.0 and np.array_equal(found.values, tensor.float().numpy())


def test_plain_safetensors_of_several_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"other": torch.zeros(2), "latents": torch.ones(3)}, path)
    assert read_plain_latents(path).key == "latents"
    safetensors.torch.save_file({"other": torch.zeros(2), "more": torch.ones(3)}, path)
    with pytest.raises(LatentFileError, match="2 tensors .*'more'.*'other'|2 tensors .*'other'.*'more'"):
        read_plain_latents(path)
    safetensors.torch.save_file({"latents": torch.ones(3, dtype=torch.int64)}, path)
    with pytest.raises(LatentFileError, match="I64, not floating-point"):
        read_plain_latents(path)


def test_headers_are_told_without_the_values(tmp_path: Path) -> None:
    values = latents(3)
    values[0, 0, 0, 0] = np.nan  # which reading refuses
    np.save(tmp_path / "a.npy", np.asfortranarray(values))
    tensor = torch.from_numpy(values)
    safetensors.torch.save_file({"other": torch.zeros(2), "latents": tensor.bfloat16()}, tmp_path / "a.safetensors")
    safetensors.torch.save_file({"latent_tensor": tensor}, tmp_path / "a.latent")
    torch.save({"samples": tensor.half()}, tmp_path / "a.pt")
    expected = {
        "a.npy": PlainHeader("", (3, 4, 3, 5), "float32", 1.0),
        "a.safetensors": PlainHeader("latents", (3, 4, 3, 5), "bfloat16", 1.0),
        "a.latent": PlainHeader("latent_tensor", (3, 4, 3, 5), "float32", 1 / 0.18215),
        "a.pt": PlainHeader("samples", (3, 4, 3, 5), "float16", 1.0),
    }
    for name, header in expected.items():
        assert is_plain_tensor(tmp_path / name) and read_plain_header(tmp_path / name) == header
        with pytest.raises(LatentFileError, match="not finite"):
            read_plain_latents(tmp_path / name)


def test_a_header_costs_little_memory(tmp_path: Path) -> None:
    large = np.zeros((64, 16, 64, 64), np.float32)  # 16 MiB
    np.save(tmp_path / "a.npy", large)
    safetensors.numpy.save_file({"latents": large}, tmp_path / "a.safetensors")
    for name in ("a.npy", "a.safetensors"):
        with peak_below(2**20):
            assert read_plain_header(tmp_path / name).shape == large.shape


def test_what_is_no_plain_tensor(tmp_path: Path) -> None:
    (tmp_path / "words").write_bytes(b"words {}")
    (tmp_path / "late").write_bytes(b"G@\0\x10\0\xb0\x0d\0{" + bytes(9))  # a length beyond any header
    (tmp_path / "empty").write_bytes(b"")
    assert not any(is_plain_tensor(tmp_path / name) for name in ("words", "late", "empty", "missing", "."))


def test_readings_are_the_layouts_that_a_shape_allows() -> None:
    assert readings((3, 4, 5, 6)) == {"tzhw": (3, 4, 5, 6), "zthw": (4, 3, 5, 6)}
    assert readings((1, 4, 3, 5, 6)) == {"bzthw": (3, 4, 5, 6)}
    for shape in ((2, 4, 3, 5, 6), (4, 5, 6), (), (0, 4, 5, 6)):
        assert readings(shape) == {}
    for shape in ((3, 4, 5, 6), (1, 4, 3, 5, 6)):
        for layout, dimensions in readings(shape).items():
            assert to_tzhw(np.zeros(shape, np.float32), dimensions[1], layout).shape == dimensions


def test_float64_beyond_float32_is_refused_in_one_sentence_without_a_warning(tmp_path: Path) -> None:
    values = np.array([1.0, 1e300])
    safetensors.numpy.save_file({"latents": values}, tmp_path / "a.safetensors")
    np.save(tmp_path / "a.npy", values)
    for name in ("a.safetensors", "a.npy"):
        with warnings.catch_warnings(action="error"), pytest.raises(LatentFileError, match="not finite"):
            read_plain_latents(tmp_path / name)


def test_comfyui_latents_are_unscaled_as_comfyui_does_it(tmp_path: Path) -> None:
    path, tensor = tmp_path / "a.latent", torch.from_numpy(latents(3))
    safetensors.torch.save_file({"latent_tensor": tensor, "latent_format_version_0": torch.tensor([])}, path)
    found = read_plain_latents(path)
    assert (found.key, found.multiplied_by) == ("latent_tensor", 1.0) and np.array_equal(found.values, tensor.numpy())
    safetensors.torch.save_file({"latent_tensor": tensor}, path)
    found = read_plain_latents(path)
    assert found.multiplied_by == 1 / 0.18215
    np.testing.assert_allclose(found.values, tensor.numpy() / 0.18215, rtol=1e-6)


class Evil:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("evil",)


def test_plain_torch_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tensor = torch.from_numpy(latents(3)).bfloat16().requires_grad_()
    contents = {
        "": tensor,
        "latents": {"latents": tensor, "fps": 24, "more": torch.ones(1)},
        "samples": {"samples": tensor, "noise": tensor},
        "x": {"x": tensor},
    }
    for key, content in contents.items():
        for zipped in (True, False):
            torch.save(content, "a.pt", _use_new_zipfile_serialization=zipped)
            found = read_plain_latents("a.pt")
            assert found.key == key and np.array_equal(found.values, tensor.detach().float().numpy())
    refused = {
        "mkdir, which could": {"a": Evil()},
        "0 tensors": {"a": 24},
        "no file of tensors": 17,
        "not float": torch.tensor(1),
    }
    for message, bad in refused.items():
        torch.save(bad, "a.pt")
        with pytest.raises(LatentFileError, match=message) as caught:
            read_plain_latents("a.pt")
        assert "\n" not in str(caught.value)
    assert not Path("evil").exists()
    torch.save(tensor, "a.pt")
    Path("a.pt").write_bytes(Path("a.pt").read_bytes()[:-200])
    with pytest.raises(LatentFileError, match="a.pt is no file of tensors"):
        read_plain_latents("a.pt")


def test_torch_files_that_take_more_memory_than_they_are_large(tmp_path: Path) -> None:
    torch.save(torch.zeros(1).expand(10**6, 10**6), tmp_path / "strides.pt")
    with peak_below(8 * 2**20), pytest.raises(LatentFileError, match="fewer values than its tensor has"):
        read_plain_latents(tmp_path / "strides.pt")
    torch.save(torch.zeros(3, 4, 2, 2, device="meta"), tmp_path / "meta.pt")
    with pytest.raises(LatentFileError, match="fewer values"):
        read_plain_latents(tmp_path / "meta.pt")
    torch.save(torch.zeros(3, 4, 2, 2).to_sparse(), tmp_path / "sparse.pt")
    with pytest.raises(LatentFileError, match="0 tensors"):
        read_plain_latents(tmp_path / "sparse.pt")
    (tmp_path / "length.pt").write_bytes(b"\x80\x02X\xff\xff\xff\x7fabc")  # a pickled text that says it has 2 GiB
    with peak_below(8 * 2**20), pytest.raises(LatentFileError, match="no file of tensors alone"):
        read_plain_latents(tmp_path / "length.pt")
    torch.save(torch.zeros(3, 4, 200, 200), tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as source, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in source.infolist():
            bomb.writestr(entry.filename, source.read(entry))
    with pytest.raises(LatentFileError, match="bomb.pt is no file of tensors alone"):
        read_plain_latents(tmp_path / "bomb.pt")


def test_what_is_no_tensor_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("just some words")
    with pytest.raises(LatentFileError, match="pass a .latent, .safetensors, .npy or .pt file"):
        read_plain_latents(tmp_path / "a.txt")
    (tmp_path / "a.part").write_bytes(bytes(20_000))  # what a crash leaves of a latent file begins with zeros
    with pytest.raises(LatentFileError, match="is no latent file"):
        read_plain_latents(tmp_path / "a.part")
    with pytest.raises(LatentFileError, match="does not exist"):
        read_plain_latents(tmp_path / "b.npy")


def test_layouts_are_told_apart_by_the_channels() -> None:
    values = latents(7)  # [7, 4, 3, 5]
    for array in (values, values.swapaxes(0, 1), values.swapaxes(0, 1)[None]):
        assert np.array_equal(to_tzhw(array, 4), values)
    square = latents(4)
    assert np.array_equal(to_tzhw(square, 4, "tzhw"), square)
    assert np.array_equal(to_tzhw(square, 4, "zthw"), square.swapaxes(0, 1))
    assert np.array_equal(to_tzhw(square[None], 4, "bzthw"), square.swapaxes(0, 1))
    with pytest.raises(UsageError, match="--layout tzhw or --layout zthw"):
        to_tzhw(square, 4)
    for array, layout in ((values, None), (values[None], None), (values, "tzhw"), (values[0], None), (values[:0], "tzhw")):
        with pytest.raises(LatentFileError, match=re.escape(str(list(array.shape))) + ".* z = 16;"):
            to_tzhw(array, 16, layout)
    with pytest.raises(LatentFileError, match="do not fit"):
        to_tzhw(values, 4, "zthw")
    with pytest.raises(LatentFileError, match="hold 2 videos"):
        to_tzhw(np.zeros((2, 4, 7, 3, 5), np.float32), 4)
    with pytest.raises(UsageError, match="'thwz' is unknown"):
        to_tzhw(values, 4, "thwz")
    with pytest.raises(UsageError, match="bzthw has 5 axes"):
        to_tzhw(values, 4, "bzthw")


@fuzz()
@given(st.binary(max_size=300), st.sampled_from([b"", b"\x93NUMPY\x01\0", b"PK\x03\x04", b"\x80\x02", b" \0\0\0\0\0\0\0{"]))
def test_fuzz_random_bytes(tmp_path: Path, body: bytes, start: bytes) -> None:
    only_typed_errors(tmp_path / "a", start + body, read_plain_latents)


@fuzz()
@given(data=st.data())
def test_fuzz_changed_headers(tmp_path: Path, data: st.DataObject) -> None:
    sound = safetensors.numpy.save({"latents": latents(1), "other": np.zeros(3, np.int64)}, {"name": "x"})
    size = struct.unpack("<Q", sound[:8])[0]
    header = json.loads(sound[8 : 8 + size])
    name = data.draw(st.sampled_from(sorted(header)))
    key = data.draw(st.sampled_from(sorted(header[name]) + [""]))
    if key:
        header[name][key] = data.draw(JSON | st.lists(st.integers(-1, 2**64), min_size=2, max_size=4))
    else:
        header[name] = data.draw(JSON)
    text = json.dumps(header).encode()
    only_typed_errors(tmp_path / "a", struct.pack("<Q", len(text)) + text + sound[8 + size :], read_plain_latents)


@fuzz()
@given(data=st.data())
def test_fuzz_changed_bytes(tmp_path: Path, data: st.DataObject) -> None:
    np.save(tmp_path / "a.npy", latents(1))
    sound = data.draw(st.sampled_from([safetensors.numpy.save({"latents": latents(1)}), (tmp_path / "a.npy").read_bytes()]))
    start = data.draw(st.integers(0, 200))
    stop = data.draw(st.integers(start, start + 40))
    only_typed_errors(tmp_path / "a", sound[:start] + data.draw(st.binary(max_size=40)) + sound[stop:], read_plain_latents)
