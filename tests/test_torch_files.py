"""Files of `torch.save`: sound ones come back, and none takes more memory than it is large."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from test_safetensors_header import peak_below

from cvvae_cli.torch_files import are_stored, load_torch_file


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_come_back(tmp_path: Path, zipped: bool) -> None:
    tensors = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5, dtype=torch.bfloat16)}
    torch.save(tensors, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    loaded = load_torch_file(tmp_path / "a.pt")
    assert isinstance(loaded, dict) and all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert are_stored(loaded.values(), tmp_path / "a.pt")


class Payload:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Payload()}, "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(pickle.UnpicklingError):
        load_torch_file("a.pt")
    assert not Path("evil").exists()


def test_stated_lengths_are_not_believed(tmp_path: Path) -> None:
    for opcode in (b"X\xff\xff\xff\x7f", b"\x8d" + b"\xff" * 4 + b"\0" * 4, b"B\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\x7f"):
        (tmp_path / "a.pt").write_bytes(b"\x80\x02" + opcode + b"abc")
        with peak_below(8 * 2**20), pytest.raises(Exception):  # noqa: B017 - the loader fails in its own ways
            load_torch_file(tmp_path / "a.pt")


def test_an_archive_is_no_larger_than_its_file(tmp_path: Path) -> None:
    torch.save(torch.zeros(50_000), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as source, zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in source.infolist():
            packed.writestr(entry.filename, source.read(entry))
    with pytest.raises(ValueError, match="unpacks to 20.... bytes, more than its own size"):
        load_torch_file(tmp_path / "b.pt")


def test_tensors_that_the_file_does_not_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    one = torch.zeros(1000)
    for tensors in ([one[:1].expand(10**9)], [one] * 10, [one.to_sparse()], [one.to("meta")]):
        torch.save(tensors, path)
        loaded = load_torch_file(path)
        assert isinstance(loaded, list) and not are_stored(loaded, path)
    torch.save([one, one.clone()], path)
    assert are_stored(load_torch_file(path), path)
