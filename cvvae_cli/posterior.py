"""The encoder's answer as a distribution: a Gaussian with a diagonal covariance for every latent value.

This module knows tensors only: no network, no scale or shift of a diffusion model, no file.
"""

import torch
from torch import Tensor

LOGVAR_MIN = -30.0
LOGVAR_MAX = 20.0


class DiagonalGaussian:
    """The posterior q(z | x) that `moments` describe.

    Args:
        moments: mean and log-variance stacked on channels, shape (B, 2z, t, h, w), any floating dtype.

    Attributes:
        mean: (B, z, t, h, w).
        logvar: (B, z, t, h, w), clamped to [-30, 20] as the release does.
    """

    def __init__(self, moments: Tensor) -> None:
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(LOGVAR_MIN, LOGVAR_MAX)

    @property
    def std(self) -> Tensor:
        """Standard deviation, (B, z, t, h, w)."""
        return torch.exp(0.5 * self.logvar)

    def mode(self) -> Tensor:
        """The most likely latent, which is the mean: (B, z, t, h, w)."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw one latent per position.

        The noise is drawn in float32 on the generator's own device, so one seed gives the same noise
        for every dtype, and for a CPU generator on every device.

        Args:
            generator: source of randomness; None takes torch's global one of the moments' device.

        Returns:
            (B, z, t, h, w) in the moments' dtype and on their device.
        """
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=torch.float32)
        return self.mean + self.std * noise.to(device=self.mean.device, dtype=self.mean.dtype)

    def kl(self) -> Tensor:
        """Kullback-Leibler divergence from the standard normal, per latent value, in nats.

        Returns:
            (B, z, t, h, w) in float32, because the variance may exceed what float16 holds; never reduced, so
            that the caller chooses between sums and means.
        """
        mean, logvar = self.mean.float(), self.logvar.float()
        return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar)
