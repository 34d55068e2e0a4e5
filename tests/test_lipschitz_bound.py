"""The bound where everything about it is known exactly, and Jacobians against autograd."""

import math

import pytest
import torch
from linear_image_model import LinearImageModel, synthesis_with
from tiny_model import save_tiny_model
from torch import nn

from cvvae_cli.checkpoint import load_model
from cvvae_cli.image_model import ImageModel, as_image_model
from cvvae_cli.lipschitz_bound import BoundMeter, LipschitzBound, judge, local_singular_values


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def bound_of(image: ImageModel, ours: torch.Tensor, theirs: torch.Tensor, targets: torch.Tensor) -> LipschitzBound:
    """The bound for one window; the spread is 1."""
    meter = BoundMeter(seed=0)
    meter.add(ours, theirs, image.decode(ours), image.decode(theirs), targets)
    return meter.result(image, spread=1.0, sliced_w2=0.25)


def test_local_singular_values_of_a_linear_decoder_are_its_own():
    image = LinearImageModel(synthesis_with([5.0, 2.0, 0.5])).double()
    with torch.no_grad():
        values = local_singular_values(image.decode, torch.randn(3, 5, 6))
    expected = torch.tensor([5.0] * 16 + [2.0] * 16 + [0.5] * 16, dtype=torch.float64)
    torch.testing.assert_close(values, expected, atol=1e-6, rtol=0)


def test_local_singular_values_of_a_network_agree_with_autograd(tmp_path):
    image = as_image_model(load_model(save_tiny_model(tmp_path / "tiny.safetensors", seed=5), dtype=torch.float64))
    latent = normal(4, 3, 2).double()
    jacobian = torch.autograd.functional.jacobian(lambda z: image.decode(z[None])[0], latent).reshape(-1, latent.numel())
    with torch.no_grad():
        values = local_singular_values(image.decode, latent)
    torch.testing.assert_close(values, torch.linalg.svdvals(jacobian), atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_the_bound_of_a_linear_decoder_by_hand():
    image = LinearImageModel(synthesis_with([4.0, 3.0, 2.0, 1.0]))
    ours, theirs, targets = normal(3, 4, 4, 5), normal(3, 4, 4, 5, seed=1), normal(3, 3, 32, 40, seed=2)
    bound = bound_of(image, ours, theirs, targets)

    shown, own = image.decode(ours), image.decode(theirs)
    loss_video, loss_image = ((frames - targets).square().sum(dim=(1, 2, 3)).mean().item() for frames in (shown, own))
    assert bound.loss_video == pytest.approx(loss_video, rel=1e-5)
    assert bound.loss_image == pytest.approx(loss_image, rel=1e-5)
    assert bound.paired == pytest.approx((ours - theirs).square().mean().sqrt().item(), rel=1e-5)
    assert (bound.spread, bound.sliced_w2) == (1.0, 0.25)

    pairs, images, local = bound.constants
    assert local.m == pytest.approx(1, abs=1e-5), "the smallest singular value"
    assert pairs.m == pytest.approx(min(((shown[i] - own[i]).norm() / (ours[i] - theirs[i]).norm()).item() for i in range(3)))
    couples = [(0, 1), (0, 2), (1, 2)]
    assert images.m == pytest.approx(min(((own[i] - own[j]).norm() / (theirs[i] - theirs[j]).norm()).item() for i, j in couples))
    values = 4 * 4 * 5
    decoded = math.sqrt((shown - own).square().sum().item() / (3 * values))
    errors = (math.sqrt(loss_video) + math.sqrt(loss_image)) / math.sqrt(values)
    for constant in bound.constants:
        assert 1 - 1e-5 <= constant.m <= 4
        assert constant.decoded == pytest.approx(decoded / constant.m, rel=1e-5)
        assert constant.bound == pytest.approx(errors / constant.m, rel=1e-5)
    # The chain of the proof, with constants that hold for these pairs.
    for constant in (pairs, local):
        assert bound.paired <= constant.decoded * (1 + 1e-6) <= constant.bound * (1 + 2e-6)


@torch.no_grad()
def test_secants_are_taken_to_the_window_before_if_it_has_the_same_size():
    """Windows of one picture each: only pairs across windows exist."""
    image = LinearImageModel(synthesis_with([4.0, 3.0, 2.0, 1.0]))
    first, second, wide = normal(1, 4, 4, 5), normal(1, 4, 4, 5, seed=1), normal(1, 4, 4, 6)
    found = []
    for before in (first, wide):
        meter = BoundMeter(seed=0)
        for latents in (before, second):
            pictures = image.decode(latents)
            meter.add(latents + 1, latents, image.decode(latents + 1), pictures, pictures)
        constants = {constant.source: constant.m for constant in meter.result(image, spread=1.0, sliced_w2=0.0).constants}
        found.append(constants.get("smallest secant, image latents"))
    expected = ((image.decode(first) - image.decode(second)).norm() / (first - second).norm()).item()
    assert found == [pytest.approx(expected, rel=1e-5), None]


@torch.no_grad()
def test_the_bound_is_tight_for_a_scaled_isometry():
    """D_i stretches all lengths by 2, targets are its own, and video latents are 0.9 of theirs: the proof's steps are equal."""
    image, theirs = LinearImageModel(synthesis_with([2.0, 2.0, 2.0, 2.0])), normal(9, 4, 4, 5)
    bound = bound_of(image, 0.9 * theirs, theirs, image.decode(theirs))
    assert bound.paired == pytest.approx(0.1 * theirs.square().mean().sqrt().item(), rel=1e-5)
    assert bound.loss_image == pytest.approx(0, abs=1e-6)
    for constant in bound.constants:
        assert constant.m == pytest.approx(2, rel=1e-5)
        assert constant.decoded == pytest.approx(bound.paired, rel=1e-5)
        assert constant.bound == pytest.approx(bound.paired, rel=1e-5)
        assert constant.verdict == "weak"


def test_a_decoder_that_sees_nothing_or_hardly_anything_bounds_nothing():
    image = LinearImageModel(synthesis_with([4.0, 3.0, 2.0, 1e-4]))
    latents = normal(3, 4, 4, 5), normal(3, 4, 4, 5, seed=1), normal(3, 3, 32, 40)
    hardly = bound_of(image, *latents).constants[-1]
    assert hardly.verdict == "vacuous" and hardly.m == pytest.approx(1e-4, rel=1e-2)
    nn.init.zeros_(image.decoder.weight)
    constants = bound_of(image, *latents).constants
    assert len(constants) == 3
    assert all((c.m, c.decoded, c.bound, c.verdict) == (0, None, None, "vacuous") for c in constants)


def test_verdicts():
    assert judge(m=1.0, bound=2.1, spread=2.0, secant_of_pairs=0.5) == "vacuous"
    assert judge(m=1.0, bound=1.9, spread=2.0, secant_of_pairs=0.5) == "refuted"
    assert judge(m=0.5, bound=1.9, spread=2.0, secant_of_pairs=0.5) == "weak"
    assert judge(m=0.4, bound=1.9, spread=2.0, secant_of_pairs=0.5) == "weak"
