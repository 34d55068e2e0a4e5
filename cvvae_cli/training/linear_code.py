"""The best linear code of 4 x 8 x 8 px blocks, and the gated code that the compact family starts from.

`fit_klt` and `klt_reconstruct` are the floor that a learned model must beat: the Karhunen-Loeve transform.
`warm_start` fits what the compact model adds to it before any training: several bases for part of the
coefficients, a gate that chooses among them by the others, and the least-squares prediction of a block from
the neighbourhood of its coefficients, which also hides block edges. This module knows no training loop.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.compact import (
    BLOCK,
    BLOCK_CHANNELS,
    CodeGate,
    CompactDecoder,
    CompactEncoder,
    channel_to_space,
    space_to_channel,
    spread,
)
from cvvae_cli.config import CompactConfig

NEIGHBOURHOOD = 27
ASSIGNMENT_ROUNDS = 8
GATE_ROUNDS = 2
GATE_STEPS = 600
RIDGE = 1e-6


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


def fit_bases(rows: Tensor, weight: Tensor, bases: int, size: int) -> Tensor:
    """Alternate between assigning each row to the basis that holds most of it and refitting the bases.

    Args:
        rows: (n, 768) blocks without what the shared channels hold.
        weight: (n,) of each row's squared error.
        bases: how many.
        size: directions per basis.

    Returns:
        (bases, size, 768), rows of each orthonormal.
    """
    frames = rows.view(len(rows), BLOCK[0], -1)
    motion = (frames - frames.mean(1, keepdim=True)).square().sum((1, 2)) / (frames.square().sum((1, 2)) + 1e-6)
    edges = torch.quantile(motion[:50_000], torch.linspace(0, 1, bases + 1)[1:-1])
    choice = torch.bucketize(motion, edges)  # from still to moving, as a beginning
    for _ in range(ASSIGNMENT_ROUNDS):
        fitted = refit_bases(rows, weight, choice, bases, size)
        choice = _captured(rows, fitted).argmax(dim=1)
    return refit_bases(rows, weight, choice, bases, size)


def refit_bases(rows: Tensor, weight: Tensor, choice: Tensor, bases: int, size: int) -> Tensor:
    """The best `size` directions of the rows of each choice; all rows serve a choice that has too few."""
    fitted = []
    for k in range(bases):
        mine = choice == k
        own, w = (rows[mine], weight[mine]) if mine.sum() > 2 * BLOCK_CHANNELS else (rows, weight)
        _, vectors = torch.linalg.eigh(((own * w[:, None]).T @ own).double())
        fitted.append(vectors[:, -size:].flip(1).T.float())
    return torch.stack(fitted)


def _captured(rows: Tensor, bases: Tensor) -> Tensor:
    """Energy of each row that each basis holds: (n, bases)."""
    return torch.stack([(rows @ basis.T).square().sum(1) for basis in bases], dim=1)


def _shared_part(code: LinearCode, windows: Iterable[Tensor], floor: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Per batch of windows: whitened shared channels (B, s, t, h, w), rows without them (n, 768), weights (n,).

    A window weighs as the inverse of its linear error, because quality is a mean of decibels, not of squares.
    """
    for x in windows:
        blocks = blocks_of(x)
        rows = _rows(blocks) - code.mean
        coefficients = rows @ code.basis.T
        error = (klt_reconstruct(code, x) - x).square().mean(dim=(1, 2, 3, 4))
        shape = (len(x), *blocks.shape[2:], -1)
        whitened = (coefficients * code.variance.rsqrt()).view(shape).permute(0, 4, 1, 2, 3)
        yield whitened, rows - coefficients @ code.basis, (1 / (error + floor)).repeat_interleave(len(rows) // len(x))


def fit_gate(gate: CodeGate, shared: list[Tensor], cost: list[Tensor], steps: int) -> None:
    """Teach a gate to put its weight where the expected log error is least.

    Args:
        shared: whitened shared channels, (B, s, t, h, w) each.
        cost: log error of every basis at the same positions, (B t h w, codes) each.
    """
    optimiser = torch.optim.Adam(gate.parameters(), 3e-3)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        i = step % len(shared)
        loss = (_rows(gate(shared[i])) * cost[i]).sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def warm_start(model: Autoencoder, windows: list[Tensor], noise: float, floor: float) -> None:
    """Fit the gated linear code and write it into a compact model; the residual parts stay as they are (zero at first).

    Args:
        model: of the compact family.
        windows: batches (B, 3, T, H, W) in [-1, 1].
        noise: standard deviation in pixel units ([-1, 1]) that sampling adds per coefficient at the start.
        floor: added to each window's mean squared error before it is inverted to a weight.
    """
    config, encoder, decoder = model.config, model.encoder, model.decoder
    assert isinstance(config, CompactConfig) and isinstance(encoder, CompactEncoder) and isinstance(decoder, CompactDecoder)
    shared_code = fit_klt(windows, config.shared_channels)
    shared, rows, weights = (list(parts) for parts in zip(*_shared_part(shared_code, windows, floor)))
    some = slice(None, None, max(1, len(shared) // 15))  # enough rows for the bases; the gate sees all
    few, weight = torch.cat(rows[some]), torch.cat(weights[some])
    bases = fit_bases(few, weight, config.codes, config.gated_channels)
    for _ in range(GATE_ROUNDS):
        cost = [((r.square().sum(1, keepdim=True) - _captured(r, bases)).clamp_min(0) / BLOCK_CHANNELS + floor).log() for r in rows]
        fit_gate(encoder.gate, shared, cost, GATE_STEPS)
        with torch.no_grad():
            choice = torch.cat([_rows(encoder.gate(s)).argmax(1) for s in shared[some]])
        bases = refit_bases(few, weight, choice, config.codes, config.gated_channels)
    _write_analysis(encoder, config, shared_code, bases, few, choice, noise)
    decoder.gate.load_state_dict(encoder.gate.state_dict())
    _solve_synthesis(encoder, decoder, windows, weights)


@torch.no_grad()
def _write_analysis(
    encoder: CompactEncoder, config: CompactConfig, code: LinearCode, bases: Tensor, rows: Tensor, choice: Tensor, noise: float
) -> None:
    """Projections scaled to unit variance; the posterior's variance where it adds `noise` to each coefficient's share."""
    variance = torch.stack([(rows[choice == k] @ b.T).square().mean(0) if (choice == k).any() else torch.ones(len(b)) for k, b in enumerate(bases)])
    variance = variance.clamp_min(1e-4)
    weight = torch.cat([code.basis * code.variance.rsqrt()[:, None], (bases * variance.rsqrt()[..., None]).flatten(0, 1)])
    encoder.analysis.weight.copy_(weight[:, :, None, None, None])
    encoder.analysis.bias.copy_(-(weight @ code.mean))
    typical = torch.cat([code.variance, variance.mean(0)])
    share = noise**2 * BLOCK_CHANNELS / config.latent_channels
    encoder.conv_out.bias[config.latent_channels :].copy_((share / typical).log().clamp(-14.0, -4.0))


@torch.no_grad()
def _solve_synthesis(encoder: CompactEncoder, decoder: CompactDecoder, windows: list[Tensor], weights: list[Tensor]) -> None:
    """Weighted least squares for the block, given the 3 x 3 x 3 neighbourhood of what the decoder spreads."""
    spread_channels = decoder.synthesis.in_channels
    size = spread_channels * NEIGHBOURHOOD + 1
    normal, right = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, BLOCK_CHANNELS, dtype=torch.float64)
    for batch, weight in zip(windows, weights):
        z = encoder(batch).chunk(2, dim=1)[0]
        a = _neighbours(spread(z, decoder.gate(z[:, : decoder.shared]), decoder.shared))
        scaled = a * weight[:, None]
        normal += scaled.T @ a
        right += scaled.T @ _rows(blocks_of(batch))
    ridge = RIDGE * normal.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    solution = torch.linalg.solve(normal + ridge, right).float()
    decoder.synthesis.weight.copy_(solution[:-1].T.reshape(BLOCK_CHANNELS, spread_channels, 3, 3, 3))
    decoder.synthesis.bias.copy_(solution[-1])


def _rows(x: Tensor) -> Tensor:
    """(B, C, t, h, w) -> (B t h w, C)."""
    return x.permute(0, 2, 3, 4, 1).reshape(-1, x.shape[1])


def _neighbours(z: Tensor) -> Tensor:
    """(B, C, t, h, w) -> (B t h w, 27 C + 1), in the order of a 3x3x3 kernel's weight, then a one."""
    padded = F.pad(z, (1, 1, 1, 1, 1, 1), mode="replicate")
    views = padded.unfold(2, 3, 1).unfold(3, 3, 1).unfold(4, 3, 1)
    rows = views.permute(0, 2, 3, 4, 1, 5, 6, 7).reshape(-1, z.shape[1] * NEIGHBOURHOOD)
    return torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
