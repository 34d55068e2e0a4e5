"""`cvvae roundtrip`."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvvae_cli.commands import options as o
from cvvae_cli.commands.check import gate, quality_rows
from cvvae_cli.console import Reporter, counted, size_text
from cvvae_cli.standard_input import source_path

if TYPE_CHECKING:
    from cvvae_cli.fidelity import Harm

EPILOG = o.examples("cvvae roundtrip in.mp4", "cvvae roundtrip in.mp4 back.mp4 --frames 65 --min-psnr 28 --json")


def roundtrip(
    source: Annotated[Path, typer.Argument(metavar="IN", help=o.SOURCE_HELP, allow_dash=True)],
    output: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="Write the decoded video, or numbered pictures, here.")
    ] = None,
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
    frames: o.Frames = None,
    size: o.Size = None,
    latent_dtype: o.LatentDtype = "float16",
    stream: o.Stream = None,
    fps: o.SourceRate = None,
    deinterlace: o.Deinterlace = False,
    strict: o.Strict = False,
    latents: Annotated[Path | None, typer.Option(help="Keep the latent file here.")] = None,
    min_psnr: o.MinPsnr = None,
    codec: o.Codec = None,
    crf: o.Crf = None,
    preset: o.Preset = None,
    depth: o.Depth = 8,
    overwrite: o.Overwrite = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Encode a video, decode it again, and say how close it came."""
    reporter = Reporter(as_json, quiet)
    plan, wanted = o.Cut(tile, overlap, chunk, chunk_overlap, batch, tiling, norm).tiling(), o.size_of(size)
    reading = o.reading_of(source, stream, fps, deinterlace, strict)
    for path in (output, latents):
        o.require_free(path, overwrite)
    from cvvae_cli.decoding import DecodeOptions
    from cvvae_cli.encoding import EncodeOptions
    from cvvae_cli.roundtrip import roundtrip_file

    decode = DecodeOptions(codec=codec, crf=crf, preset=preset, overwrite=overwrite, depth=depth)
    loaded = o.model_of(model, revision, device, dtype)
    beside = output or latents or Path(tempfile.gettempdir(), "any")
    with source_path(source, beside.parent) as path, reporter.progress("encode", "decode") as progress:
        report = roundtrip_file(
            path, output, model=loaded, tiling=plan, latents=latents, progress=progress,
            encode=EncodeOptions(max_frames=frames, size=wanted, latent_dtype=latent_dtype, overwrite=overwrite, reading=reading),
            decode=decode,
        )  # fmt: skip
    values = report.to_dict() | o.described(loaded)
    values["notes"] = o.rounding_notes(plan) + values["notes"]
    reporter.note(*values["notes"])
    encoded = report.encode
    rows = [
        ("video", f"{counted(encoded.frames, 'frame')} of {encoded.width}x{encoded.height}"),
        *quality_rows(report.quality),
        *([] if report.psnr_file_db is None else [("PSNR of file", f"{report.psnr_file_db:.2f} dB, through the video codec")]),
        *_harm_rows(report.harm),
        ("latents", f"{size_text(encoded.latent_bytes)}, {encoded.bits_per_pixel:.3f} bits per pixel"),
        ("encode", f"{encoded.seconds:.1f} s, {encoded.fps:.1f} frames/s"),
        ("decode", f"{report.decode.seconds:.1f} s, {report.decode.fps:.1f} frames/s"),
        ("peak memory", size_text(report.peak_mib * 2**20)),
    ]
    reporter.answer(values, f"round trip of {source}", rows)
    gate(report.quality, min_psnr)


def _harm_rows(harm: "Harm") -> list[tuple[str, str]]:
    """Seams and chunk edges, where there are any."""
    ratios = [("seams", harm.seam_ratio), ("chunk edges", harm.chunk_edge_ratio)]
    told = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios if ratio is not None)
    return [("errors at cuts", f"{told} of those beside them")] if told else []
