"""Windows of clips for measuring: consecutive, cut from the centre, always the same.

A plan says how a clip's frames are resized and cropped, before anything is decoded; reading then gives one window after
the other. Nothing here is random, and nothing knows a model or a measure; windows for training are `training.windows`.

Memory: one window's frames.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cvvae_cli.errors import UsageError
from cvvae_cli.geometry import SPATIAL_COMPRESSION_RATIO as CELL
from cvvae_cli.geometry import TEMPORAL_COMPRESSION_RATIO as STEP
from cvvae_cli.video_io import VideoReader, probe


@dataclass(frozen=True)
class WindowConfig:
    """How clips are cut.

    Attributes:
        frames: per window, 1 + 4k.
        short_side: frames are resized to this short side, pixels; smaller ones are not enlarged. None keeps their size.
        crop: side of the centre square, pixels, a multiple of 8. None keeps whole frames, up to multiples of 8 (centre).
        max_windows: of each clip, from its beginning; None is all.
    """

    frames: int = 17
    short_side: int | None = None
    crop: int | None = None
    max_windows: int | None = None

    def __post_init__(self) -> None:
        if self.frames < 1 or self.frames % STEP != 1:
            raise UsageError(f"{self.frames} frames are not 1 + 4k; pass --frames 17.")
        if self.short_side is not None and self.short_side < CELL:
            raise UsageError(f"Short side {self.short_side} px must be at least {CELL}; pass for example --size 256.")
        if self.crop is not None and (self.crop < CELL or self.crop % CELL):
            nearest = max(CELL, self.crop // CELL * CELL)
            raise UsageError(f"Crop {self.crop} px must be a multiple of {CELL}; pass --crop {nearest}.")
        if self.max_windows is not None and self.max_windows < 1:
            raise UsageError(f"At most {self.max_windows} windows of a clip leave nothing; pass --max-windows 1 or more.")


@dataclass(frozen=True)
class Clip:
    """A file and how its frames are cut.

    Attributes:
        path: the video or picture.
        size: (width, height) that frames are resized to, pixels.
        region: (left, top, width, height) of what is kept of them, pixels.
        num_windows: how many its header lets expect, at least 1; None where it says nothing.
    """

    path: Path
    size: tuple[int, int]
    region: tuple[int, int, int, int]
    num_windows: int | None


def plan_clip(path: str | Path, config: WindowConfig) -> Clip:
    """Look at a clip and place its windows.

    Raises:
        VideoError: it cannot be read.
        UsageError: its frames are smaller than a crop or a cell.
    """
    info = probe(path)
    short = min(info.width, info.height)
    scale = min(1.0, (config.short_side or short) / short)
    width, height = max(1, round(info.width * scale)), max(1, round(info.height * scale))
    kept_width, kept_height = (config.crop or side // CELL * CELL for side in (width, height))
    if not 0 < kept_width <= width or not 0 < kept_height <= height:
        need = f"the {config.crop} px of --crop" if config.crop else f"one cell of {CELL} px"
        raise UsageError(f"Frames of {path} are {width}x{height} px, smaller than {need}; leave the clip out or cut less.")
    region = (width - kept_width) // 2, (height - kept_height) // 2, kept_width, kept_height
    count = None if info.num_frames is None else max(1, info.num_frames // config.frames)
    if config.max_windows is not None:
        count = min(config.max_windows, count or config.max_windows)
    return Clip(Path(path), (width, height), region, count)


def read_windows(clip: Clip, config: WindowConfig) -> Iterator[Tensor]:
    """Consecutive windows of a clip without overlap; frames behind the last whole one are left out.

    Yields:
        (1, 3, T, H, W) float32 in [-1, 1], on the CPU; T as configured, but 1 + 4k frames, as many as there are, where
        the whole clip is shorter.

    Raises:
        VideoError: reading fails.
    """
    left, top, width, height = clip.region
    frames: list[np.ndarray] = []
    given = 0
    with VideoReader(clip.path, size=clip.size) as reader:
        for frame in reader:
            frames.append(frame.rgb[top : top + height, left : left + width])
            if len(frames) == config.frames:
                yield _as_window(frames)
                frames, given = [], given + 1
                if given == config.max_windows:
                    return
    if not given:
        yield _as_window(frames[: 1 + (len(frames) - 1) // STEP * STEP])


def _as_window(frames: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
