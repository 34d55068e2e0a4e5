"""A model small enough for every test, with random weights, also saved as a file that `--model` takes."""

from dataclasses import replace
from pathlib import Path

import torch

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.checkpoint import save_model
from cvvae_cli.config import CompactConfig, ModelConfig

TINY = CompactConfig(
    latent_channels=4,
    shared_channels=2,
    codes=2,
    gate_channels=8,
    encoder_channels=(8, 8, 8),
    decoder_channels=(8, 8, 8),
    decoder_blocks=(1, 1, 1),
    scaling_factor=0.5,
    shift_factor=0.25,
)
TINY_PICTURE = replace(TINY, temporal=False)


def random_model(config: ModelConfig = TINY, seed: int = 0, encoder: float = 0.1) -> Autoencoder:
    """Random everywhere, also where a fresh model is zero; standard deviation 0.1 or, of the encoder, as asked for."""
    torch.manual_seed(seed)
    model = Autoencoder(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, encoder if name.startswith("encoder") else 0.1)
    return model


def save_tiny_model(path: Path, seed: int = 0) -> Path:
    """Weights drawn so that latents are around 1 and few decoded pixels are clipped."""
    save_model(random_model(TINY, seed, encoder=0.04), path)
    return path
