r"""Models beside the linear code of their rate and x264 at their bytes, on clips they never saw, from file to file.

    python benchmarks/default_quality.py --train ../shared/clips/train --dev ../shared/clips/dev \
        --model default --model runs/other.safetensors --out benchmarks/default_quality.json

Of every clip the first 33 frames are taken, at 256 px short side (enlarged where it is smaller) and at its own size.
A model's figures come from `cvvae roundtrip --json`: the PSNR of 8-bit RGB frames before any video codec, mean over
frames, then over clips. The linear code is the Karhunen-Loeve transform of 4 x 8 x 8 px blocks with 16
coefficients, fitted here on the training clips. x264 (preset medium, 33 frames, 4:4:4, at 256 px only) is given the
bytes of the float16 latents.
"""

import argparse
import io
import json
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from cvvae_cli.codec import to_bytes
from cvvae_cli.errors import VideoError
from cvvae_cli.geometry import cell_count, latent_frame_count
from cvvae_cli.metrics import frame_psnr
from cvvae_cli.training.linear_code import LinearCode, fit_klt, klt_reconstruct
from cvvae_cli.training.streams import StreamConfig
from cvvae_cli.training.windows import WindowStream
from cvvae_cli.video_io import VideoReader, probe

SHORT_SIDE, FRAMES, WINDOWS = 256, 33, 1200
BLACK_START = "sintel"  # its first frames are black, where PSNR says nothing


def sizes(path: Path) -> dict[str, tuple[int, int]]:
    """Width and height at 256 px short side and as the clip has them."""
    info = probe(path)
    scale = SHORT_SIDE / min(info.width, info.height)
    return {"256": (round(info.width * scale / 2) * 2, round(info.height * scale / 2) * 2), "native": (info.width, info.height)}


def read_clip(path: Path, size: tuple[int, int]) -> Tensor:
    """uint8 (1, 3, 33, H, W)."""
    with VideoReader(path, max_frames=FRAMES, size=size) as reader:
        return torch.from_numpy(np.stack([frame.rgb for frame in reader])).permute(3, 0, 1, 2)[None]


def mean_psnr(decoded: Tensor, source: Tensor) -> float:
    """Mean PSNR of the frames in dB."""
    pairs = zip(decoded[0].permute(1, 2, 3, 0).numpy(), source[0].permute(1, 2, 3, 0).numpy())
    return float(np.mean([frame_psnr(np.ascontiguousarray(s), np.ascontiguousarray(d)) for d, s in pairs]))


def linear_db(code: LinearCode, source: Tensor) -> float:
    """PSNR of the linear code; frames are padded to whole cells and groups as the tool does it."""
    frames, height, width = source.shape[2:]
    rest = (0, -width % 8, 0, -height % 8, 0, (1 - frames) % 4)
    padded = torch.nn.functional.pad(source.float() / 127.5 - 1, rest, mode="replicate")
    return mean_psnr(to_bytes(klt_reconstruct(code, padded))[:, :, :frames, :height, :width], source)


def model_figures(path: Path, size: tuple[int, int], model: str, frames: int) -> dict:
    """What `cvvae roundtrip --json` says."""
    command = [sys.executable, "-m", "cvvae_cli", "roundtrip", str(path), "--model", model, "--frames", str(frames), "--json", "--quiet"]
    done = subprocess.run([*command, "--size", f"{size[0]}x{size[1]}"], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def x264_at(source: Tensor, crf: float) -> tuple[int, Tensor]:
    """Bytes and decoded frames of x264 at a quality."""
    frames = [np.ascontiguousarray(f) for f in source[0].permute(1, 2, 3, 0).numpy()]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"crf": str(crf), "preset": "medium"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv444p"
        size = 0
        for frame in [*(av.VideoFrame.from_ndarray(f, "rgb24") for f in frames), None]:
            for packet in stream.encode(frame):
                size += packet.size
                container.mux(packet)
    with av.open(io.BytesIO(buffer.getvalue())) as container:
        decoded = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    return size, torch.from_numpy(decoded).permute(3, 0, 1, 2)[None]


def x264_at_bytes(source: Tensor, budget: int) -> float:
    """PSNR of the finest x264 that stays within `budget` bytes, the crf found by halving."""
    low, high, best = 0.0, 51.0, math.nan
    for _ in range(7):
        crf = (low + high) / 2
        size, decoded = x264_at(source, crf)
        if size <= budget:
            high, best = crf, mean_psnr(decoded, source)
        else:
            low = crf
    return best


def fit_linear(folder: str, coefficients: int) -> LinearCode:
    """The linear code of the training clips."""
    stream = WindowStream(StreamConfig("video", (folder,), 1, 96, 17, short_sides=(256, 400), cache=".cache/windows"), 5, print)
    return fit_klt((torch.stack([stream.window(j) for j in range(i, i + 20)]) for i in range(0, WINDOWS, 20)), coefficients)


def means(rows: list[dict], models: list[str]) -> dict:
    """Means over clips, and each model's lead over the linear code with its standard error."""
    result = {"linear_db": float(np.mean([row["linear_db"] for row in rows]))}
    for name in models:
        gain = np.array([row[name]["psnr_db"] - row["linear_db"] for row in rows])
        result[name] = {
            "psnr_db": float(np.mean([row[name]["psnr_db"] for row in rows])), "gain_db": float(gain.mean()),
            "gain_standard_error_db": float(gain.std(ddof=1) / math.sqrt(len(gain))),
        }  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--dev", required=True)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--channels", type=int, default=16, help="z of the models, and coefficients of the linear code")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    code, tables = fit_linear(arguments.train, arguments.channels), {"256": [], "native": []}
    for path in sorted(Path(arguments.dev).iterdir()):
        try:
            found = sizes(path)
        except VideoError as error:
            print(f"skipped: {error}")
            continue
        for name, size in found.items() if BLACK_START not in path.name else ():
            source = read_clip(path, size)
            row = {"clip": path.stem, "size": f"{size[0]}x{size[1]}", "linear_db": linear_db(code, source)}
            for model in arguments.model:
                figures = model_figures(path, size, model, FRAMES)
                row[model] = {key: figures[key] for key in ("psnr_db", "psnr_worst_db", "ssim", "flicker", "encode_fps", "decode_fps")}
            if name == "256":
                cells = latent_frame_count(source.shape[2]) * cell_count(size[0]) * cell_count(size[1])
                row["x264_same_bytes_db"] = x264_at_bytes(source, cells * arguments.channels * 2)
            tables[name].append(row)
            print(json.dumps(row), flush=True)
    result = {name: {"clips": rows, "mean": means(rows, arguments.model)} for name, rows in tables.items()}
    print(json.dumps({name: table["mean"] for name, table in result.items()}))
    Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
