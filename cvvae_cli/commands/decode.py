"""`cvvae decode`."""

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated

import typer

from cvvae_cli.commands import options as o
from cvvae_cli.commands.check import quality_rows
from cvvae_cli.console import Reporter, counted
from cvvae_cli.errors import LatentFileError, UsageError, VideoError
from cvvae_cli.standard_output import STANDARD_OUTPUT, ended_by_reader, refuse_terminal

EPILOG = o.examples(
    "cvvae decode out.latent back.mp4",
    "cvvae decode out.latent - | ffplay -",
    "cvvae decode out.latent back.mp4 --codec libx265 --depth 10",
    "cvvae decode out.latent frames/%04d.png",
    "cvvae decode generated.safetensors video.mp4 --model cv-vae-sd3 --scaled --fps 24",
)

_FPS_HELP = "Constant frame rate instead of the stored times, e.g. 30000/1001; 24 for plain tensors."
_LAYOUT_HELP = "Order of a plain tensor's axes: tzhw, zthw or bzthw; if not given, the model's z tells."
_SCALED_HELP = "A plain tensor is scaled as a diffusion model sees it: undo scale and shift."
_OUTPUT_HELP = (
    "The video: .mp4, .mov, .mkv, .webm, or .png for one frame; or numbered pictures, frames/%04d.png (or .jpg, .webp), "
    "one per frame from number 1 on; or - for a Matroska stream on the standard output, with sound, as it is made."
)
_AGAINST_HELP = "Compare the decoded frames with this video."


def decode(
    latents: Annotated[Path, typer.Argument(metavar="IN", help="A latent file, or a tensor in .safetensors, .npy or .pt.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help=_OUTPUT_HELP, allow_dash=True)],
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
    start: o.Start = 0.0,
    frames: o.Frames = None,
    fps: Annotated[str | None, typer.Option(metavar="RATE", help=_FPS_HELP)] = None,
    audio: o.Audio = True,
    codec: o.Codec = None,
    crf: o.Crf = None,
    preset: o.Preset = None,
    encoder_opt: o.EncoderOpt = None,
    pix_fmt: o.PixFmt = None,
    depth: o.Depth = 8,
    layout: Annotated[str | None, typer.Option(help=_LAYOUT_HELP)] = None,
    scaled: Annotated[bool, typer.Option("--scaled", help=_SCALED_HELP)] = False,
    against: Annotated[Path | None, typer.Option(metavar="SOURCE", help=_AGAINST_HELP)] = None,
    keep_going: o.KeepGoing = False,
    overwrite: o.Overwrite = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Decode a latent file, or latents that a diffusion model made, to a video.

    Tiles and chunks are those of encoding unless you choose others.
    """
    reporter = Reporter(as_json, quiet)
    rate, pairs = o.rate_of(fps), o.encoder_options_of(encoder_opt)
    o.require_file(latents, LatentFileError)
    if against is not None:
        o.require_file(against, VideoError)
    if output == STANDARD_OUTPUT:
        if as_json:
            raise UsageError("--json answers on the standard output, where the video goes; leave it out, or name a file.")
        refuse_terminal()
        reporter.out = reporter.err
    else:
        o.require_free(output, overwrite)
    from cvvae_cli.decoding import DecodeOptions, decode_file
    from cvvae_cli.latent_video import LatentVideo
    from cvvae_cli.media import keep_inputs
    from cvvae_cli.roundtrip import SourceComparison

    settings = DecodeOptions(start, frames, rate, audio, codec, crf, preset, pix_fmt, pairs, overwrite, keep_going, depth)
    loaded = o.model_of_latents(latents, model, revision, device, dtype)
    notes, quality = [], None
    with ExitStack() as stack:
        opened = stack.enter_context(LatentVideo.open(latents, loaded.config, layout, scaled))
        if model is None and opened.model is None:
            notes.append(f"{latents} does not name its model, so the default decodes it; pass --model if another made it.")
        plan = o.Cut(tile, overlap, chunk, chunk_overlap, batch, tiling, norm).tiling(opened.tiling)
        notes += o.rounding_notes(plan)
        comparison = None
        if against is not None:
            keep_inputs(output, against)
            first, stop = opened.span(start, frames, rate)
            comparison = stack.enter_context(closing(SourceComparison(against, opened, skip=first)))
        stack.enter_context(ended_by_reader())
        progress = stack.enter_context(reporter.progress("decode"))
        report = decode_file(
            opened, output, model=loaded, tiling=plan, options=settings, progress=progress,
            against=comparison, resumed=reporter.resumed,
        )  # fmt: skip
        if comparison:
            quality = comparison.result(stop - first, opened.to_end and stop == opened.num_frames)
    notes += report.notes
    reporter.note(*notes)
    values = {
        "output": str(output), **o.described(loaded), "frames": report.frames, "width": report.width, "height": report.height,
        "seconds": report.seconds, "decode_fps": report.fps, "resumed_at": report.resumed_at,
        "quality": quality.to_dict() if quality else None, "notes": notes,
        "replaced_frames": report.replaced_frames,
    }  # fmt: skip
    rows = [
        ("video", f"{counted(report.frames, 'frame')} of {report.width}x{report.height}"),
        ("model", str(values["model"])),
        ("speed", f"{report.fps:.1f} frames/s"),
        *(quality_rows(quality) if quality else []),
    ]
    reporter.answer(values, str(output), rows)
    if report.damage:
        raise LatentFileError(f"{latents} is damaged; {output} was written, but not all of it is right: encode the video again.")
