"""Loss terms against values by hand, naive float64 sums and finite differences."""

import math

import pytest
import torch
from torch import Tensor

from cvvae_cli.errors import UsageError
from cvvae_cli.posterior import DiagonalGaussian
from cvvae_cli.training.losses import LearnedVariance, kl_per_element, psnr_db, reconstruction_error, temporal_error


def window(*values: float, frames: int = 1) -> Tensor:
    """One window (1, 3, frames, 1, 1): all channels hold the given values, frame after frame."""
    return torch.tensor(values).view(1, 1, frames, 1, 1).expand(1, 3, frames, 1, 1).clone()


def pair(frames: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.rand(2, 3, frames, 4, 6, dtype=torch.float64) * 2 - 1
    return (x + 0.1 * torch.randn_like(x)).to(dtype), x.to(dtype)


def per_window(y: Tensor, x: Tensor, cost) -> list[float]:
    """The mean of cost(error) over each window's elements, added up one by one in Python's floats."""
    errors = [(a.double() - b.double()).flatten().tolist() for a, b in zip(y, x, strict=True)]
    return [math.fsum(cost(e) for e in one) / len(one) for one in errors]


def test_reconstruction_by_hand():
    y, x = window(0.5, -0.1, frames=2), window(0.3, 0.3, frames=2)  # errors 0.2 and -0.4
    assert reconstruction_error(y, x, "l1", 0.0).tolist() == pytest.approx([0.3])
    assert reconstruction_error(y, x, "l2", 0.0).tolist() == pytest.approx([0.1])
    assert reconstruction_error(y, x, "log_mse", 0.0).tolist() == pytest.approx([0.5 * math.log(0.1)])
    assert reconstruction_error(y, x, "log_mse", 0.9).tolist() == pytest.approx([0.0], abs=1e-6)


@pytest.mark.parametrize("frames", [1, 5])
def test_reconstruction_matches_sums_one_by_one(frames):
    y, x = pair(frames)
    squares = per_window(y, x, lambda e: e * e)
    assert reconstruction_error(y, x, "l1", 0.0).tolist() == pytest.approx(per_window(y, x, abs), rel=1e-12)
    assert reconstruction_error(y, x, "l2", 0.0).tolist() == pytest.approx(squares, rel=1e-12)
    logs = [0.5 * math.log(s + 1e-3) for s in squares]
    assert reconstruction_error(y, x, "log_mse", 1e-3).tolist() == pytest.approx(logs, rel=1e-12)


def test_half_precision_is_summed_in_float32():
    y, x = pair(dtype=torch.bfloat16)
    for kind, cost in (("l1", abs), ("l2", lambda e: e * e)):
        got = reconstruction_error(y, x, kind, 0.0)
        assert got.dtype == torch.float32
        assert got.tolist() == pytest.approx(per_window(y, x, cost), rel=1e-6)
    assert reconstruction_error(y, x.float(), "log_mse", 1e-3).dtype == torch.float32
    flicker = per_window(y.double().diff(dim=2), x.double().diff(dim=2), abs)
    assert temporal_error(y, x, "l1", 0.0).tolist() == pytest.approx(flicker, rel=1e-6)


def test_an_identical_window_has_a_finite_slope_in_log_mse():
    y = window(0.25).requires_grad_()
    loss = reconstruction_error(y, window(0.25), "log_mse", 1e-4)
    loss.sum().backward()
    assert loss.item() == pytest.approx(0.5 * math.log(1e-4))
    assert y.grad.eq(0).all()


def test_flicker_by_hand():
    still, moving = window(0.0, 0.0, 0.0, frames=3), window(0.0, 0.1, 0.5, frames=3)
    assert temporal_error(moving, still, "l1", 0.0).tolist() == pytest.approx([0.25])  # 0.1 and 0.4
    assert temporal_error(moving, still, "l2", 0.0).tolist() == pytest.approx([0.085])
    assert temporal_error(moving, still, "log_mse", 0.9).item() == pytest.approx(0.5 * math.log(0.985))
    assert temporal_error(still + 0.7, still, "l1", 0.0).item() == pytest.approx(0.0, abs=1e-7)
    assert temporal_error(window(0.1, -0.1, 0.1, frames=3), still, "l1", 0.0).item() == pytest.approx(0.2)


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_flicker_matches_its_definition(kind):
    y, x = pair(5)
    naive = torch.zeros(2, dtype=torch.float64)
    for t in range(1, 5):
        change = (y[:, :, t] - y[:, :, t - 1]) - (x[:, :, t] - x[:, :, t - 1])
        naive += (change.abs() if kind == "l1" else change**2).mean(dim=(1, 2, 3)) / 4
    torch.testing.assert_close(temporal_error(y, x, kind, 1e-3), naive, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["l1", "l2", "log_mse"])
def test_a_picture_has_no_flicker_but_a_graph(kind):
    y, x = pair(1)
    y.requires_grad_()
    loss = temporal_error(y, x, kind, 1e-3)
    assert loss.tolist() == [0.0, 0.0]
    loss.sum().backward()
    assert y.grad.eq(0).all()


def test_kl_by_hand_and_whatever_the_window():
    # One element: mean 1, variance e: 0.5 (1 + e - 1 - 1). The other: the standard normal itself.
    moments = torch.tensor([1.0, 0.0, 1.0, 0.0]).view(1, 4, 1, 1, 1)
    small = kl_per_element(DiagonalGaussian(moments))
    assert small.tolist() == pytest.approx([0.5 * (math.e - 1) / 2])
    large = kl_per_element(DiagonalGaussian(moments.repeat(3, 1, 5, 8, 8)))
    assert large.shape == (3,)
    torch.testing.assert_close(large, small.expand(3))


def test_kl_gradients_are_the_closed_ones():
    torch.manual_seed(0)
    moments = torch.randn(2, 4, 2, 3, 3, requires_grad=True)
    kl_per_element(DiagonalGaussian(moments)).sum().backward()
    mean, logvar = moments.detach().double().chunk(2, dim=1)
    expected = torch.cat([mean, 0.5 * (logvar.exp() - 1)], dim=1) / mean[0].numel()
    torch.testing.assert_close(moments.grad.double(), expected, rtol=1e-5, atol=1e-7)
    assert kl_per_element(DiagonalGaussian(moments.detach().bfloat16())).dtype == torch.float32


def test_learned_variance_by_hand():
    scale = LearnedVariance(math.log(0.5))
    out = scale(torch.tensor([1.0, 0.25]))
    assert out.tolist() == pytest.approx([2 + math.log(0.5), 0.5 + math.log(0.5)])
    out.mean().backward()
    assert scale.log_variance.grad.item() == pytest.approx(1 - 1.25)  # 1 - mean error / variance
    assert LearnedVariance(0.0)(torch.tensor([0.3])).tolist() == pytest.approx([0.3])


def test_learned_variance_is_least_at_the_logarithm_of_the_error():
    error = torch.tensor([0.02, 0.06])
    scale = LearnedVariance(math.log(0.04))
    loss = scale(error).mean()
    loss.backward()
    assert scale.log_variance.grad.item() == pytest.approx(0.0, abs=1e-6)
    assert loss.item() == pytest.approx(1 + math.log(0.04))


def test_psnr_by_hand():
    assert psnr_db(window(0.2), window(0.0)).tolist() == pytest.approx([20.0])  # 10 log10(4 / 0.04)
    assert psnr_db(window(1.0), window(-1.0)).tolist() == pytest.approx([0.0], abs=1e-6)
    assert psnr_db(window(0.3), window(0.3)).tolist() == [100.0]
    y, x = pair(dtype=torch.bfloat16)
    got = psnr_db(y.requires_grad_(), x)
    assert got.tolist() == pytest.approx([10 * math.log10(4 / m) for m in per_window(y, x, lambda e: e * e)], rel=1e-6)
    assert not got.requires_grad


@pytest.mark.parametrize("term", [
    lambda y, x: reconstruction_error(y, x, "l1", 0.0), lambda y, x: reconstruction_error(y, x, "l2", 0.0),
    lambda y, x: reconstruction_error(y, x, "log_mse", 1e-3), lambda y, x: temporal_error(y, x, "l1", 0.0),
    lambda y, x: temporal_error(y, x, "l2", 0.0), lambda y, x: temporal_error(y, x, "log_mse", 1e-3),
    lambda y, x: LearnedVariance(-2.0).double()(reconstruction_error(y, x, "l1", 0.0)),
])  # fmt: skip
def test_gradients_equal_finite_differences(term):
    y, x = pair(3)
    assert torch.autograd.gradcheck(term, (y[..., :2, :2].clone().requires_grad_(), x[..., :2, :2].clone()))


def test_unknown_kinds_and_other_shapes_are_refused():
    y, x = pair(5)
    with pytest.raises(UsageError, match="Reconstruction loss 'ssim' is unknown; set it to l1, l2 or log_mse."):
        reconstruction_error(y, x, "ssim", 0.0)
    with pytest.raises(UsageError, match="Temporal loss 'ssim' is unknown; set it to l1, l2 or log_mse."):
        temporal_error(y, x, "ssim", 0.0)
    with pytest.raises(AssertionError, match="windows differ"):
        reconstruction_error(y, x[:, :, :1], "l1", 0.0)  # would broadcast
