"""Two pictures side by side of where tiles change the demo's pattern, with overlaps of 0 and 32 px.

    python benchmarks/seams_picture.py --out docs/seams.png

Each is the mean difference between the decodes with and without tiles of 128 px, amplified by its own factor, with the zones that
tiles share between dashed lines. The clip is the demo's, tiled to 854x480.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from memory_flat import make_clip

from cvvae_cli.checkpoint import load_model, resolve_device, resolve_dtype
from cvvae_cli.config import Tiling
from cvvae_cli.fidelity import cut_of
from cvvae_cli.fidelity_benchmark import RoundTrips, read_clip, untiled_tiling
from cvvae_cli.fidelity_picture import draw_harm, png_bytes

TILE, OVERLAPS, FRAMES, GAP = 128, (0, 32), 29, 8


def panel(trips: RoundTrips, tiling: Tiling) -> tuple[np.ndarray, int]:
    """The upper right of the six panels, [H, W, 3], and its amplification."""
    frames, height, width, _ = trips.source.shape
    untiled = trips.run(untiled_tiling(tiling, height, width)).frames
    cut = cut_of(tiling, frames, height, width)
    picture, (_, factor) = draw_harm(trips.source, trips.run(tiling).frames, untiled, cut)
    return picture[:height, 2 * width :], factor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    device = resolve_device("auto")
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        make_clip(clip, FRAMES / 24, 24)
        source = read_clip(clip, FRAMES)
    trips = RoundTrips(load_model(arguments.model, device, resolve_dtype("auto", device)), source)
    pictures = []
    for overlap in OVERLAPS:
        picture, factor = panel(trips, Tiling(TILE, overlap))
        pictures.append(picture)
        print(f"overlap {overlap}: differences times {factor}")
    gap = np.full((len(picture), GAP, 3), 255, np.uint8)
    arguments.out.write_bytes(png_bytes(np.concatenate([pictures[0], gap, pictures[1]], axis=1)))


if __name__ == "__main__":
    main()
