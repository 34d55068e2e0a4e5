"""A training run as one typed TOML file: every value of the run, with its unit. No torch here."""

import tomllib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from cvvae_cli.config import CompactConfig, CVVAEConfig, ModelConfig, config_from_dict, config_to_dict
from cvvae_cli.errors import UsageError
from cvvae_cli.training.data import DataConfig


@dataclass(frozen=True)
class OptimConfig:
    """Attributes:
    steps: optimiser steps of the whole run.
    batch: windows per step.
    learning_rate: peak rate of the residual networks (AdamW).
    linear_rate: peak rate of the linear code's maps, which a larger one destroys.
    warmup: steps of linear rise.
    cooldown: last steps, over which the rate falls linearly to zero; in between it is constant, so a run can
        be prolonged by raising `steps` before its cooldown begins.
    betas, weight_decay: AdamW's.
    clip: largest gradient norm of either group.
    ema: decay of the averaged weights, which are the ones that ship.
    kl_weight: weight of the KL term, a mean over latent elements. Noise then settles near this share of
        the reconstruction error.
    mse_floor: added to a window's mean squared error ([-1, 1] units) before the logarithm.
    """

    steps: int
    batch: int = 8
    learning_rate: float = 3e-4
    linear_rate: float = 3e-6
    warmup: int = 200
    cooldown: int = 800
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    kl_weight: float = 0.01
    mse_floor: float = 5e-4


@dataclass(frozen=True)
class RunConfig:
    """Attributes:
    name: names the folder of the run.
    seed: fixes weights, windows and noise.
    precision: "fp32" or "bf16" (autocast).
    checkpoint_every, log_every: steps.
    warm_windows: windows that fit the linear code before the first step; 0 starts from random weights.
    warm_noise: standard deviation in pixel units ([-1, 1]) that sampling adds at the start.
    workers: processes that draw windows.
    """

    name: str
    seed: int = 1
    precision: str = "fp32"
    checkpoint_every: int = 250
    log_every: int = 10
    warm_windows: int = 600
    warm_noise: float = 6e-3
    workers: int = 1


@dataclass(frozen=True)
class Recipe:
    run: RunConfig
    optim: OptimConfig
    data: DataConfig
    model: ModelConfig = field(default_factory=CompactConfig)


def recipe_to_dict(recipe: Recipe) -> dict:
    """A JSON-ready dictionary of the recipe's four tables."""
    return {"run": asdict(recipe.run), "optim": asdict(recipe.optim), "data": asdict(recipe.data), "model": config_to_dict(recipe.model)}


def _section(kind, table: dict, name: str):
    known = {f.name for f in fields(kind)}
    extra = sorted(set(table) - known)
    if extra:
        raise UsageError(f"Recipe key {name}.{extra[0]} is unknown; [{name}] takes {', '.join(sorted(known))}.")
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in table.items()})
    except TypeError as error:
        raise UsageError(f"Recipe section [{name}] is incomplete: {error}.") from error


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe.

    Raises:
        UsageError: the file is missing, is not TOML, or has unknown, missing or contradictory values.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"Recipe {path} cannot be read: {error.strerror or error}; name a .toml file, for example recipes/default.toml.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"Recipe {path} is not valid TOML: {error}.") from error
    extra = sorted(set(data) - {"run", "optim", "data", "model"})
    if extra:
        raise UsageError(f"Recipe section [{extra[0]}] is unknown; a recipe has [run], [optim], [data] and [model].")
    model = data.get("model", {"family": "compact"})
    recipe = Recipe(
        _section(RunConfig, data.get("run", {}), "run"),
        _section(OptimConfig, data.get("optim", {}), "optim"),
        _section(DataConfig, data.get("data", {}), "data"),
        config_from_dict(model),
    )
    if recipe.data.frames % 4 != 1 or recipe.data.crop % 8:
        raise UsageError(f"Recipe window {recipe.data.frames} x {recipe.data.crop} px must be 1 + 4k frames and a multiple of 8 px.")
    if recipe.run.precision not in ("fp32", "bf16"):
        raise UsageError(f"Recipe precision {recipe.run.precision!r} must be fp32 or bf16.")
    if isinstance(recipe.model, CVVAEConfig) and recipe.run.warm_windows:
        raise UsageError("Recipe run.warm_windows fits the compact family's linear code; set it to 0 for family cv-vae.")
    return recipe
