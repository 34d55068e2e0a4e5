r"""How much harm tiles and chunks do: a row for each way to cut, over clips that the model never saw, with intervals.

    OMP_NUM_THREADS=1 python benchmarks/fidelity.py ../shared/clips/dev/*.mp4 --out benchmarks/fidelity.json --pictures harm

The first 49 frames of every clip (4 chunks of 17 that crossfade 4), with the short side reduced to 720 px where it is
larger. Figures are those of `cvvae bench --fidelity`. Intervals are 95 %, from Student's t over the clips. "Over" is a
ratio divided by the same ratio of the run that was not cut there, clip by clip, so that the picture's own part cancels.
`--norm` adds the default cut with another contract of group norms; with `--norms-only` there is nothing but these and the
default cut, and no ghosts: for an official architecture, whose round trips take minutes.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from flicker import interval

from cvvae_cli.checkpoint import load_model, resolve_device, resolve_dtype
from cvvae_cli.config import Tiling
from cvvae_cli.fidelity import cut_of
from cvvae_cli.fidelity_benchmark import FidelityReport, RoundTrips, measure_fidelity, read_clip, untiled_tiling
from cvvae_cli.fidelity_picture import draw_harm, png_bytes
from cvvae_cli.machine import device_name
from cvvae_cli.model_names import shown_name
from cvvae_cli.provenance import source_commit
from cvvae_cli.video_io import probe

SETTINGS = [
    Tiling(),
    Tiling(overlap=0),
    Tiling(tile=128, overlap=32),
    Tiling(tile=512, overlap=64),
    Tiling(chunk_overlap=0),
    Tiling(chunk_overlap=8),
    Tiling(chunk=33, chunk_overlap=4),
]


def reduced_size(path: Path, short_side: int) -> tuple[int, int]:
    """Width and height with a short side of at most so many pixels."""
    info = probe(path)
    scale = min(1.0, short_side / min(info.width, info.height))
    return round(info.width * scale), round(info.height * scale)


def figures(report: FidelityReport) -> dict[str, float | None]:
    """One clip's harm as numbers that a mean over clips is taken of."""
    tiled, untiled = report.tiled.figures, report.untiled.figures
    one = report.one_chunk.figures if report.one_chunk else None
    return {
        "psnr_db": tiled.psnr_db,
        "psnr_loss_db": report.psnr_loss_db,
        "psnr_to_untiled_db": report.psnr_tiled_to_untiled_db,
        "psnr_loss_to_one_chunk_db": one and one.psnr_db - tiled.psnr_db,
        "seam": tiled.seam_ratio,
        "seam_over_untiled": over(tiled.seam_ratio, untiled.seam_ratio),
        "chunk_edge": tiled.chunk_edge_ratio,
        "chunk_edge_over_one_chunk": one and over(tiled.chunk_edge_ratio, one.chunk_edge_ratio),
        "chunk_edge_difference": tiled.chunk_edge_difference_ratio,
        "chunk_edge_difference_over_one_chunk": one and over(tiled.chunk_edge_difference_ratio, one.chunk_edge_difference_ratio),
        "flicker_over_one_chunk": one and tiled.flicker / one.flicker,
        "ghosting": report.ghosting,
        "seconds": report.tiled.seconds,
        "cpu_seconds": report.tiled.cpu_seconds,
        "untiled_cpu_seconds": report.untiled.cpu_seconds,
        "growth_mib": report.tiled.growth_mib,
        "untiled_growth_mib": report.untiled.growth_mib,
    }


def over(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None


def summary(rows: list[dict[str, float | None]]) -> dict[str, dict | None]:
    """The interval of every figure over the clips that have it; None where fewer than two do."""
    values = {key: [row[key] for row in rows if row[key] is not None] for key in rows[0]}
    return {key: interval(found) if len(found) > 1 else None for key, found in values.items()}


def draw(trips: RoundTrips, report: FidelityReport, path: Path) -> None:
    untiled = trips.run(untiled_tiling(report.tiling, report.height, report.width)).frames
    cut = cut_of(report.tiling, report.frames, report.height, report.width)
    path.write_bytes(png_bytes(draw_harm(trips.source, trips.run(report.tiling).frames, untiled, cut)[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--model", default="default")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--short-side", type=int, default=720)
    parser.add_argument("--norm", action="append", default=[])
    parser.add_argument("--norms-only", action="store_true")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    model = load_model(arguments.model, device, resolve_dtype(arguments.dtype, device))
    settings = [*(SETTINGS[:1] if arguments.norms_only else SETTINGS), *(replace(Tiling(), norm=norm) for norm in arguments.norm)]
    clips: list[str] = []
    found: list[list[dict[str, float | None]]] = [[] for _ in settings]
    for path in arguments.clips:
        trips = RoundTrips(model, read_clip(path, arguments.frames, reduced_size(path, arguments.short_side)))
        RoundTrips(model, trips.source[:5]).run(settings[0])  # what a process does but once is not timed
        clips.append(f"{path.name} {trips.source.shape[2]}x{trips.source.shape[1]}")
        for tiling, rows in zip(settings, found):
            report = measure_fidelity(trips, tiling, with_ghosts=not arguments.norms_only)
            rows.append(figures(report))
            print(json.dumps({"clip": clips[-1], **asdict(tiling), **rows[-1]}), flush=True)
            if arguments.pictures and tiling == settings[0]:
                arguments.pictures.mkdir(exist_ok=True)
                draw(trips, report, arguments.pictures / f"{path.stem}.png")
    answer = {
        "model": shown_name(arguments.model), "dtype": str(model.dtype).removeprefix("torch."), "device_name": device_name(device),
        "threads": torch.get_num_threads(), "torch": torch.__version__, "commit": source_commit(),
        "frames": arguments.frames, "clips": clips,
        "settings": [
            {"tiling": asdict(tiling), "interval": summary(rows), "clips": rows} for tiling, rows in zip(settings, found)
        ],
    }  # fmt: skip
    arguments.out.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
