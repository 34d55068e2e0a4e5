"""Training windows by number, several streams of them, and which numbers a step takes.

Window n of a stream is a function of (seed, n), and the windows of a step of (seed, step): not of workers, of the
number of devices, or of where a run was interrupted. This module knows no model and no loss.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Sampler

from cvvae_cli.errors import UsageError
from cvvae_cli.training.footage import Stretch, prepare
from cvvae_cli.training.streams import StreamConfig

_DIM_SHARE = 0.15
_DIM_RANGE = (0.2, 1.0)
_STILL_SHARE = 0.15
_ZOOM_SHARE = 0.5
_WHOLE_PIXEL_SHARE = 0.3
_STEP_DRAW = 1
"""Third seed of a step's stream; windows have none, which numpy takes as 0, so that the two are unrelated."""


def moving_photo(photo: Tensor, config: StreamConfig, rng: np.random.Generator) -> Tensor:
    """A window that pans and zooms over a still picture, sampled bicubically; beyond the borders it is mirrored.

    Args:
        photo: float (3, H, W) in [0, 255].
        config: gives frames, crop, max_pan and max_zoom.
        rng: draws the path.

    Returns:
        float (3, frames, crop, crop) in [0, 255].
    """
    height, width = photo.shape[1:]
    steps = torch.arange(config.frames, dtype=torch.float32) - config.frames // 2
    still = rng.random() < _STILL_SHARE
    speed = 0.0 if still else config.max_pan * rng.random() ** 2
    angle = rng.random() * 2 * np.pi
    zoom = 1.0 + config.max_zoom * (2 * rng.random() - 1) if not still and rng.random() < _ZOOM_SHARE else 1.0
    scale = zoom**steps
    half = config.crop / 2
    x = rng.uniform(half, max(half, width - half)) + speed * np.cos(angle) * steps
    y = rng.uniform(half, max(half, height - half)) + speed * np.sin(angle) * steps
    if still or rng.random() < _WHOLE_PIXEL_SHARE:  # whole pixels keep the photograph's own sharpness
        x, y, scale = x.round(), y.round(), torch.ones_like(scale)
    offset = torch.arange(config.crop, dtype=torch.float32) - half + 0.5
    grid_x = (x[:, None] + scale[:, None] * offset) * 2 / width - 1
    grid_y = (y[:, None] + scale[:, None] * offset) * 2 / height - 1
    shape = (config.frames, config.crop, config.crop)
    grid = torch.stack([grid_x[:, None, :].expand(shape), grid_y[:, :, None].expand(shape)], dim=-1)
    window = F.grid_sample(
        photo[None].expand(config.frames, -1, -1, -1), grid, mode="bicubic", padding_mode="reflection", align_corners=False
    )
    return window.clamp(0, 255).permute(1, 0, 2, 3)


class WindowStream:
    """The windows of one stream, by number.

    Attributes:
        config: what it reads and how it cuts.
        seed: of the order.
        clips: the files that can be used.

    Memory: holds no pixels; without a cache a window costs the decoding of all frames since the key frame before it.
    """

    def __init__(self, config: StreamConfig, seed: int, report: Callable[[str], None]) -> None:
        """
        Args:
            config: the stream.
            seed: 0 or more.
            report: called with one sentence for each file that is left out and each array that is made.

        Raises:
            UsageError: a source is wrong, or no file can be used.
            OutputError: the cache cannot be written.
        """
        self.config, self.seed = config, seed
        self.clips = prepare(config, report)

    def with_seed(self, seed: int) -> "WindowStream":
        """The same files in another order: windows that this stream does not give under the same numbers."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def fingerprint(self) -> str:
        """16 hex digits that change when the usable files, their content, or the sizes and stretches read of them do."""
        span = self.config.frames_read
        seen = [[clip.digest, [[(s.frames, s.places(span), s.size) for s in size] for size in clip.sizes]] for clip in self.clips]
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]

    def window(self, number: int) -> Tensor:
        """Window `number`, 0 or more: float32 (3, frames, crop, crop) in [-1, 1].

        Raises:
            VideoError: a file can no longer be read.
        """
        rng = np.random.default_rng((self.seed, number))
        clip = self.clips[rng.integers(len(self.clips))]
        stretches = clip.sizes[rng.integers(len(clip.sizes))]
        stretch = stretches[rng.integers(len(stretches))]
        if self.config.kind == "motion":
            photo = torch.from_numpy(stretch.read(range(1), slice(None), slice(None))[0])
            pixels = moving_photo(photo.permute(2, 0, 1).float(), self.config, rng)
        else:
            pixels = self._cut(stretch, rng)
        return self._augment(pixels, rng) / 127.5 - 1.0

    def _cut(self, stretch: Stretch, rng: np.random.Generator) -> Tensor:
        """Frames at one stride from one place: float (3, frames, crop, crop) in [0, 255]."""
        steps, crop = self.config.frames - 1, self.config.crop
        strides = np.arange(1, self.config.max_stride + 1)
        strides = strides[steps * strides < stretch.frames]
        stride = int(rng.choice(strides, p=(1 / strides) / (1 / strides).sum()))
        span = steps * stride + 1
        first = int(rng.integers(stretch.places(span)))
        width, height = stretch.size
        top, left = int(rng.integers(height - crop + 1)), int(rng.integers(width - crop + 1))
        frames = stretch.read(range(first, first + span, stride), slice(top, top + crop), slice(left, left + crop))
        return torch.from_numpy(frames).permute(3, 0, 1, 2).float()

    def _augment(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        named = self.config.augment
        if "flip" in named and rng.random() < 0.5:
            pixels = pixels.flip(3)
        if "reverse" in named and rng.random() < 0.5:
            pixels = pixels.flip(1)
        if "dim" in named and rng.random() < _DIM_SHARE:
            pixels = pixels * float(rng.uniform(*_DIM_RANGE))
        return pixels.contiguous()


class MixedWindows(Dataset):
    """Several streams as one map from (stream, number) to a window, for a `DataLoader` with a `StepSampler`."""

    def __init__(self, streams: Sequence[WindowStream]) -> None:
        """
        Args:
            streams: in the order of the sampler's shares.
        """
        self.streams = list(streams)

    def __getitem__(self, place: tuple[int, int]) -> Tensor:
        """One window: float32 (3, frames, crop, crop) in [-1, 1].

        Args:
            place: which stream and which number in it.
        """
        stream, number = place
        return self.streams[stream].window(number)

    def __getitems__(self, step: tuple[int, list[int]]) -> list[Tensor]:
        """The windows of one step, as a `DataLoader` asks for them.

        Args:
            step: which stream and which numbers in it.
        """
        stream, numbers = step
        return [self[stream, number] for number in numbers]


class StepSampler(Sampler[tuple[int, list[int]]]):
    """Which windows each step takes on one device: a batch sampler.

    A step takes all its windows from one stream, drawn from (seed, step) by the shares. With batch b it takes the
    stream's numbers step * b .. step * b + b - 1, each device its part in turn, so that the devices together take
    the same windows however many there are, and no window comes twice.
    """

    def __init__(
        self, shares: Sequence[tuple[float, int]], seed: int, first_step: int, last_step: int, rank: int = 0, world_size: int = 1
    ) -> None:
        """
        Args:
            shares: for each stream its share of the steps, above 0 (only their ratios count), and its batch, the
                windows per step over all devices.
            seed: 0 or more.
            first_step: the step to begin with, 0 or more.
            last_step: one past the step to end with.
            rank: this device's number, 0 .. world_size - 1.
            world_size: how many devices there are.

        Raises:
            UsageError: a batch cannot be split evenly.
        """
        for number, (_, batch) in enumerate(shares, 1):
            if batch % world_size:
                raise UsageError(
                    f"Batch {batch} of stream {number} cannot be split evenly over {world_size} devices; "
                    f"use {-(-batch // world_size) * world_size}."
                )
        self._limits = np.cumsum([share for share, _ in shares])
        self._batches, self._seed = [batch for _, batch in shares], seed
        self._first_step, self._last_step = first_step, last_step
        self._rank, self._world_size = rank, world_size

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        """Yields for every step its stream and this device's numbers in it."""
        for step in range(self._first_step, self._last_step):
            stream = self._stream_of(step)
            batch = self._batches[stream]
            own = batch // self._world_size
            begin = step * batch + self._rank * own
            yield stream, list(range(begin, begin + own))

    def __len__(self) -> int:
        return max(0, self._last_step - self._first_step)

    def _stream_of(self, step: int) -> int:
        draw = np.random.default_rng((self._seed, step, _STEP_DRAW)).random() * self._limits[-1]
        return int(np.searchsorted(self._limits[:-1], draw, side="right"))
