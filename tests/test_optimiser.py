"""Rates, groups, clipping and the average, by hand."""

import pytest
import torch
from tiny_model import random_model
from torch import nn

from cvvae_cli.errors import CvvaeError
from cvvae_cli.training.losses import LearnedVariance
from cvvae_cli.training.optimiser import make_adamw, parameter_groups, prepare_step, rate_factor, update_average
from cvvae_cli.training.recipe import OptimConfig


def test_rate_rises_stays_and_falls_to_the_last_step() -> None:
    optim = OptimConfig(steps=21, warmup=4, hold=10, final_rate=0.1)
    rates = [rate_factor(step, optim) for step in range(21)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0] and rates[4:11] == [1.0] * 7
    assert rates[15] == pytest.approx(0.55) and rates[20] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:])), "a cosine that ends where the run ends"
    assert rate_factor(30, optim) == pytest.approx(0.1)


def test_every_parameter_is_in_one_group_and_linear_maps_have_their_own_rate() -> None:
    model, variances = random_model(), nn.ModuleDict({"reconstruction": LearnedVariance()})
    groups = parameter_groups(model, variances, OptimConfig(steps=1))
    assert sum(len(g["params"]) for g in groups) == len([*model.parameters(), *variances.parameters()])
    assert [len(g["params"]) for g in groups[1:]] == [4, 1] and groups[1]["peak"] < groups[0]["peak"]
    assert groups[0]["weight_decay"] > 0 and groups[1]["weight_decay"] == groups[2]["weight_decay"] == 0
    assert len(parameter_groups(model, nn.ModuleDict(), OptimConfig(steps=1))) == 2


def two_groups(optim: OptimConfig) -> tuple[torch.optim.AdamW, nn.Parameter, nn.Parameter]:
    """One parameter of each group, at 1, with gradients of norm 5 and 0.5."""
    one, two = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    one.grad, two.grad = torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])
    groups = [{"params": [p], "peak": peak, "weight_decay": 0.0} for p, peak in ((one, 0.1), (two, 0.01))]
    return make_adamw(groups, optim), one, two


def test_each_group_is_clipped_by_its_own_norm_and_has_its_own_rate() -> None:
    optimiser, one, two = two_groups(OptimConfig(steps=9, warmup=4, clip=1.0))
    norm = prepare_step(optimiser, 1, OptimConfig(steps=9, warmup=4, clip=1.0))
    assert norm.item() == pytest.approx(5)
    torch.testing.assert_close(one.grad, torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(two.grad, torch.tensor([0.3, 0.4]))
    assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([0.05, 0.005])
    optimiser.step()  # Adam's first step is the rate long, whatever the gradient
    torch.testing.assert_close(one.detach(), torch.full((2,), 0.95))
    torch.testing.assert_close(two.detach(), torch.full((2,), 0.995))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_of_any_group_that_is_not_finite_is_a_sentence(value: float) -> None:
    optimiser, one, two = two_groups(OptimConfig(steps=9))
    two.grad[0] = value
    with pytest.raises(CvvaeError, match="Step 4 has a gradient that is not finite; lower the learning rate"):
        prepare_step(optimiser, 3, OptimConfig(steps=9))
    assert one.tolist() == two.tolist() == [1, 1]


def test_the_average_follows_the_faster_the_fewer_steps_are_done() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average = {"weight": torch.zeros(1, 1)}
    update_average(average, model, 1, OptimConfig(steps=9, ema=0.999))
    assert average["weight"].item() == pytest.approx(9 / 11)
    update_average(average, model, 10**6, OptimConfig(steps=9, ema=0.75))
    assert average["weight"].item() == pytest.approx(0.75 * 9 / 11 + 0.25)
