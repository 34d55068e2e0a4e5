"""`cvvae encode`."""

from pathlib import Path
from typing import Annotated

import typer

from cvvae_cli.commands import options as o
from cvvae_cli.commands.check import quality_rows
from cvvae_cli.console import Reporter, counted, size_text
from cvvae_cli.errors import UsageError
from cvvae_cli.standard_input import source_path

EPILOG = o.examples(
    "cvvae encode in.mp4 out.latent",
    "cvvae encode frames/%04d.png out.latent --fps 24",
    "ffmpeg -i in.mp4 -vf hqdn3d -c:v ffv1 -f matroska - | cvvae encode - out.latent",
    "cvvae encode in.mp4 out.latent --size 512x288 --frames 65 --check --min-psnr 28",
)

_SAMPLE_HELP = "Store a random draw from the encoder's distribution instead of its mean."
_CHECK_HELP = "Decode each chunk at once, compare it with the source and store the quality."
_ANCHORS_HELP = "Keep each chunk's own first latent, and decode the chunk with it: one latent frame more per chunk."
_MIN_PSNR_HELP = "With --check: write nothing and exit with status 7 where the mean PSNR is lower."


def encode(
    source: Annotated[Path, typer.Argument(metavar="IN", help=o.SOURCE_HELP, allow_dash=True)],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The latent file; any extension.")],
    model: o.Model = None,
    revision: o.Revision = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    tile: o.Tile = "auto",
    overlap: o.Overlap = None,
    chunk: o.Chunk = None,
    chunk_overlap: o.ChunkOverlap = None,
    batch: o.Batch = None,
    tiling: o.TilingMode = None,
    norm: o.Norm = None,
    anchors: Annotated[bool, typer.Option("--anchors", help=_ANCHORS_HELP, rich_help_panel=o.CUTTING)] = False,
    start: o.Start = 0.0,
    duration: Annotated[float | None, typer.Option(metavar="SECONDS", help="Stop after so many seconds.")] = None,
    frames: o.Frames = None,
    size: o.Size = None,
    sample: Annotated[bool, typer.Option("--sample", help=_SAMPLE_HELP)] = False,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Seed of --sample; 0 by default.")] = None,
    latent_dtype: o.LatentDtype = "float16",
    audio: o.Audio = True,
    stream: o.Stream = None,
    fps: o.SourceRate = None,
    deinterlace: o.Deinterlace = False,
    strict: o.Strict = False,
    check: Annotated[bool, typer.Option("--check", help=_CHECK_HELP)] = False,
    min_psnr: Annotated[float | None, typer.Option(metavar="DB", help=_MIN_PSNR_HELP)] = None,
    overwrite: o.Overwrite = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Encode a video to a latent file that can restore it: size, frames, times, colour and sound."""
    reporter = Reporter(as_json, quiet)
    plan, wanted = o.Cut(tile, overlap, chunk, chunk_overlap, batch, tiling, norm).tiling(), o.size_of(size)
    if seed is not None and not sample:
        raise UsageError(f"Seed {seed} has no effect on the posterior's mean; pass --sample too or drop --seed.")
    reading = o.reading_of(source, stream, fps, deinterlace, strict)
    o.require_free(output, overwrite)
    from cvvae_cli.encoding import EncodeOptions, encode_file

    drawn = (seed or 0) if sample else None
    settings = EncodeOptions(
        start, duration, frames, wanted, drawn, latent_dtype, audio, check, min_psnr, overwrite, reading, anchors
    )
    loaded = o.model_of(model, revision, device, dtype)
    with source_path(source, output.parent) as path, reporter.progress("encode") as progress:
        report = encode_file(
            path, output, model=loaded, tiling=plan, options=settings, progress=progress, resumed=reporter.resumed
        )
    notes = [*o.rounding_notes(plan), *report.notes]
    reporter.note(*notes)
    values = {
        "output": str(output), **o.described(loaded), "frames": report.frames, "width": report.width, "height": report.height,
        "latent_bytes": report.latent_bytes, "bits_per_pixel": report.bits_per_pixel, "seconds": report.seconds,
        "encode_fps": report.fps, "resumed_at": report.resumed_at,
        "quality": report.quality.to_dict() if report.quality else None, "notes": notes,
    }  # fmt: skip
    rows = [
        ("video", f"{counted(report.frames, 'frame')} of {report.width}x{report.height}"),
        ("latents", f"{size_text(report.latent_bytes)}, {report.bits_per_pixel:.3f} bits per pixel"),
        ("speed", f"{report.fps:.1f} frames/s"),
        *(quality_rows(report.quality) if report.quality else []),
    ]
    reporter.answer(values, str(output), rows)
