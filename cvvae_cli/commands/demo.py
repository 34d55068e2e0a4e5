"""`cvvae demo`."""

from pathlib import Path
from typing import Annotated

import typer

from cvvae_cli.commands import options as o
from cvvae_cli.commands.check import quality_rows
from cvvae_cli.console import Reporter, counted, size_text

EPILOG = o.examples("cvvae demo", "cvvae info demo/source.latent", "cvvae roundtrip demo/source.mp4")

_FOLDER_HELP = "Where source.mp4, source.latent and back.mp4 are written, over those of an earlier demo."


def demo(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help=_FOLDER_HELP)] = Path("demo"),
    model: o.Model = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Make a short clip, encode it, decode it, and compare: the whole tool in one go, offline."""
    reporter = Reporter(as_json, quiet)
    from cvvae_cli.decoding import DecodeOptions
    from cvvae_cli.demo_clip import CUT, write_demo_clip
    from cvvae_cli.encoding import EncodeOptions
    from cvvae_cli.errors import OutputError
    from cvvae_cli.roundtrip import roundtrip_file

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Folder {folder} cannot be made ({error.strerror}); name another.") from error
    source, latents, back = folder / "source.mp4", folder / "source.latent", folder / "back.mp4"
    reporter.note(f"making {source}")
    write_demo_clip(source, overwrite=True)
    loaded = o.model_of(model, None, device, dtype)
    with reporter.progress("encode", "decode") as progress:
        report = roundtrip_file(
            source, back, model=loaded, latents=latents, progress=progress,
            encode=EncodeOptions(overwrite=True), decode=DecodeOptions(overwrite=True),
        )  # fmt: skip
    encoded = report.encode
    rows = [
        ("source", f"{source}: {counted(encoded.frames, 'frame')} of {encoded.width}x{encoded.height}, with sound"),
        ("latents", f"{latents}: {size_text(encoded.latent_bytes)}, {encoded.bits_per_pixel:.3f} bits per pixel"),
        ("decoded", f"{back}: PSNR {report.psnr_file_db:.2f} dB after the video codec"),
        *quality_rows(report.quality),
        ("the cut", f"at frame {CUT}, where one latent stands for frames of both scenes"),
        ("speed", f"encode {encoded.fps:.1f}, decode {report.decode.fps:.1f} frames/s"),
    ]
    files = {"source": str(source), "latents": str(latents), "decoded": str(back)}
    reporter.answer({**files, **report.to_dict()}, "cvvae demo", rows)
