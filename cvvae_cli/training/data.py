"""Training windows from clips and photographs: prepared once, drawn by number.

`prepare` decodes each clip a single time into uint8 arrays at a few sizes (downscaling hides the source's
own compression). `WindowDataset` draws window number i from a generator seeded by (seed, i), so the order
depends on nothing but the seed: not on workers, and not on where a run was interrupted. This module knows
no model and no loss.
"""

import copy
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from cvvae_cli.errors import UsageError, VideoError
from cvvae_cli.video_io import VideoReader, probe

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


@dataclass(frozen=True)
class DataConfig:
    """What a training run reads and how it cuts it.

    Attributes:
        clips: folder of videos.
        photos: folder of pictures, or "" for none.
        cache: folder for the decoded arrays (about 12 GB for 43 clips at two sizes of 192 frames).
        short_sides: short side in px of each decoded size; a clip is never enlarged.
        frames_per_clip: frames kept per clip, in three stretches spread over it.
        photo_share: share of windows that are moving photographs, 0 .. 1.
        frames: frames per window, 1 + 4k.
        crop: window size in px, a multiple of 8.
        max_stride: largest frame stride; 1 .. max_stride are drawn with weight 1 / stride.
        dim_share: share of windows darkened by a factor of 0.2 .. 1.
        max_pan: fastest pan over a photograph, px per frame.
        max_zoom: fastest zoom into or out of a photograph, relative change per frame.
    """

    clips: str
    photos: str = ""
    cache: str = ".cache/training"
    short_sides: tuple[int, ...] = (256, 400)
    frames_per_clip: int = 192
    photo_share: float = 0.3
    frames: int = 17
    crop: int = 128
    max_stride: int = 3
    dim_share: float = 0.15
    max_pan: float = 5.0
    max_zoom: float = 0.015


def list_files(folder: str, pictures: bool) -> list[Path]:
    """Pictures or everything else in `folder`, sorted.

    Raises:
        UsageError: the folder is missing or has no such file.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UsageError(f"Training folder {folder} does not exist; set it in the recipe's [data].")
    files = sorted(p for p in path.iterdir() if p.is_file() and (p.suffix.lower() in PICTURE_SUFFIXES) == pictures)
    if not files:
        raise UsageError(f"Training folder {folder} holds no {'pictures' if pictures else 'clips'}; set it in the recipe's [data].")
    return files


def _scaled(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Even size with the given short side, the aspect kept."""
    scale = short_side / min(width, height)
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)


def read_stretches(path: Path, size: tuple[int, int], frames: int) -> np.ndarray:
    """Up to `frames` frames at `size` (W, H): the whole clip, or three stretches spread over it.

    Returns:
        uint8 [n, H, W, 3].
    """
    info = probe(path)
    known = info.duration_seconds
    starts = [0.0]
    each = frames
    if known and known * float(info.frame_rate) > frames * 1.1:
        each = frames // 3
        last = known - (each + 2) / float(info.frame_rate)
        starts = [0.0, last / 2, last]
    out = []
    for start in starts:
        with VideoReader(path, start=start, max_frames=each, size=size) as reader:
            out.extend(frame.rgb for frame in reader)
    return np.stack(out)


def prepare(config: DataConfig, report) -> list[Path]:
    """Decode every clip at every size into the cache; what is there already is kept.

    Args:
        report: called with one line per decoded array.

    Returns:
        The arrays' paths, sorted.
    """
    cache = Path(config.cache)
    cache.mkdir(parents=True, exist_ok=True)
    arrays = []
    for clip in list_files(config.clips, pictures=False):
        try:
            info = probe(clip)
        except VideoError as error:
            report(f"skipped: {error}")
            continue
        for side in sorted({min(s, info.width, info.height) for s in config.short_sides}):
            target = cache / f"{clip.stem}@{side}x{config.frames_per_clip}.npy"
            if not target.exists():
                frames = read_stretches(clip, _scaled(info.width, info.height, side), config.frames_per_clip)
                part = target.with_suffix(".part.npy")
                np.save(part, frames)
                part.replace(target)
                report(f"decoded {target.name}: {len(frames)} frames of {frames.shape[2]}x{frames.shape[1]}")
            arrays.append(target)
    return sorted(arrays)


def read_picture(path: Path) -> np.ndarray:
    """One picture as uint8 [H, W, 3]."""
    with VideoReader(path, max_frames=1) as reader:
        return next(iter(reader)).rgb


def photo_pyramid(picture: np.ndarray, crop: int) -> list[Tensor]:
    """The photograph at full, 3/4 and 1/2 size where a crop still fits: uint8 (3, H, W) each."""
    full = torch.from_numpy(picture).permute(2, 0, 1)
    levels = [full]
    for scale in (0.75, 0.5):
        if min(full.shape[1:]) * scale >= crop + 8:
            small = F.interpolate(full[None].float(), scale_factor=scale, mode="bicubic", antialias=True)[0]
            levels.append(small.round().clamp(0, 255).byte())
    return levels


def moving_photo(photo: Tensor, config: DataConfig, rng: np.random.Generator) -> Tensor:
    """A window that pans and zooms over a still, sampled bicubically.

    Args:
        photo: float (3, H, W) in [0, 255].

    Returns:
        float (3, frames, crop, crop).
    """
    height, width = photo.shape[1:]
    steps = torch.arange(config.frames, dtype=torch.float32)
    still = rng.random() < 0.15
    speed = 0.0 if still else config.max_pan * rng.random() ** 2
    angle = rng.random() * 2 * np.pi
    zoom = 1.0 if still or rng.random() < 0.5 else 1.0 + config.max_zoom * (2 * rng.random() - 1)
    scale = zoom ** (steps - config.frames // 2)
    half = config.crop / 2
    x = rng.uniform(half, max(half, width - half)) + speed * np.cos(angle) * (steps - config.frames // 2)
    y = rng.uniform(half, max(half, height - half)) + speed * np.sin(angle) * (steps - config.frames // 2)
    if still or (speed and rng.random() < 0.3):  # whole pixels keep the photograph's own sharpness
        x, y, scale = x.round(), y.round(), torch.ones_like(scale)
    offset = torch.arange(config.crop, dtype=torch.float32) - half + 0.5
    gx = (x[:, None] + scale[:, None] * offset) * 2 / width - 1
    gy = (y[:, None] + scale[:, None] * offset) * 2 / height - 1
    shape = (config.frames, config.crop, config.crop)
    grid = torch.stack([gx[:, None, :].expand(shape), gy[:, :, None].expand(shape)], dim=-1)
    window = F.grid_sample(photo[None].expand(config.frames, -1, -1, -1), grid, mode="bicubic",
                           padding_mode="reflection", align_corners=False)
    return window.clamp(0, 255).permute(1, 0, 2, 3)


class WindowDataset(Dataset):
    """Window i is a pure function of (seed, i): (3, frames, crop, crop) float32 in [-1, 1].

    Memory: clips are memory-mapped, photographs are held (about 1.5 MB each at 512 px).
    """

    def __init__(self, config: DataConfig, arrays: list[Path], seed: int, length: int) -> None:
        self.config, self.seed, self.length = config, seed, length
        shapes = {path: np.load(path, mmap_mode="r").shape for path in arrays}
        fits = [p for p, s in shapes.items() if min(s[1:3]) >= config.crop and s[0] >= config.frames]
        if not fits:
            raise UsageError(f"No clip has {config.frames} frames of {config.crop} px; lower frames or crop in the recipe's [data].")
        self.clips: dict[str, list[Path]] = {}
        for path in fits:
            self.clips.setdefault(path.name.rsplit("@", 1)[0], []).append(path)
        self.names = sorted(self.clips)
        self.photos = [photo_pyramid(read_picture(p), config.crop) for p in list_files(config.photos, True)] if config.photos else []

    def __len__(self) -> int:
        return self.length

    def with_seed(self, seed: int) -> "WindowDataset":
        """The same clips and photographs in another order."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def fingerprint(self) -> str:
        """Changes when the clips, photographs or their sizes do; a resumed run must find the same."""
        names = [[p.name for p in self.clips[n]] for n in self.names]
        return hashlib.sha256(json.dumps([names, len(self.photos)]).encode()).hexdigest()[:16]

    def __getitem__(self, index: int) -> Tensor:
        config = self.config
        rng = np.random.default_rng((self.seed, index))
        if self.photos and rng.random() < config.photo_share:
            levels = self.photos[rng.integers(len(self.photos))]
            window = moving_photo(levels[rng.integers(len(levels))].float(), config, rng)
        else:
            window = self._clip_window(rng)
        if rng.random() < 0.5:
            window = window.flip(3)
        if rng.random() < 0.5:
            window = window.flip(1)
        if rng.random() < config.dim_share:
            window = window * float(rng.uniform(0.2, 1.0))
        return window / 127.5 - 1.0

    def _clip_window(self, rng: np.random.Generator) -> Tensor:
        config = self.config
        paths = self.clips[self.names[rng.integers(len(self.names))]]
        clip = np.load(paths[rng.integers(len(paths))], mmap_mode="r")
        strides = np.arange(1, config.max_stride + 1)
        strides = strides[(config.frames - 1) * strides < len(clip)]
        stride = int(rng.choice(strides, p=(1 / strides) / (1 / strides).sum()))
        t = rng.integers(len(clip) - (config.frames - 1) * stride)
        y = rng.integers(clip.shape[1] - config.crop + 1)
        x = rng.integers(clip.shape[2] - config.crop + 1)
        window = np.ascontiguousarray(clip[t : t + (config.frames - 1) * stride + 1 : stride, y : y + config.crop, x : x + config.crop])
        return torch.from_numpy(window).permute(3, 0, 1, 2).float()
