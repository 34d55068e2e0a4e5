"""The best linear code of causal pixel blocks, and the gated code that the compact family starts from.

A block is 4 x 8 x 8 px for video and 1 x 8 x 8 for a picture autoencoder.
`fit_klt` and `klt_reconstruct` are the floor that a learned model must beat: the Karhunen-Loeve transform.
`warm_start` fits what the compact model adds to it before any training: several bases for part of the
coefficients, a gate that chooses among them by the others, and the least-squares prediction of a block from
the neighbourhood of its coefficients, which also hides block edges. This module knows no training loop.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.compact import BLOCK, CodeGate, CompactDecoder, CompactEncoder, channel_to_space, space_to_channel
from cvvae_cli.config import CompactConfig
from cvvae_cli.geometry import RGB

Block = tuple[int, int, int]

ASSIGNMENT_ROUNDS = 8
GATE_ROUNDS = 2
GATE_STEPS = 600
RIDGE = 1e-6


@dataclass(frozen=True)
class LinearCode:
    """Attributes:
    block: frames, rows and columns.
    mean: (n,) mean block, n = 3 x the product of `block`.
    basis: (z, n) orthonormal rows, largest variance first.
    variance: (z,) of the coefficients.
    """

    block: Block
    mean: Tensor
    basis: Tensor
    variance: Tensor


def blocks_of(x: Tensor, block: Block = BLOCK) -> Tensor:
    """Causal blocks, the first frame repeated: (B, 3, T, H, W) -> (B, n, t, h, w)."""
    return space_to_channel(torch.cat([x[:, :, :1].expand(-1, -1, block[0] - 1, -1, -1), x], dim=2), block)


def fit_klt(windows: Iterable[Tensor], coefficients: int, block: Block = BLOCK) -> LinearCode:
    """Karhunen-Loeve transform of the blocks of all windows (each (B, 3, T, H, W) in [-1, 1])."""
    channels = RGB * prod(block)
    count, total, square = 0, torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, channels, dtype=torch.float64)
    for window in windows:
        rows = rows_of(blocks_of(window, block)[:, :, int(block[0] > 1) :])  # a repeated first frame is no video
        count += len(rows)
        total += rows.sum(0, dtype=torch.float64)
        square += (rows.T @ rows).double()
    mean = total / count
    variance, vectors = torch.linalg.eigh(square / count - torch.outer(mean, mean))
    order = variance.argsort(descending=True)[:coefficients]
    return LinearCode(block, mean.float(), vectors[:, order].T.float().contiguous(), variance[order].float())


def klt_reconstruct(code: LinearCode, x: Tensor) -> Tensor:
    """Project every block of `x` on the code and back; the same shape as `x`."""
    blocks = blocks_of(x, code.block)
    rows = rows_of(blocks) - code.mean
    rows = rows @ code.basis.T @ code.basis + code.mean
    blocks = rows.view(len(x), *blocks.shape[2:], -1).permute(0, 4, 1, 2, 3)
    return channel_to_space(blocks, code.block)[:, :, code.block[0] - 1 :]


def fit_bases(rows: Tensor, weight: Tensor, bases: int, size: int, block: Block = BLOCK) -> Tensor:
    """Alternate between assigning each row to the basis that holds most of it and refitting the bases.

    Args:
        rows: (r, n) blocks without what the shared channels hold.
        weight: (r,) of each row's squared error.
        bases: how many.
        size: directions per basis.
        block: what a row is.

    Returns:
        (bases, size, n), rows of each orthonormal.
    """
    kind = _kind(rows, block)
    edges = torch.quantile(kind[:50_000], torch.linspace(0, 1, bases + 1)[1:-1])
    choice = torch.bucketize(kind, edges)  # as a beginning
    for _ in range(ASSIGNMENT_ROUNDS):
        fitted = refit_bases(rows, weight, choice, bases, size)
        choice = _captured(rows, fitted).argmax(dim=1)
    return refit_bases(rows, weight, choice, bases, size)


def _kind(rows: Tensor, block: Block) -> Tensor:
    """A number in 0 .. 1 that sets blocks apart: from still to moving, or of pictures from flat in a row to flat in a column."""
    axis = 1 if block[0] > 1 else 2
    values = rows.view(len(rows), *block, RGB)
    return (values - values.mean(axis, keepdim=True)).square().sum((1, 2, 3, 4)) / (values.square().sum((1, 2, 3, 4)) + 1e-6)


def refit_bases(rows: Tensor, weight: Tensor, choice: Tensor, bases: int, size: int) -> Tensor:
    """The best `size` directions of the rows of each choice; all rows serve a choice that has too few."""
    fitted = []
    for k in range(bases):
        mine = choice == k
        own, w = (rows[mine], weight[mine]) if mine.sum() > 2 * rows.shape[1] else (rows, weight)
        _, vectors = torch.linalg.eigh(((own * w[:, None]).T @ own).double())
        fitted.append(vectors[:, -size:].flip(1).T.float())
    return torch.stack(fitted)


def _captured(rows: Tensor, bases: Tensor) -> Tensor:
    """Energy of each row that each basis holds: (n, bases)."""
    return torch.stack([(rows @ basis.T).square().sum(1) for basis in bases], dim=1)


def _shared_part(code: LinearCode, windows: Iterable[Tensor], floor: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Per batch of windows: whitened shared channels (B, s, t, h, w), rows without them (r, n), weights (r,).

    A window weighs as the inverse of its linear error, because quality is a mean of decibels, not of squares.
    """
    for x in windows:
        blocks = blocks_of(x, code.block)
        rows = rows_of(blocks) - code.mean
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
    if gate.choose.out_channels == 1:
        return  # nothing to choose
    optimiser = torch.optim.Adam(gate.parameters(), 3e-3)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        i = step % len(shared)
        loss = (rows_of(gate(shared[i])) * cost[i]).sum(1).mean()
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
    block = encoder.reach.block
    shared_code = fit_klt(windows, config.shared_channels, block)
    shared, rows, weights = (list(parts) for parts in zip(*_shared_part(shared_code, windows, floor)))
    some = slice(None, None, max(1, len(shared) // 15))  # enough rows for the bases; the gate sees all
    few, weight = torch.cat(rows[some]), torch.cat(weights[some])
    bases = fit_bases(few, weight, config.codes, config.gated_channels, block)
    for _ in range(GATE_ROUNDS):
        cost = [((r.square().sum(1, keepdim=True) - _captured(r, bases)).clamp_min(0) / r.shape[1] + floor).log() for r in rows]
        fit_gate(encoder.gate, shared, cost, GATE_STEPS)
        with torch.no_grad():
            choice = torch.cat([rows_of(encoder.gate(s)).argmax(1) for s in shared[some]])
        bases = refit_bases(few, weight, choice, config.codes, config.gated_channels)
    _write_analysis(encoder, config, shared_code, bases, few, choice, noise)
    decoder.gate.load_state_dict(encoder.gate.state_dict())
    solve_synthesis(encoder, decoder, windows, weights)


@torch.no_grad()
def _write_analysis(
    encoder: CompactEncoder, config: CompactConfig, code: LinearCode, bases: Tensor, rows: Tensor, choice: Tensor, noise: float
) -> None:
    """Projections scaled to unit variance; the posterior's variance where it adds `noise` to each coefficient's share."""
    own = [(rows[choice == k], basis) for k, basis in enumerate(bases)]
    variance = torch.stack([(r @ b.T).square().mean(0) if len(r) else torch.ones(len(b)) for r, b in own])
    variance = variance.clamp_min(1e-4)
    weight = torch.cat([code.basis * code.variance.rsqrt()[:, None], (bases * variance.rsqrt()[..., None]).flatten(0, 1)])
    encoder.analysis.weight.copy_(weight[:, :, None, None, None])
    encoder.analysis.bias.copy_(-(weight @ code.mean))
    typical = torch.cat([code.variance, variance.mean(0)])
    share = noise**2 * len(code.mean) / config.latent_channels
    encoder.conv_out.bias[config.latent_channels :].copy_((share / typical).log().clamp(-14.0, -4.0))


@torch.no_grad()
def solve_synthesis(encoder: CompactEncoder, decoder: CompactDecoder, windows: list[Tensor], weights: list[Tensor]) -> None:
    """Weighted least squares for the block, given the neighbourhood of what the decoder spreads."""
    kernel, channels = decoder.synthesis.kernel_size, decoder.synthesis.out_channels
    size = decoder.synthesis.in_channels * prod(kernel) + 1
    normal, right = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, channels, dtype=torch.float64)
    for batch, weight in zip(windows, weights):
        code = decoder.spread(encoder(batch).chunk(2, dim=1)[0])
        a = _neighbours(code, kernel)
        scaled = a * weight[:, None]
        normal += scaled.T @ a
        right += scaled.T @ rows_of(blocks_of(batch - decoder.residual(code), encoder.reach.block))
    ridge = RIDGE * normal.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    solution = torch.linalg.solve(normal + ridge, right).float()
    decoder.synthesis.weight.copy_(solution[:-1].T.reshape(decoder.synthesis.weight.shape))
    decoder.synthesis.bias.copy_(solution[-1])


def rows_of(x: Tensor) -> Tensor:
    """(B, C, t, h, w) -> (B t h w, C)."""
    return x.permute(0, 2, 3, 4, 1).reshape(-1, x.shape[1])


def _neighbours(z: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """(B, C, t, h, w) -> (B t h w, C x kernel + 1), in the order of a convolution's weight, then a one."""
    around = [k // 2 for k in reversed(kernel) for _ in range(2)]
    views = F.pad(z, around, mode="replicate")
    for axis, taps in enumerate(kernel, start=2):
        views = views.unfold(axis, taps, 1)
    rows = views.permute(0, 2, 3, 4, 1, 5, 6, 7).reshape(-1, z.shape[1] * prod(kernel))
    return torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
