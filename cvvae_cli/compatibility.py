"""Do video latents keep the space of image latents? The measures behind `cvvae compat`.

With an image autoencoder (E_i, D_i), a video autoencoder (E_v, D_v) and a map psi from 1 + 4k frames to 1 + k:
how well D_i shows video latents, how well D_v shows image latents, both models' own quality beside them, how far the
two samples of latents lie apart, and what the decoder's lower Lipschitz constant says about that distance.
`docs/compatibility.md` has the argument. Encoders give posterior means here, unscaled. Windows go through the
networks whole, without tiles. Nothing here knows files, the command line or how to train.

Memory: one window's activations and latents; sums; what `paired_latents` and `lipschitz_bound` keep.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.codec import to_bytes
from cvvae_cli.errors import DeviceError, UsageError
from cvvae_cli.image_model import ImageModel
from cvvae_cli.latent_statistics import ChannelHistogram, LatentDistance, channel_histograms, latent_distance
from cvvae_cli.layers import as_frames, from_frames
from cvvae_cli.lipschitz_bound import BoundMeter, LipschitzBound
from cvvae_cli.metrics import frame_psnr
from cvvae_cli.paired_latents import PairedLatents
from cvvae_cli.training.regularisation import KeyframeMap, keyframe_map

MAPS: tuple[KeyframeMap, ...] = get_args(KeyframeMap)
PICTURES = "pictures"


@dataclass(frozen=True)
class Psnr:
    """Attributes:
    mean_db: mean over clips of the mean over a clip's frames, 8-bit RGB, dB.
    standard_error_db: of that mean, from the scatter of the clips; None for a single clip.
    clips: how many.
    """

    mean_db: float
    standard_error_db: float | None
    clips: int


@dataclass(frozen=True)
class PsnrRow:
    """One map, or pictures alone (the first frame of every window, as a window of one frame).

    Attributes:
        image_of_video: D_i(E_v(x)) against psi(x): video latents in the image decoder.
        image_own: D_i(E_i(psi(x))) against psi(x): what that decoder makes of its own latents.
        video_of_image: D_v(E_i(psi(x))) against x: image latents in the video decoder.
        video_own: D_v(E_v(x)) against x.
    """

    image_of_video: Psnr
    image_own: Psnr
    video_of_image: Psnr
    video_own: Psnr


@dataclass(frozen=True)
class Compatibility:
    """What was measured.

    Attributes:
        psnr: a row for pictures, and one for each map where a window had more than one frame.
        distances: from the image latents, by name: "same windows" (all video latents), and where there are two windows
            "other half" (video latents of one half of the windows against image latents of the other) and "zero line"
            (image latents of the one half against those of the other).
        channels: for "video" and "image": mean, std, skew of each latent channel.
        histograms: one per latent channel.
        bound: None where it was not asked for.
        windows, latent_frames: how many.
    """

    psnr: dict[str, PsnrRow]
    distances: dict[str, LatentDistance]
    channels: dict[str, dict[str, list[float]]]
    histograms: list[ChannelHistogram]
    bound: LipschitzBound | None
    windows: int
    latent_frames: int

    def to_dict(self) -> dict:
        """A JSON-ready dictionary, without the histograms."""
        return {
            "windows": self.windows, "latent_frames": self.latent_frames,
            "psnr": {name: asdict(row) for name, row in self.psnr.items()},
            "distances": {name: asdict(distance) for name, distance in self.distances.items()},
            "channels": self.channels,
            "bound": None if self.bound is None else asdict(self.bound),
        }  # fmt: skip


class CompatibilityMeter:
    """Takes windows and sums up how compatible a video autoencoder is with an image autoencoder.

    Every frame counts once in PSNR and every window once in the latents' statistics, which use one map.
    """

    def __init__(
        self, image: ImageModel, video: Autoencoder, kind: KeyframeMap = "random", seed: int = 0, with_bound: bool = False
    ) -> None:
        """
        Args:
            image: E_i and D_i, on the device of `video`.
            video: E_v and D_v.
            kind: the map of the latents' distances and of the bound; PSNR gets all four.
            seed: fixes the draws of the random map, the sampled positions and directions, and the crops of the Jacobian.
            with_bound: measure the decoder's lower constants too.

        Raises:
            UsageError: their latents differ in channels.
        """
        if image.latent_channels != video.latent_channels:
            channels = f"has {image.latent_channels} latent channels and the video model {video.latent_channels}"
            raise UsageError(f"The image model {channels}; pass a pair with as many.")
        self._image, self._video, self._kind, self._seed = image, video, kind, seed
        self._generator = torch.Generator().manual_seed(seed)
        self._rows: dict[str, list[_ClipMeans]] = {}
        self._latents = PairedLatents(video.latent_channels, seed)
        self._bound = BoundMeter(seed) if with_bound else None

    def add(self, x: Tensor, clip: str = "") -> None:
        """Measure one batch of windows.

        Args:
            x: (B, 3, 1 + 4k, H, W) floating in [-1, 1], on any device; H and W multiples of 8. With k = 0 it is pictures,
                for which every map is the identity.
            clip: what it was cut from; standard errors come from the scatter of clips.

        Raises:
            UsageError: the shape breaks one of these rules.
            DeviceError: the device's memory does not hold a window.
        """
        x = x.to(self._video.device).float()
        is_video = x.shape[2] > 1
        try:
            with torch.inference_mode():
                pictures = x[:, :, :1]
                self._compare(PICTURES, clip, self._look_at(pictures), pictures, counts=not is_video)
                if is_video:
                    ours = self._look_at(x)
                    for kind in MAPS:
                        self._compare(kind, clip, ours, keyframe_map(x, kind, self._generator), counts=kind == self._kind)
        except torch.OutOfMemoryError as error:
            size = f"{x.shape[4]}x{x.shape[3]}"
            raise DeviceError(f"Device {x.device} ran out of memory on a window of {size} px; pass --size or --crop.") from error

    def _look_at(self, x: Tensor) -> "_VideoSide":
        latents = self._video.encode(x).chunk(2, dim=1)[0]
        source = _bytes_of(x)
        own = _frame_psnrs(source, _bytes_of(self._video.decode(latents)))
        return _VideoSide(source, latents, own, _per_frame(self._image.decode, latents))

    def _compare(self, row: str, clip: str, ours: "_VideoSide", targets: Tensor, counts: bool) -> None:
        latents = _per_frame(self._image.encode, targets)
        pictures = _per_frame(self._image.decode, latents)
        keyframes = _bytes_of(targets)
        figures = (
            _frame_psnrs(keyframes, _bytes_of(ours.pictures)),
            _frame_psnrs(keyframes, _bytes_of(pictures)),
            _frame_psnrs(ours.source, _bytes_of(self._video.decode(latents))),
            ours.own,
        )
        for means, values in zip(self._rows.setdefault(row, [_ClipMeans() for _ in figures]), figures):
            means.add(clip, values)
        if counts:
            self._latents.add(as_frames(ours.latents), as_frames(latents))
            if self._bound is not None:
                self._bound.add(*(as_frames(t).float() for t in (ours.latents, latents, ours.pictures, pictures, targets)))

    def result(self) -> Compatibility:
        """What all windows so far gave; more may be added afterwards.

        Raises:
            UsageError: there was none.
        """
        video, image = self._latents.summary("video"), self._latents.summary("image")
        distances = {"same windows": latent_distance(video, image, self._seed)}
        if self._latents.windows > 1:
            first, second = self._latents.summary("image", 0), self._latents.summary("image", 1)
            distances["other half"] = latent_distance(self._latents.summary("video", 0), second, self._seed)
            distances["zero line"] = latent_distance(first, second, self._seed)
        channels = {
            name: {"mean": part.moments.mean.tolist(), "std": part.moments.std.tolist(), "skew": part.moments.skew.tolist()}
            for name, part in (("video", video), ("image", image))
        }
        spread = image.moments.std.square().mean().sqrt().item()
        return Compatibility(
            psnr={name: PsnrRow(*(means.psnr() for means in row)) for name, row in self._rows.items()},
            distances=distances,
            channels=channels,
            histograms=channel_histograms(video.positions, image.positions),
            bound=None if self._bound is None else self._bound.result(self._image, spread, distances["same windows"].sliced_w2),
            windows=self._latents.windows,
            latent_frames=video.features.count,
        )


@dataclass(frozen=True)
class _VideoSide:
    """What the video autoencoder makes of a window: its frames as bytes, E_v(x), PSNR of D_v(E_v(x)), D_i(E_v(x))."""

    source: list[np.ndarray]
    latents: Tensor
    own: list[float]
    pictures: Tensor


class _ClipMeans:
    """Means of each clip's frames."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, clip: str, values: list[float]) -> None:
        total, count = self._sums.get(clip, (0.0, 0))
        self._sums[clip] = total + math.fsum(values), count + len(values)

    def psnr(self) -> Psnr:
        means = np.array([total / count for total, count in self._sums.values()])
        error = None if len(means) == 1 else float(means.std(ddof=1) / math.sqrt(len(means)))
        return Psnr(float(means.mean()), error, len(means))


def _per_frame(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """An image network on every frame of (B, C, T, H, W)."""
    return from_frames(network(as_frames(x)), len(x))


def _bytes_of(x: Tensor) -> list[np.ndarray]:
    """(B, 3, T, H, W) in [-1, 1] as 8-bit frames [H, W, 3]; bfloat16 could not even count to 255."""
    return list(to_bytes(x.float()).permute(0, 2, 3, 4, 1).flatten(0, 1).numpy())


def _frame_psnrs(a: list[np.ndarray], b: list[np.ndarray]) -> list[float]:
    return [frame_psnr(x, y) for x, y in zip(a, b, strict=True)]
