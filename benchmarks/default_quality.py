"""The default model beside the linear code of its rate and x264 at its bytes, on clips it never saw.

    python benchmarks/default_quality.py --train ../shared/clips/train --dev ../shared/clips/dev --out benchmarks/default_quality.json

Every clip is read at 256 px short side (enlarged where it is smaller), cut to whole cells; figures are means over
clips of the mean over frames 2..33 of the PSNR of 8-bit RGB frames. The linear code is the Karhunen-Loeve
transform of 4 x 8 x 8 px blocks with as many coefficients as the model has latent channels, fitted here on the
training clips. x264 (preset medium, 33 frames, 4:4:4) is given the bytes of the float16 latents.
"""

import argparse
import io
import json
import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

import cvvae_cli as cvvae
from cvvae_cli.codec import to_bytes
from cvvae_cli.errors import VideoError
from cvvae_cli.metrics import frame_psnr
from cvvae_cli.training.data import DataConfig, WindowDataset, prepare
from cvvae_cli.training.linear_code import fit_klt, klt_reconstruct
from cvvae_cli.video_io import VideoReader, probe

SHORT_SIDE, FRAMES, WINDOWS = 256, 33, 1200
BLACK_START = "sintel"  # its first frames are black, where PSNR says nothing


def read_clip(path: Path) -> Tensor:
    """uint8 (1, 3, 33, H, W), H and W whole cells."""
    info = probe(path)
    scale = SHORT_SIDE / min(info.width, info.height)
    size = (round(info.width * scale / 2) * 2, round(info.height * scale / 2) * 2)
    with VideoReader(path, max_frames=FRAMES, size=size) as reader:
        frames = np.stack([frame.rgb for frame in reader])
    height, width = frames.shape[1] // 8 * 8, frames.shape[2] // 8 * 8
    return torch.from_numpy(frames[:, :height, :width].copy()).permute(3, 0, 1, 2)[None]


def mean_psnr(decoded: Tensor, source: Tensor) -> float:
    """Mean PSNR of frames 2..33 in dB."""
    pairs = zip(decoded[0].permute(1, 2, 3, 0).numpy()[1:], source[0].permute(1, 2, 3, 0).numpy()[1:])
    return float(np.mean([frame_psnr(np.ascontiguousarray(s), np.ascontiguousarray(d)) for d, s in pairs]))


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--dev", required=True)
    parser.add_argument("--model", default="default")
    parser.add_argument("--out")
    arguments = parser.parse_args()
    model = cvvae.load_model(arguments.model)
    data = DataConfig(arguments.train, frames=17, crop=96, max_stride=1, dim_share=0.0)
    dataset = WindowDataset(data, prepare(data, print), seed=5, length=WINDOWS)
    code = fit_klt((torch.stack([dataset[j] for j in range(i, i + 20)]) for i in range(0, WINDOWS, 20)), model.latent_channels)
    rows = []
    for path in sorted(Path(arguments.dev).iterdir()):
        try:
            source = read_clip(path)
        except VideoError as error:
            print(f"skipped: {error}")
            continue
        if BLACK_START in path.name:
            continue
        latents = cvvae.encode_tensor(model, source)[:, : model.latent_channels].half().float()
        decoded = to_bytes(cvvae.decode_tensor(model, latents))[:, :, : source.shape[2]]
        linear = to_bytes(klt_reconstruct(code, source.float() / 127.5 - 1))
        row = {
            "clip": path.stem, "size": f"{source.shape[4]}x{source.shape[3]}", "linear_db": mean_psnr(linear, source),
            "model_db": mean_psnr(decoded, source), "x264_same_bytes_db": x264_at_bytes(source, latents.numel() * 2),
        }  # fmt: skip
        rows.append(row)
        print(json.dumps(row), flush=True)
    means = {key: float(np.mean([r[key] for r in rows])) for key in ("linear_db", "model_db", "x264_same_bytes_db")}
    gain = np.array([r["model_db"] - r["linear_db"] for r in rows])
    means["gain_db"], means["gain_standard_error_db"] = float(gain.mean()), float(gain.std(ddof=1) / math.sqrt(len(gain)))
    print(json.dumps(means))
    if arguments.out:
        identity = model.identity
        result = {"model": identity.name, "sha256": identity.sha256, "clips": rows, "mean": means}
        Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
