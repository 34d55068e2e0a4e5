"""Encode and decode a video again and again in one process, and watch memory, threads and open files.

    python benchmarks/soak.py --minutes 60 --out benchmarks/soak.json --plot benchmarks/soak.png

The clip is the demo's, looped: 854x480 and a minute long at 24 frames/s unless told otherwise, with sound. A thread samples what Linux
says of the process; growth is the mean of the last quarter of the samples over that of the second.
"""

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

from memory_flat import make_clip

from cvvae_cli.checkpoint import load_model, resolve_device, resolve_dtype
from cvvae_cli.config import Tiling
from cvvae_cli.decoding import DecodeOptions, decode_file
from cvvae_cli.encoding import EncodeOptions, encode_file
from cvvae_cli.machine import device_name
from cvvae_cli.memory_model import keep_memory
from cvvae_cli.provenance import source_commit

MIB = 2**20


def sample(began: float) -> dict[str, float]:
    """What the process holds now."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "seconds": round(time.monotonic() - began, 1),
        "resident_mib": round(int(status["VmRSS"].split()[0]) * 1024 / MIB, 1),
        "threads": int(status["Threads"]),
        "files": len(os.listdir("/proc/self/fd")),
    }


def growth(samples: list[dict], key: str) -> float:
    """Last quarter over second quarter, less 1."""
    quarter = len(samples) // 4
    before, after = samples[quarter : 2 * quarter], samples[-quarter:]
    return statistics.mean(s[key] for s in after) / statistics.mean(s[key] for s in before) - 1


def draw(samples: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((8, 6), layout="constrained")
    minutes = [s["seconds"] / 60 for s in samples]
    for place, (key, label) in enumerate((("resident_mib", "resident MiB"), ("threads", "threads"), ("files", "open files")), 1):
        axes = figure.add_subplot(3, 1, place)
        axes.plot(minutes, [s[key] for s in samples], linewidth=0.8)
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
    axes.set_xlabel("minutes")
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--clip-seconds", type=float, default=60)
    parser.add_argument("--model", default="default")
    parser.add_argument("--every", type=float, default=5, help="seconds between samples")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    device = resolve_device("auto")
    model = load_model(arguments.model, device, resolve_dtype("auto", device))
    keep_memory(model)
    samples, stop, rounds, frames = [], threading.Event(), 0, 0
    with tempfile.TemporaryDirectory() as name:
        clip, latents, video = (Path(name) / part for part in ("clip.mp4", "a.latent", "a.mp4"))
        make_clip(clip, arguments.clip_seconds, 24)
        began = time.monotonic()

        def watch() -> None:
            while not stop.wait(arguments.every):
                samples.append(sample(began))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            while time.monotonic() - began < 60 * arguments.minutes:
                encode_file(clip, latents, model=model, tiling=Tiling(), options=EncodeOptions(overwrite=True))
                decode_file(latents, video, model=model, options=DecodeOptions(overwrite=True, preset="veryfast"))
                rounds, frames = rounds + 1, frames + round(arguments.clip_seconds * 24)
        finally:
            stop.set()
            watcher.join()
    answer = {
        "model": arguments.model, "device_name": device_name(device), "commit": source_commit(),
        "rounds": rounds, "frames_each_way": frames, "minutes": samples[-1]["seconds"] / 60,
        "growth": {key: growth(samples, key) for key in ("resident_mib", "threads", "files")},
        "most": {key: max(s[key] for s in samples) for key in ("resident_mib", "threads", "files")}, "samples": samples,
    }  # fmt: skip
    print(json.dumps({key: value for key, value in answer.items() if key != "samples"}))
    arguments.out.write_text(json.dumps(answer) + "\n", encoding="utf-8")
    if arguments.plot:
        draw(samples, arguments.plot)


if __name__ == "__main__":
    main()
