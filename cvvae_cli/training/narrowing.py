"""A compact decoder's linear map through few channels.

The map makes each block of pixels from the gated coefficients of 3 x 3 x 3 blocks, in one convolution that is the
largest of the decoder. What it makes lies almost in as many dimensions as one block has coefficients, so a convolution
to that many channels and a 1 x 1 x 1 map of them to pixels do the same with a fraction of the work. This module knows
no file.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.config import CompactConfig
from cvvae_cli.errors import UsageError
from cvvae_cli.training.loop import Trainer

WINDOWS = 64


def exported_model(trainer: Trainer) -> Autoencoder:
    """The averaged weights of a run as its recipe wants them exported, on the CPU."""
    model, rank = trainer.averaged_model(), trainer.recipe.run.export_rank
    if not rank:
        return model
    stream = next(stream for stream in trainer.streams if stream.config.frames > 1)
    return narrow_synthesis(model, rank, (stream.window(number)[None] for number in range(WINDOWS)))


@torch.no_grad()
def narrow_synthesis(model: Autoencoder, rank: int, windows: Iterable[Tensor]) -> Autoencoder:
    """The model with its decoder's linear map narrowed to the directions in which its blocks vary most.

    Args:
        model: compact, temporal, with a wide map.
        rank: channels to keep, 1 .. pixels values of a block.
        windows: (B, 3, T, H, W) in [-1, 1], T = 1 + 4k, what the directions are taken from.

    Returns:
        A new model in float32 on the CPU. What it loses is the blocks' variance in the other directions, and nothing
        for blocks that lie in the kept ones.

    Raises:
        UsageError: the model has no wide map, or the rank is out of range.
    """
    config = model.config
    if not isinstance(config, CompactConfig) or not config.temporal or config.synthesis_rank:
        raise UsageError("Only the wide linear map of a compact video model can be narrowed; pass such a model.")
    wide = model.decoder.synthesis
    if not 1 <= rank <= wide.out_channels:
        raise UsageError(f"Rank {rank} must lie in 1 .. {wide.out_channels}; pass for example 128.")
    moment = torch.zeros(wide.out_channels, wide.out_channels, dtype=torch.float64)

    def add(module: torch.nn.Module, inputs: tuple[Tensor, ...], blocks: Tensor) -> None:
        rows = (blocks - wide.bias.view(-1, 1, 1, 1)).movedim(1, -1).flatten(0, 3).double()
        moment.addmm_(rows.T, rows)

    watching = wide.register_forward_hook(add)
    for x in windows:
        model.decode(model.encode(x).chunk(2, dim=1)[0])
    watching.remove()
    directions = torch.linalg.eigh(moment).eigenvectors[:, -rank:].float()
    narrow = Autoencoder(replace(config, synthesis_rank=rank))
    kept = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("decoder.synthesis.")}
    narrow.load_state_dict(
        kept
        | {
            "decoder.synthesis.weight": torch.einsum("br,bcthw->rcthw", directions, wide.weight),
            "decoder.synthesis_out.weight": directions.view(*directions.shape, 1, 1, 1),
            "decoder.synthesis_out.bias": wide.bias,
        }
    )
    return narrow.eval()
