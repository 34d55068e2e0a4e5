"""Distances between latents against closed forms, scipy and slow references in float64."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.linalg import sqrtm

from cvvae_cli.latent_statistics import (
    ChannelMoments,
    FeatureMoments,
    LatentSummary,
    channel_histograms,
    frechet_distance,
    latent_distance,
    pooled_features,
    sliced_wasserstein,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_moments_agree_with_scipy_however_the_sample_is_cut():
    values = normal(200, 3).exp() * torch.tensor([1.0, 0.1, 30.0]) + torch.tensor([0.0, 100.0, -5.0])
    parts = [ChannelMoments.of(part) for part in values.split([1, 120, 79])]
    for moments in (ChannelMoments.of(values), parts[0] + parts[1] + parts[2], parts[2] + parts[0] + parts[1]):
        assert moments.count == 200
        torch.testing.assert_close(moments.mean, values.mean(dim=0))
        torch.testing.assert_close(moments.std, values.std(dim=0, correction=0))
        np.testing.assert_allclose(moments.skew.numpy(), stats.skew(values.numpy()), rtol=1e-9)


def test_moments_of_half_precision_are_summed_in_float64():
    values = torch.tensor([[2.0], [2.015625]], dtype=torch.bfloat16).repeat(5000, 1)
    moments = ChannelMoments.of(values)
    assert moments.mean.item() == 2.0078125
    assert moments.std.item() == 0.0078125


def test_a_constant_channel_has_no_skew():
    moments = ChannelMoments.of(torch.tensor([[3.0, 0.0], [3.0, 0.0], [3.0, 3.0]]))
    assert moments.std[0] == 0 and moments.skew[0] == 0
    assert moments.skew[1].item() == pytest.approx(1 / math.sqrt(2))  # of 0, 0, 3


def test_covariance_agrees_with_numpy_however_the_sample_is_cut():
    features = normal(50, 4) @ normal(4, 4, seed=1) + 7
    first, second = FeatureMoments.of(features[:13]), FeatureMoments.of(features[13:])
    for moments in (FeatureMoments.of(features), first + second):
        torch.testing.assert_close(moments.mean, features.mean(dim=0))
        np.testing.assert_allclose(moments.covariance.numpy(), np.cov(features.numpy().T), atol=1e-12)
    assert FeatureMoments.of(features[:1]).covariance.abs().max() == 0


def test_features_are_means_over_a_grid_of_four_by_four():
    latents = normal(2, 3, 8, 12)
    expected = latents.reshape(2, 3, 4, 2, 4, 3).mean(dim=(3, 5)).flatten(1)
    torch.testing.assert_close(pooled_features(latents.float()), expected, atol=1e-6, rtol=0)
    small = pooled_features(torch.tensor([[[[1.0, 2.0]]]]))
    assert small.tolist() == [[1.0, 1.0, 2.0, 2.0] * 4]


def gaussian(mean: list[float], covariance: torch.Tensor) -> FeatureMoments:
    return FeatureMoments(101, torch.tensor(mean, dtype=torch.float64), 100 * covariance.double())


def test_frechet_distance_of_gaussians_with_one_set_of_axes():
    a, b = gaussian([0, 0], torch.diag(torch.tensor([4.0, 9.0]))), gaussian([3, 4], torch.diag(torch.tensor([1.0, 16.0])))
    assert frechet_distance(a, b) == pytest.approx(25 + (2 - 1) ** 2 + (3 - 4) ** 2, abs=1e-10)


def test_frechet_distance_agrees_with_a_matrix_root_and_is_symmetric():
    a, b = (torch.from_numpy(np.cov(normal(30, 6, seed=seed).numpy().T)) * seed for seed in (2, 5))
    expected = 6 * 0.25 + (a + b).trace().item() - 2 * np.trace(sqrtm((a @ b).numpy()).real).item()
    ours = frechet_distance(gaussian([0.5] * 6, a), gaussian([0.0] * 6, b))
    assert ours == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(gaussian([0.0] * 6, b), gaussian([0.5] * 6, a)) == pytest.approx(ours, rel=1e-9)


def test_frechet_distance_of_fewer_vectors_than_dimensions():
    features = normal(5, 20)
    moments = FeatureMoments.of(features)
    assert frechet_distance(moments, moments) == pytest.approx(0, abs=1e-6)
    moved = FeatureMoments.of(features + 2)
    assert frechet_distance(moved, moments) == pytest.approx(20 * 4, rel=1e-6)
    # Rank one on either side: standard deviations 3 and 1 along axes at a right angle.
    one, other = gaussian([0, 0], torch.diag(torch.tensor([9.0, 0.0]))), gaussian([0, 0], torch.diag(torch.tensor([0.0, 1.0])))
    assert frechet_distance(one, other) == pytest.approx(10, abs=1e-10)


def test_sliced_wasserstein_of_a_shift_is_its_length_over_root_channels():
    sample, shift = normal(40, 4), torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    expected = shift.norm().item() / math.sqrt(4)
    assert sliced_wasserstein(sample + shift, sample, directions=4) == pytest.approx(expected)
    assert sliced_wasserstein(sample + shift, sample, directions=9, seed=3) == pytest.approx(expected)


def test_sliced_wasserstein_of_gaussians():
    """Along every direction N(0, 4 I) and N(0, I) are 2 - 1 apart."""
    value = sliced_wasserstein(2 * normal(20_000, 3), normal(20_000, 3, seed=1))
    assert value == pytest.approx(1, abs=0.03)


def test_sliced_wasserstein_in_one_dimension_agrees_with_scipy_for_any_sizes():
    a, b = normal(7, 1), normal(12, 1, seed=1) * 2 + 1
    # W2^2 by brute force: both quantile functions on a grid that holds every step of either.
    steps = (np.arange(84) + 0.5) / 84
    gap = np.sort(a[:, 0])[(steps * 7).astype(int)] - np.sort(b[:, 0])[(steps * 12).astype(int)]
    assert sliced_wasserstein(a, b, directions=1) == pytest.approx(math.sqrt(np.mean(gap**2)))
    assert sliced_wasserstein(a, a.repeat(3, 1), directions=5) == pytest.approx(0, abs=1e-12)
    shifted = stats.wasserstein_distance(a[:, 0], a[:, 0] + 2)
    assert sliced_wasserstein(a, a + 2, directions=1) == pytest.approx(shifted)


def test_sliced_wasserstein_ignores_order_and_never_exceeds_a_pairing():
    a = normal(60, 5)
    for seed in range(20):
        b = a + normal(60, 5, seed=seed + 1) * torch.linspace(0, 2, 5)
        distance = sliced_wasserstein(a, b, directions=5, seed=seed)
        assert 0 < distance <= (a - b).square().mean().sqrt() + 1e-12
        assert sliced_wasserstein(a.flip(0), b, directions=5, seed=seed) == pytest.approx(distance)


def test_histograms_share_bins_and_lose_nothing():
    video, image = normal(4000, 2), normal(3000, 2, seed=1) * 3 + 1
    first, second = channel_histograms(video, image, bins=20)
    for channel, histogram in enumerate((first, second)):
        assert histogram.video.sum() == pytest.approx(1) and histogram.image.sum() == pytest.approx(1)
        inner = ((image[:, channel] >= histogram.edges[5]) & (image[:, channel] < histogram.edges[6])).double().mean()
        assert histogram.image[5].item() == pytest.approx(inner.item(), abs=2 / 3000)
        assert histogram.edges[0] == image[:, channel].quantile(0.001)
        below = (image[:, channel] < histogram.edges[1]).double().mean()
        assert histogram.image[0].item() == pytest.approx(below.item(), abs=2 / 3000)
    (constant,) = channel_histograms(torch.full((5, 1), 2.0), torch.full((5, 1), 2.0), bins=3)
    assert constant.video.tolist() == [0, 1, 0]


def test_latent_distance_counts_in_units_of_the_reference():
    reference = normal(500, 2)
    sample = reference * torch.tensor([2.0, 1.0]) + torch.tensor([0.0, 3.0])
    features = FeatureMoments.of(reference)
    ours, theirs = (LatentSummary(ChannelMoments.of(rows), features, rows.float()) for rows in (sample, reference))
    distance = latent_distance(ours, theirs)
    std, mean = theirs.moments.std, theirs.moments.mean
    assert distance.mean_gap == pytest.approx(math.sqrt(((mean[0] / std[0]) ** 2 + (3 / std[1]) ** 2) / 2))
    assert distance.std_gap == pytest.approx(math.sqrt((1 + 0) / 2))
    assert distance.skew_gap == pytest.approx(0, abs=1e-9)
    assert distance.frechet == pytest.approx(0, abs=1e-9)
    assert distance.positions == distance.reference_positions == 500
