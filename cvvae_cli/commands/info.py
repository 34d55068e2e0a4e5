"""`cvvae info`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cvvae_cli.checked_values import ratio_of
from cvvae_cli.commands import options as o
from cvvae_cli.commands.check import quality_rows
from cvvae_cli.console import Reporter, counted, size_text
from cvvae_cli.errors import LatentFileError, VideoError
from cvvae_cli.geometry import SPATIAL_COMPRESSION_RATIO as CELL
from cvvae_cli.geometry import frame_count

EPILOG = o.examples("cvvae info out.latent", "cvvae info in.mp4 --json", "cvvae info generated.safetensors")

DESCRIBED = ("model", "video", "encoding", "quality")
"""Strings of a latent file's header that are shown; others belong to later versions."""
_PATH_HELP = "A latent file, a tensor of latents (.safetensors, .npy or .pt), or a video."


def info(
    path: Annotated[Path, typer.Argument(metavar="FILE", help=_PATH_HELP)],
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Say what a latent file, a tensor or a video is, and how to decode it, without reading all of it."""
    reporter = Reporter(as_json, quiet)
    o.require_file(path, VideoError)
    from cvvae_cli.latent_file import is_latent_file
    from cvvae_cli.plain_latents import is_plain_tensor

    describe = _of_latents if is_latent_file(path) else _of_tensor if is_plain_tensor(path) else _of_video
    values, rows = describe(path)
    reporter.answer(values, str(path), rows)


def _of_latents(path: Path) -> tuple[dict, list[tuple[str, str]]]:
    from cvvae_cli.latent_file import LatentReader

    with LatentReader(path) as reader:
        try:
            described = {key: json.loads(reader.metadata[key]) for key in DESCRIBED if key in reader.metadata}
            video = described["video"]
            pixels = video["width"] * video["height"] * video["num_frames"]
            values = {
                "kind": "latent", "shape": list(reader.shape), "dtype": reader.dtype, "chunks": reader.num_chunks,
                "file_bytes": reader.file_bytes, "latent_bytes": reader.latent_bytes,
                "bits_per_pixel": 8 * reader.latent_bytes / pixels, "sound": "sidecar" in reader.tensor_names, **described,
            }  # fmt: skip
            return values, _rows_of_latents(values)
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            raise LatentFileError(f"{path} lacks its description ({error}); encode the video again.") from error


def _rows_of_latents(values: dict) -> list[tuple[str, str]]:
    from cvvae_cli.metrics import Quality

    model, video, encoding = values["model"], values["video"], values["encoding"]
    source = video["source"]
    rate = float(ratio_of(source["frame_rate"]))
    part = "" if video["to_end"] and not video["start"] else f", a part from {video['start']:g} s on"
    carried = ", ".join(source["audio_codecs"] + source["subtitle_codecs"])
    size = f"{size_text(values['latent_bytes'])}, {values['bits_per_pixel']:.3f} bits per pixel"
    rows = [
        ("latents", f"[t, z, h, w] = {values['shape']}, {values['dtype']}, {encoding['latents']}"),
        ("size", f"{size}; the file has {size_text(values['file_bytes'])}"),
        ("video", f"{counted(video['num_frames'], 'frame')} of {video['width']}x{video['height']}, {rate:.6g} frames/s"),
        ("source", f"{source['width']}x{source['height']}, {source['codec']}, {source['pix_fmt']}{part}"),
        ("sound", carried if values["sound"] else "none"),
        ("model", f"{model['name'] or 'unnamed'}, weights {(model['sha256'] or 'unknown')[:12]}"),
        ("tiling", ", ".join(f"{key} {value}" for key, value in encoding["tiling"].items())),
    ]
    return rows + (quality_rows(Quality(**values["quality"])) if "quality" in values else [("quality", "not checked")])


def _of_tensor(path: Path) -> tuple[dict, list[tuple[str, str]]]:
    from cvvae_cli.plain_latents import read_plain_header, readings

    header = read_plain_header(path)
    as_video = [
        {"layout": layout, "z": z, "frames": frame_count(t), "width": w * CELL, "height": h * CELL}
        for layout, (t, z, h, w) in readings(header.shape).items()
    ]
    values = {"kind": "tensor", "file_bytes": path.stat().st_size, **asdict(header), "readings": as_video}
    named = f", named {header.key!r}" if header.key else ""
    rows = [("tensor", f"{list(header.shape)}, {header.dtype}{named}")]
    if header.multiplied_by != 1:
        rows.append(("scale", f"ComfyUI's, undone when it is read (times {header.multiplied_by:.6g})"))
    for video in as_video:
        size = f"{counted(video['frames'], 'frame')} of {video['width']}x{video['height']}"
        rows.append((f"as {video['layout']}", f"z = {video['z']}, {size}"))
    if as_video:
        rows.append(("decode", f"cvvae decode {path} OUT.mp4 --model NAME"))
        rows.append(("", "NAME: a model with this z (see cvvae models); add --scaled if a diffusion model made it"))
    else:
        rows.append(("decode", "not possible: neither [t, z, h, w] nor [z, t, h, w] nor [1, z, t, h, w]"))
    return values, rows


def _of_video(path: Path) -> tuple[dict, list[tuple[str, str]]]:
    from cvvae_cli.video_io import probe

    found = probe(path)
    seconds = "unknown" if found.duration_seconds is None else f"{found.duration_seconds:.3f} s"
    frames = "unknown frames" if found.num_frames is None else counted(found.num_frames, "frame")
    rows = [
        ("video", f"{found.width}x{found.height}, {float(found.frame_rate):.6g} frames/s, {found.codec}, {found.pix_fmt}"),
        ("length", f"{seconds}, {frames} by the container"),
        ("pixel aspect", str(found.sample_aspect_ratio)),
        ("rotation", f"{found.rotation} degrees"),
        ("sound", ", ".join(found.audio_codecs + found.subtitle_codecs) or "none"),
    ]
    return {"kind": "video", **found.to_dict()}, rows
