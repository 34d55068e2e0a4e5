"""`cvvae bench`."""

from typing import TYPE_CHECKING, Annotated

import typer

from cvvae_cli.commands import options as o
from cvvae_cli.console import Reporter, counted, digits, size_text
from cvvae_cli.errors import UsageError
from cvvae_cli.provenance import source_commit

if TYPE_CHECKING:
    from cvvae_cli.bench_report import BenchRow, PlainComparison

EPILOG = o.examples(
    "cvvae bench --tile 256",
    "cvvae bench --tile 256 --against eager",
    "cvvae bench --tile 128 --tile 256 --model cv-vae-sd3 --device cuda --json",
)
HEAD = ["tile", "run", "best\ns", "median\ns", "frames\n/s", "share of\nmatmul", "peak", "growth"]
PLAIN_HEAD = ["tile", "run", "plain\ns", "plain\nTFLOP/s", "speed\nratio", "of\nmatmul", "memory\nratio", "error", "PSNR\ndB"]

_TILE_HELP = "Window size in pixels, a multiple of 8; may be repeated. 256 by default."
_FRAMES_HELP = "Frames per window: 1, 5, 9, 13, 17, ..."
_AGAINST_HELP = "eager: run the same network in plain form, float32, beside it and compare speed, memory and output."


def bench(
    tile: Annotated[list[int] | None, typer.Option(min=8, metavar="PX", help=_TILE_HELP)] = None,
    model: o.Model = None,
    revision: o.Revision = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    frames: Annotated[int, typer.Option(min=1, metavar="N", help=_FRAMES_HELP)] = 17,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="Timed runs per figure.")] = 3,
    against: Annotated[str | None, typer.Option(metavar="eager", help=_AGAINST_HELP)] = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Measure the network on this machine: speed, memory, and how near it comes to a plain matrix product.

    Each row is one window through the network: seconds of the best and the median run; frames per second of the best;
    its operations per second as a share of a matrix product's (matmul); most memory in use, and how much of it the run
    itself added.

    The table of --against: seconds of the plain form and its operations per second; the speed of the network over that
    of the plain form; the plain form's operations in the network's time as a share of matmul; memory (weights and what
    a run adds) of the network over the plain form's; the relative error of its output; PSNR between decoded pixels.
    """
    if against not in (None, "eager"):
        raise UsageError(f"There is no plain form {against!r} to compare with; pass --against eager.")
    reporter = Reporter(as_json, quiet)
    name = model or "default"
    from cvvae_cli.benchmark import measure
    from cvvae_cli.plain_form import PlainForm

    # From weights of their own, which no dtype of the run has rounded.
    plain = PlainForm(o.model_of(name, revision, device, "float32")) if against else None
    loaded = o.model_of(name, revision, device, dtype)
    report = measure(loaded, tile or [256], frames, repeats, commit=source_commit(), report=reporter.note, plain=plain)
    threads = counted(report.threads, "thread")
    title = (
        f"{o.described(loaded)['model']} on {report.device_name}, {report.dtype}, {threads}, "
        f"windows of {counted(frames, 'frame')}, matmul at {digits(report.matmul_tflops)} TFLOP/s"
    )
    reporter.grid(report.to_dict(), title, HEAD, [_cells(row) for row in report.rows])
    if plain and not as_json:
        rows = [_plain_cells(row, row.plain) for row in report.rows if row.plain]
        reporter.grid({}, f"Beside its plain form in {report.plain_dtype}", PLAIN_HEAD, rows)


def _cells(row: "BenchRow") -> list[str]:
    memory = ["-" if mib is None else size_text(mib * 2**20) for mib in (row.peak_mib, row.growth_mib)]
    return [
        f"{row.tile}", row.direction, digits(row.seconds), digits(row.median_seconds), digits(row.fps),
        f"{100 * row.matmul_share:.0f} %", *memory,
    ]  # fmt: skip


def _plain_cells(row: "BenchRow", plain: "PlainComparison") -> list[str]:
    memory, error, psnr = plain.memory_ratio, plain.relative_error, plain.psnr_db
    return [
        f"{row.tile}", row.direction, digits(plain.seconds), digits(plain.tflops), digits(plain.speed_ratio),
        f"{100 * plain.plain_flops_matmul_share:.0f} %", "-" if memory is None else digits(memory),
        "-" if error is None else f"{error:.1e}", "-" if psnr is None else digits(psnr),
    ]  # fmt: skip
