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
from cvvae_cli.bench_report import BenchReport, BenchRow, PlainComparison
from cvvae_cli.benchmark import measure
from cvvae_cli.checkpoint import load_model
from cvvae_cli.commands.bench import PLAIN_HEAD, bench
from cvvae_cli.config import CVVAEConfig
from cvvae_cli.console import Reporter
from cvvae_cli.errors import DeviceError, UsageError
from cvvae_cli.operation_count import count_flops, count_plain_flops
from cvvae_cli.plain_form import PlainForm

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


def test_a_local_path_stays_out_of_the_report(tmp_path: Path) -> None:
    report = measure(load_model(save_tiny_model(tmp_path / "tiny.safetensors")), [8], frames=1, repeats=1)
    assert report.model == "tiny.safetensors" and str(tmp_path) not in json.dumps(report.to_dict())


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


@pytest.fixture(scope="module")
def official() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(CVVAEConfig(channels=(8, 8, 16, 16), blocks_per_level=1, norm_groups=4)).eval()


def test_figures_beside_the_plain_form(official: Autoencoder) -> None:
    lines: list[str] = []
    report = measure(official, [64], frames=5, repeats=2, report=lines.append, plain=PlainForm(official))
    work = count_plain_flops(official, 5, 64, 64)
    assert work.decode > report.rows[1].flops
    parameters = sum(parameter.numel() for parameter in official.parameters())
    assert report.weights_mib == report.plain_weights_mib == parameters * 4 / 2**20 and report.plain_dtype == "float32"
    for row, flops in zip(report.rows, (work.encode, work.decode)):
        assert row.plain is not None and row.plain.flops == flops
        assert 0 < row.plain.seconds <= row.plain.median_seconds
        assert row.plain.tflops == pytest.approx(flops / row.plain.seconds / 1e12)
        assert row.plain.speed_ratio == pytest.approx(row.plain.seconds / row.seconds)
        assert row.plain.plain_flops_matmul_share == pytest.approx(flops / row.seconds / 1e12 / report.matmul_tflops)
        assert row.plain.relative_error is not None and 0 < row.plain.relative_error < 1e-5
        assert sum(line.startswith(f"{row.direction} 5 x 64 x 64, plain form: run") for line in lines) == 2
    encode, decode = (row.plain for row in report.rows)
    assert encode and encode.psnr_db is None and decode and decode.psnr_db == 100


@needs_proc
def test_memory_beside_the_plain_form(official: Autoencoder) -> None:
    model = Autoencoder(official.config).bfloat16().eval()
    report = measure(model, [128], frames=5, repeats=1, plain=PlainForm(official))
    assert report.plain_weights_mib == 2 * report.weights_mib
    for row in report.rows:
        assert row.plain and row.plain.growth_mib and row.plain.peak_mib and row.growth_mib
        assert row.plain.memory_ratio == pytest.approx(
            (report.weights_mib + row.growth_mib) / (report.plain_weights_mib + row.plain.growth_mib)
        )
        assert row.plain.growth_mib > row.growth_mib


def test_the_error_counts_rounded_weights_and_input(official: Autoencoder) -> None:
    half = Autoencoder(official.config).eval()
    half.load_state_dict(official.state_dict())
    half.bfloat16()
    errors = {
        name: [row.plain.relative_error for row in measure(half, [16], 1, 1, plain=plain).rows if row.plain]
        for name, plain in (("whole", PlainForm(official)), ("rounded", PlainForm(half, torch.bfloat16)))
    }
    assert all(error and 1e-3 < error < 5e-2 for error in errors["whole"])
    assert errors["whole"] != errors["rounded"]


def test_an_output_that_is_not_finite() -> None:
    model = Autoencoder(TINY).eval()
    plain = PlainForm(model)
    with torch.no_grad():
        for side in (model.encoder.analysis, model.decoder.synthesis):
            side.bias.fill_(torch.inf)
    report = measure(model, [8], frames=1, repeats=1, plain=plain)
    assert [(row.plain.relative_error, row.plain.psnr_db) for row in report.rows if row.plain] == 2 * [(None, None)]
    json.dumps(report.to_dict(), allow_nan=False)


def test_the_command_against_the_plain_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = str(save_tiny_model(tmp_path / "tiny.safetensors"))
    bench([16], tiny, None, "cpu", "bfloat16", frames=1, repeats=1, against="eager")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and sum(line.startswith("Beside its plain form in float32") for line in lines) == 1
    assert sum("encode" in line for line in lines) == sum("decode" in line for line in lines) == 2
    bench([16], tiny, None, "cpu", "bfloat16", frames=1, repeats=1, against="eager", as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert [set(row["plain"]) for row in answer["rows"]] == 2 * [{field.name for field in fields(PlainComparison)}]
    # The plain form has weights of its own, which bfloat16 has not rounded.
    assert answer["plain_dtype"] == "float32" and all(1e-4 < row["plain"]["relative_error"] < 5e-2 for row in answer["rows"])
    with pytest.raises(UsageError, match="'lazy'.*--against eager"):
        bench([16], "no such model", against="lazy")


def test_the_second_table_fits_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    widest = ["8192", "encode", "0.00123", "0.00123", "10.5", "100 %", "0.0123", "4.9e-03", "61.3"]
    Reporter().grid({}, "title", PLAIN_HEAD, [widest])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and all(any(cell in line for line in lines) for cell in widest)


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
