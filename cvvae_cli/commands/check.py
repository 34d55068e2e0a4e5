"""`cvvae check`, and the rows that describe a quality."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvvae_cli.commands import options as o
from cvvae_cli.console import Reporter, counted
from cvvae_cli.errors import QualityError, UsageError, VideoError

if TYPE_CHECKING:
    from cvvae_cli.metrics import Quality

EPILOG = o.examples("cvvae check in.mp4 out.latent", "cvvae check in.mp4 back.mp4 --json")


def check(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The original video.")],
    copy: Annotated[Path, typer.Argument(metavar="COPY", help="A latent file of it, or a decoded video.")],
    model: o.Model = None,
    revision: o.Revision = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    min_psnr: o.MinPsnr = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Compare a video with its latents or its decoded copy."""
    reporter = Reporter(as_json, quiet)
    o.require_source(source)
    o.require_file(copy, VideoError)
    from cvvae_cli.latent_file import is_latent_file
    from cvvae_cli.latent_video import LatentVideo
    from cvvae_cli.roundtrip import check_latents, check_video

    if is_latent_file(source):
        raise UsageError(f"{source} is a latent file; name the original video first, then its latents.")
    if is_latent_file(copy):
        loaded = o.model_of_latents(copy, model, revision, device, dtype)
        with LatentVideo.open(copy, loaded.config) as opened, reporter.progress("check") as progress:
            quality = check_latents(source, opened, loaded, progress=progress)
    else:
        with reporter.progress("check") as progress:
            quality = check_video(source, copy, progress)
    reporter.answer(quality.to_dict(), f"{copy} against {source}", quality_rows(quality))
    gate(quality, min_psnr)


def quality_rows(quality: "Quality") -> list[tuple[str, str]]:
    """A quality for people."""
    missing = f", {quality.frames_missing} missing" if quality.frames_missing else ""
    ssim = [] if quality.ssim is None else [("SSIM", f"{quality.ssim:.4f}")]
    return [
        ("PSNR", f"{quality.psnr_db:.2f} dB, worst {quality.psnr_worst_db:.2f} dB at frame {quality.worst_frame}"),
        *ssim,
        ("flicker", f"{quality.flicker:.2f} levels"),
        ("compared", f"{counted(quality.frames, 'frame')}{missing}"),
    ]


def gate(quality: "Quality", min_psnr: float | None) -> None:
    """Stop with exit status 7 where frames are missing or the mean PSNR is too low.

    Raises:
        QualityError: so.
    """
    if quality.frames_missing:
        missing = counted(quality.frames_missing, "frame")
        raise QualityError(f"{missing} without a partner to be compared with; check the source or encode it again.")
    if min_psnr is not None and quality.psnr_db < min_psnr:
        found = f"The mean PSNR {quality.psnr_db:.2f} dB"
        raise QualityError(f"{found} is below the {min_psnr:g} dB asked for; pass a lower --min-psnr or another model.")
