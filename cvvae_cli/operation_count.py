"""The floating-point operations of a network's two directions, counted from what really runs, not estimated.

Nothing is computed on the way, so a model of any size is counted on any machine. This module knows no clock.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.geometry import cell_count, latent_frame_count
from cvvae_cli.plain_form import PlainForm


@dataclass(frozen=True)
class WindowWork:
    """Floating-point operations of one window, a multiply-add counted as two.

    Convolutions, linear maps and attention; norms, activations and paddings are left out. A convolution's taps
    that read padding count.
    """

    encode: int
    decode: int


def count_flops(model: Autoencoder, frames: int, height: int, width: int) -> WindowWork:
    """Count the work of one encode and one decode window without computing anything.

    A twin without memory (torch's meta device) goes through the same forward passes while torch counts operations.

    Args:
        model: any member, on any device, the meta device included.
        frames: 1 + 4k.
        height, width: pixels, multiples of 8.

    Raises:
        UsageError: (a ValueError) the window breaks these rules.
    """
    return _counted(_twin(model), model.latent_channels, (frames, height, width))


def count_plain_flops(model: Autoencoder, frames: int, height: int, width: int) -> WindowWork:
    """Count the work of the model's plain form: what its architecture asks for, whatever the model itself saves.

    Args:
        model: any member, on any device, the meta device included.
        frames: 1 + 4k.
        height, width: pixels, multiples of 8; not checked.
    """
    return _counted(PlainForm(_twin(model)), model.latent_channels, (frames, height, width))


def _twin(model: Autoencoder) -> Autoencoder:
    with torch.device("meta"):
        return Autoencoder(model.config)


def _counted(network: Autoencoder | PlainForm, latent_channels: int, window: tuple[int, int, int]) -> WindowWork:
    """The work of a network on the meta device on `window` = (frames, height, width)."""
    frames, height, width = window
    cells = (latent_frame_count(frames), cell_count(height), cell_count(width))
    video = torch.empty(1, 3, *window, device="meta")
    latents = torch.empty(1, latent_channels, *cells, device="meta")
    # Fused attention is one opaque operation that differs by device; taken apart it is matrix products everywhere.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        return WindowWork(_flops_of(network.encode, video), _flops_of(network.decode, latents))


def _flops_of(direction: Callable[[Tensor], Tensor], x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        direction(x)
    return counter.get_total_flops()
