"""`cvvae bench`."""

from typing import TYPE_CHECKING, Annotated

import typer

from cvvae_cli.commands import options as o
from cvvae_cli.console import Reporter
from cvvae_cli.provenance import source_commit

if TYPE_CHECKING:
    from cvvae_cli.benchmark import BenchRow

EPILOG = "Examples: `cvvae bench --tile 256` · `cvvae bench --tile 128 --tile 256 --model cv-vae-sd3 --device cuda --json`"
HEAD = ["tile", "direction", "best", "median", "frames/s", "Mpixel/s", "TFLOP", "TFLOP/s", "of matmul", "peak MiB", "growth MiB"]


def bench(
    tile: Annotated[list[int] | None, typer.Option(min=8, help="Window size in pixels, a multiple of 8; may be repeated. 256 by default.")] = None,
    model: o.Model = None,
    revision: o.Revision = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    frames: Annotated[int, typer.Option(min=1, help="Frames per window, 1 + 4k.")] = 17,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs per figure.")] = 3,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Measure the network on this machine: speed, memory, and its share of the measured matrix-product rate."""
    reporter = Reporter(as_json, quiet)
    loaded = o.model_of(model or "default", revision, device, dtype)
    from cvvae_cli.benchmark import measure

    report = measure(loaded, tile or [256], frames, repeats, commit=source_commit(), report=reporter.note)
    title = f"{report.model} on {report.device_name}, {report.dtype}, {report.threads} threads, matrix products at {report.matmul_tflops:.3f} TFLOP/s"
    reporter.grid(report.to_dict(), title, HEAD, [_cells(row) for row in report.rows])


def _cells(row: "BenchRow") -> list[str]:
    memory = ["-" if value is None else f"{value:.0f}" for value in (row.peak_mib, row.growth_mib)]
    return [
        f"{row.tile}", row.direction, f"{row.seconds:.3f} s", f"{row.median_seconds:.3f} s", f"{row.fps:.1f}", f"{row.mpixel_per_s:.2f}",
        f"{row.flops / 1e12:.3f}", f"{row.tflops:.3f}", f"{100 * row.matmul_share:.0f} %", *memory,
    ]  # fmt: skip
