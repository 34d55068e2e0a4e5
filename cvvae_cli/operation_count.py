"""The floating-point operations of a model's two directions, counted from what really runs, not estimated.

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
    with torch.device("meta"):
        twin = Autoencoder(model.config)
        video = torch.empty(1, 3, frames, height, width)
        latents = torch.empty(1, model.latent_channels, latent_frame_count(frames), cell_count(height), cell_count(width))
    # Fused attention is one opaque operation that differs by device; taken apart it is matrix products everywhere.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        return WindowWork(_counted(twin.encode, video), _counted(twin.decode, latents))


def _counted(network: Callable[[Tensor], Tensor], x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        network(x)
    return counter.get_total_flops()
