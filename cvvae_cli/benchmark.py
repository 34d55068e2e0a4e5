"""How fast a model runs on this machine, how much memory it takes, and how near that is to what the machine can do.

One window at a time, as the network sees it: no tiles around it, no video file, no crossfade. Its operations are
set against a matrix product measured in the same process with the same threads and, if asked, its speed, memory and
output against the same network in plain form. This module knows no table and no command line.
"""

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cvvae_cli.agreement import Agreement, agreement_of_moments, agreement_of_videos
from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.bench_report import BenchReport, BenchRow, PlainComparison, RunDirection
from cvvae_cli.errors import DeviceError, UsageError
from cvvae_cli.geometry import SPATIAL_COMPRESSION_RATIO as CELL
from cvvae_cli.geometry import TEMPORAL_COMPRESSION_RATIO as STEP
from cvvae_cli.geometry import cell_count, latent_frame_count
from cvvae_cli.machine import device_name, lists_amx_bf16
from cvvae_cli.matmul_rate import MatmulRate, matmul_rate
from cvvae_cli.model_names import shown_name
from cvvae_cli.operation_count import WindowWork, count_flops, count_plain_flops
from cvvae_cli.peak_memory import MIB
from cvvae_cli.plain_form import PlainForm
from cvvae_cli.window_timing import Timing, time_in_turns

DIRECTIONS: tuple[RunDirection, ...] = ("encode", "decode")
CPU_ALLOCATOR_FAILED = "can't allocate memory"


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
    plain: PlainForm | None = None,
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
        plain: the same network, on the same device, to run in turns with the model and to compare it with. Its input
            is not rounded to the model's dtype, so that the error of this rounding counts.

    Returns:
        Two rows per tile. Where a later window does not fit the device's memory, the rows before it and a note.

    Raises:
        UsageError: (a ValueError) an argument is out of its range.
        DeviceError: the first window does not fit the device's memory.
    """
    _check_arguments(tiles, frames, repeats, warmup)
    rate = matmul_rate(model.device, model.dtype)
    report(f"matrix product of {rate.size} x {rate.size} in {_name(model.dtype)}: {rate.flops_per_second / 1e12:.3g} TFLOP/s")
    measured: list[_Measured] = []
    notes: list[str] = []
    for tile, direction in itertools.product(tiles, DIRECTIONS):
        try:
            measured.append(_measure_window(model, plain, _Window(direction, tile, frames), (repeats, warmup), report))
        except RuntimeError as error:
            # The CPU's allocator has no error class of its own.
            if not isinstance(error, torch.OutOfMemoryError) and CPU_ALLOCATOR_FAILED not in str(error):
                raise
            message = f"Device {model.device} ran out of memory on a tile of {tile} px ({direction}); pass a smaller --tile."
            if not measured:
                raise DeviceError(message) from error
            notes.append(message)
            report(message)
            break
    # Only now: counting loads torch's tracing machinery, about 100 MiB that no encode or decode needs.
    report("counting operations")
    marks = _marks(model, plain, rate, [done.window for done in measured])
    identity = model.identity
    return BenchReport(
        device=str(model.device), device_name=device_name(model.device),
        dtype=_name(model.dtype), weights_mib=marks.weights_mib,
        plain_dtype=plain and _name(plain.dtype), plain_weights_mib=marks.plain_weights_mib,
        model=identity and shown_name(identity.name), sha256=identity and identity.sha256, config=model.config,
        torch=torch.__version__, threads=torch.get_num_threads(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(), amx=lists_amx_bf16(),
        commit=commit, repeats=repeats, warmup=warmup,
        matmul_size=rate.size, matmul_tflops=rate.flops_per_second / 1e12,
        rows=tuple(_row(done, marks) for done in measured), notes=tuple(notes),
    )  # fmt: skip


@dataclass(frozen=True)
class _Window:
    direction: RunDirection
    tile: int
    frames: int

    def __str__(self) -> str:
        return f"{self.direction} {self.frames} x {self.tile} x {self.tile}"


@dataclass(frozen=True)
class _Measured:
    """The model's timing on one window; `plain` is that of the plain form and how near the model's output came."""

    window: _Window
    timing: Timing
    plain: tuple[Timing, Agreement] | None


def _measure_window(
    model: Autoencoder, plain: PlainForm | None, window: _Window, runs: tuple[int, int], report: Callable[[str], None]
) -> _Measured:
    """Run one window `runs` = (repeats, warmup) times."""
    encodes = window.direction == "encode"
    calls: dict[str, Callable[[], Tensor]] = {}
    if plain is not None:
        calls[f"{window}, plain form"] = partial(plain.encode if encodes else plain.decode, _random_input(model, window))
    # In the layout that the network works in, so that no copy is timed.
    x = _random_input(model, window).to(model.dtype, memory_format=torch.channels_last_3d)
    calls[f"{window}"] = partial(model.encode if encodes else model.decode, x)
    timings, outputs = time_in_turns(model.device, calls, *runs, report)
    if plain is None:
        return _Measured(window, timings[0], None)
    agree = agreement_of_moments if encodes else agreement_of_videos
    return _Measured(window, timings[1], (timings[0], agree(outputs[1], outputs[0])))


def _random_input(model: Autoencoder, window: _Window) -> Tensor:
    """Noise of the right shape and range, float32 and contiguous, on the model's device."""
    generator = torch.Generator().manual_seed(0)
    frames, tile = window.frames, window.tile
    if window.direction == "encode":
        return (torch.rand(1, 3, frames, tile, tile, generator=generator) * 2 - 1).to(model.device)
    shape = (1, model.latent_channels, latent_frame_count(frames), cell_count(tile), cell_count(tile))
    return torch.randn(shape, generator=generator).to(model.device)


@dataclass(frozen=True)
class _Marks:
    """What rates, shares and ratios refer to; work by tile."""

    rate: MatmulRate
    weights_mib: float
    work: dict[int, WindowWork]
    plain_weights_mib: float | None
    plain_work: dict[int, WindowWork]


def _marks(model: Autoencoder, plain: PlainForm | None, rate: MatmulRate, windows: Sequence[_Window]) -> _Marks:
    frames = {window.tile: window.frames for window in windows}
    work = {tile: count_flops(model, frames[tile], tile, tile) for tile in frames}
    weights_mib = sum(tensor.nbytes for tensor in itertools.chain(model.parameters(), model.buffers())) / MIB
    if plain is None:
        return _Marks(rate, weights_mib, work, None, {})
    plain_work = {tile: count_plain_flops(model, frames[tile], tile, tile) for tile in frames}
    return _Marks(rate, weights_mib, work, plain.weights_bytes / MIB, plain_work)


def _row(done: _Measured, marks: _Marks) -> BenchRow:
    window, timing = done.window, done.timing
    best, flops = min(timing.seconds), getattr(marks.work[window.tile], window.direction)
    return BenchRow(
        direction=window.direction, tile=window.tile, frames=window.frames,
        seconds=best, median_seconds=statistics.median(timing.seconds),
        fps=window.frames / best, mpixel_per_s=window.frames * window.tile**2 / best / 1e6,
        flops=flops, tflops=flops / best / 1e12, matmul_share=flops / best / marks.rate.flops_per_second,
        peak_mib=timing.peak_mib, growth_mib=timing.growth_mib, plain=_comparison(done, marks),
    )  # fmt: skip


def _comparison(done: _Measured, marks: _Marks) -> PlainComparison | None:
    if done.plain is None:
        return None
    plain, agreement = done.plain
    own, best = min(done.timing.seconds), min(plain.seconds)
    flops = getattr(marks.plain_work[done.window.tile], done.window.direction)
    return PlainComparison(
        seconds=best, median_seconds=statistics.median(plain.seconds), flops=flops, tflops=flops / best / 1e12,
        peak_mib=plain.peak_mib, growth_mib=plain.growth_mib,
        speed_ratio=best / own, memory_ratio=_memory_ratio(done.timing, plain, marks),
        plain_flops_matmul_share=flops / own / marks.rate.flops_per_second,
        relative_error=agreement.relative_error, psnr_db=agreement.psnr_db,
    )  # fmt: skip


def _memory_ratio(timing: Timing, plain: Timing, marks: _Marks) -> float | None:
    if timing.growth_mib is None or plain.growth_mib is None or marks.plain_weights_mib is None:
        return None
    return (marks.weights_mib + timing.growth_mib) / (marks.plain_weights_mib + plain.growth_mib)


def _name(dtype: torch.dtype) -> str:
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
