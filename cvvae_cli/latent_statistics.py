"""How far two samples of latents lie apart: channel moments, Frechet distance, sliced Wasserstein distance, histograms.

Moments and covariances are sums in float64, so that samples can be joined; what needs sorting or binning (sliced
Wasserstein, histograms) takes the values themselves. `paired_latents` collects both from windows. This module knows
tensors: no model, no video, no file.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

POOLED_GRID = 4
DIRECTIONS = 128
BINS = 64
OUTSIDE = 0.001
"""Share of a channel's values, at either end, that a histogram counts in its outermost bins."""


@dataclass(frozen=True)
class ChannelMoments:
    """Sums that give mean, standard deviation and skew of each channel; `+` joins two samples.

    Attributes:
        count: values per channel.
        mean: (C,) float64.
        square, cube: (C,) float64, sums of the second and third powers of the deviations from the mean.
    """

    count: int
    mean: Tensor
    square: Tensor
    cube: Tensor

    @staticmethod
    def of(values: Tensor) -> "ChannelMoments":
        """Of a sample (N, C), N >= 1, any floating dtype, on any device."""
        values = values.double()
        mean = values.mean(dim=0)
        deviation = values - mean
        square = deviation.square()
        return ChannelMoments(len(values), mean.cpu(), square.sum(dim=0).cpu(), (square * deviation).sum(dim=0).cpu())

    def __add__(self, other: "ChannelMoments") -> "ChannelMoments":
        # Source: Pebay, "Formulas for robust, one-pass parallel computation of covariances", 2008.
        a, b, n = self.count, other.count, self.count + other.count
        gap = other.mean - self.mean
        square = self.square + other.square + gap.square() * (a * b / n)
        cube = self.cube + other.cube + gap**3 * (a * b * (a - b) / n**2) + 3 * gap * (a * other.square - b * self.square) / n
        return ChannelMoments(n, self.mean + gap * (b / n), square, cube)

    @property
    def std(self) -> Tensor:
        """Population standard deviation, (C,)."""
        return (self.square / self.count).sqrt()

    @property
    def skew(self) -> Tensor:
        """Third standardised moment, (C,); 0 for a constant channel."""
        constant = self.square == 0
        return torch.where(constant, 0.0, self.cube / self.count / torch.where(constant, 1.0, self.std**3))


@dataclass(frozen=True)
class FeatureMoments:
    """Mean and scatter of vectors; `+` joins two samples.

    Attributes:
        count: vectors.
        mean: (d,) float64.
        scatter: (d, d) float64, sum of the outer products of the deviations from the mean.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @staticmethod
    def of(features: Tensor) -> "FeatureMoments":
        """Of a sample (N, d), N >= 1."""
        features = features.double()
        mean = features.mean(dim=0)
        deviation = features - mean
        return FeatureMoments(len(features), mean.cpu(), (deviation.T @ deviation).cpu())

    def __add__(self, other: "FeatureMoments") -> "FeatureMoments":
        n = self.count + other.count
        gap = other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(gap, gap) * (self.count * other.count / n)
        return FeatureMoments(n, self.mean + gap * (other.count / n), scatter)

    @property
    def covariance(self) -> Tensor:
        """(d, d), divided by count - 1; zero for a single vector."""
        return self.scatter / max(self.count - 1, 1)


def pooled_features(latents: Tensor) -> Tensor:
    """What the Frechet distance compares: each latent frame averaged over a 4 x 4 grid and flattened.

    Args:
        latents: (N, z, h, w), one latent frame each. Cells of the grid overlap where 4 does not divide h or w, and
            repeat where h or w is below 4.

    Returns:
        (N, 16 z) float64.
    """
    return F.adaptive_avg_pool2d(latents.double(), POOLED_GRID).flatten(1)


def frechet_distance(a: FeatureMoments, b: FeatureMoments) -> float:
    """Squared 2-Wasserstein distance of two Gaussians with these means and covariances.

    |m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), matrix roots by eigenvalues in float64, where rounding below zero
    counts as zero. Nothing is added to the diagonals: a root of a singular matrix needs no help. With no more vectors
    than dimensions the covariances are singular and the value is biased upwards; compare equal counts only.

    Returns:
        Squared latent units, 0 or more.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    inner = root @ b.covariance @ root
    cross = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(0.0, distance.item())


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = DIRECTIONS, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance of two samples: root mean square, over directions, of the one along each.

    Directions come in random orthonormal bases, as many whole ones as hold `directions`. Each direction is uniform on
    the sphere, and because the squares along a basis add up to the whole, the value never exceeds the root mean
    square difference per channel of any pairing of the two samples, not even by chance. Along a direction the
    distance is exact: both sorted samples are read as quantile functions, also where their sizes differ.

    Args:
        a, b: (N, C) and (M, C), N and M >= 1.
        directions: at least so many, >= 1.
        seed: fixes them.

    Returns:
        Latent units, 0 or more.
    """
    channels = a.shape[1]
    generator = torch.Generator().manual_seed(seed)
    from_a, from_b, share = _common_quantiles(len(a), len(b))
    a, b = a.double().cpu(), b.double().cpu()
    bases = math.ceil(directions / channels)
    total = 0.0
    for _ in range(bases):
        basis = torch.linalg.qr(torch.randn(channels, channels, generator=generator, dtype=torch.float64)).Q
        gap = (a @ basis).sort(dim=0).values[from_a] - (b @ basis).sort(dim=0).values[from_b]
        total += (share @ gap.square()).mean().item()
    return math.sqrt(total / bases)


def _common_quantiles(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where two step functions with n and m equal steps are both constant: the step of each, and the share of [0, 1]."""
    # In units of 1 / (n m) every step ends at a whole number, so nothing is rounded.
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    widths = torch.diff(ends, prepend=ends.new_zeros(1))
    return (ends - 1) // m, (ends - 1) // n, widths.double() / (n * m)


@dataclass(frozen=True)
class ChannelHistogram:
    """One channel of two samples in the same bins.

    Attributes:
        edges: (bins + 1,) rising, latent units.
        video, image: (bins,) shares of the sample, which sum to 1.
    """

    edges: Tensor
    video: Tensor
    image: Tensor


def channel_histograms(video: Tensor, image: Tensor, bins: int = BINS) -> list[ChannelHistogram]:
    """Bin each channel of two samples (N, C) and (M, C) from the 0.1 % to the 99.9 % quantile of the wider one.

    Values outside are counted in the outermost bins.
    """
    ends = torch.tensor([OUTSIDE, 1 - OUTSIDE], dtype=torch.float64)
    video, image = video.double().cpu(), image.double().cpu()
    ranges = torch.stack([sample.quantile(ends, dim=0) for sample in (video, image)])
    histograms = []
    for channel in range(video.shape[1]):
        low, high = ranges[:, 0, channel].min().item(), ranges[:, 1, channel].max().item()
        if low == high:  # a constant channel still gets a bin to be in
            low, high = low - 0.5, high + 0.5
        shares = [_shares(sample[:, channel], low, high, bins) for sample in (video, image)]
        histograms.append(ChannelHistogram(torch.linspace(low, high, bins + 1, dtype=torch.float64), *shares))
    return histograms


def _shares(values: Tensor, low: float, high: float, bins: int) -> Tensor:
    return torch.histc(values.clamp(low, high), bins, low, high) / len(values)


@dataclass(frozen=True)
class LatentSummary:
    """What a sample of latents leaves behind.

    Attributes:
        moments: of the channels, over all positions.
        features: of the pooled latent frames.
        positions: (n, z) float32, channel vectors at a uniform sample of the positions.
    """

    moments: ChannelMoments
    features: FeatureMoments
    positions: Tensor


@dataclass(frozen=True)
class LatentDistance:
    """How far one sample lies from another, the reference.

    Attributes:
        frechet: of the pooled features, squared latent units.
        sliced_w2: of the channel vectors at sampled positions, latent units.
        mean_gap: root mean square over channels of the means' difference, in standard deviations of the reference.
        std_gap: root mean square over channels of the standard deviations' ratio less 1.
        skew_gap: root mean square over channels of the skews' difference.
        features: numbers per pooled latent frame, 16 z.
        frames, reference_frames: latent frames pooled.
        positions, reference_positions: channel vectors sampled.
    """

    frechet: float
    sliced_w2: float
    mean_gap: float
    std_gap: float
    skew_gap: float
    features: int
    frames: int
    reference_frames: int
    positions: int
    reference_positions: int


def latent_distance(sample: LatentSummary, reference: LatentSummary, seed: int = 0) -> LatentDistance:
    """All distances at once; `seed` fixes the directions. A constant reference channel counts as one of deviation 1e-12."""
    ours, theirs = sample.moments, reference.moments
    unit = theirs.std.clamp_min(1e-12)
    return LatentDistance(
        frechet=frechet_distance(sample.features, reference.features),
        sliced_w2=sliced_wasserstein(sample.positions, reference.positions, seed=seed),
        mean_gap=_rms((ours.mean - theirs.mean) / unit),
        std_gap=_rms((ours.std - theirs.std) / unit),
        skew_gap=_rms(ours.skew - theirs.skew),
        features=len(sample.features.mean),
        frames=sample.features.count,
        reference_frames=reference.features.count,
        positions=len(sample.positions),
        reference_positions=len(reference.positions),
    )


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()
