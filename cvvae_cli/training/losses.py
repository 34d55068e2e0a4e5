"""Loss terms of a window: reconstruction, flicker, KL, the learned variance, and PSNR to report.

Each term gives one value per window, (B,), so that the loop can weigh streams and windows of different
sizes. Sums are taken in float32 when a tensor comes in less (float64 stays float64). This module knows no
model, no recipe and no weight of a term.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from cvvae_cli.errors import UsageError
from cvvae_cli.metrics import PSNR_CAP_DB
from cvvae_cli.posterior import DiagonalGaussian

_PEAK = 2.0  # pixels span [-1, 1]
_WINDOW = (1, 2, 3, 4)


def reconstruction_error(y: Tensor, x: Tensor, kind: Literal["l1", "l2", "log_mse"], floor: float) -> Tensor:
    """Error of each window, a mean over its elements, so that it does not depend on the window's size.

    "l1" is the mean absolute error, "l2" the mean squared error, "log_mse" half the logarithm of the mean
    squared error: a decibel of PSNR is worth the same on a hard window as on an easy one.

    Args:
        y: what the model made, (B, 3, T, H, W), around [-1, 1], any floating dtype.
        x: what it should have made, of y's shape, in [-1, 1].
        kind: one of the three.
        floor: added to the mean squared error before the logarithm, > 0, in squared pixel units; windows far
            below it are good enough to be left alone. "l1" and "l2" have no use for it.

    Returns:
        (B,). "log_mse" is negative where the error is below 1.

    Raises:
        UsageError: another kind.
    """
    return _error_mean(_difference(y, x), kind, floor, "Reconstruction")


def temporal_error(y: Tensor, x: Tensor, kind: Literal["l1", "l2", "log_mse"], floor: float) -> Tensor:
    """Error of the frame differences of each window: (y_t - y_{t-1}) - (x_t - x_{t-1}).

    It is what `cvvae roundtrip` reports as flicker, there as a root mean square in 8-bit levels. An error that
    stays the same from frame to frame costs nothing here, one that alternates costs most.

    Args:
        y: what the model made, (B, 3, T, H, W), around [-1, 1], any floating dtype.
        x: what it should have made, of y's shape, in [-1, 1].
        kind: over all elements of the T - 1 differences, "l1" is the mean magnitude, "l2" the mean square,
            "log_mse" half the logarithm of the mean square: a percent of flicker is worth the same on every window.
        floor: of "log_mse", as in `reconstruction_error`.

    Returns:
        (B,); zeros that depend on y, with zero gradients, where T is 1.

    Raises:
        UsageError: another kind.
    """
    change = _difference(y, x).diff(dim=2)  # (y1 - y0) - (x1 - x0) = (y1 - x1) - (y0 - x0)
    if x.shape[2] == 1:
        return change.sum(dim=_WINDOW)  # of nothing; a mean over it would be NaN
    return _error_mean(change, kind, floor, "Temporal")


def kl_per_element(posterior: DiagonalGaussian) -> Tensor:
    """Kullback-Leibler divergence of each window's posterior from the standard normal, in nats per latent element.

    The mean over (z, t, h, w) is the stated normalisation: one weight means the same for pictures and video, for
    every crop and number of frames. The release sums it over the clip while its reconstruction is per
    frame, so that its KL weighs more the longer the clip; that is a fault not repeated here. For a window of
    n latent elements and m pixel values, a weight w here is a weight w m / n where both terms are sums.

    Args:
        posterior: of a batch of B windows.

    Returns:
        (B,) float32, at least 0.
    """
    return posterior.kl().mean(dim=_WINDOW)


@torch.no_grad()
def psnr_db(y: Tensor, x: Tensor) -> Tensor:
    """PSNR of each window as the model made it, to report: no gradient, no clamping and no rounding to 8 bits.

    The mean squared error is taken over the whole window; `cvvae roundtrip` instead averages the PSNR of frames.

    Args:
        y: what the model made, (B, 3, T, H, W), around [-1, 1], any floating dtype.
        x: what it should have made, of y's shape, in [-1, 1].

    Returns:
        (B,) in dB, at most 100, as in `metrics`.
    """
    mse = _difference(y, x).square().mean(dim=_WINDOW)
    return (10 * (_PEAK**2 / mse).log10()).clamp(max=PSNR_CAP_DB)


class LearnedVariance(nn.Module):
    """Scales an error by a variance that is learned with the network: error / exp(s) + s.

    At the best s the term is 1 + log(mean error), so the weight of the reconstruction against KL and adversarial
    terms follows the error as it falls. Started far above log(error), it lets the KL prevail at first. The error
    must be positive: "log_mse" is this logarithm already, taken per window, and passed through here it could be
    lowered without end. The scalar wants no weight decay.

    Args:
        initial: first value of the log-variance s, natural logarithm; 0 leaves the first error as it is.
    """

    def __init__(self, initial: float = 0.0) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.tensor(float(initial)))

    def forward(self, error: Tensor) -> Tensor:
        """The scaled error of each window.

        Args:
            error: (B,), at least 0.

        Returns:
            (B,).
        """
        return error * torch.exp(-self.log_variance) + self.log_variance


def _error_mean(error: Tensor, kind: Literal["l1", "l2", "log_mse"], floor: float, name: str) -> Tensor:
    """The named mean over each window's elements, (B,)."""
    if kind == "l1":
        return error.abs().mean(dim=_WINDOW)
    if kind == "l2":
        return error.square().mean(dim=_WINDOW)
    if kind == "log_mse":
        return 0.5 * (error.square().mean(dim=_WINDOW) + floor).log()
    raise UsageError(f"{name} loss {kind!r} is unknown; set it to l1, l2 or log_mse.")


def _difference(y: Tensor, x: Tensor) -> Tensor:
    """y - x in float32, or float64 where one of them is; shapes that would broadcast are our own mistake."""
    assert y.shape == x.shape, f"windows differ: {tuple(y.shape)} and {tuple(x.shape)}"
    exact = torch.promote_types(torch.promote_types(y.dtype, x.dtype), torch.float32)
    return y.to(exact) - x.to(exact)
