"""`cvvae info`."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

from cvvae_cli.commands import options as o
from cvvae_cli.commands.check import quality_rows
from cvvae_cli.console import Reporter
from cvvae_cli.errors import LatentFileError, VideoError

EPILOG = "Examples: `cvvae info out.latent` · `cvvae info in.mp4 --json`"


def info(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A latent file or a video.")],
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Say what a latent file or a video is, from its header alone."""
    reporter = Reporter(as_json, quiet)
    o.require_file(path, VideoError)
    from cvvae_cli.latent_file import is_latent_file

    values, rows = _of_latents(path) if is_latent_file(path) else _of_video(path)
    reporter.answer(values, str(path), rows)


def _of_latents(path: Path) -> tuple[dict, list[tuple[str, str]]]:
    from cvvae_cli.latent_file import LatentReader

    with LatentReader(path) as reader:
        try:
            described = {key: json.loads(text) for key, text in reader.metadata.items()}
            video = described["video"]
            pixels = video["width"] * video["height"] * video["num_frames"]
            values = {
                "kind": "latent", "shape": list(reader.shape), "dtype": reader.dtype, "chunks": reader.num_chunks,
                "file_bytes": reader.file_bytes, "latent_bytes": reader.payload_bytes,
                "bits_per_pixel": 8 * reader.payload_bytes / pixels, "sound": "sidecar" in reader.tensor_names, **described,
            }  # fmt: skip
            return values, _rows_of_latents(values)
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise LatentFileError(f"{path} lacks its description ({error}); encode the video again.") from error


def _rows_of_latents(values: dict) -> list[tuple[str, str]]:
    from cvvae_cli.metrics import Quality

    model, video, encoding = values["model"], values["video"], values["encoding"]
    source = video["source"]
    rate = float(Fraction(source["frame_rate"]))
    part = "" if video["to_end"] and not video["start"] else f", a part from {video['start']:g} s on"
    carried = ", ".join(source["audio_codecs"] + source["subtitle_codecs"])
    size = f"{values['latent_bytes'] / 1e6:.2f} MB, {values['bits_per_pixel']:.3f} bits per pixel"
    rows = [
        ("latents", f"[t, z, h, w] = {values['shape']}, {values['dtype']}, {encoding['latents']}"),
        ("size", f"{size}; the file has {values['file_bytes'] / 1e6:.2f} MB"),
        ("video", f"{video['num_frames']} frames of {video['width']}x{video['height']}, {rate:.6g} frames/s"),
        ("source", f"{source['width']}x{source['height']}, {source['codec']}, {source['pix_fmt']}{part}"),
        ("sound", carried if values["sound"] else "none"),
        ("model", f"{model['name'] or 'unnamed'}, weights {(model['sha256'] or 'unknown')[:12]}"),
        ("tiling", ", ".join(f"{key} {value}" for key, value in encoding["tiling"].items())),
    ]
    return rows + (quality_rows(Quality(**values["quality"])) if "quality" in values else [("quality", "not checked")])


def _of_video(path: Path) -> tuple[dict, list[tuple[str, str]]]:
    from cvvae_cli.video_io import probe

    found = probe(path)
    seconds = "unknown" if found.duration_seconds is None else f"{found.duration_seconds:.3f} s"
    rows = [
        ("video", f"{found.width}x{found.height}, {float(found.frame_rate):.6g} frames/s, {found.codec}, {found.pix_fmt}"),
        ("length", f"{seconds}, {found.num_frames or 'unknown'} frames by the container"),
        ("pixel aspect", str(found.sample_aspect_ratio)),
        ("rotation", f"{found.rotation} degrees"),
        ("sound", ", ".join(found.audio_codecs + found.subtitle_codecs) or "none"),
    ]
    return {"kind": "video", **found.to_dict()}, rows
