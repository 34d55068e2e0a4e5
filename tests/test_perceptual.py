"""Perceptual terms: gradients against slow float64 sums, the wrapping of LPIPS with a small network in its place."""

import sys
from types import ModuleType
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cvvae_cli.errors import UsageError
from cvvae_cli.training.perceptual import GradientLoss, LpipsLoss, load_perceptual


def pair(frames: int = 3, height: int = 16, width: int = 21, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.rand(2, 3, frames, height, width, dtype=torch.float64) * 2 - 1
    return (x + 0.1 * torch.randn_like(x)).to(dtype), x.to(dtype)


def grey(*rows: list[float]) -> Tensor:
    """A grey picture (1, 3, 1, H, W)."""
    return torch.tensor(rows, dtype=torch.float64).expand(1, 3, 1, -1, -1).clone()


def naive_planes(frame: np.ndarray) -> list[np.ndarray]:
    luma = 0.299 * frame[0] + 0.587 * frame[1] + 0.114 * frame[2]
    return [luma, frame[2] - luma, frame[0] - luma]


def naive_loss(y: Tensor, x: Tensor, scales: int, chroma: float) -> list[float]:
    """Both pictures are filtered apart, frame by frame, and only their slopes compared."""
    losses = []
    for made, source in zip(y.double().numpy(), x.double().numpy(), strict=True):
        total = 0.0
        for t in range(made.shape[1]):
            weights = (1, chroma / 2, chroma / 2)
            for a, b, weight in zip(naive_planes(made[:, t]), naive_planes(source[:, t]), weights, strict=True):
                for _ in range(scales):
                    slopes = [np.abs(np.diff(a, axis=axis) - np.diff(b, axis=axis)).mean() for axis in (0, 1)]
                    total += weight * sum(slopes) / 2
                    height, width = a.shape[0] // 2, a.shape[1] // 2
                    a, b = (p[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean(axis=(1, 3)) for p in (a, b))
        losses.append(total / (scales * made.shape[1]))
    return losses


def test_gradients_by_hand():
    y, x = grey([0.0, 0.4], [0.0, 0.4]), grey([0.0, 0.0], [0.0, 0.0])
    assert GradientLoss(scales=1)(y, x).tolist() == pytest.approx([0.2])  # 0.4 across, 0 down; grey has no chroma
    red = torch.zeros(1, 3, 1, 2, 2, dtype=torch.float64)
    red[:, 0, :, :, 1] = 1.0
    # Across: luma 0.299, blue - luma -0.299, red - luma 0.701; down: nothing.
    assert GradientLoss(scales=1, chroma=0.0)(red, x).tolist() == pytest.approx([0.299 / 2])
    assert GradientLoss(scales=1, chroma=0.5)(red, x).tolist() == pytest.approx([(0.299 + 0.5 * (0.299 + 0.701) / 2) / 2])


def test_the_second_scale_sees_what_the_first_averages():
    y = grey(*[[0.0, 0.2, 0.6, 0.8]] * 4)
    # Scale 1: 0.2, 0.4, 0.2 across, mean 0.8 / 3. Scale 2: 0.1 to 0.7.
    assert GradientLoss(scales=2)(y, torch.zeros_like(y)).tolist() == pytest.approx([(0.8 / 3 / 2 + 0.6 / 2) / 2])


@pytest.mark.parametrize("frames", [1, 3])
def test_gradients_match_slow_sums(frames):
    y, x = pair(frames)
    assert GradientLoss()(y, x).tolist() == pytest.approx(naive_loss(y, x, 4, 0.5), rel=1e-12)
    assert GradientLoss(3, 0.0)(y, x).tolist() == pytest.approx(naive_loss(y, x, 3, 0.0), rel=1e-12)


def test_half_precision_is_summed_in_float32():
    y, x = pair(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        got = GradientLoss()(y, x)
    assert got.dtype == torch.float32
    assert got.tolist() == pytest.approx(naive_loss(y, x, 4, 0.5), rel=1e-5)


def test_brightness_is_free_and_blur_is_not():
    _, x = pair(1, 32, 32)
    loss = GradientLoss()
    blurred = nn.functional.avg_pool3d(x, (1, 3, 3), stride=1, padding=(0, 1, 1), count_include_pad=False)
    assert loss(x + 0.3, x).max() < 1e-12
    assert loss(blurred, x).min() > 0.1


def test_gradients_equal_finite_differences():
    y, x = pair(2, 4, 5)
    assert torch.autograd.gradcheck(GradientLoss(scales=2), (y.requires_grad_(), x))


def test_frames_too_small_are_refused():
    y, x = pair(1, 16, 8)
    with pytest.raises(UsageError, match="Frames of 8x16 px are too small for 4 scales of gradients; crop 16 px or more."):
        GradientLoss()(y, x)


def test_a_recipe_names_the_loss():
    assert load_perceptual("none") is None
    assert isinstance(load_perceptual("gradient"), GradientLoss)
    with pytest.raises(UsageError, match="Perceptual loss 'ssim' is unknown; set it to none, gradient or lpips."):
        load_perceptual("ssim")


def test_lpips_without_its_package_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)  # as if it were not installed
    sentence = r'needs the lpips package \(.+\); pip install "cvvae\[lpips\]" .+ or set the perceptual loss to gradient or none'
    with pytest.raises(UsageError, match=sentence):
        load_perceptual("lpips")


class SmallLpips(nn.Module):
    """What the lpips package's class does, with one random layer for its network."""

    def __init__(self, net: str, verbose: bool) -> None:
        super().__init__()
        assert net == "vgg" and not verbose
        torch.manual_seed(7)
        self.features = nn.Conv2d(3, 8, 3, padding=1)
        self.dropout = nn.Dropout(0.5)
        self.frames: list[int] = []

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        self.frames.append(len(a))
        difference = self.features(a).relu() - self.features(b).relu()
        return self.dropout(difference.square()).mean(dim=(1, 2, 3), keepdim=True)


def lpips_module(network: type) -> ModuleType:
    module = ModuleType("lpips")
    module.LPIPS = network
    return module


@pytest.fixture
def small_lpips(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", lpips_module(SmallLpips))


def test_lpips_is_the_mean_over_frames_taken_in_pieces(small_lpips):
    y, x = pair(5, dtype=torch.float32)
    loss = LpipsLoss(frames_per_piece=4)
    y.requires_grad_()
    got = loss(y, x)
    assert loss.network.frames == [4, 4, 2]
    with torch.no_grad():
        each = [torch.stack([loss.network(y[i : i + 1, :, t], x[i : i + 1, :, t]) for t in range(5)]).mean() for i in range(2)]
    torch.testing.assert_close(got, torch.stack(each))
    whole = y.detach().clone().requires_grad_()
    frames = (whole.transpose(1, 2).flatten(0, 1), x.transpose(1, 2).flatten(0, 1))
    loss.network(*frames).view(2, 5).mean(dim=1).sum().backward()
    got.sum().backward()
    torch.testing.assert_close(y.grad, whole.grad)


def test_lpips_is_frozen_and_stays_in_eval_and_float32(small_lpips):
    y, x = pair(1, dtype=torch.bfloat16)
    loss = load_perceptual("lpips")
    outer = nn.ModuleList([loss]).train()
    assert outer.training and not any(module.training for module in loss.modules())
    assert not any(p.requires_grad for p in loss.parameters())
    exact = loss(y.float(), x.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(y, x), exact)


def test_lpips_without_its_weights_says_what_to_do(monkeypatch):
    class Unreachable(nn.Module):
        def __init__(self, **_: object) -> None:
            raise URLError("no route to host")

    monkeypatch.setitem(sys.modules, "lpips", lpips_module(Unreachable))
    sentence = "cannot load its network .+no route to host.+; pip install .+ or set the perceptual loss to gradient or none"
    with pytest.raises(UsageError, match=sentence):
        load_perceptual("lpips")
