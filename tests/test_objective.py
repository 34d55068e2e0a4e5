"""The loss of a recipe: its terms add up, and the frozen side stays frozen."""

from dataclasses import replace

import pytest
import torch
from tiny_model import TINY
from torch import Tensor

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.image_model import as_image_model
from cvvae_cli.posterior import DiagonalGaussian
from cvvae_cli.training.discriminator import PatchDiscriminator3d
from cvvae_cli.training.losses import kl_per_element, reconstruction_error, temporal_error
from cvvae_cli.training.objective import Objective, Outcome, window_noise
from cvvae_cli.training.recipe import LossConfig, OptimConfig, Recipe, RegularisationConfig, RunConfig
from cvvae_cli.training.regularisation import decoder_side_error, keyframe_map
from cvvae_cli.training.streams import StreamConfig

STREAM = StreamConfig("video", ("clips",), 2, 32, 5)
PLAIN = Recipe(RunConfig("test"), OptimConfig(1), (STREAM,), loss=LossConfig("l1", kl_weight=0.5, temporal_weight=0.25), model=TINY)


def random_model(seed: int, temporal: bool = True) -> Autoencoder:
    torch.manual_seed(seed)
    model = Autoencoder(replace(TINY, temporal=temporal))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    return model


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 3, 5, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def run(objective: Objective, x: Tensor, critic: PatchDiscriminator3d | None = None) -> Outcome:
    return objective(x, list(range(len(x))), 7, critic, lambda value: value)


def test_the_loss_is_the_weighted_sum_of_terms_computed_apart(x: Tensor) -> None:
    model = random_model(0)
    outcome = run(Objective(PLAIN, model, None), x)
    with torch.no_grad():
        posterior = DiagonalGaussian(model.encode(x))
        y = model.decode(posterior.mean + posterior.std * window_noise(posterior.mean, [0, 1]))
        parts = (reconstruction_error(y, x, "l1", 0.0).mean(), kl_per_element(posterior).mean(), temporal_error(y, x, "l1", 0.0).mean())
    torch.testing.assert_close(outcome.y, y)
    torch.testing.assert_close(outcome.loss.detach(), parts[0] + 0.5 * parts[1] + 0.25 * parts[2])
    assert [outcome.terms[name].item() for name in ("reconstruction", "kl", "temporal")] == pytest.approx([p.item() for p in parts])


def test_noise_belongs_to_the_window_not_to_its_batch() -> None:
    together = window_noise(torch.zeros(3, 4, 2, 2), [5, 6, 7])
    torch.testing.assert_close(together[1:2], window_noise(torch.zeros(1, 4, 2, 2), [6]))
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("side", ["decoder", "encoder", "both"])
@pytest.mark.parametrize("frames", [1, 5])
def test_the_frozen_side_has_no_gradient_and_the_trained_one_has(x: Tensor, side: str, frames: int) -> None:
    image = as_image_model(random_model(1, temporal=False))
    rule = RegularisationConfig(side, "frozen", "random", "l2", decoder_weight=3.0)
    objective = Objective(replace(PLAIN, regularisation=rule), random_model(0), image)
    outcome = run(objective, x[:, :, :frames])
    outcome.loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in image.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in objective.model.named_parameters() if "analysis.weight" in n)
    assert {"decoder_side", "encoder_side"} & outcome.terms.keys() == ({f"{side}_side"} if side != "both" else {"decoder_side", "encoder_side"})


def test_the_decoder_side_alone_teaches_the_video_encoder_and_nothing_else(x: Tensor) -> None:
    image, model = as_image_model(random_model(1, temporal=False)), random_model(0)
    rule = RegularisationConfig("decoder", "frozen", "slice", "l1", decoder_weight=2.0)
    outcome = run(Objective(replace(PLAIN, regularisation=rule), model, image), x)
    targets = keyframe_map(x, "slice")
    posterior = DiagonalGaussian(model.encode(x))
    z = posterior.mean + posterior.std * window_noise(posterior.mean, [0, 1])
    error = decoder_side_error(image, z, targets, "l1").mean()
    torch.testing.assert_close(outcome.terms["decoder_side"], error.detach())
    error.backward()
    with_gradient = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {"encoder"}


def test_a_learned_variance_can_learn(x: Tensor) -> None:
    objective = Objective(replace(PLAIN, loss=replace(PLAIN.loss, learned_variance=True)), random_model(0), None)
    run(objective, x).loss.backward()
    assert objective.variances["reconstruction"].log_variance.grad.abs() > 0


def test_the_critic_is_weighed_by_the_gradients_at_the_last_layer(x: Tensor) -> None:
    model, critic = random_model(0), PatchDiscriminator3d(8, 2).requires_grad_(False)
    objective = Objective(replace(PLAIN, adversarial=replace(PLAIN.adversarial, weight=0.5)), model, None)
    plain, outcome = run(objective, x), run(objective, x, critic)
    weight, term = outcome.terms["adaptive_weight"], outcome.terms["adversarial"]
    torch.testing.assert_close(outcome.loss.detach(), plain.loss.detach() + 0.5 * weight * term)
    outcome.loss.backward()
    assert all(p.grad is None for p in critic.parameters())
