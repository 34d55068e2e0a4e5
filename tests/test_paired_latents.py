"""Paired latents against all windows at once, and the uniform sample of positions."""

import pytest
import torch

from cvvae_cli.errors import UsageError
from cvvae_cli.latent_statistics import FeatureMoments, pooled_features
from cvvae_cli.paired_latents import PairedLatents, PositionSample


def test_position_sample_keeps_everything_below_its_capacity_and_a_uniform_choice_above():
    small = PositionSample(1, 10, seed=0)
    small.add(torch.arange(4.0)[:, None])
    small.add(torch.arange(4.0, 9.0)[:, None])
    assert sorted(small.rows.flatten().tolist()) == list(range(9))
    chosen = torch.zeros(40)
    for seed in range(400):
        sample = PositionSample(1, 10, seed)
        for part in torch.arange(40.0)[:, None].split([3, 17, 1, 19]):
            sample.add(part)
        assert len(sample.rows) == 10
        chosen[sample.rows.flatten().long()] += 1
    # Each of 40 rows is in a sample of 10 with probability 1/4: 100 of 400, standard deviation 8.7.
    assert chosen.sum() == 4000 and (chosen - 100).abs().max() < 40


def test_paired_latents_are_the_sum_of_their_windows():
    pairs = PairedLatents(3, seed=1)
    windows = torch.randn(3, 2, 5, 3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for video, image in windows:
        pairs.add(video, image)
    assert pairs.windows == 3
    for side, index in (("video", 0), ("image", 1)):
        every = torch.cat([window[index] for window in windows])
        whole, half = pairs.summary(side), pairs.summary(side, 1)
        torch.testing.assert_close(whole.moments.mean, every.mean(dim=(0, 2, 3)))
        torch.testing.assert_close(whole.features.covariance, FeatureMoments.of(pooled_features(every)).covariance)
        assert whole.features.count == 15 and len(whole.positions) == 15 * 24
        torch.testing.assert_close(half.moments.mean, windows[1][index].mean(dim=(0, 2, 3)))
        rows = windows[1][index].movedim(1, -1).flatten(0, 2).float()
        assert half.features.count == 5 and sorted(half.positions.tolist()) == sorted(rows.tolist())
    both = {tuple(row) for row in torch.cat([pairs.summary("video").positions, pairs.summary("image").positions], dim=1).tolist()}
    video, image = (window.movedim(1, -1).flatten(0, 2).float() for window in windows[2])
    assert tuple(torch.cat([video[7], image[7]]).tolist()) in both, "rows of the two sides are no longer pairs"


def test_paired_latents_without_a_window_say_so():
    pairs = PairedLatents(2)
    with pytest.raises(UsageError, match="add a window"):
        pairs.summary("video")
    pairs.add(torch.ones(1, 2, 2, 2), torch.ones(1, 2, 2, 2))
    with pytest.raises(UsageError, match="two for a comparison"):
        pairs.summary("image", 1)
