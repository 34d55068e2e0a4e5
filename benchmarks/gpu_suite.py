"""Everything that needs a GPU, one after another, each in a process of its own; what one cannot do the others still say.

    make bench-cuda                                              on a GPU
    python benchmarks/gpu_suite.py --device cpu --out trial      the same scripts on the CPU at small size

Kernel tests on real hardware, bandwidth of the kernels, the networks beside their plain form, and both models from file to
file at 1080p and 4K. Each step leaves NAME.log and, where it answers in JSON, NAME.json in the folder; exits with 1 if one
failed. The full-size network has random weights, which makes no difference to time and memory.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.checkpoint import save_model
from cvvae_cli.config import SD21, CVVAEConfig, ModelConfig
from cvvae_cli.demo_clip import clip_frame
from cvvae_cli.video_encoder import Encoding, Pictures
from cvvae_cli.video_writer import VideoWriter

ROOT = Path(__file__).parents[1]
SMALL = CVVAEConfig(channels=(32, 32, 32, 32), norm_groups=8)


def write_clip(path: Path, width: int, height: int, frames: int) -> None:
    """The demo's pictures side by side."""
    pictures = Pictures(width, height, Fraction(24), Fraction(1, 24))
    with VideoWriter(path, pictures, Encoding("libx264", preset="ultrafast")) as writer:
        for index in range(frames):
            frame = clip_frame(index % 72)
            tiled = np.tile(frame, (-(-height // frame.shape[0]), -(-width // frame.shape[1]), 1))[:height, :width]
            writer.write(np.ascontiguousarray(tiled), index, 1)


def random_weights(config: ModelConfig, path: Path) -> None:
    torch.manual_seed(0)
    save_model(Autoencoder(config), path)


def steps(device: str, folder: Path) -> dict[str, list[str]]:
    """Name and command of each step; the clips and weights that they need are made here."""
    cuda = device != "cpu"
    full = folder / "full.safetensors"
    random_weights(SD21 if cuda else SMALL, full)
    sizes = {"1080p": (1920, 1080, 240), "4k": (3840, 2160, 49)} if cuda else {"small": (160, 96, 21)}
    python, tool = sys.executable, [sys.executable, "-m", "cvvae_cli", "bench", "--json", "--quiet", "--device", device]
    found = {
        "kernel-tests": [python, "-m", "pytest", "-q", *sorted(map(str, Path("tests").glob("test_kernels*.py")))],
        "pad": [python, "benchmarks/pad_bandwidth.py", *([] if cuda else ["--repeats", "1"])],
        "norm": [python, "benchmarks/norm_bandwidth.py", "--device", "cuda" if cuda else "cpu", *([] if cuda else ["--repeats", "1"])],
    }
    tiles = ["--tile", "256", "--tile", "576"] if cuda else ["--tile", "64", "--frames", "5", "--repeats", "1"]
    for name, model in (("full", str(full)), ("default", "default")):
        found[f"{name}-windows"] = [*tool, "--model", model, "--against", "eager", *tiles]
        for size, (width, height, frames) in sizes.items():
            clip = folder / f"{size}.mp4"
            if not clip.exists():
                write_clip(clip, width, height, frames)
            # The full-size network needs a second per chunk and more; five chunks tell enough.
            some = min(frames, 65) if name == "full" else frames
            found[f"{name}-{size}"] = [*tool, "--model", model, "--clip", str(clip), "--clip-frames", str(some)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "cuda")
    arguments = parser.parse_args()
    if arguments.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit("No CUDA device is at hand; run this on a machine with one, or pass --device cpu for a trial.")
    arguments.out.mkdir(parents=True, exist_ok=True)
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for name, command in steps(arguments.device, Path(folder)).items():
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            (arguments.out / f"{name}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
            lines = done.stdout.strip().splitlines()
            if lines and lines[-1].startswith("{"):
                answer = json.loads(lines[-1])
                (arguments.out / f"{name}.json").write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
            print(f"{name}: {'done' if done.returncode == 0 else f'exit status {done.returncode}'}", flush=True)
            if done.returncode:
                failed.append(name)
    if failed:
        raise SystemExit(f"Failed: {', '.join(failed)}; see the logs in {arguments.out}.")


if __name__ == "__main__":
    main()
