"""The weights of a run's first step, as `[start]` of its recipe says. It knows no optimiser and no loss."""

from collections.abc import Callable

import torch

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.checkpoint import load_model
from cvvae_cli.config import CVVAEConfig
from cvvae_cli.errors import UsageError
from cvvae_cli.image_model import load_image_model
from cvvae_cli.training.inflation import inflate, inflate_official
from cvvae_cli.training.linear_code import warm_start
from cvvae_cli.training.recipe import Recipe
from cvvae_cli.training.video_code import fit_video_code
from cvvae_cli.training.windows import WindowStream

LINEAR_BATCH = 20
OFFICIAL_PICTURES = 8
"""Whose latents start the attention over time of `sd21`; each has more cells than the widest level has channels."""
_OTHER_ORDER = 1_000_003
"""Added to the seed, so that the windows of the fit are not those of the run."""


def starting_model(recipe: Recipe, streams: list[WindowStream], report: Callable[[str], None]) -> Autoencoder:
    """A model as a run begins with it, float32 on the CPU.

    Raises:
        UsageError: `start.model` has another architecture than the recipe.
        ModelError: it cannot be loaded.
    """
    start = recipe.start
    torch.manual_seed(recipe.run.seed)
    if start.kind == "weights":
        model = load_model(start.model, device="cpu", dtype=torch.float32)
        if model.config != recipe.model:
            raise UsageError(f"start.model {start.model} has another architecture than [model]; make them agree: {model.config}.")
        return model
    if start.kind == "inflate":
        return _inflated(recipe, streams, report)
    model = Autoencoder(recipe.model)
    if start.kind == "linear":
        report(f"fitting the linear code on {start.linear_windows} windows")
        windows = fit_windows(recipe, streams, start.linear_windows)
        warm_start(model, windows, start.linear_noise, recipe.loss.floor)
    return model


def _inflated(recipe: Recipe, streams: list[WindowStream], report: Callable[[str], None]) -> Autoencoder:
    start = recipe.start
    image = load_image_model(start.model)
    if isinstance(recipe.model, CVVAEConfig):
        pictures = fit_windows(recipe, streams, OFFICIAL_PICTURES)
        with torch.no_grad():
            latents = torch.cat([image.encode(batch[:, :, 0]) for batch in pictures])
        return inflate_official(image.network, recipe.model, latents)
    if not isinstance(image.network, Autoencoder):
        advice = "inflate a compact picture autoencoder"
        raise UsageError(f"Recipe start.model {start.model} is diffusers' and [model] compact; {advice}.")
    model = inflate(image.network, recipe.model)
    if start.linear_windows:
        report(f"fitting the linear maps to video on {start.linear_windows} windows")
        windows = fit_windows(recipe, streams, start.linear_windows)
        fit_video_code(model, image.network, windows, start.picture_strength, recipe.loss.floor)
    return model


def fit_windows(recipe: Recipe, streams: list[WindowStream], count: int) -> list[torch.Tensor]:
    """About `count` windows to fit linear maps on, of the streams with most frames, by their shares.

    Returns:
        Batches (B, 3, T, H, W) in [-1, 1], each of one stream, B at most `LINEAR_BATCH`.

    Memory: all of them are held at once, float32 on the CPU.
    """
    longest = max(stream.config.frames for stream in streams)
    chosen = [stream for stream in streams if stream.config.frames == longest]
    total = sum(stream.config.share * stream.config.batch for stream in chosen)
    batches: list[torch.Tensor] = []
    for stream in chosen:
        other = stream.with_seed(recipe.run.seed + _OTHER_ORDER)
        own = max(1, round(count * stream.config.share * stream.config.batch / total))
        batches += torch.stack([other.window(number) for number in range(own)]).split(LINEAR_BATCH)
    return batches
