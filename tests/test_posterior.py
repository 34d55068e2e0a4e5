"""The posterior against closed forms and torch's own distributions."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from cvvae_cli.posterior import DiagonalGaussian


@pytest.fixture
def moments() -> torch.Tensor:
    return torch.randn(2, 8, 3, 4, 5, generator=torch.Generator().manual_seed(0))


def test_halves_are_mean_and_logvar(moments: torch.Tensor) -> None:
    posterior = DiagonalGaussian(moments)
    assert torch.equal(posterior.mean, moments[:, :4])
    assert torch.equal(posterior.mode(), moments[:, :4])
    torch.testing.assert_close(posterior.std, torch.exp(moments[:, 4:] / 2))


def test_logvar_is_clamped() -> None:
    posterior = DiagonalGaussian(torch.tensor([0.0, 0.0, -1000.0, 1000.0]).view(1, 4, 1, 1, 1))
    assert posterior.logvar.flatten().tolist() == [-30.0, 20.0]


def test_kl_is_the_closed_form_per_element(moments: torch.Tensor) -> None:
    posterior = DiagonalGaussian(moments)
    expected = kl_divergence(Normal(posterior.mean, posterior.std), Normal(0.0, 1.0))
    assert posterior.kl().shape == (2, 4, 3, 4, 5)
    torch.testing.assert_close(posterior.kl(), expected)


def test_kl_does_not_overflow_in_half_precision() -> None:
    posterior = DiagonalGaussian(torch.tensor([1.0, 20.0], dtype=torch.float16).view(1, 2, 1, 1, 1))
    assert posterior.kl().item() == pytest.approx(0.5 * (1 + 485165195.4 - 1 - 20), rel=1e-5)


def test_samples_have_the_moments_asked_for() -> None:
    mean, logvar = 0.7, -1.2
    moments = torch.cat([torch.full((1, 1, 1, 200, 200), mean), torch.full((1, 1, 1, 200, 200), logvar)], dim=1)
    draw = DiagonalGaussian(moments).sample(torch.Generator().manual_seed(3))
    assert draw.mean().item() == pytest.approx(mean, abs=0.02)
    assert draw.var().item() == pytest.approx(torch.tensor(logvar).exp().item(), rel=0.03)


def test_one_seed_is_one_noise_in_every_dtype(moments: torch.Tensor) -> None:
    exact = DiagonalGaussian(moments).sample(torch.Generator().manual_seed(5))
    again = DiagonalGaussian(moments).sample(torch.Generator().manual_seed(5))
    half = DiagonalGaussian(moments.bfloat16()).sample(torch.Generator().manual_seed(5))
    assert torch.equal(exact, again)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.02, atol=0.03)
