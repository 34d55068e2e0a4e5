"""How a run's weights move: groups with rates of their own, the course of the rates, clipping, and the average.

It knows neither losses nor data.
"""

from math import cos, pi

import torch
from torch import Tensor, nn

from cvvae_cli.errors import CvvaeError
from cvvae_cli.training.recipe import OptimConfig


def rate_factor(step: int, optim: OptimConfig) -> float:
    """Learning rate at `step` relative to its peak: linear rise, constant, then half a cosine down to the last step."""
    if step < optim.warmup:
        return (step + 1) / optim.warmup
    begin = max(optim.hold, optim.warmup)
    if step < begin:
        return 1.0
    share = min(1.0, (step - begin) / max(1, optim.steps - 1 - begin))
    return optim.final_rate + (1 - optim.final_rate) * (1 + cos(pi * share)) / 2


def parameter_groups(model: nn.Module, variances: nn.Module, optim: OptimConfig) -> list[dict]:
    """Networks at the full rate; the compact family's linear maps at their own and learned variances, both undecayed."""
    trained = list(model.named_parameters())
    linear = [p for name, p in trained if ".analysis." in name or ".synthesis" in name]
    rest = [p for name, p in trained if ".analysis." not in name and ".synthesis" not in name]
    groups = [
        {"params": rest, "peak": optim.learning_rate, "weight_decay": optim.weight_decay},
        {"params": linear, "peak": optim.linear_rate, "weight_decay": 0.0},
        {"params": list(variances.parameters()), "peak": optim.learning_rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_adamw(groups: list[dict], optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW on groups with a `peak` rate each, which `prepare_step` turns into the rate of a step."""
    return torch.optim.AdamW(groups, lr=0.0, betas=optim.betas, eps=optim.eps, fused=True)


def prepare_step(optimiser: torch.optim.Optimizer, step: int, optim: OptimConfig) -> Tensor:
    """Clip the gradients and set the rates, group by group.

    Args:
        optimiser: of `make_adamw`; its parameters have gradients.
        step: steps done before.
        optim: largest norm and course of the rates.

    Returns:
        The first group's gradient norm before clipping, a scalar.

    Raises:
        CvvaeError: a gradient is not finite; no weight has changed.
    """
    # Group by group: the linear maps' gradients are so much larger that they would decide for the networks.
    norms = [torch.nn.utils.clip_grad_norm_(group["params"], optim.clip) for group in optimiser.param_groups]
    if not torch.stack(norms).isfinite().all():
        advice = "lower the learning rate and go on from the last checkpoint"
        raise CvvaeError(f"Step {step + 1} has a gradient that is not finite; {advice}.")
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * rate_factor(step, optim)
    return norms[0]


@torch.no_grad()
def update_average(average: dict[str, Tensor], model: nn.Module, step: int, optim: OptimConfig) -> None:
    """Let the averaged weights follow the model's in place, the faster the fewer steps are done."""
    decay = min(optim.ema, (1 + step) / (10 + step))
    for key, value in model.state_dict().items():
        average[key].lerp_(value, 1 - decay)
