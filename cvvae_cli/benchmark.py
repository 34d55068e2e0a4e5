"""How fast a model runs on this machine, how much memory it takes, and how near that is to what the machine can do.

One window at a time, as the network sees it: no tiles around it, no video file, no crossfade. Its operations are
set against a matrix product measured in the same process with the same threads. This module knows no table and no
command line, and it does not look at what the model computes.
"""

import itertools
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.config import ModelConfig, config_to_dict
from cvvae_cli.errors import DeviceError, UsageError
from cvvae_cli.geometry import SPATIAL_COMPRESSION_RATIO as CELL
from cvvae_cli.geometry import TEMPORAL_COMPRESSION_RATIO as STEP
from cvvae_cli.geometry import cell_count, latent_frame_count
from cvvae_cli.matmul_rate import MatmulRate, matmul_rate, seconds_of
from cvvae_cli.operation_count import count_flops
from cvvae_cli.peak_memory import peak_memory

RunDirection = Literal["encode", "decode"]
DIRECTIONS: tuple[RunDirection, ...] = ("encode", "decode")
CPU_ALLOCATOR_FAILED = "can't allocate memory"


@dataclass(frozen=True)
class BenchRow:
    """One direction at one tile size; rates come from the best run.

    Attributes:
        direction: "encode" or "decode".
        tile: width and height of the window in pixels.
        frames: frames in the window.
        seconds, median_seconds: of the best and the median run, input and output on the device.
        fps: frames per second.
        mpixel_per_s: million pixels (of all frames) per second.
        flops: as `operation_count` counts.
        tflops: 1e12 of those per second.
        matmul_share: `tflops` over the report's `matmul_tflops`; above 1 where convolutions run by a quicker algorithm.
        peak_mib: most memory at any time of an untimed run. CUDA: of torch's allocator, weights included. CPU:
            resident memory of the whole process, interpreter, libraries and weights included. None where it cannot be read.
        growth_mib: what of it was not there before the run began, so the window's own, without weights and input.
    """

    direction: RunDirection
    tile: int
    frames: int
    seconds: float
    median_seconds: float
    fps: float
    mpixel_per_s: float
    flops: int
    tflops: float
    matmul_share: float
    peak_mib: float | None
    growth_mib: float | None

    def to_dict(self) -> dict:
        """A JSON-ready dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class BenchReport:
    """What was measured, and on what.

    Attributes:
        device: as torch names it, e.g. "cuda:0".
        device_name: the processor's or GPU's own name.
        dtype: of weights and activations, e.g. "bfloat16".
        model, sha256: from the model's identity; None for weights that came from no file.
        config: the architecture.
        torch: version.
        threads: CPU threads of one operation.
        cpu_capability: vector instructions that torch uses, e.g. "AVX512".
        amx: the CPU lists AMX's bfloat16 tiles.
        commit: of the program, as the caller gave it.
        repeats, warmup: timed and untimed runs of each row.
        matmul_size, matmul_tflops: the matrix product that `matmul_share` refers to.
        rows: encode and decode of each tile, in the order asked for.
        notes: sentences about what is missing.
    """

    device: str
    device_name: str
    dtype: str
    model: str | None
    sha256: str | None
    config: ModelConfig
    torch: str
    threads: int
    cpu_capability: str
    amx: bool
    commit: str | None
    repeats: int
    warmup: int
    matmul_size: int
    matmul_tflops: float
    rows: tuple[BenchRow, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict:
        """A JSON-ready dictionary."""
        lists = {"rows": [row.to_dict() for row in self.rows], "notes": list(self.notes)}
        return {**asdict(self), "config": config_to_dict(self.config), **lists}


def silent(sentence: str) -> None:
    """Report nothing."""


def measure(
    model: Autoencoder,
    tiles: Sequence[int],
    frames: int = 17,
    repeats: int = 3,
    warmup: int = 1,
    commit: str | None = None,
    report: Callable[[str], None] = silent,
) -> BenchReport:
    """Time encode and decode of one window per tile size, on the model's device and in its dtype.

    Args:
        model: the autoencoder; random weights do as well.
        tiles: widths (and heights) in pixels, multiples of 8, at least one.
        frames: in the window, 1 + 4k.
        repeats: timed runs, >= 1.
        warmup: untimed runs before, >= 1: memory is read during the first, where looking does not disturb a clock.
        commit: of the program, for the record.
        report: called with a line of progress after each run.

    Returns:
        Two rows per tile. Where a later window does not fit the device's memory, the rows before it and a note.

    Raises:
        UsageError: (a ValueError) an argument is out of its range.
        DeviceError: the first window does not fit the device's memory.
    """
    _check_arguments(tiles, frames, repeats, warmup)
    dtype = _dtype_name(model.dtype)
    rate = matmul_rate(model.device, model.dtype)
    report(f"matrix product of {rate.size} x {rate.size} in {dtype}: {rate.flops_per_second / 1e12:.3g} TFLOP/s")
    timings: list[_Timing] = []
    notes: list[str] = []
    for tile, direction in itertools.product(tiles, DIRECTIONS):
        try:
            timings.append(_time_window(model, direction, (frames, tile), (repeats, warmup), report))
        except RuntimeError as error:
            # The CPU's allocator has no error class of its own.
            if not isinstance(error, torch.OutOfMemoryError) and CPU_ALLOCATOR_FAILED not in str(error):
                raise
            message = f"Device {model.device} ran out of memory on a tile of {tile} px ({direction}); pass a smaller --tile."
            if not timings:
                raise DeviceError(message) from error
            notes.append(message)
            report(message)
            break
    # Only now: counting loads torch's tracing machinery, about 100 MiB that no encode or decode needs.
    report("counting operations")
    work = {tile: count_flops(model, frames, tile, tile) for tile in {timing.tile for timing in timings}}
    rows = tuple(_row(timing, frames, getattr(work[timing.tile], timing.direction), rate) for timing in timings)
    identity = model.identity
    return BenchReport(
        device=str(model.device), device_name=device_name(model.device), dtype=dtype,
        model=identity and identity.name, sha256=identity and identity.sha256, config=model.config,
        torch=torch.__version__, threads=torch.get_num_threads(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(), amx="amx_bf16" in _cpu_field("flags").split(),
        commit=commit, repeats=repeats, warmup=warmup,
        matmul_size=rate.size, matmul_tflops=rate.flops_per_second / 1e12, rows=rows, notes=tuple(notes),
    )  # fmt: skip


def device_name(device: torch.device) -> str:
    """What the GPU or CPU calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpu_field("model name") or platform.machine()


@dataclass(frozen=True)
class _Timing:
    """Seconds of each timed run; peak memory of an untimed one and the part of it that the run itself added."""

    direction: RunDirection
    tile: int
    seconds: list[float]
    peak_mib: float | None
    growth_mib: float | None


def _time_window(
    model: Autoencoder, direction: RunDirection, window: tuple[int, int], runs: tuple[int, int], report: Callable[[str], None]
) -> _Timing:
    """Run `window` = (frames, tile) `runs` = (repeats, warmup) times."""
    x = _random_input(model, direction, *window)
    network = model.encode if direction == "encode" else model.decode
    repeats, warmup = runs
    what = f"{direction} {window[0]} x {window[1]} x {window[1]}"

    def once() -> None:
        network(x)

    seconds: list[float] = []
    with torch.inference_mode():
        peak, growth = peak_memory(model.device, once)
        report(f"{what}: warm-up 1 of {warmup}")
        for i in range(1, warmup):
            once()
            report(f"{what}: warm-up {i + 1} of {warmup}")
        for i in range(repeats):
            seconds.append(seconds_of(model.device, once))
            report(f"{what}: run {i + 1} of {repeats}, {seconds[-1]:.3g} s")
    return _Timing(direction, window[1], seconds, peak, growth)


def _random_input(model: Autoencoder, direction: RunDirection, frames: int, tile: int) -> Tensor:
    """Noise of the right shape and range in the layout that the network works in, so that no copy is timed."""
    generator = torch.Generator().manual_seed(0)
    if direction == "encode":
        x = torch.rand(1, 3, frames, tile, tile, generator=generator) * 2 - 1
    else:
        shape = (1, model.latent_channels, latent_frame_count(frames), cell_count(tile), cell_count(tile))
        x = torch.randn(shape, generator=generator)
    return x.to(model.device, model.dtype, memory_format=torch.channels_last_3d)


def _row(timing: _Timing, frames: int, flops: int, rate: MatmulRate) -> BenchRow:
    best = min(timing.seconds)
    return BenchRow(
        direction=timing.direction, tile=timing.tile, frames=frames,
        seconds=best, median_seconds=statistics.median(timing.seconds),
        fps=frames / best, mpixel_per_s=frames * timing.tile**2 / best / 1e6,
        flops=flops, tflops=flops / best / 1e12, matmul_share=flops / best / rate.flops_per_second,
        peak_mib=timing.peak_mib, growth_mib=timing.growth_mib,
    )  # fmt: skip


def _cpu_field(name: str) -> str:
    """The first value of a field of /proc/cpuinfo; "" where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == name), "")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_arguments(tiles: Sequence[int], frames: int, repeats: int, warmup: int) -> None:
    if not tiles:
        raise UsageError("No tile size was given; pass --tile 256.")
    for tile in tiles:
        if tile < CELL or tile % CELL:
            raise UsageError(f"Tile {tile} px is not a multiple of {CELL}; pass --tile {max(CELL, tile // CELL * CELL)}.")
    if frames < 1 or frames % STEP != 1:
        raise UsageError(f"{frames} frames are not 1 + 4k; pass --frames 17.")
    if repeats < 1:
        raise UsageError(f"Repeats {repeats} must be at least 1; pass --repeats 3.")
    if warmup < 1:
        raise UsageError(f"Warm-up {warmup} must be at least 1, memory is read there; pass --warmup 1.")
