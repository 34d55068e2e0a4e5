"""Video latents and the image latents of the same moments, as summaries that `latent_statistics` can compare.

Each window goes to one of two halves, so that the image latents can be held against themselves. Moments and
covariances are exact sums over everything seen; positions are a uniform sample, the same ones on both sides.
This module knows tensors: no model, no video, no file.

Memory: 16 z x 16 z numbers per half and side, and `SAMPLED_POSITIONS` x 2 z for the sample, however much is added.
"""

from typing import Literal

import torch
from torch import Tensor

from cvvae_cli.errors import UsageError
from cvvae_cli.latent_statistics import ChannelMoments, FeatureMoments, LatentSummary, pooled_features

SAMPLED_POSITIONS = 32_768

Side = Literal["video", "image"]


class PositionSample:
    """A uniform sample without replacement of rows that come in any number.

    Every row draws a random key and the rows with the smallest keys stay.
    """

    def __init__(self, width: int, capacity: int, seed: int) -> None:
        """
        Args:
            width: numbers per row.
            capacity: rows to keep, >= 1.
            seed: fixes which.
        """
        self._capacity = capacity
        self._generator = torch.Generator().manual_seed(seed)
        self._keys = torch.empty(0, dtype=torch.float64)
        self.rows = torch.empty(0, width)

    def add(self, rows: Tensor) -> None:
        """Offer rows (n, width), floating, on any device."""
        keys = torch.rand(len(rows), generator=self._generator, dtype=torch.float64)
        if len(self._keys) == self._capacity:  # most rows have no chance, and need not leave their device
            chosen = keys < self._keys.max()
            keys, rows = keys[chosen], rows[chosen.to(rows.device)]
        self._keys = torch.cat([self._keys, keys])
        self.rows = torch.cat([self.rows, rows.float().cpu()])
        if len(self._keys) > self._capacity:
            self._keys, kept = self._keys.topk(self._capacity, largest=False)
            self.rows = self.rows[kept]


class PairedLatents:
    """Collects video latents and the image latents of the same moments.

    Windows go to half 0 and half 1 in turn, so a distance between the halves of one side shows what different
    content alone makes of it.

    Attributes:
        windows: added so far.
    """

    def __init__(self, channels: int, seed: int = 0, capacity: int = SAMPLED_POSITIONS) -> None:
        """
        Args:
            channels: z.
            seed: fixes the sampled positions.
            capacity: positions to sample, of both halves together.
        """
        self.windows = 0
        self._channels = channels
        self._moments: dict[tuple[Side, int], ChannelMoments] = {}
        self._features: dict[tuple[Side, int], FeatureMoments] = {}
        self._sample = PositionSample(2 * channels + 1, capacity, seed)

    def add(self, video: Tensor, image: Tensor) -> None:
        """Add a window.

        Args:
            video, image: (N, z, h, w) latent frames of the same N moments, floating, on one device.
        """
        assert video.shape == image.shape and video.shape[1] == self._channels
        half = self.windows % 2
        rows = {"video": _by_position(video), "image": _by_position(image)}
        for side, latents in (("video", video), ("image", image)):
            moments, features = ChannelMoments.of(rows[side]), FeatureMoments.of(pooled_features(latents))
            key = side, half
            self._moments[key] = self._moments[key] + moments if key in self._moments else moments
            self._features[key] = self._features[key] + features if key in self._features else features
        flag = rows["video"].new_full((len(rows["video"]), 1), half)
        self._sample.add(torch.cat([rows["video"], rows["image"], flag], dim=1))
        self.windows += 1

    def summary(self, side: Side, half: int | None = None) -> LatentSummary:
        """One side, whole or one half of it.

        Raises:
            UsageError: no window was added to it.
        """
        halves = [i for i in (0, 1) if half in (None, i) and (side, i) in self._moments]
        if not halves:
            raise UsageError("There are no latents to compare; add a window first (two for a comparison of halves).")
        moments, features = ([table[side, i] for i in halves] for table in (self._moments, self._features))
        rows = self._sample.rows if half is None else self._sample.rows[self._sample.rows[:, -1] == half]
        first = 0 if side == "video" else self._channels
        positions = rows[:, first : first + self._channels]
        return LatentSummary(sum(moments[1:], moments[0]), sum(features[1:], features[0]), positions)


def _by_position(latents: Tensor) -> Tensor:
    """(N, z, h, w) -> (N h w, z)."""
    return latents.movedim(1, -1).flatten(0, 2)
