"""How far a quick network's output is from the true one. This module knows moments and pixels, not what made them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cvvae_cli.metrics import PSNR_CAP_DB

PIXEL_RANGE = 2.0  # of pixels in [-1, 1]


@dataclass(frozen=True)
class Agreement:
    """An output beside the true one. None stands for an output that is not finite.

    Attributes:
        relative_error: L2 norm of the difference over that of the truth; infinite where only the truth is zero.
        psnr_db: of pixels in [-1, 1], over all frames at once, not clamped, at most `metrics.PSNR_CAP_DB`. None for moments.
    """

    relative_error: float | None
    psnr_db: float | None


def agreement_of_moments(output: Tensor, truth: Tensor) -> Agreement:
    """Compare moments; the relative error is the larger of the mean's and the log-variance's.

    Args:
        output: (B, 2z, t, h, w) floating, any dtype.
        truth: of the same shape; differences are taken in its dtype, sums in float64.
    """
    if not output.isfinite().all():
        return Agreement(None, None)
    halves = zip(output.chunk(2, dim=1), truth.chunk(2, dim=1))
    return Agreement(max(_relative_error(*half) for half in halves), None)


def agreement_of_videos(output: Tensor, truth: Tensor) -> Agreement:
    """Compare decoded pixels.

    Args:
        output: (B, 3, T, H, W) floating, any dtype.
        truth: of the same shape; differences are taken in its dtype, sums in float64.
    """
    if not output.isfinite().all():
        return Agreement(None, None)
    mean_square = _norm(output.to(truth.dtype) - truth) ** 2 / truth.numel()
    psnr_db = 10 * math.log10(PIXEL_RANGE**2 / mean_square) if mean_square else PSNR_CAP_DB
    return Agreement(_relative_error(output, truth), min(psnr_db, PSNR_CAP_DB))


def _relative_error(output: Tensor, truth: Tensor) -> float:
    distance, size = _norm(output.to(truth.dtype) - truth), _norm(truth)
    if size == 0:
        return math.inf if distance else 0.0
    return distance / size


def _norm(x: Tensor) -> float:
    return torch.linalg.vector_norm(x, dtype=torch.float64).item()
