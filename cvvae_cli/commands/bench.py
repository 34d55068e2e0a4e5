"""`cvvae bench`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvvae_cli.commands import options as o
from cvvae_cli.config import Tiling
from cvvae_cli.console import Reporter, counted, digits, size_text
from cvvae_cli.errors import OutputError, UsageError, VideoError
from cvvae_cli.provenance import source_commit
from cvvae_cli.whole_file import written_whole

if TYPE_CHECKING:
    import numpy as np

    from cvvae_cli.autoencoder import Autoencoder
    from cvvae_cli.bench_report import BenchRow, PlainComparison
    from cvvae_cli.fidelity_benchmark import FidelityReport, RoundTrips, Run

EPILOG = o.examples(
    "cvvae bench --tile 256",
    "cvvae bench --tile 256 --against eager",
    "cvvae bench --clip in.mp4 --clip-frames 240",
    "cvvae bench --fidelity in.mp4 --tile 256 --overlap 64 --chunk-overlap 4 --picture harm.png",
    "cvvae bench --tile 128 --tile 256 --model cv-vae-sd3 --device cuda --json",
)
HEAD = ["tile", "run", "best\ns", "median\ns", "frames\n/s", "share of\nmatmul", "peak", "growth"]
FILE_HEAD = ["run", "stage", "s", "share", "frames\n/s", "peak"]
PLAIN_HEAD = ["tile", "run", "plain\ns", "plain\nTFLOP/s", "speed\nratio", "of\nmatmul", "memory\nratio", "error", "PSNR\ndB"]
HARM_HEAD = ["", "tiled", "untiled", "one chunk"]
CLIP_FRAMES, FIDELITY_FRAMES = 240, 65
PICTURE_SUFFIX = ".png"

_TILE_HELP = "Window size in pixels, a multiple of 8; may be repeated, but for --fidelity. 256 by default."
_FRAMES_HELP = "Frames per window: 1, 5, 9, 13, 17, ..."
_CLIP_HELP = "Instead of windows, encode and decode this video from file to file and show the time of each stage."
_FIDELITY_HELP = "Instead of windows, measure how much harm tiles and chunks do to the first frames of this video."
_CLIP_FRAMES_HELP = f"Frames at most: {CLIP_FRAMES} of --clip or {FIDELITY_FRAMES} of --fidelity by default."
_PICTURE_HELP = "Draw the errors of --fidelity, amplified, with the tile lines."
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
    clip: Annotated[Path | None, typer.Option(metavar="VIDEO", help=_CLIP_HELP)] = None,
    fidelity: Annotated[Path | None, typer.Option(metavar="VIDEO", help=_FIDELITY_HELP)] = None,
    clip_frames: Annotated[int | None, typer.Option(min=1, metavar="N", help=_CLIP_FRAMES_HELP)] = None,
    size: o.Size = None,
    overlap: o.Overlap = None,
    chunk: o.Chunk = None,
    chunk_overlap: o.ChunkOverlap = None,
    mode: o.TilingMode = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE.png", help=_PICTURE_HELP)] = None,
    overwrite: o.Overwrite = False,
    preset: Annotated[str, typer.Option(help="Preset of libx264 for --clip.")] = "veryfast",
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Measure the network on this machine: speed, memory, and how near it comes to a plain matrix product.

    Each row is one window through the network: seconds of the best and the median run; frames per second of the best;
    its operations per second as a share of a matrix product's (matmul); most memory in use, and how much of it the run
    itself added.

    With --clip: seconds of each stage and their share of the whole. A video is read (encode) and written (decode) beside the
    network, so shares add up to more than 100 %; "wait" stages are what the network waits for them.

    The table of --against: seconds of the plain form and its operations per second; the speed of the network over that
    of the plain form; the plain form's operations in the network's time as a share of matmul; memory (weights and what
    a run adds) of the network over the plain form's; the relative error of its output; PSNR between decoded pixels.

    With --fidelity: what comes back cut in tiles and chunks (tiled), in chunks alone (untiled) and, from models that take
    any length, in tiles alone (one chunk). A seam ratio is the error's gradient across tile lines, a chunk-edge ratio the
    error where chunks meet, each over what like places beside let expect, so 1 shows nothing; the other columns, at the
    same places, show what the picture itself does to it. Ghosting is the error of the fastest crossfaded frames over that
    of the same frames inside a chunk. The options on tiles and chunks, --size and --picture are for --fidelity alone.
    """
    if against not in (None, "eager"):
        raise UsageError(f"There is no plain form {against!r} to compare with; pass --against eager.")
    cut = o.Cut(tile=f"{tile[0]}" if tile else "auto", overlap=overlap, chunk=chunk, chunk_overlap=chunk_overlap, mode=mode)
    reporter = Reporter(as_json, quiet)
    name = model or "default"
    if fidelity is not None:
        if clip or against or len(tile or []) > 1:
            raise UsageError(f"Harm to {fidelity} is measured for one tile alone; drop --clip, --against and further --tile.")
        tiling, pixels = cut.tiling() or Tiling(), o.size_of(size)
        o.require_file(fidelity, VideoError)
        _require_picture(picture, overwrite)
        reporter.note(*o.rounding_notes(tiling))
        from cvvae_cli.fidelity_benchmark import read_clip

        source = read_clip(fidelity, clip_frames or FIDELITY_FRAMES, pixels)
        _bench_fidelity(reporter, o.model_of(name, revision, device, dtype), source, tiling, picture)
        return
    if replace(cut, tile="auto") != o.Cut() or size or picture:
        found = "Options on tiles and chunks, --size and --picture belong to --fidelity"
        raise UsageError(f"{found}; pass --fidelity VIDEO or drop them.")
    if clip is not None:
        if tile or against:
            raise UsageError(f"Clip {clip} is measured with tiles of its own; drop --tile and --against.")
        o.require_file(clip, VideoError)
        _bench_file(reporter, o.model_of(name, revision, device, dtype), clip, clip_frames or CLIP_FRAMES, preset)
        return
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


def _bench_file(reporter: Reporter, model: "Autoencoder", clip: Path, frames: int, preset: str) -> None:
    from cvvae_cli.file_benchmark import measure_file

    shown = o.described(model)["model"]
    reporter.note("encoding and decoding")
    report = measure_file(model, clip, frames, preset, shown, source_commit())
    title = (
        f"{shown} on {report.device_name}, {report.dtype}, {counted(report.threads, 'thread')}: {report.frames} frames of "
        f"{report.width}x{report.height}, tiles of {report.tiling.tile} px, chunks of {report.tiling.chunk} frames, "
        f"{report.double_work:.2f} times the pixels"
    )
    rows = []
    for row in report.rows:
        memory = "-" if row.peak_mib is None else size_text(row.peak_mib * 2**20)
        rows.append([row.direction, "file to file", digits(row.seconds), "", digits(row.fps), memory])
        for stage, seconds in row.stages.items():
            rate = digits(row.network_fps) if stage == row.direction else ""
            rows.append(["", stage, digits(seconds), f"{100 * seconds / row.seconds:.0f} %", rate, ""])
    reporter.grid(report.to_dict(), title, FILE_HEAD, rows)


def _bench_fidelity(reporter: Reporter, model: "Autoencoder", source: "np.ndarray", tiling: Tiling, picture: Path | None) -> None:
    from cvvae_cli.fidelity_benchmark import RoundTrips, measure_fidelity
    from cvvae_cli.machine import device_name

    with reporter.progress("tiled", "untiled", "other chunks") as progress:
        trips = RoundTrips(model, source, progress)
        report = measure_fidelity(trips, tiling)
    drawn = {} if picture is None else _draw(trips, report, picture)
    machine = {"device_name": device_name(model.device), "commit": source_commit()}
    values = {**o.described(model), **machine, **report.to_dict(), **drawn}
    reporter.grid(values, _harm_title(values, report), HARM_HEAD, _harm_rows(report))


def _harm_title(values: dict, report: "FidelityReport") -> str:
    rows, columns = report.tiles
    tiling = report.tiling
    model = f"{values['model']} on {values['device_name']}, {values['dtype']}"
    clip = f"{model}: {counted(report.frames, 'frame')} of {report.width}x{report.height}"
    tiles = f"{rows}x{columns} tiles of {tiling.tile} px, overlap {tiling.overlap}"
    return f"{clip}, {tiles}; {counted(report.chunks, 'chunk')} of {tiling.chunk} frames, overlap {tiling.chunk_overlap}"


def _harm_rows(report: "FidelityReport") -> list[list[str]]:
    runs = (report.tiled, report.untiled, report.one_chunk)

    def row(name: str, of: Callable[["Run"], str]) -> list[str]:
        return [name, *("-" if run is None else of(run) for run in runs)]

    return [
        row("PSNR, dB", lambda run: f"{run.figures.psnr_db:.2f}"),
        ["PSNR against untiled, dB", f"{report.psnr_tiled_to_untiled_db:.2f}", "-", "-"],
        row("flicker, 8-bit levels", lambda run: f"{run.figures.flicker:.3f}"),
        row("seam ratio", lambda run: _number(run.figures.seam_ratio)),
        row("  of rows", lambda run: _number(run.figures.seam_ratio_rows)),
        row("  of columns", lambda run: _number(run.figures.seam_ratio_columns)),
        row("chunk-edge ratio", lambda run: _number(run.figures.chunk_edge_ratio)),
        row("  of frame differences", lambda run: _number(run.figures.chunk_edge_difference_ratio)),
        ["ghosting", _number(report.ghosting), "-", "-"],
        row("seconds", lambda run: digits(run.seconds)),
        row("memory", lambda run: "-" if run.growth_mib is None else size_text(max(0.0, run.growth_mib) * 2**20)),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _require_picture(path: Path | None, overwrite: bool) -> None:
    """Find out before anything is measured whether a picture can be written."""
    if path is None:
        return
    if path.suffix.lower() != PICTURE_SUFFIX:
        raise UsageError(f"Picture {path} must end in {PICTURE_SUFFIX}; pass for example --picture harm{PICTURE_SUFFIX}.")
    o.require_free(path, overwrite)


def _draw(trips: "RoundTrips", report: "FidelityReport", path: Path) -> dict:
    """What the answer says of the picture.

    Raises:
        OutputError: the file cannot be written.
    """
    from cvvae_cli.fidelity import cut_of
    from cvvae_cli.fidelity_benchmark import untiled_tiling
    from cvvae_cli.fidelity_picture import draw_harm, png_bytes

    tiled = trips.run(report.tiling)
    untiled = trips.run(untiled_tiling(report.tiling, report.height, report.width))
    cut = cut_of(report.tiling, report.frames, report.height, report.width)
    drawn, (errors, differences) = draw_harm(trips.source, tiled.frames, untiled.frames, cut)
    try:
        with written_whole(path) as part:
            part.write_bytes(png_bytes(drawn))
    except OSError as error:
        raise OutputError(f"Picture {path} cannot be written ({error.strerror or error}); name another file.") from error
    return {"picture": str(path), "errors_amplified": errors, "differences_amplified": differences}


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
