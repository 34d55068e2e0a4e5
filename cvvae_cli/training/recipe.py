"""A training run as one typed TOML file: every value of the run, with its unit. No torch here.

A recipe has the tables `[run]`, `[start]`, `[model]`, `[optim]`, `[loss]`, `[regularisation]`, `[adversarial]` and
one `[[streams]]` per kind of window. Only `[run]`, `[optim]` and one stream are required.
"""

import math
import re
import tomllib
from dataclasses import MISSING, asdict, dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from typing import Literal, get_args, get_origin

from cvvae_cli.checked_values import quoted
from cvvae_cli.config import LONGEST_CHUNK, WIDEST, CompactConfig, ModelConfig, config_from_dict, config_to_dict
from cvvae_cli.errors import ModelError, UsageError
from cvvae_cli.training.streams import StreamConfig

Norm = Literal["l1", "l2"]
ErrorKind = Literal["l1", "l2", "log_mse"]


@dataclass(frozen=True)
class RunConfig:
    """Attributes:
    name: names the folder of the run.
    seed: fixes weights, windows and noise.
    precision: "fp32", or "bf16" for the networks' products (autocast; weights and losses stay float32). On NVIDIA cards
        torch computes "fp32" convolutions in TF32 unless told otherwise.
    checkpoint_every, log_every: steps.
    pictures_every: steps between strips of source and reconstruction in TensorBoard; 0 writes none.
    recompute: keep only the blocks' inputs and compute the rest again on the way back (activation checkpointing).
    workers: processes that make windows, for each device.
    export_rank: channels that the linear map of an exported compact decoder is narrowed to (`training.narrowing`); 0 leaves it.
    """

    name: str
    seed: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_every: int = 250
    log_every: int = 10
    pictures_every: int = 500
    recompute: bool = False
    workers: int = 1
    export_rank: int = 0


@dataclass(frozen=True)
class StartConfig:
    """Attributes:
    kind: where the weights of the first step come from: "random"; "linear", the closed-form gated code (compact
        family only); "inflate", a picture autoencoder made a video one; "weights", a model of the same architecture.
    model: the picture autoencoder ("inflate") or the model ("weights"): a name, folder or file.
    linear_windows: windows that fit the linear code of "linear", or the linear maps of an inflated compact model, whose
        first frames then stay pictures while the rest becomes video; 0 leaves it as it is.
    picture_strength: in that fit, the weight of the error of each group's mean frame as the picture decoder shows it,
        beside that of the video.
    linear_noise: standard deviation in pixel units ([-1, 1]) that sampling adds at the start of a linear code.
    """

    kind: Literal["random", "linear", "inflate", "weights"] = "random"
    model: str = ""
    linear_windows: int = 600
    linear_noise: float = 6e-3
    picture_strength: float = 0.3


@dataclass(frozen=True)
class OptimConfig:
    """Attributes:
    steps: optimiser steps of the whole run.
    learning_rate: peak rate (AdamW).
    linear_rate: peak rate of the compact family's linear maps, which a larger one destroys.
    warmup: steps of linear rise.
    hold: steps, warm-up included, before the cosine begins; until then a run can be prolonged by raising `steps`.
    final_rate: rate at the last step, relative to the peak, where the cosine ends.
    betas, eps, weight_decay: AdamW's.
    clip: largest gradient norm of a group of parameters: networks, linear maps, learned variances, discriminator.
    accumulate: pieces that a device's share of a batch is computed in.
    ema: decay of the averaged weights, which are the ones that are exported.
    """

    steps: int
    learning_rate: float = 3e-4
    linear_rate: float = 3e-6
    warmup: int = 200
    hold: int = 0
    final_rate: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: float = 1.0
    accumulate: int = 1
    ema: float = 0.999


@dataclass(frozen=True)
class LossConfig:
    """Attributes:
    reconstruction: per window "l1" (mean absolute error), "l2" (mean square) or "log_mse" (half the logarithm of
        mse + floor, so that every window counts in decibels).
    floor: of both "log_mse", in squared [-1, 1] units.
    perceptual: "none", "gradient" (multi-scale gradients, needs no weights) or "lpips" (the extra of that name).
    perceptual_weight: beside the reconstruction, inside the learned variance.
    learned_variance: divide reconstruction and perceptual term by a learned variance, as LDM and the release do.
    kl_weight: of the KL divergence per latent element.
    temporal_weight: of the error of frame differences, against flicker.
    temporal_norm: of that error; as for the reconstruction, "log_mse" lets every window count by its ratio.
    """

    reconstruction: ErrorKind = "l1"
    floor: float = 5e-4
    perceptual: Literal["none", "gradient", "lpips"] = "none"
    perceptual_weight: float = 0.5
    learned_variance: bool = False
    kl_weight: float = 1e-6
    temporal_weight: float = 0.0
    temporal_norm: ErrorKind = "l1"


@dataclass(frozen=True)
class RegularisationConfig:
    """Latent regularisation against a frozen picture autoencoder E_i, D_i; psi maps 1 + 4k frames to 1 + k.

    Attributes:
        side: "decoder" adds |psi(x) - D_i(E_v(x))|, "encoder" |x - D_v(E_i(psi(x)))|, "both" both, "none" nothing.
        image_model: the frozen picture autoencoder: a diffusers folder or hub id, or one of ours.
        map: psi: of each group of four frames its "first", its last ("slice"), its "average" or a "random" one.
        norm: of the error.
        decoder_weight, encoder_weight: of the two sides.
        learned_variance: divide each side's error by a learned variance of its own.
    """

    side: Literal["none", "decoder", "encoder", "both"] = "none"
    image_model: str = ""
    map: Literal["first", "slice", "average", "random"] = "random"
    norm: Norm = "l1"
    decoder_weight: float = 1.0
    encoder_weight: float = 1.0
    learned_variance: bool = False


@dataclass(frozen=True)
class AdversarialConfig:
    """Attributes:
    weight: of the adversarial term, times the adaptive weight; 0 trains no discriminator.
    start_step: the first step with it.
    learning_rate: of the discriminator.
    channels, layers: of the 3-D PatchGAN.
    """

    weight: float = 0.0
    start_step: int = 0
    learning_rate: float = 2e-5
    channels: int = 64
    layers: int = 4


@dataclass(frozen=True)
class Recipe:
    """A whole run; see the parts."""

    run: RunConfig
    optim: OptimConfig
    streams: tuple[StreamConfig, ...]
    start: StartConfig = field(default_factory=StartConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    regularisation: RegularisationConfig = field(default_factory=RegularisationConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    model: ModelConfig = field(default_factory=CompactConfig)

    def __post_init__(self) -> None:
        _check_ranges(self)
        if not self.streams:
            raise UsageError("The recipe has no [[streams]], so there is nothing to train on; add one.")
        least = 2**self.adversarial.layers if self.adversarial.weight else 0
        small = [stream.crop for stream in self.streams if stream.crop < least]
        if small:
            layers = self.adversarial.layers
            raise UsageError(f"Recipe adversarial.layers {layers} needs crops of {least} px or more, got {small[0]}; take fewer.")
        if self.start.kind in ("inflate", "weights") and not self.start.model:
            raise UsageError(f"Recipe start.kind {self.start.kind!r} needs start.model, a name, folder or file.")
        if self.start.kind == "linear" and not isinstance(self.model, CompactConfig):
            raise UsageError('Recipe start.kind "linear" fits the compact family only; choose "random" for family cv-vae.')
        if self.run.export_rank and not (isinstance(self.model, CompactConfig) and self.model.temporal):
            raise UsageError("Recipe run.export_rank narrows a compact video model; set it to 0 for another.")
        if isinstance(self.model, CompactConfig) and self.model.synthesis_rank and self.start.kind not in ("random", "weights"):
            raise UsageError(f"Recipe start.kind {self.start.kind!r} makes a wide linear map; set model.synthesis_rank to 0.")
        if self.regularisation.side != "none" and not self.regularisation.image_model:
            raise UsageError("Recipe regularisation.side needs regularisation.image_model, the frozen picture autoencoder.")
        still = all(stream.frames == 1 for stream in self.streams)
        if self.start.kind == "linear" and isinstance(self.model, CompactConfig) and self.model.temporal and still:
            raise UsageError('Recipe start.kind "linear" of a video model needs a stream of more than one frame; add one.')
        if isinstance(self.model, CompactConfig) and not self.model.temporal and not still:
            raise UsageError("Recipe model.temporal = false is a picture autoencoder; give its streams frames = 1.")
        if self.loss.reconstruction == "log_mse" and self.loss.learned_variance:
            raise UsageError("Recipe loss.learned_variance has no least value with the reconstruction log_mse; choose one.")
        if not 0 <= self.optim.hold <= self.optim.steps:
            raise UsageError(f"Recipe optim.hold {self.optim.hold} must lie in 0 .. steps ({self.optim.steps}).")


_LEAST = {
    0: (
        "run.seed", "run.pictures_every", "run.export_rank", "run.workers", "start.linear_windows", "start.picture_strength",
        "optim.learning_rate", "optim.linear_rate", "optim.warmup", "optim.clip", "optim.weight_decay", "optim.final_rate",
        "loss.floor", "loss.kl_weight", "loss.temporal_weight", "loss.perceptual_weight", "regularisation.decoder_weight",
        "regularisation.encoder_weight", "adversarial.weight", "adversarial.start_step", "adversarial.learning_rate",
        "start.linear_noise", "optim.eps",
    ),
    1: (
        "run.checkpoint_every", "run.log_every", "optim.steps", "optim.accumulate", "adversarial.layers", "adversarial.channels",
    ),
}  # fmt: skip
"""Least values of the numbers that have one."""
_MOST = {"run.workers": 1024, "run.export_rank": WIDEST, "optim.accumulate": 2**16, "adversarial.layers": 10,
         "adversarial.channels": WIDEST, "start.linear_windows": 10**7}  # fmt: skip
"""Largest values of the numbers that would fill a machine before anybody sees what is wrong."""
_MOST_OF_STREAM = {"batch": 2**16, "crop": 2**14, "frames": LONGEST_CHUNK, "max_stride": 10_000, "frames_per_clip": 10**7}
RECIPE_LIMIT = 64 * 1024
"""Bytes of a recipe."""
_DEEP_KEY = re.compile(r"""(?<![\w-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){9}""")
"""A key of ten parts or more, where a recipe's have two: the parser's time grows much faster than their number."""
LONGEST_TEXT = 500
"""Characters of a text out of a recipe, which may be a path."""
SHOWN = 80
"""Characters that are shown of a key out of a recipe."""


def _check_ranges(recipe: "Recipe") -> None:
    """Numbers alone; what contradicts another is the recipe's own to see."""
    for least, names in _LEAST.items():
        for name in names:
            value = attrgetter(name)(recipe)
            if not least <= value < math.inf:
                raise UsageError(f"Recipe {name} {value} must be {least} or more; correct it.")
    largest = [(name, attrgetter(name)(recipe), most) for name, most in _MOST.items()]
    largest += [(f"streams.{key}", getattr(s, key), most) for s in recipe.streams for key, most in _MOST_OF_STREAM.items()]
    for name, value, most in largest:
        if value > most:
            raise UsageError(f"Recipe {name} {value} must be {most} or less; correct it.")
    name = recipe.run.name
    if Path(name).name != name or name in ("", "..") or not name.isprintable() or len(name) > SHOWN:
        raise UsageError(f"Recipe run.name {name[:SHOWN]!r} must be a plain name, that of the run's folder; change it.")
    betas = recipe.optim.betas
    for name, value in [("ema", recipe.optim.ema), *((f"betas[{i}]", beta) for i, beta in enumerate(betas))]:
        if not 0 <= value < 1:
            raise UsageError(f"Recipe optim.{name} {value} must be 0 or more and below 1; correct it.")
    if len(betas) != 2:
        raise UsageError(f"Recipe optim.betas has {len(betas)} values and must have 2; correct it.")


TABLES = {
    "run": RunConfig, "start": StartConfig, "optim": OptimConfig, "loss": LossConfig,
    "regularisation": RegularisationConfig, "adversarial": AdversarialConfig,
}  # fmt: skip


def recipe_to_dict(recipe: Recipe) -> dict:
    """A JSON-ready dictionary of the recipe's tables, as `load_recipe` would find them in TOML."""
    tables = {name: asdict(getattr(recipe, name)) for name in TABLES}
    return tables | {"streams": [asdict(stream) for stream in recipe.streams], "model": config_to_dict(recipe.model)}


def _read_table(kind: type, table: object, name: str):
    if not isinstance(table, dict):
        raise UsageError(f"Recipe section {name} must be a table of keys and values; see recipes/ for examples.")
    known = {f.name: f for f in fields(kind)}
    extra = sorted(set(table) - set(known))
    if extra:
        raise UsageError(f"Recipe key {name}.{extra[0][:SHOWN]} is unknown; {name} takes {', '.join(sorted(known))}.")
    for key, value in table.items():
        _check_value(f"{name}.{key}", value, known[key].type)
    lacking = [f.name for f in known.values() if f.default is MISSING and f.default_factory is MISSING and f.name not in table]
    if lacking:
        raise UsageError(f"Recipe section {name} lacks {', '.join(lacking)}; add what is missing.")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in table.items()})


def _check_value(name: str, value: object, kind: object) -> None:
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise UsageError(f"Recipe {name} = {quoted(value)} must be one of {', '.join(map(repr, get_args(kind)))}.")
        return
    if get_origin(kind) is tuple:
        item = (int, float) if get_args(kind)[0] is float else get_args(kind)[0]
        fits = isinstance(value, list) and all(isinstance(v, item) for v in value)
    else:
        fits = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    items = value if isinstance(value, list) else [value]
    huge = any(isinstance(item, int) and abs(item) >= 2**63 for item in items)
    if not fits or huge or any(isinstance(item, str) and len(item) > LONGEST_TEXT for item in items):
        wanted = getattr(kind, "__name__", kind)
        raise UsageError(f"Recipe {name} = {quoted(value)} is not of the type {wanted}, or too large; correct it.")


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe.

    Raises:
        UsageError: the file is missing, is not TOML, or has unknown, missing or contradictory values.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(RECIPE_LIMIT + 1)
    except OSError as error:
        advice = "name a .toml file, for example recipes/default.toml"
        raise UsageError(f"Recipe {path} cannot be read: {error.strerror or error}; {advice}.") from error
    if len(raw) > RECIPE_LIMIT:
        raise UsageError(f"Recipe {path} has more than {RECIPE_LIMIT} bytes, which no recipe needs; name a .toml file.")
    try:
        text = raw.decode("utf-8")
        if _DEEP_KEY.search(text):
            raise ValueError("a key has more parts than a recipe's")
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # all that the parser makes of wrong text
        raise UsageError(f"Recipe {path} is not valid TOML: {error}.") from error
    return recipe_from_dict(data)


def recipe_from_dict(data: dict) -> Recipe:
    """The inverse of `recipe_to_dict`.

    Raises:
        UsageError: as `load_recipe`.
    """
    extra = sorted(set(data) - {*TABLES, "streams", "model"})
    if extra:
        known = ", ".join([*TABLES, "model", "streams"])
        raise UsageError(f"Recipe section {extra[0][:SHOWN]} is unknown; a recipe has {known}.")
    present = [name for name in TABLES if name in data or name in ("run", "optim")]
    parts = {name: _read_table(TABLES[name], data.get(name, {}), name) for name in present}
    try:
        if not isinstance(data.get("model", {}), dict):
            raise ModelError("it must be a table of keys and values.")
        model = config_from_dict(data.get("model", {"family": "compact"}))
    except ModelError as error:
        raise UsageError(f"Recipe section model: {error}") from error
    streams = data.get("streams", [])
    if not isinstance(streams, list):
        raise UsageError("Recipe section streams must be written [[streams]], one for each kind of window.")
    return Recipe(streams=tuple(_read_table(StreamConfig, table, "streams") for table in streams), model=model, **parts)
