"""Do video latents keep the space of image latents? The measures behind `cvvae compat`.

With an image autoencoder (E_i, D_i), a video autoencoder (E_v, D_v) and a map psi from 1 + 4k frames to 1 + k:
how well D_i shows video latents, how well D_v shows image latents, both models' own quality beside them, how far the
two samples of latents lie apart, and what the decoder's lower Lipschitz constant says about that distance.
`docs/compatibility.md` has the argument. Encoders give posterior means here, unscaled. Windows go through the
networks whole, without tiles. Nothing here knows the command line or how to train.

Memory: one window's activations and latents; sums; the samples of `latent_statistics`.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.codec import to_bytes
from cvvae_cli.errors import DeviceError, UsageError
from cvvae_cli.geometry import SPATIAL_COMPRESSION_RATIO as CELL
from cvvae_cli.geometry import TEMPORAL_COMPRESSION_RATIO as STEP
from cvvae_cli.image_model import ImageModel
from cvvae_cli.latent_statistics import ChannelHistogram, LatentDistance, PairedLatents, channel_histograms, latent_distance
from cvvae_cli.layers import as_frames, from_frames
from cvvae_cli.metrics import frame_psnr
from cvvae_cli.training.regularisation import KeyframeMap, keyframe_map
from cvvae_cli.video_io import VideoReader, probe

MAPS: tuple[KeyframeMap, ...] = get_args(KeyframeMap)
PICTURES = "pictures"
JACOBIAN_CROPS, JACOBIAN_GRID, JACOBIAN_PATCH = 4, 8, 4
"""Crops of image latents, their cells, and the cells in their middle that are varied: borders matter less there."""
DIFFERENCE_STEP = 1e-4
"""Of central differences, latent units: what curvature and float64 rounding add is then around 1e-8 of the result."""
COLUMNS_AT_ONCE = 16
ROUNDING = 1e-6
"""Of secants, relative: a float32 difference of two pictures is no better."""


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
class LowerConstant:
    """A measured stand-in for the image decoder's lower Lipschitz constant m, and the bound that it gives.

    Attributes:
        source: how it was measured.
        m: pixel values in [-1, 1] (L2 norm) per latent unit (L2 norm).
        decoded: |D_i(E_v(x)) - D_i(E_i(psi(x)))| over m, root mean square per latent value; None where m is 0.
        bound: (sqrt(L_v) + sqrt(L_i)) / m per latent value; None where m is 0.
        verdict: "vacuous", the bound lies above the latents' own spread; "refuted", a pair of one moment has a smaller
            secant than m, so m is no lower constant; else "weak", true of these pairs but above their measured distance.
    """

    source: str
    m: float
    decoded: float | None
    bound: float | None
    verdict: str


@dataclass(frozen=True)
class LipschitzBound:
    """The bound on W2 between video and image latents beside what was measured; W2 here is that of the windows seen.

    "Per latent value": divided by the root of the number of values of a latent frame, so that sizes compare.

    Attributes:
        loss_video, loss_image: L_v and L_i, squared L2 distances to psi(x), pixels in [-1, 1], not clamped, summed over a
            frame, mean over frames.
        paired: root mean square of E_v(x) - E_i(psi(x)) per latent value, an upper bound of W2 itself.
        sliced_w2: at sampled positions, a lower bound of W2 per latent value (up to the sampling).
        spread: root mean square over channels of the image latents' standard deviation: the distance at which all
            video latents would lie if they were one and the same, the mean.
        constants: what m was measured as, with its bound.
    """

    loss_video: float
    loss_image: float
    paired: float
    sliced_w2: float
    spread: float
    constants: tuple[LowerConstant, ...]


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
            "distances": {name: distance.to_dict() for name, distance in self.distances.items()},
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
        self._bound = _BoundMeter(seed) if with_bound else None

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


class _BoundMeter:
    """Sums of squares and smallest secants over pairs of latents, and a few crops for the Jacobian."""

    def __init__(self, seed: int) -> None:
        self._frames = self._values = 0
        self._loss_video = self._loss_image = self._decoded = self._paired = 0.0
        self._secant_of_pairs = self._secant_of_images = math.inf
        self._before: tuple[Tensor, Tensor] | None = None
        self._generator = torch.Generator().manual_seed(seed)
        self._crops: list[tuple[float, Tensor]] = []

    def add(self, video: Tensor, image: Tensor, from_video: Tensor, from_image: Tensor, targets: Tensor) -> None:
        """Latents (N, z, h, w) of both encoders, what D_i makes of them and psi(x), (N, 3, 8h, 8w) each, all float32."""
        self._frames += len(video)
        self._values += video.numel()
        self._loss_video += _squares(from_video, targets).sum().item()
        self._loss_image += _squares(from_image, targets).sum().item()
        apart, decoded = _squares(video, image), _squares(from_video, from_image)
        self._paired += apart.sum().item()
        self._decoded += decoded.sum().item()
        self._secant_of_pairs = min(self._secant_of_pairs, _smallest_ratio(decoded, apart))
        for latents, pictures in self._partners(image, from_image):
            secant = _smallest_ratio(_squares(pictures, from_image), _squares(latents, image))
            self._secant_of_images = min(self._secant_of_images, secant)
        self._before = image, from_image
        for latent in image:
            self._offer_crop(latent)

    def _partners(self, latents: Tensor, pictures: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Other image latents for each: those of this window in every rotation, then those of the window before."""
        for shift in range(1, len(latents) // 2 + 1):
            yield latents.roll(shift, 0), pictures.roll(shift, 0)
        if self._before is not None and self._before[0].shape == latents.shape:
            for shift in range(len(latents)):
                yield self._before[0].roll(shift, 0), self._before[1].roll(shift, 0)

    def _offer_crop(self, latent: Tensor) -> None:
        """Draw a key and a place; the crops with the smallest keys stay, a uniform choice among all latent frames."""
        key, down, right = torch.rand(3, generator=self._generator).tolist()
        height, width = (min(size, JACOBIAN_GRID) for size in latent.shape[1:])
        top, left = int(down * (latent.shape[1] - height + 1)), int(right * (latent.shape[2] - width + 1))
        self._crops.append((key, latent[:, top : top + height, left : left + width].clone()))
        self._crops = sorted(self._crops, key=lambda crop: crop[0])[:JACOBIAN_CROPS]

    def result(self, image: ImageModel, spread: float, sliced_w2: float) -> LipschitzBound:
        """The bound with each measured m; this is where the Jacobians are computed."""
        exact = copy.deepcopy(image).double()
        with torch.inference_mode():
            local = [local_singular_values(exact.decode, crop)[-1].item() for _, crop in self._crops]
        measured = {
            "smallest secant, E_v(x) to E_i(psi(x))": self._secant_of_pairs,
            "smallest secant, image latents": self._secant_of_images,
            "smallest local singular value": min(local),
        }
        return LipschitzBound(
            loss_video=self._loss_video / self._frames,
            loss_image=self._loss_image / self._frames,
            paired=math.sqrt(self._paired / self._values),
            sliced_w2=sliced_w2,
            spread=spread,
            constants=tuple(self._constant(source, m, spread) for source, m in measured.items() if m < math.inf),
        )

    def _constant(self, source: str, m: float, spread: float) -> LowerConstant:
        if m == 0:
            return LowerConstant(source, m, None, None, "vacuous")
        bound = (math.sqrt(self._loss_video / self._values) + math.sqrt(self._loss_image / self._values)) / m
        verdict = judge(m, bound, spread, self._secant_of_pairs)
        return LowerConstant(source, m, math.sqrt(self._decoded / self._values) / m, bound, verdict)


def judge(m: float, bound: float, spread: float, secant_of_pairs: float) -> str:
    """The verdict of `LowerConstant` on a measured m."""
    if bound > spread:
        return "vacuous"
    return "refuted" if m > secant_of_pairs * (1 + ROUNDING) else "weak"


def local_singular_values(decode: Callable[[Tensor], Tensor], latent: Tensor) -> Tensor:
    """Singular values of a decoder's Jacobian at a latent, with respect to the cells in its middle.

    The whole Jacobian of those cells, by central differences in float64, because a smallest singular value is the last
    that an iteration finds. Varying more cells can only make it smaller.

    Args:
        decode: (N, z, h, w) float64 -> (N, 3, 8h, 8w), item by item, smooth.
        latent: (z, h, w), any floating dtype.

    Returns:
        (z n,) descending, for n = 4 x 4 cells or fewer: L2 norm of pixel values per latent unit.

    Memory: a column of 192 h w numbers for each, and `COLUMNS_AT_ONCE` windows of activations.
    """
    latent = latent.double()
    channels, height, width = latent.shape
    rows, columns = min(height, JACOBIAN_PATCH), min(width, JACOBIAN_PATCH)
    top, left = (height - rows) // 2, (width - columns) // 2
    units = torch.eye(channels * rows * columns, dtype=torch.float64, device=latent.device).view(-1, channels, rows, columns)
    units = F.pad(units, (left, width - left - columns, top, height - top - rows))
    jacobian = []
    for part in (DIFFERENCE_STEP * units).split(COLUMNS_AT_ONCE):
        jacobian.append((decode(latent + part) - decode(latent - part)).flatten(1) / (2 * DIFFERENCE_STEP))
    return torch.linalg.svdvals(torch.cat(jacobian))


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared L2 distance of each item of two batches, (N,), summed in float64."""
    return (a - b).square().flatten(1).sum(dim=1, dtype=torch.float64)


def _smallest_ratio(decoded: Tensor, apart: Tensor) -> float:
    """Smallest secant, from squared distances; infinite where no pair of latents differs."""
    different = apart > 0
    return math.inf if not different.any() else (decoded[different] / apart[different]).min().sqrt().item()
