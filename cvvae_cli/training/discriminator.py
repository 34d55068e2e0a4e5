"""The adversarial term: a 3-D PatchGAN, hinge losses, and the weight that balances them with the reconstruction.

How the two kinds of steps go together:

- A generator step runs the generator with gradients and adds `hinge_generator_loss` of the discriminator's
  answer to the fakes, times `adaptive_weight`. Gradients must pass through the discriminator, but not into
  its weights: set `requires_grad_(False)` on it meanwhile, which spares that work too.
- A discriminator step takes its loss from `discriminator_step`, on fakes without a graph: made under
  `torch.no_grad()`, or kept from the generator step before, detached. The generator is never run with gradients
  for it. The release does run it so in both kinds of steps.

This module knows no autoencoder, no optimiser and no schedule.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvvae_cli.convolution import Conv3d
from cvvae_cli.errors import UsageError

_GROUP_CHANNELS = 16  # of GroupNorm; Wu and He, "Group Normalization", 2018, found 16 a good choice
_WIDEST = 8  # channels grow to 8 times the first layer's, as in the 2-D PatchGAN
_INIT_STD = 0.02  # weights of pix2pix's networks
_NORM_FLOOR = 1e-4  # added to the adversarial gradient's norm, as VQGAN does


class PatchDiscriminator3d(nn.Module):
    """Judges overlapping patches of a window, each as real or made; looks into past and future alike.

    `layers` convolutions halve height and width, the first two of them time as well (each 3 frames deep, so that
    17 frames become 9 and 5, and 1 stays 1); then one more hidden and one last convolution. With four layers a
    logit sees 110 x 110 px and 39 frames, so a whole window in time. Time is padded with zeros: a picture meets
    only the middle taps, which is a 2-D PatchGAN, and pictures and video are judged by one network.

    Norms are GroupNorm, not the BatchNorm of the 2-D PatchGAN. A device holds one or a few windows at a time, of
    real and made frames in turn, now a picture and now a video: statistics of a batch would be noisy, would
    differ between devices under DDP and would let one window change another's logits. GroupNorm has no
    running statistics, so training and evaluation are the same, and a batch is its windows one by one.

    Args:
        channels: of the first layer, a multiple of 8; doubled in every layer up to 8 times as many.
        layers: convolutions of stride 2, >= 1.
        in_channels: of the windows, 3 for RGB.

    Raises:
        UsageError: channels or layers out of their range.

    Source: Isola, Zhu, Zhou, Efros, "Image-to-image translation with conditional adversarial networks", 2017.
    """

    def __init__(self, channels: int = 64, layers: int = 4, in_channels: int = 3) -> None:
        super().__init__()
        if channels < 8 or channels % 8 or layers < 1:
            size = f"{channels} channels and {layers} layers"
            raise UsageError(f"A discriminator of {size} needs a multiple of 8 channels and at least 1 layer.")
        self.smallest = 2**layers
        widths = [channels * min(2**i, _WIDEST) for i in range(layers + 1)]
        blocks: list[nn.Module] = [Conv3d(in_channels, channels, (3, 4, 4), stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, layers):
            blocks += _block(widths[i - 1], widths[i], (3, 4, 4), (2 if i < 2 else 1, 2, 2))
        # 3 x 3 where the 2-D PatchGAN has 4 x 4: those shrink the map and would leave nothing of a 32 px window.
        blocks += _block(widths[-2], widths[-1], (3, 3, 3), (1, 1, 1))
        blocks.append(Conv3d(widths[-1], 1, 3, padding=1))
        self.network = nn.Sequential(*blocks)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of windows, positive for real.

        Args:
            x: (B, 3, T, H, W) in [-1, 1], T >= 1, H and W at least 2^layers px and best 32 or more.

        Returns:
            (B, 1, t, h, w): h = H / 2^layers, w = W / 2^layers rounded down, t = 1 + (T - 1) / 4 for T = 1 + 4k
            (of two or more layers).

        Raises:
            UsageError: the window is too small.
        """
        if min(x.shape[3:]) < self.smallest:
            size, least = f"{x.shape[4]}x{x.shape[3]}", self.smallest
            raise UsageError(f"Frames of {size} px are too small to discriminate; crop at least {least} px or take fewer layers.")
        return self.network(x)


def _block(inputs: int, outputs: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> list[nn.Module]:
    """A convolution that pads 1 on each side (no bias: the norm has one), GroupNorm and the activation."""
    convolution = Conv3d(inputs, outputs, kernel, stride=stride, padding=1, bias=False)
    return [convolution, nn.GroupNorm(max(1, outputs // _GROUP_CHANNELS), outputs), nn.LeakyReLU(0.2)]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d):
        nn.init.normal_(module.weight, 0.0, _INIT_STD)
    elif isinstance(module, nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, _INIT_STD)
    if isinstance(module, (nn.Conv3d, nn.GroupNorm)) and module.bias is not None:
        nn.init.zeros_(module.bias)


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """What the discriminator minimises: half of mean max(0, 1 - real) + mean max(0, 1 + fake).

    Args:
        real_logits: of any shape and floating dtype, positive for real.
        fake_logits: likewise.

    Returns:
        A float32 scalar, at least 0; 1 when all logits are 0. (float64 stays float64.)
    """
    return 0.5 * (F.relu(1 - _exact(real_logits)).mean() + F.relu(1 + _exact(fake_logits)).mean())


def hinge_generator_loss(fake_logits: Tensor) -> Tensor:
    """What the generator minimises: minus the mean logit of what it made.

    Args:
        fake_logits: of any shape and floating dtype, positive for real.

    Returns:
        A float32 scalar, of either sign. (float64 stays float64.)
    """
    return -_exact(fake_logits).mean()


def discriminator_step(discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """The loss of a discriminator step; real and made windows go through together, one forward pass per backward.

    Args:
        discriminator: takes (B, 3, T, H, W), returns logits; each window's on their own.
        real: (B, 3, T, H, W) in [-1, 1].
        fake: of real's shape, made under `torch.no_grad()` or detached. One with a graph would hold the
            generator's activations and fill its gradients: that is refused.

    Returns:
        A float32 scalar.
    """
    assert not fake.requires_grad, "fakes of a discriminator step have no graph: make them under torch.no_grad()"
    real_logits, fake_logits = discriminator(torch.cat([real, fake.to(real.dtype)])).chunk(2)
    return hinge_discriminator_loss(real_logits, fake_logits)


def adaptive_weight(
    reconstruction: Tensor,
    adversarial: Tensor,
    last_weight: nn.Parameter,
    limit: float = 1e4,
    average: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The weight that makes the adversarial gradient as large as the reconstruction's at the decoder's last weight.

    |d reconstruction / d w| / (|d adversarial / d w| + 1e-4), both L2 norms. Both graphs are kept for the
    backward pass to come, and no `.grad` is touched, so DDP's reductions do not start. Activation checkpoints on
    the way must be of the kind `use_reentrant=False`.

    Args:
        reconstruction: scalar, the terms that the adversarial one is measured against.
        adversarial: scalar, the generator's hinge loss.
        last_weight: the decoder's last weight, which both depend on.
        limit: the largest weight, for when the discriminator's gradient vanishes.
        average: mean of a tensor over all processes, taken of both gradients, so that several processes weigh as
            one with all their windows would; None weighs by this process' own.

    Returns:
        A float32 scalar in [0, limit] without a graph.

    Source: Esser, Rombach, Ommer, "Taming transformers for high-resolution image synthesis", 2021.
    """
    norms = []
    for loss in (reconstruction, adversarial):
        (gradient,) = torch.autograd.grad(loss, last_weight, retain_graph=True)
        gradient = gradient.float()
        norms.append(torch.linalg.vector_norm(gradient if average is None else average(gradient)))
    return (norms[0] / (norms[1] + _NORM_FLOOR)).clamp(max=limit)


def _exact(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
