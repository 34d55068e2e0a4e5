"""Errors against values computed by hand."""

import math

import pytest
import torch

from cvvae_cli.agreement import agreement_of_moments, agreement_of_videos


def moments(*channels: float) -> torch.Tensor:
    return torch.tensor(channels, dtype=torch.float64).view(1, -1, 1, 1, 1)


def test_moments_by_the_worse_half() -> None:
    truth = moments(3, 4, 0, -10)
    # The mean is off by 0.5 of 5, the log-variance by 0.2 of 10; together it would be 0.0482.
    assert agreement_of_moments(moments(3.3, 4.4, 0, -9.8), truth).relative_error == pytest.approx(0.1)
    # Now by 0.1 of 5 and by 1 of 10.
    assert agreement_of_moments(moments(3, 4.1, 1, -10), truth).relative_error == pytest.approx(0.1)
    assert agreement_of_moments(truth, truth).relative_error == 0
    assert agreement_of_moments(truth, truth).psnr_db is None


def test_a_truth_of_zeros() -> None:
    truth = moments(3, 4, 0, 0)
    assert agreement_of_moments(moments(3, 4, 0, 0), truth).relative_error == 0
    assert agreement_of_moments(moments(3, 4, 0, 1e-9), truth).relative_error == math.inf


def test_videos() -> None:
    truth = torch.rand(2, 3, 5, 8, 8) * 2 - 1
    off = agreement_of_videos(truth + 0.02, truth)
    assert off.psnr_db == pytest.approx(40, abs=1e-3)  # 10 log10(2^2 / 0.02^2)
    assert off.relative_error == pytest.approx(0.02 / truth.square().mean().sqrt().item(), rel=1e-3)
    assert (agreement_of_videos(truth, truth).psnr_db, agreement_of_videos(truth, truth).relative_error) == (100, 0)
    assert agreement_of_videos(truth + 1e-7, truth).psnr_db == 100


def test_formats_do_not_matter() -> None:
    truth = torch.rand(1, 4, 5, 8, 8)
    rounded = truth.to(torch.bfloat16, memory_format=torch.channels_last_3d)
    assert agreement_of_videos(rounded, truth) == agreement_of_videos(rounded.float().contiguous(), truth)
    assert 1e-4 < agreement_of_moments(rounded, truth).relative_error < 4e-3  # half a unit of 8 bits at most


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_outputs_that_are_not_finite(value: float) -> None:
    output = torch.zeros(1, 4, 1, 2, 2)
    output[0, 3, 0, 1, 1] = value
    truth = torch.ones_like(output)
    for agreement in (agreement_of_moments(output, truth), agreement_of_videos(output, truth)):
        assert agreement.relative_error is agreement.psnr_db is None
