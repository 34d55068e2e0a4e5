"""What `measure` says about work, time and memory: its figures fit each other, and it refuses before it works."""

import json
import platform
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from tiny_model import TINY, save_tiny_model

from cvvae_cli import matmul_rate
from cvvae_cli.autoencoder import Autoencoder, ModelIdentity
from cvvae_cli.benchmark import BenchReport, BenchRow, measure
from cvvae_cli.commands.bench import bench
from cvvae_cli.errors import DeviceError, UsageError
from cvvae_cli.operation_count import count_flops

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
needs_proc = pytest.mark.skipif(platform.system() != "Linux", reason="resident memory is read from /proc")
# No network, not even on overcommitting systems, gets petabytes.
IMPOSSIBLE_TILE = 8_000_000


@pytest.fixture(autouse=True)
def short_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul_rate, "LONGEST_PRODUCT_SECONDS", 0.01)


@pytest.fixture(scope="module")
def model() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(TINY).eval()


def test_measured_figures_fit_each_other(model: Autoencoder) -> None:
    lines: list[str] = []
    report = measure(model, [64], frames=5, repeats=3, warmup=2, commit="abc", report=lines.append)
    assert [(row.direction, row.tile, row.frames) for row in report.rows] == [("encode", 64, 5), ("decode", 64, 5)]
    work = count_flops(model, 5, 64, 64)
    assert [row.flops for row in report.rows] == [work.encode, work.decode]
    for row in report.rows:
        assert 0 < row.seconds <= row.median_seconds
        assert row.fps == pytest.approx(5 / row.seconds)
        assert row.mpixel_per_s == pytest.approx(row.fps * 64 * 64 / 1e6)
        assert row.tflops == pytest.approx(row.flops / row.seconds / 1e12)
        assert row.matmul_share == pytest.approx(row.tflops / report.matmul_tflops)
    assert (report.device, report.dtype, report.commit, report.repeats, report.warmup) == ("cpu", "float32", "abc", 3, 2)
    assert report.threads == torch.get_num_threads() and report.torch == torch.__version__ and report.device_name
    assert report.notes == ()
    for direction in ("encode", "decode"):
        assert sum(line.startswith(f"{direction} 5 x 64 x 64: warm-up") for line in lines) == 2
        assert sum(line.startswith(f"{direction} 5 x 64 x 64: run") for line in lines) == 3


def test_report_as_a_dictionary(model: Autoencoder) -> None:
    labelled = Autoencoder(TINY).bfloat16().eval()
    labelled.identity = ModelIdentity("mine", "f00d", None, TINY)
    report = measure(labelled, [16, 8], frames=1, repeats=1)
    values = report.to_dict()
    assert json.loads(json.dumps(values)) == values | {"config": json.loads(json.dumps(values["config"]))}
    assert (values["model"], values["sha256"], values["dtype"]) == ("mine", "f00d", "bfloat16")
    assert values["config"]["family"] == "compact"
    expected = [("encode", 16), ("decode", 16), ("encode", 8), ("decode", 8)]
    assert [(row["direction"], row["tile"]) for row in values["rows"]] == expected
    assert values["rows"][0]["seconds"] == report.rows[0].seconds
    assert measure(model, [8], frames=1, repeats=1).model is None


def test_the_command_answers_in_80_columns_and_in_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = str(save_tiny_model(tmp_path / "tiny.safetensors"))
    bench([8], tiny, None, "cpu", "float32", frames=1, repeats=1)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and lines[0].startswith("tiny.safetensors on ")
    assert all(any(word in line for line in lines) for word in ("encode", "decode", "1 frame,", "peak", "growth"))
    bench([8], tiny, None, "cpu", "float32", frames=1, repeats=1, as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {field.name for field in fields(BenchReport)}
    assert [set(row) for row in answer["rows"]] == 2 * [{field.name for field in fields(BenchRow)}]


@needs_proc
def test_larger_windows_need_more_memory(model: Autoencoder) -> None:
    rows = measure(model, [256, 32], frames=1, repeats=1).rows
    growth = {(row.direction, row.tile): row.growth_mib for row in rows}
    for direction in ("encode", "decode"):
        large, small = growth[direction, 256], growth[direction, 32]
        assert large is not None and small is not None and large > small


def test_a_tile_beyond_memory(model: Autoencoder) -> None:
    lines: list[str] = []
    report = measure(model, [8, IMPOSSIBLE_TILE], frames=1, repeats=1, report=lines.append)
    assert [row.tile for row in report.rows] == [8, 8]
    assert len(report.notes) == 1 and str(IMPOSSIBLE_TILE) in report.notes[0] and report.notes[0] in lines
    with pytest.raises(DeviceError, match="smaller --tile"):
        measure(model, [IMPOSSIBLE_TILE], frames=1, repeats=1)


@pytest.mark.parametrize(
    ("tiles", "frames", "repeats", "warmup", "said"),
    [
        ([], 17, 1, 1, "No tile"),
        ([64, 100], 17, 1, 1, "Tile 100 px .* pass --tile 96"),
        ([0], 17, 1, 1, "Tile 0 px"),
        ([64], 16, 1, 1, "16 frames"),
        ([64], -3, 1, 1, "-3 frames"),
        ([64], 17, 0, 1, "Repeats 0"),
        ([64], 17, 1, 0, "Warm-up 0"),
    ],
)
def test_refusals_come_before_any_work(
    model: Autoencoder, tiles: list[int], frames: int, repeats: int, warmup: int, said: str
) -> None:
    lines: list[str] = []
    with pytest.raises(UsageError, match=said):
        measure(model, tiles, frames, repeats, warmup, report=lines.append)
    assert lines == []


@needs_cuda
def test_on_cuda() -> None:
    device = torch.device("cuda", 0)
    before = torch.get_float32_matmul_precision()
    report = measure(Autoencoder(TINY).to(device).eval(), [64, IMPOSSIBLE_TILE // 10], frames=5, repeats=2)
    assert torch.get_float32_matmul_precision() == before
    assert len(report.rows) == 2 and len(report.notes) == 1
    assert all(row.seconds > 0 and row.growth_mib for row in report.rows)
    assert report.device_name == torch.cuda.get_device_name(device)
