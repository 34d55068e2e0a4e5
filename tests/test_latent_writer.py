"""Latent files as they are written: the same bytes whatever the source, and nothing half-written is taken for whole."""

import errno
import io
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
from latent_files import METADATA, latents, read_everything, small_tensors, write
from test_safetensors_header import peak_below

from cvvae_cli import latent_writer, safetensors_header
from cvvae_cli.errors import LatentFileError, OutputError, UsageError
from cvvae_cli.latent_file import LatentReader, is_latent_file
from cvvae_cli.latent_writer import LatentWriter


@pytest.mark.parametrize(("reserve", "length"), [(16_384, 20_000), (512, 300), (512, 900)])
def test_a_header_beyond_the_reserve_moves_the_payload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reserve: int, length: int
) -> None:
    monkeypatch.setattr(latent_writer, "HEADER_RESERVE", reserve)
    monkeypatch.setattr(latent_writer, "BLOCK", 100)  # many blocks, the last one short, and old and new places overlap
    path = tmp_path / "a.latent"
    values = latents(11)
    long = {"quality": "x" * length}
    with LatentWriter(path, 4, 3, 5, dtype="float32") as writer:
        writer.append(values)
        writer.close(long, small_tensors())
    with LatentReader(path) as reader:
        assert reader.metadata == long and np.array_equal(reader.read(0, 11), values) and reader.verify() == []
        assert np.array_equal(reader.tensor("sidecar"), small_tensors()["sidecar"])
    assert np.array_equal(safetensors.numpy.load_file(path)["latents"], values)


@pytest.mark.parametrize(
    ("dtype", "value", "advice"),
    [
        ("float16", 70_000.0, "--latent-dtype float32 (or bfloat16)"),
        ("float16", -65_520.0, "--latent-dtype float32 (or bfloat16)"),
        ("bfloat16", 3.4e38, "--latent-dtype float32."),
        ("float16", np.nan, "--dtype float32"),
        ("bfloat16", np.nan, "--dtype float32"),
        ("float32", -np.inf, "--dtype float32"),
    ],
)
def test_values_that_the_file_cannot_hold(tmp_path: Path, dtype: str, value: float, advice: str) -> None:
    path = tmp_path / "a.latent"
    bad = latents(4)
    bad[2, 1, 0, 3] = value
    with pytest.raises(LatentFileError, match="Latent frame 5 ") as caught, LatentWriter(path, 4, 3, 5, dtype=dtype) as writer:
        writer.append(latents(3))
        writer.append(bad)
    assert advice in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_the_largest_value_of_float16_is_kept(tmp_path: Path) -> None:
    values = np.full((1, 1, 1, 1), 65_519.0, np.float32)
    with LatentWriter(tmp_path / "a.latent", 1, 1, 1) as writer:
        writer.append(values)
        writer.close({}, {})
    with LatentReader(tmp_path / "a.latent") as reader:
        assert reader.read(0, 1).item() == 65_504.0 and reader.metadata == {}


def test_strings_that_utf8_has_not_and_empty_tensors(tmp_path: Path) -> None:
    with LatentWriter(tmp_path / "a.latent", 1, 1, 1) as writer:
        writer.append(latents(1, (1, 1, 1)))
        writer.close({"name": "a\udc80b\n\"\\"}, {"nothing": np.zeros((0, 2), np.float32), "single": np.array(7, np.int32)})
    with LatentReader(tmp_path / "a.latent") as reader:
        assert reader.metadata == {"name": "a?b\n\"\\"} and reader.verify() == []
        assert reader.tensor("nothing").shape == (0, 2) and reader.tensor("single").item() == 7
    assert safetensors.torch.load_file(tmp_path / "a.latent")["nothing"].shape == (0, 2)


@pytest.mark.parametrize("size", [0, 13, 100, 250])
def test_a_file_is_stored_as_the_array_of_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(latent_writer, "BLOCK", 100)
    tensors = small_tensors(sidecar=size)
    for name, sidecar in (("array", tensors["sidecar"]), ("file", io.BytesIO(tensors["sidecar"]))):
        with LatentWriter(tmp_path / name, 4, 3, 5) as writer:
            writer.append(latents(3))
            writer.close(METADATA, tensors | {"sidecar": sidecar})
    assert (tmp_path / "file").read_bytes() == (tmp_path / "array").read_bytes()
    with LatentReader(tmp_path / "file") as reader:
        assert np.array_equal(reader.tensor("sidecar"), tensors["sidecar"]) and reader.verify() == []


def test_a_large_file_is_stored_in_blocks(tmp_path: Path) -> None:
    block = np.random.default_rng(0).integers(0, 256, 2**20, np.uint8).tobytes()
    with LatentWriter(tmp_path / "a.latent", 4, 3, 5) as writer, writer.scratch_file() as file:
        writer.append(latents(1))
        with peak_below(4 * len(block)):
            for _ in range(20):
                file.write(block)
            assert os.listdir(tmp_path) == [".a.latent.part"], "the file has no name"
            writer.close({}, {"sidecar": file})
    assert os.listdir(tmp_path) == ["a.latent"]
    with LatentReader(tmp_path / "a.latent") as reader, peak_below(4 * len(block)):
        file = reader.open_tensor("sidecar")
        assert all(file.read(len(block)) == block for _ in range(20)) and file.read() == b""


# ---- the file as a whole: its name, its temporary, its folder


def test_an_existing_file_is_kept_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "a.latent"
    path.write_text("precious")
    with pytest.raises(OutputError, match=r"pass -y \(overwrite=True in Python\) to replace"):
        LatentWriter(path, 4, 3, 5)
    with pytest.raises(ZeroDivisionError), LatentWriter(path, 4, 3, 5, overwrite=True) as writer:
        writer.append(latents(1))
        raise ZeroDivisionError
    assert path.read_text() == "precious" and os.listdir(tmp_path) == ["a.latent"]
    write(path, overwrite=True)
    read_everything(path)


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.latent"
    with LatentWriter(path, 4, 3, 5) as writer:
        writer.append(latents(1))
        path.write_text("precious")
        with pytest.raises(OutputError, match="exists already"):
            writer.close({}, {})
    assert path.read_text() == "precious" and os.listdir(tmp_path) == ["a.latent"]


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "a.latent"
    first, second = LatentWriter(path, 4, 3, 5, overwrite=True), LatentWriter(path, 4, 3, 5, overwrite=True)
    first.append(latents(2, seed=1))
    second.append(latents(3, seed=2))
    with pytest.raises(OutputError, match="another process"):
        first.close({}, {})
    second.close({}, {})
    with LatentReader(path) as reader:
        assert reader.verify() == [] and reader.shape[0] == 3
    assert os.listdir(tmp_path) == ["a.latent"]


def test_leaving_without_close_leaves_nothing(tmp_path: Path) -> None:
    with LatentWriter(tmp_path / "a.latent", 4, 3, 5) as writer:
        writer.append(latents(1))
        assert os.listdir(tmp_path) == [".a.latent.part"]
    assert os.listdir(tmp_path) == []


def test_what_a_crash_leaves_is_never_taken_for_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.latent"
    process = os.fork()
    if process == 0:
        try:
            writer = LatentWriter(path, 4, 3, 5)
            for _ in range(300):
                writer.append(latents(4))
            os._exit(9)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    part = tmp_path / ".a.latent.part"
    assert not path.exists() and part.stat().st_size > 100_000
    with pytest.raises(LatentFileError):
        LatentReader(part)
    with pytest.raises(safetensors.SafetensorError):
        safetensors.torch.load_file(part)
    write(path)  # the next run takes no notice of it, and cleans up
    read_everything(path)
    assert os.listdir(tmp_path) == ["a.latent"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="folder .*missing does not exist"):
        LatentWriter(tmp_path / "missing" / "a.latent", 4, 3, 5)
    with pytest.raises(OutputError, match="is a folder"):
        LatentWriter(tmp_path, 4, 3, 5, overwrite=True)
    with pytest.raises(OutputError, match="not a regular file"):
        LatentWriter("/dev/null", 4, 3, 5, overwrite=True)
    with pytest.raises(OutputError, match="cannot be written"):
        LatentWriter(tmp_path / ("x" * 255), 4, 3, 5)
    assert os.listdir(tmp_path) == []


def test_no_permission(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    was_root = os.geteuid() == 0
    if was_root:  # root may write anywhere
        tmp_path.parent.parent.chmod(0o755), tmp_path.parent.chmod(0o755), tmp_path.chmod(0o755), folder.chmod(0o555)
        os.seteuid(65534)
    try:
        with pytest.raises(OutputError, match="permission"):
            LatentWriter(folder / "a.latent", 4, 3, 5)
    finally:
        if was_root:
            os.seteuid(0)
    assert os.listdir(folder) == []


def test_a_link_keeps_being_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "a.latent"
    link.symlink_to(tmp_path / "disk" / "real.latent")
    write(link)
    assert link.is_symlink() and is_latent_file(tmp_path / "disk" / "real.latent")


def test_a_disk_that_takes_no_more(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OutputError, match="cannot be written"), LatentWriter(tmp_path / "a.latent", 4, 3, 5) as writer:
            for _ in range(1000):
                writer.append(latents(4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_no_space_at_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="no space is left"):
        write(tmp_path / "a.latent")
    assert os.listdir(tmp_path) == []


def test_a_disk_that_has_no_room_for_a_scratch_file(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OutputError, match="cannot be written"), LatentWriter(tmp_path / "a.latent", 4, 3, 5) as writer:
            writer.append(latents(4))
            with writer.scratch_file() as file:
                file.write(bytes(60_000))
                writer.close({}, {"sidecar": file})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("failure", "seen"), [(OSError, OutputError), (ZeroDivisionError, ZeroDivisionError)])
def test_a_scratch_file_left_with_an_error_takes_the_latent_file_along(
    tmp_path: Path, failure: type[Exception], seen: type[Exception]
) -> None:
    writer = LatentWriter(tmp_path / "a.latent", 4, 3, 5)
    writer.append(latents(1))
    with pytest.raises(seen), writer.scratch_file():
        raise failure
    assert os.listdir(tmp_path) == []


def test_misuse_of_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_header, "HEADER_LIMIT", 20_000)
    with pytest.raises(UsageError, match="float8"):
        LatentWriter(tmp_path / "a.latent", 4, 3, 5, dtype="float8")
    with LatentWriter(tmp_path / "a.latent", 4, 3, 5) as writer:
        with pytest.raises(UsageError, match="No latent frame"):
            writer.close({}, {})
        for wrong in (latents(0), latents(2, (4, 5, 3)), latents(1)[0]):
            with pytest.raises(UsageError, match=r"append \[t, 4, 3, 5\]"):
                writer.append(wrong)
        writer.append(latents(1))
        with pytest.raises(UsageError, match="'latents' belongs"):
            writer.close({}, {"latents": latents(1)})
        with pytest.raises(UsageError, match="'format' belongs"):
            writer.close({"format": "x"}, {})
        with pytest.raises(UsageError, match="complex64"):
            writer.close({}, {"a": np.zeros(1, np.complex64)})
        with pytest.raises(UsageError, match="put it into a tensor"):
            writer.close({"a": "x" * 20_000}, {"sidecar": io.BytesIO(b"sound")})
        assert os.listdir(tmp_path) == [".a.latent.part"]
        tensors = small_tensors()
        writer.close(METADATA, tensors | {"sidecar": io.BytesIO(tensors["sidecar"])})  # none of this spoiled the file
    read_everything(tmp_path / "a.latent")


# ---- a run that is stopped and goes on

RUN = {"tile": 64}


def begun(folder: Path, run: dict = RUN) -> LatentWriter:
    return LatentWriter(folder / "a.latent", 4, 3, 5, "float32", run=run)


def stopped(folder: Path, chunks: int, failure: type[BaseException] = KeyboardInterrupt) -> None:
    with pytest.raises(failure), begun(folder) as writer:
        for index in range(writer.latent_frames // 2, chunks):
            writer.append(latents(2, seed=index))
        raise failure("stopped")


def finished(folder: Path, run: dict = RUN) -> bytes:
    with begun(folder, run) as writer:
        for index in range(writer.latent_frames // 2, 5):
            writer.append(latents(2, seed=index))
        writer.close(METADATA, small_tensors())
    assert os.listdir(folder) == ["a.latent"]
    content = (folder / "a.latent").read_bytes()
    (folder / "a.latent").unlink()
    return content


def test_a_stopped_run_goes_on_and_gives_the_same_file(tmp_path: Path) -> None:
    whole = finished(tmp_path)
    for first, second in ((1, 3), (2, 2), (4, 5), (5, 5)):
        stopped(tmp_path, first)
        assert sorted(os.listdir(tmp_path)) == [".a.latent.journal", ".a.latent.part"]
        stopped(tmp_path, second, SystemExit)
        with begun(tmp_path) as writer:
            assert writer.latent_frames == 2 * second
            with pytest.raises(ZeroDivisionError), writer:
                raise ZeroDivisionError
        assert finished(tmp_path) == whole


@pytest.mark.parametrize("failure", [UsageError, LatentFileError])
def test_what_would_fail_again_is_not_kept(tmp_path: Path, failure: type[Exception]) -> None:
    stopped(tmp_path, 3, failure)
    assert os.listdir(tmp_path) == []


def test_a_run_that_wrote_no_chunk_is_not_kept(tmp_path: Path) -> None:
    stopped(tmp_path, 0)
    assert os.listdir(tmp_path) == []


def test_a_run_of_other_options_begins_anew(tmp_path: Path) -> None:
    stopped(tmp_path, 3)
    with begun(tmp_path, {"tile": 128}) as writer:
        assert writer.latent_frames == 0 and writer.journal.replaces
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_chunks_that_the_disk_lost_are_written_again(tmp_path: Path, kept: int) -> None:
    whole = finished(tmp_path)
    stopped(tmp_path, 3)
    part, frame = tmp_path / ".a.latent.part", 4 * 4 * 3 * 5
    with open(part, "rb+") as file:
        file.seek(16 * 1024 + 2 * kept * frame + 7)
        file.write(b"\xff\x01")
    with begun(tmp_path) as writer:
        assert writer.latent_frames == 2 * kept
        with pytest.raises(KeyboardInterrupt), writer:
            raise KeyboardInterrupt
    assert finished(tmp_path) == whole
    stopped(tmp_path, 3)
    part.unlink()
    assert finished(tmp_path) == whole


def test_a_full_disk_keeps_what_is_there(tmp_path: Path) -> None:
    whole = finished(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024 + 1200, hard))
    try:
        with pytest.raises(OutputError, match="cannot be written"), begun(tmp_path) as writer:
            for index in range(5):
                writer.append(latents(2, seed=index))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with begun(tmp_path) as writer:
        assert writer.latent_frames == 4
        with pytest.raises(KeyboardInterrupt), writer:
            raise KeyboardInterrupt
    assert finished(tmp_path) == whole


def test_two_runs_of_one_output(tmp_path: Path) -> None:
    with begun(tmp_path) as writer:
        writer.append(latents(2))
        with pytest.raises(OutputError, match="another process"):
            begun(tmp_path)
        writer.close({}, {})
    assert os.listdir(tmp_path) == ["a.latent"]
