"""Recipes and clips small enough to train on in every test."""

from dataclasses import replace
from pathlib import Path

from clips import moving_pictures, write_video
from tiny_model import TINY

from cvvae_cli.config import CVVAEConfig
from cvvae_cli.training.recipe import AdversarialConfig, LossConfig, OptimConfig, Recipe, RunConfig
from cvvae_cli.training.streams import StreamConfig


def write_clips(folder: Path) -> Path:
    """Two short clips, 64x48 and 80x48 px."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(2):
        write_video(folder / f"clip{i}.mp4", moving_pictures(20, 64 + 16 * i, 48))
    return folder


def video_stream(clips: Path, batch: int = 2) -> StreamConfig:
    return StreamConfig("video", (str(clips),), batch, 32, 5, short_sides=(48,), max_stride=2, cache=str(clips.parent / "cache"))


def image_stream(clips: Path, batch: int = 2) -> StreamConfig:
    return StreamConfig("image", (str(clips),), batch, 32, 1, short_sides=(48,), cache=str(clips.parent / "cache"))


def tiny_recipe(clips: Path, steps: int = 6, **run: object) -> Recipe:
    """Video and pictures, all plain terms."""
    return Recipe(
        RunConfig("test", workers=0, log_every=1, pictures_every=0, **run),
        OptimConfig(steps, warmup=2, learning_rate=1e-3),
        (video_stream(clips), image_stream(clips)),
        loss=LossConfig("l1", perceptual="gradient", temporal_weight=0.1),
        model=TINY,
    )


def adversarial_recipe(clips: Path, steps: int = 6) -> Recipe:
    """The same with a discriminator from the third step on."""
    return replace(tiny_recipe(clips, steps), adversarial=AdversarialConfig(0.1, 2, 1e-3, 8, 2))


def official_recipe(clips: Path, variant: str, steps: int = 3) -> Recipe:
    """An official architecture from random weights, its convolutions over frames and attentions with it."""
    model = CVVAEConfig(variant, latent_channels=4, channels=(8, 8, 16, 16), norm_groups=4)
    return replace(tiny_recipe(clips, steps, recompute=True), model=model)
