"""The loss of a recipe: its terms add up, and the frozen side stays frozen."""

from dataclasses import replace

import pytest
import torch
from tiny_model import TINY, TINY_PICTURE, random_model
from torch import Tensor

from cvvae_cli.image_model import as_image_model
from cvvae_cli.posterior import DiagonalGaussian
from cvvae_cli.training.discriminator import PatchDiscriminator3d
from cvvae_cli.training.losses import kl_per_element, reconstruction_error, temporal_error
from cvvae_cli.training.objective import Objective, Outcome, sample_windows
from cvvae_cli.training.recipe import LossConfig, OptimConfig, Recipe, RegularisationConfig, RunConfig
from cvvae_cli.training.regularisation import decoder_side_error, keyframe_map
from cvvae_cli.training.streams import StreamConfig

STREAM = StreamConfig("video", ("clips",), 2, 32, 5)
LOSS = LossConfig("l1", kl_weight=0.5, temporal_weight=0.25)
PLAIN = Recipe(RunConfig("test"), OptimConfig(1), (STREAM,), loss=LOSS, model=TINY)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 3, 5, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def run(objective: Objective, x: Tensor, critic: PatchDiscriminator3d | None = None) -> Outcome:
    return objective(x, list(range(len(x))), 7, critic, lambda value: value)


def test_the_loss_is_the_weighted_sum_of_terms_computed_apart(x: Tensor) -> None:
    model = random_model()
    outcome = run(Objective(PLAIN, model, None), x)
    with torch.no_grad():
        posterior = DiagonalGaussian(model.encode(x))
        noise = [torch.randn(posterior.mean.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
        y = model.decode(posterior.mean + posterior.std * torch.stack(noise))
        errors = (reconstruction_error(y, x, "l1", 0.0), kl_per_element(posterior), temporal_error(y, x, "l1", 0.0))
        parts = [error.mean() for error in errors]
    torch.testing.assert_close(outcome.y, y)
    torch.testing.assert_close(outcome.loss.detach(), parts[0] + 0.5 * parts[1] + 0.25 * parts[2])
    terms = [outcome.terms[name].item() for name in ("reconstruction", "kl", "temporal")]
    assert terms == pytest.approx([part.item() for part in parts])


def test_a_sample_belongs_to_the_window_not_to_its_batch() -> None:
    moments = torch.randn(1, 8, 2, 2, 2).expand(3, -1, -1, -1, -1)
    together = sample_windows(moments, [5, 6, 7])
    torch.testing.assert_close(together[1:2], sample_windows(moments[1:2], [6]))
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("side", ["decoder", "encoder", "both"])
@pytest.mark.parametrize("frames", [1, 5])
def test_the_frozen_side_has_no_gradient_and_the_trained_one_has(x: Tensor, side: str, frames: int) -> None:
    image = as_image_model(random_model(TINY_PICTURE, 1))
    rule = RegularisationConfig(side, "frozen", "random", "l2", decoder_weight=3.0)
    objective = Objective(replace(PLAIN, regularisation=rule), random_model(), image)
    outcome = run(objective, x[:, :, :frames])
    outcome.loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in image.parameters())
    analysis = objective.model.encoder.analysis.weight.grad
    assert analysis is not None and analysis.abs().sum() > 0
    sides = {"decoder_side", "encoder_side"} if side == "both" else {f"{side}_side"}
    assert {"decoder_side", "encoder_side"} & outcome.terms.keys() == sides


def test_the_decoder_side_alone_teaches_the_video_encoder_and_nothing_else(x: Tensor) -> None:
    image, model = as_image_model(random_model(TINY_PICTURE, 1)), random_model()
    rule = RegularisationConfig("decoder", "frozen", "slice", "l1", decoder_weight=2.0)
    outcome = run(Objective(replace(PLAIN, regularisation=rule), model, image), x)
    targets = keyframe_map(x, "slice")
    error = decoder_side_error(image, sample_windows(model.encode(x), [0, 1]), targets, "l1").mean()
    torch.testing.assert_close(outcome.terms["decoder_side"], error.detach())
    error.backward()
    with_gradient = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {"encoder"}


def test_a_learned_variance_can_learn(x: Tensor) -> None:
    objective = Objective(replace(PLAIN, loss=replace(PLAIN.loss, learned_variance=True)), random_model(), None)
    run(objective, x).loss.backward()
    assert objective.variances["reconstruction"].log_variance.grad.abs() > 0


def test_the_critic_is_weighed_by_the_gradients_at_the_last_layer(x: Tensor) -> None:
    model, critic = random_model(), PatchDiscriminator3d(8, 2).requires_grad_(False)
    objective = Objective(replace(PLAIN, adversarial=replace(PLAIN.adversarial, weight=0.5)), model, None)
    plain, outcome = run(objective, x), run(objective, x, critic)
    weight, term = outcome.terms["adaptive_weight"], outcome.terms["adversarial"]
    torch.testing.assert_close(outcome.loss.detach(), plain.loss.detach() + 0.5 * weight * term)
    outcome.loss.backward()
    assert all(p.grad is None for p in critic.parameters())
