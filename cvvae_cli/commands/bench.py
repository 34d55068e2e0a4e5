"""`cvvae bench`."""

from typing import TYPE_CHECKING, Annotated

import typer

from cvvae_cli.commands import options as o
from cvvae_cli.console import Reporter, counted, digits, size_text
from cvvae_cli.provenance import source_commit

if TYPE_CHECKING:
    from cvvae_cli.benchmark import BenchRow

EPILOG = o.examples("cvvae bench --tile 256", "cvvae bench --tile 128 --tile 256 --model cv-vae-sd3 --device cuda --json")
HEAD = ["tile", "run", "best\ns", "median\ns", "frames\n/s", "share of\nmatmul", "peak", "growth"]

_TILE_HELP = "Window size in pixels, a multiple of 8; may be repeated. 256 by default."
_FRAMES_HELP = "Frames per window: 1, 5, 9, 13, 17, ..."


def bench(
    tile: Annotated[list[int] | None, typer.Option(min=8, metavar="PX", help=_TILE_HELP)] = None,
    model: o.Model = None,
    revision: o.Revision = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    frames: Annotated[int, typer.Option(min=1, metavar="N", help=_FRAMES_HELP)] = 17,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="Timed runs per figure.")] = 3,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Measure the network on this machine: speed, memory, and how near it comes to a plain matrix product.

    Each row is one window through the network: seconds of the best and the median run; frames per second of the best;
    its operations per second as a share of a matrix product's (matmul); most memory in use, and how much of it the run
    itself added.
    """
    reporter = Reporter(as_json, quiet)
    loaded = o.model_of(model or "default", revision, device, dtype)
    from cvvae_cli.benchmark import measure

    report = measure(loaded, tile or [256], frames, repeats, commit=source_commit(), report=reporter.note)
    threads = counted(report.threads, "thread")
    title = (
        f"{o.described(loaded)['model']} on {report.device_name}, {report.dtype}, {threads}, "
        f"windows of {counted(frames, 'frame')}, matmul at {digits(report.matmul_tflops)} TFLOP/s"
    )
    reporter.grid(report.to_dict(), title, HEAD, [_cells(row) for row in report.rows])


def _cells(row: "BenchRow") -> list[str]:
    memory = ["-" if mib is None else size_text(mib * 2**20) for mib in (row.peak_mib, row.growth_mib)]
    return [
        f"{row.tile}", row.direction, digits(row.seconds), digits(row.median_seconds), digits(row.fps),
        f"{100 * row.matmul_share:.0f} %", *memory,
    ]  # fmt: skip
