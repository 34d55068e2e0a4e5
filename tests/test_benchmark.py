"""What `measure` says about work, time and memory: against counts by hand, known figures and known buffers."""

import json
import platform

import pytest
import torch

import cvvae_cli.benchmark as benchmark
from cvvae_cli.autoencoder import Autoencoder, ModelIdentity
from cvvae_cli.benchmark import count_flops, matmul_rate, measure, peak_memory
from cvvae_cli.config import SD3, SD21, CompactConfig, ModelConfig
from cvvae_cli.errors import DeviceError, UsageError

TINY = CompactConfig(
    latent_channels=4,
    shared_channels=1,
    codes=2,
    gate_channels=8,
    encoder_channels=(8, 8, 8),
    decoder_channels=(8, 8, 8),
    encoder_blocks=(1, 1, 1),
    decoder_blocks=(1, 1, 2),
)
SPREAD = 1 + 2 * 3  # the shared channel, and the three others once per code
CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
needs_proc = pytest.mark.skipif(platform.system() != "Linux", reason="resident memory is read from /proc")
# No network, not even on overcommitting systems, gets petabytes.
IMPOSSIBLE_TILE = 8_000_000


@pytest.fixture(autouse=True)
def short_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "LONGEST_PRODUCT_SECONDS", 0.01)


@pytest.fixture(scope="module")
def model() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(TINY).eval()


def on_meta(config: ModelConfig) -> Autoencoder:
    with torch.device("meta"):
        return Autoencoder(config)


def convolution(positions: int, inputs: int, outputs: int, taps: int) -> int:
    return 2 * positions * inputs * outputs * taps


def block(positions: int) -> int:
    return convolution(positions, 8, 8, 27) + convolution(positions, 8, 8, 9)


def test_flops_of_the_compact_family_by_hand(model: Autoencoder) -> None:
    # 5 x 16 x 24: quarter size and half rate is 3 x 4 x 6, eighth size and half rate 3 x 2 x 3, the latent grid 2 x 2 x 3.
    fine, middle, latent = 72, 18, 12
    gate = convolution(latent, 1, 8, 2 * 3 * 3) + convolution(latent, 8, 2, 1)
    encode = (
        convolution(latent, 768, SPREAD, 1)  # analysis of 3 x 4 x 8 x 8 values
        + gate
        + convolution(fine, 96, 8, 1)  # patches of 3 x 2 x 4 x 4 values
        + block(fine)
        + convolution(middle, 4 * 8, 8, 1)
        + block(middle)
        + convolution(latent, 2 * 8, 8, 1)
        + block(latent)
        + convolution(latent, 8, 2 * 4, 27)
    )
    decode = (
        gate
        + convolution(latent, SPREAD, 768, 27)  # synthesis
        + convolution(latent, SPREAD, 8, 27)
        + 2 * block(latent)
        + convolution(latent, 8, 2 * 8, 1)
        + block(middle)
        + convolution(middle, 8, 4 * 8, 1)
        + block(fine)
        + convolution(fine, 8, 96, 1)
    )
    work = count_flops(model, 5, 16, 24)
    assert (work.encode, work.decode) == (encode, decode)


def test_flops_of_the_official_models() -> None:
    work = count_flops(on_meta(SD21), 17, 256, 256)
    # Known to two digits after the point; without attention they would be 5.66 and 17.10.
    assert round(work.encode / 1e12, 2) == 5.67
    assert round(work.decode / 1e12, 2) == 17.12
    # sd3 differs by twelve more latent channels at both ends and by the decoder's attention over time: four linear
    # maps of 512 channels and two products of 5 x 5 x 512 at each of 32 x 32 positions.
    positions = 5 * 32 * 32
    temporal = 4 * convolution(positions, 512, 512, 1) + 32 * 32 * 2 * (2 * 5 * 5 * 512)
    third = count_flops(on_meta(SD3), 17, 256, 256)
    assert third.encode - work.encode == convolution(positions, 512, 2 * 12, 27)
    assert third.decode - work.decode == convolution(positions, 12, 512, 27) - temporal


def test_counting_leaves_the_model_alone(model: Autoencoder) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_flops(model, 1, 8, 8)
    assert model.device == CPU
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_matmul_rate_keeps_to_its_size_and_time() -> None:
    rate = matmul_rate("cpu", torch.float32, size=96, repeats=2)
    assert rate.size == 96
    assert 1e6 < rate.flops_per_second < 1e15
    # 256 is where the search begins; the next size costs eight times the limit's hundredth of a second or less.
    assert matmul_rate("cpu", torch.bfloat16, size=1 << 14, repeats=1).size < 1 << 14


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


@needs_proc
def test_memory_of_a_known_buffer() -> None:
    count = 16 * 2**20
    peak, growth = peak_memory(CPU, lambda: torch.ones(count).sum())
    assert peak is not None and growth is not None
    assert 56 < growth < 96
    assert peak > growth + 50  # the interpreter and torch are in it


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep little")
def test_memory_kept_by_the_c_library_counts_again() -> None:
    def small_buffers() -> list[torch.Tensor]:
        return [torch.ones(2**14) for _ in range(1024)]  # 64 KiB each, which glibc takes from its heap

    pin = small_buffers()[-1]  # the last one keeps the heap from shrinking by itself
    _, growth = peak_memory(CPU, small_buffers)
    assert growth is not None and 48 < growth < 96
    assert pin.numel() == 2**14


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
    peak, growth = peak_memory(device, lambda: torch.empty(64 * 2**20, dtype=torch.uint8, device=device))
    assert growth == 64 and peak is not None and peak >= 64
    before = torch.get_float32_matmul_precision()
    report = measure(Autoencoder(TINY).to(device).eval(), [64, IMPOSSIBLE_TILE // 10], frames=5, repeats=2)
    assert torch.get_float32_matmul_precision() == before
    assert len(report.rows) == 2 and len(report.notes) == 1
    assert all(row.seconds > 0 and row.growth_mib for row in report.rows)
    assert report.device_name == torch.cuda.get_device_name(device)
