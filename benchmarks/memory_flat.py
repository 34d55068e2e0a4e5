"""Resident memory of encode and decode for a short and a long video of one size.

    python benchmarks/memory_flat.py --seconds 10 300 --rate 10 --repeats 3 --out benchmarks/memory_flat.json

Each run is a process of its own. Its peak is what the operating system accounts to it; beside it stands the mean of what it holds
in the later half of its time, which does not depend on how often chance has piled up what two threads hold. A figure is the median of
several runs. The clips have sound and lie in a temporary folder; a process of its own makes them, because Linux counts
the peak of a parent to its children.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np

from cvvae_cli.demo_clip import clip_frame, tone
from cvvae_cli.video_container import Beside
from cvvae_cli.video_encoder import Encoding, Pictures
from cvvae_cli.video_writer import VideoWriter

WIDTH, HEIGHT = 854, 480
SECONDS_BETWEEN_LOOKS = 0.1


def make_clip(path: Path, seconds: float, rate: int) -> None:
    pictures, encoding = Pictures(WIDTH, HEIGHT, Fraction(rate), Fraction(1, rate)), Encoding("libx264", preset="ultrafast")
    with VideoWriter(path, pictures, encoding, Beside(tone(seconds))) as writer:
        for index in range(round(seconds * rate)):
            frame = np.tile(clip_frame(index % 72), (3, 3, 1))[:HEIGHT, :WIDTH]
            writer.write(np.ascontiguousarray(frame), index, 1)


def resident_mib(*arguments: str) -> tuple[float, float]:
    """Peak resident memory of one command, and its mean over the later half of the time, MiB."""
    process, held = subprocess.Popen([sys.executable, "-m", "cvvae_cli", *arguments, "--quiet"]), []
    statm, pages = Path(f"/proc/{process.pid}/statm"), os.sysconf("SC_PAGE_SIZE") / 2**20
    while True:
        held.append(int(statm.read_text().split()[1]) * pages)  # of a process that nobody has waited for yet
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if status:
        raise SystemExit(f"cvvae {' '.join(arguments)} failed")
    return usage.ru_maxrss / 2**10, statistics.mean(held[len(held) // 2 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs=2, default=[10, 300])
    parser.add_argument("--rate", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="default")
    parser.add_argument("--out")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as maker:
        for seconds in arguments.seconds:
            clip, latents, back = (Path(folder) / f"{seconds}{suffix}" for suffix in (".mp4", ".latent", ".back.mp4"))
            maker.apply(make_clip, (clip, seconds, arguments.rate))
            commands = (("encode", str(clip), str(latents)), ("decode", str(latents), str(back)))
            values: dict[str, list[float]] = {}
            for verb, *words in commands:
                found = [resident_mib(verb, *words, "--model", arguments.model, "-y") for _ in range(arguments.repeats)]
                values[f"{verb}_peak_mib"], values[f"{verb}_mean_mib"] = (list(figures) for figures in zip(*found))
            row = {"seconds": seconds, "frames": round(seconds * arguments.rate), "size": f"{WIDTH}x{HEIGHT}"}
            row |= {name: statistics.median(figures) for name, figures in values.items()} | {"values": values}
            rows.append(row)
            print(json.dumps(row), flush=True)
    growth = {key: rows[1][key] / rows[0][key] - 1 for key in rows[0]["values"]}
    print(json.dumps({"growth": growth}))
    if arguments.out:
        Path(arguments.out).write_text(json.dumps({"runs": rows, "growth": growth}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
