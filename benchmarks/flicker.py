r"""Flicker and PSNR of two models on clips they never saw, from file to file, with the interval over clips.

    python benchmarks/flicker.py --before default --after runs/flicker.safetensors --dev ../shared/clips/dev \
        --out benchmarks/flicker.json

The first 65 frames of every clip at 256 px short side through `cvvae roundtrip --json`. Intervals are 95 %, from
Student's t over the clips' differences.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from default_quality import BLACK_START, model_figures, sizes
from scipy.stats import t as student

from cvvae_cli.errors import VideoError

FRAMES = 65


def interval(values: list[float]) -> dict[str, float]:
    """Mean and 95 % interval."""
    mean, half = float(np.mean(values)), student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return {"mean": mean, "low": float(mean - half), "high": float(mean + half)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True)
    parser.add_argument("--after", required=True)
    parser.add_argument("--dev", required=True)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    rows = []
    for path in sorted(Path(arguments.dev).iterdir()):
        try:
            size = sizes(path)["256"]
        except VideoError as error:
            print(f"skipped: {error}")
            continue
        if BLACK_START in path.name:
            continue
        pair = [model_figures(path, size, model, FRAMES) for model in (arguments.before, arguments.after)]
        row = {"clip": path.stem} | {key: [figures[key] for figures in pair] for key in ("psnr_db", "flicker")}
        rows.append(row)
        print(json.dumps(row), flush=True)
    change = {
        "psnr_db": interval([after - before for before, after in (row["psnr_db"] for row in rows)]),
        "flicker_percent": interval([100 * (after / before - 1) for before, after in (row["flicker"] for row in rows)]),
    }
    print(json.dumps(change))
    Path(arguments.out).write_text(json.dumps({"clips": rows, "change": change}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
