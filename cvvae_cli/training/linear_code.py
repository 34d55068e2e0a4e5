"""The best linear code of 4 x 8 x 8 px blocks, fitted in closed form.

Two uses: it is the floor that a learned model must beat (`fit_klt`, `klt_reconstruct`), and the compact
family starts from it (`warm_start`): the Karhunen-Loeve basis for the encoder, and for the decoder the
least-squares prediction of a block from the 3 x 3 x 3 neighbourhood of its coefficients, which already
hides most block edges. This module knows no optimiser.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cvvae_cli.compact import BLOCK, BLOCK_CHANNELS, CompactDecoder, CompactEncoder, channel_to_space, space_to_channel

NEIGHBOURHOOD = 27


@dataclass(frozen=True)
class LinearCode:
    """Attributes:
    mean: (768,) mean block.
    basis: (z, 768) orthonormal rows, largest variance first.
    variance: (z,) of the coefficients.
    """

    mean: Tensor
    basis: Tensor
    variance: Tensor


def blocks_of(x: Tensor) -> Tensor:
    """Causal blocks, the first frame four times: (B, 3, T, H, W) -> (B, 768, t, h, w)."""
    return space_to_channel(torch.cat([x[:, :, :1].expand(-1, -1, 3, -1, -1), x], dim=2), BLOCK)


def fit_klt(windows: Iterable[Tensor], coefficients: int) -> LinearCode:
    """Karhunen-Loeve transform of the blocks of all windows (each (B, 3, T, H, W) in [-1, 1])."""
    count, total, square = 0, torch.zeros(BLOCK_CHANNELS, dtype=torch.float64), torch.zeros(BLOCK_CHANNELS, BLOCK_CHANNELS, dtype=torch.float64)
    for window in windows:
        rows = blocks_of(window)[:, :, 1:].permute(0, 2, 3, 4, 1).reshape(-1, BLOCK_CHANNELS)
        count += len(rows)
        total += rows.sum(0, dtype=torch.float64)
        square += (rows.T @ rows).double()
    mean = total / count
    variance, vectors = torch.linalg.eigh(square / count - torch.outer(mean, mean))
    order = variance.argsort(descending=True)[:coefficients]
    return LinearCode(mean.float(), vectors[:, order].T.float().contiguous(), variance[order].float())


def klt_reconstruct(code: LinearCode, x: Tensor) -> Tensor:
    """Project every block of `x` on the code and back; the same shape as `x`."""
    blocks = blocks_of(x)
    shape = blocks.shape
    rows = blocks.permute(0, 2, 3, 4, 1).reshape(-1, BLOCK_CHANNELS) - code.mean
    rows = rows @ code.basis.T @ code.basis + code.mean
    blocks = rows.reshape(shape[0], *shape[2:], BLOCK_CHANNELS).permute(0, 4, 1, 2, 3)
    return channel_to_space(blocks, BLOCK)[:, :, BLOCK[0] - 1 :]


def _neighbours(z: Tensor) -> Tensor:
    """(B, z, t, h, w) -> (B t h w, 27 z + 1), in the order of a 3x3x3 kernel's weight, then a one."""
    b, c = z.shape[:2]
    padded = F.pad(z, (1, 1, 1, 1, 1, 1), mode="replicate")
    views = padded.unfold(2, 3, 1).unfold(3, 3, 1).unfold(4, 3, 1)
    rows = views.permute(0, 2, 3, 4, 1, 5, 6, 7).reshape(-1, c * NEIGHBOURHOOD)
    return torch.cat([rows, torch.ones(len(rows), 1)], dim=1)


@torch.no_grad()
def warm_start(encoder: CompactEncoder, decoder: CompactDecoder, code: LinearCode, windows: Iterable[Tensor], noise: float, floor: float) -> None:
    """Write the linear code into a compact model, whose residual parts stay as they are (zero at first).

    Coefficients are scaled to unit variance. Each window weighs as its own linear error's inverse, because
    quality is the mean of decibels, not of squares. The posterior's variance starts where it adds `noise`
    to the mean squared error of each coefficient's share.

    Args:
        windows: as for `fit_klt`; read once.
        noise: standard deviation in pixel units ([-1, 1]) that sampling adds per coefficient at the start.
        floor: added to each window's mean squared error before it is inverted.
    """
    scale = code.variance.rsqrt()
    weight = code.basis * scale[:, None]
    encoder.analysis.weight.copy_(weight[:, :, None, None, None])
    encoder.analysis.bias.copy_(-(weight @ code.mean))
    z_channels = len(scale)
    encoder.conv_out.bias[z_channels:].copy_((noise**2 * scale**2 * BLOCK_CHANNELS / z_channels).log().clamp(-14.0, -4.0))
    size = z_channels * NEIGHBOURHOOD + 1
    normal, right = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, BLOCK_CHANNELS, dtype=torch.float64)
    for window in windows:
        for x in window.split(1):
            blocks = blocks_of(x)
            error = (klt_reconstruct(code, x) - x).square().mean().item()
            a = _neighbours(encoder.analysis(blocks))
            y = blocks.permute(0, 2, 3, 4, 1).reshape(-1, BLOCK_CHANNELS)
            factor = 1.0 / ((error + floor) * len(a))
            normal += (a.T @ a).double() * factor
            right += (a.T @ y).double() * factor
    ridge = 1e-6 * normal.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    solution = torch.linalg.solve(normal + ridge, right).float()
    kernel = solution[:-1].T.reshape(BLOCK_CHANNELS, z_channels, 3, 3, 3)
    decoder.synthesis.weight.copy_(kernel)
    decoder.synthesis.bias.copy_(solution[-1])
