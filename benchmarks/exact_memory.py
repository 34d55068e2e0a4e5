"""What `--norm exact` takes for one chunk of a large video, beside the formulas of `lockstep_memory.py`.

    python benchmarks/exact_memory.py --size 3840x2160 --frames 17 --out benchmarks/exact_memory.json

A small official architecture with random weights, which take as much memory as trained ones. Resident memory is what the
process takes beside weights and input; the formulas count parked and working activations, to which the chunk's bytes are
added; a convolution's own workspace is not counted.
"""

import argparse
import json
import time
from collections import deque
from pathlib import Path

import torch

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.codec import Plan, decode_frames, encode_frames
from cvvae_cli.config import CVVAEConfig, Tiling
from cvvae_cli.geometry import SPATIAL_COMPRESSION_RATIO as CELL
from cvvae_cli.lockstep_memory import ChunkShape, parked_bytes, strip_bytes, working_bytes
from cvvae_cli.machine import device_name
from cvvae_cli.peak_memory import peak_memory
from cvvae_cli.tiling import DECODE, ENCODE

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="3840x2160")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--channels", type=int, nargs=4, default=[8, 16, 16, 16])
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    torch.manual_seed(0)
    config = CVVAEConfig("sd21", 4, tuple(arguments.channels), 1, norm_groups=8)
    model = Autoencoder(config).requires_grad_(False).bfloat16().eval()
    tiling = Tiling(tile=arguments.tile, norm="exact", chunk=arguments.frames, chunk_overlap=0)
    chunk = ChunkShape(1, arguments.frames, height // CELL, width // CELL, 2)
    frames = torch.randint(0, 256, (1, 3, arguments.frames, height, width), dtype=torch.uint8)
    latents = torch.randn(1, 4, 1 + (arguments.frames - 1) // 4, height // CELL, width // CELL)
    rows = {}
    for name, direction, call in (
        ("encode", ENCODE, lambda: encode_frames(model, [frames], Plan(tiling))),
        ("decode", DECODE, lambda: decode_frames(model, [latents], Plan(tiling))),
    ):
        began = time.perf_counter()
        with torch.inference_mode():
            _, growth = peak_memory(model.device, lambda: deque(call(), maxlen=0))
        limit = strip_bytes(config, direction, tiling, chunk)
        parked, working = parked_bytes(config, direction, chunk), working_bytes(config, direction, chunk, limit)
        chunk_bytes = 3 * arguments.frames * height * width  # cut out of the video, or put together
        rows[name] = {
            "growth_mib": growth, "parked_mib": parked / MIB, "working_mib": working / MIB, "chunk_mib": chunk_bytes / MIB,
            "growth_over_formula": growth * MIB / (parked + working + chunk_bytes), "seconds": time.perf_counter() - began,
        }  # fmt: skip
        print(name, json.dumps(rows[name]), flush=True)
    answer = {
        "size": arguments.size, "frames": arguments.frames, "channels": arguments.channels, "tile": arguments.tile,
        "dtype": "bfloat16", "device_name": device_name(model.device), **rows,
    }  # fmt: skip
    if arguments.out:
        arguments.out.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
