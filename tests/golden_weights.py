"""Weights and videos that the golden files were computed with, made again from names and seeds.

The golden tensors are outputs of the official code; their weights would be 20 MB, so each is a pure function of
its official name instead, and each input a pure function of its seed.
"""

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from cvvae_cli.config import SD3, CVVAEConfig, Variant

GOLDEN = Path(__file__).parent / "golden"
SMALL: dict[Variant, CVVAEConfig] = {
    "sd21": CVVAEConfig(channels=(32, 64, 128, 128), blocks_per_level=1),
    "sd3": CVVAEConfig("sd3", 16, (32, 64, 96, 96), 1, scaling_factor=SD3.scaling_factor, shift_factor=SD3.shift_factor),
}


def golden_weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The float32 tensor of official name `name`: kernels N(0, 1/fan_in), norm weights about 1, biases about 0."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    noise = generator.standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:
        return torch.from_numpy(noise / np.float32(math.sqrt(math.prod(shape[1:]))))
    centre = np.float32(1.0 if name.endswith("weight") else 0.0)
    return torch.from_numpy(centre + np.float32(0.1) * noise)


def golden_state_dict(variant: Variant) -> dict[str, Tensor]:
    """All weights of the small golden model under their official names."""
    return {name: golden_weight(name, shape) for name, shape in key_list(f"{variant}-small").items()}


def golden_video(seed: int, frames: int, height: int, width: int) -> Tensor:
    """Moving waves with a little noise, (1, 3, T, H, W) float32 in [-1, 1]."""
    generator = np.random.Generator(np.random.PCG64(seed))
    time, row, column = np.ix_(*(np.arange(n, dtype=np.float32) for n in (frames, height, width)))
    waves = []
    for _ in range(3):
        across, down, speed, phase = generator.uniform(0.02, 0.35, size=4).astype(np.float32)
        waves.append(np.sin(across * column + down * row + 3 * speed * time + 6 * phase))
    video = np.stack(waves)[None] * np.float32(0.8)
    video = video + generator.standard_normal(video.shape, dtype=np.float32) * np.float32(0.05)
    return torch.from_numpy(np.clip(video, -1, 1).astype(np.float32))


def key_list(name: str) -> dict[str, tuple[int, ...]]:
    """Official tensor names and shapes: `sd21-small`, `sd3-official`, ..."""
    return {key: tuple(shape) for key, shape in json.loads((GOLDEN / f"{name}-keys.json").read_text()).items()}


def official_config(variant: Variant) -> dict:
    """The release's config.json with its class name."""
    keys = json.loads((GOLDEN / f"{variant}-official-config.json").read_text())
    return {"_class_name": "CVVAEModel" if variant == "sd21" else "CVVAESD3Model", **keys}


@dataclass(frozen=True)
class GoldenCase:
    """An input and what the official code answers: moments of the whole, decode of their mean."""

    video: Tensor
    moments: Tensor
    reconstruction: Tensor


def golden_case(variant: Variant, name: str) -> GoldenCase:
    """The case `image` or `clip` of a small model."""
    with safe_open(GOLDEN / f"{variant}-small-{name}.safetensors", framework="pt") as file:
        sizes = [int(file.metadata()[key]) for key in ("seed", "frames", "height", "width")]
        return GoldenCase(golden_video(*sizes), file.get_tensor("moments"), file.get_tensor("reconstruction"))


def relative_error(out: Tensor, reference: Tensor) -> float:
    """Norm of the difference over the norm of the reference."""
    return float((out.double() - reference.double()).norm() / reference.double().norm())
