"""The linear maps of an inflated video model, fitted in closed form so that a picture decoder still understands.

An inflated model repeats one frame of each group of four. What training would have to find first is linear: which
directions of a 4 x 8 x 8 block the latent channels should hold, when the frozen picture decoder must go on seeing
the group's mean picture in them. For a decoder S of video blocks, the frozen one P of pictures and the mean M over
the four frames, the best latent of a block x minimises |x - S z|^2 + strength |M x - P z|^2, which is linear in x:
z = (S'S + strength P'P)^-1 (S' + strength P'M) x; for such z the best S is least squares. The two alternate, once
for the shared channels and once for each basis of the gated ones. This module knows no training loop.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.compact import BLOCK, CompactDecoder, CompactEncoder
from cvvae_cli.config import CompactConfig
from cvvae_cli.training.linear_code import GATE_ROUNDS, GATE_STEPS, blocks_of, fit_gate, rows_of, solve_synthesis

ALTERNATIONS = 40
ASSIGNMENT_ROUNDS = 8
RIDGE = 1e-6


@dataclass(frozen=True)
class Code:
    """Attributes:
    analysis: (c, n) from blocks to latent channels.
    synthesis: (n, c) and back.
    """

    analysis: Tensor
    synthesis: Tensor


@dataclass(frozen=True)
class Pair:
    """What a code must serve, both linear in the block.

    Attributes:
        video, picture: (n, n) and (p, n), from a block to what is left to code of it and of its mean picture.
        decoder: (p, c), the frozen picture decoder's response to the channels.
        strength: of the picture's error beside the video's; both are sums over a block's values.
    """

    video: Tensor
    picture: Tensor
    decoder: Tensor
    strength: float


def fit_code(covariance: Tensor, pair: Pair) -> Code:
    """Alternate between the best analysis and the best synthesis.

    Args:
        covariance: (n, n) of the blocks, float64.
    """
    channels = pair.decoder.shape[1]
    left = pair.video @ covariance @ pair.video.T
    _, vectors = torch.linalg.eigh(left)
    # Directions of the picture decoder as a beginning, mixed with the video's own, which no picture shows.
    analysis = torch.linalg.lstsq(pair.decoder, pair.picture).solution
    scale = (analysis @ covariance @ analysis.T).diagonal().clamp_min(0).sqrt().mean()
    own = vectors[:, -channels:].T @ pair.video
    analysis = analysis + 0.1 * scale * own / (own @ covariance @ own.T).diagonal().clamp_min(1e-12).sqrt()[:, None]
    shown = pair.strength * pair.decoder.T
    for _ in range(ALTERNATIONS):
        gram = analysis @ covariance @ analysis.T
        gram = gram + RIDGE * gram.trace() * torch.eye(channels, dtype=gram.dtype)
        synthesis = torch.linalg.solve(gram, analysis @ covariance @ pair.video.T).T
        normal = synthesis.T @ synthesis + shown @ pair.decoder
        normal = normal + RIDGE * normal.trace() * torch.eye(channels, dtype=gram.dtype)
        analysis = torch.linalg.solve(normal, synthesis.T @ pair.video + shown @ pair.picture)
    return Code(analysis, synthesis)


@dataclass(frozen=True)
class Blocks:
    """Attributes:
    rows: (r, n) blocks.
    video, picture: (r, n) and (r, p), what a pair leaves to code of them; kept because every code is tried on them.
    """

    rows: Tensor
    video: Tensor
    picture: Tensor

    @classmethod
    def of(cls, rows: Tensor, pair: Pair) -> "Blocks":
        return cls(rows, rows @ pair.video.T.float(), rows @ pair.picture.T.float())


def code_error(blocks: Blocks, pair: Pair, code: Code) -> Tensor:
    """What a code leaves of each block, picture's share included: (r,)."""
    z = blocks.rows @ code.analysis.T.float()
    video = torch.addmm(blocks.video, z, code.synthesis.T.float(), alpha=-1)
    picture = torch.addmm(blocks.picture, z, pair.decoder.T.float(), alpha=-1)
    return video.square().sum(1) + pair.strength * picture.square().sum(1)


@torch.no_grad()
def decoder_response(image: Autoencoder, windows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The linear map nearest to a picture decoder, from one cell's latent to its block: (192, z) and (192,), float64."""
    z = image.latent_channels
    normal = torch.zeros(z + 1, z + 1, dtype=torch.float64)
    right = torch.zeros(z + 1, 3 * BLOCK[1] * BLOCK[2], dtype=torch.float64)
    for window in windows:
        frames = window[:, :, ::4].transpose(1, 2).flatten(0, 1)[:, :, None]
        latents = image.encode(frames)[:, :z]
        rows = rows_of(latents).double()
        rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], dim=1)
        normal += rows.T @ rows
        right += rows.T @ rows_of(blocks_of(image.decode(latents), (1, *BLOCK[1:]))).double()
    solution = torch.linalg.solve(normal + RIDGE * normal.diagonal().mean() * torch.eye(z + 1, dtype=torch.float64), right)
    return solution[:-1].T.contiguous(), solution[-1]


def fit_video_code(model: Autoencoder, image: Autoencoder, windows: list[Tensor], strength: float, floor: float) -> None:
    """Write a jointly fitted code into an inflated compact model.

    Args:
        model: from `inflate`, with several bases.
        image: the picture autoencoder that it was inflated from.
        windows: batches (B, 3, T, H, W) in [-1, 1].
        strength: weight of the mean picture's squared error beside the mean over the four frames of the video's.
        floor: added to each window's mean squared error before it is inverted to a weight.
    """
    config, encoder, decoder = model.config, model.encoder, model.decoder
    assert isinstance(config, CompactConfig) and isinstance(encoder, CompactEncoder) and isinstance(decoder, CompactDecoder)
    response, offset = decoder_response(image, windows)
    centre = offset.repeat(BLOCK[0])
    size, frames = len(centre), BLOCK[0]
    mean = torch.eye(len(offset), dtype=torch.float64).repeat(1, frames) / frames
    whole = Pair(torch.eye(size, dtype=torch.float64), mean, response[:, : config.shared_channels], strength * frames)
    rows = [rows_of(blocks_of(window)) - centre.float() for window in windows]
    everywhere = [torch.ones(len(row)) for row in rows]
    shared = fit_code(_covariance(rows, everywhere), whole)
    weights = [_window_weights(row, whole, shared, len(window), floor) for row, window in zip(rows, windows)]
    shared = fit_code(_covariance(rows, weights), whole)
    rest = Pair(
        whole.video - shared.synthesis @ shared.analysis,
        mean - whole.decoder @ shared.analysis,
        response[:, config.shared_channels :],
        whole.strength,
    )
    seen = [_on_grid(row @ shared.analysis.T.float(), window) for row, window in zip(rows, windows)]
    codes = _fit_gated(encoder, config, rows, weights, seen, rest, floor)
    with torch.no_grad():
        analysis = torch.cat([shared.analysis, *[code.analysis for code in codes]])
        encoder.analysis.weight.copy_(analysis.float()[:, :, None, None, None])
        encoder.analysis.bias.copy_(-(analysis @ centre).float())
        decoder.gate.load_state_dict(encoder.gate.state_dict())
    solve_synthesis(encoder, decoder, windows, weights)


def _fit_gated(
    encoder: CompactEncoder,
    config: CompactConfig,
    rows: list[Tensor],
    weights: list[Tensor],
    seen: list[Tensor],
    rest: Pair,
    floor: float,
) -> list[Code]:
    """Bases for the gated channels, and the gate that chooses among them."""
    some = slice(None, None, max(1, len(rows) // 15))  # enough rows for the bases; the gate sees all
    few, weight = torch.cat(rows[some]), torch.cat(weights[some])
    blocks = Blocks.of(few, rest)
    frames = few.view(len(few), BLOCK[0], -1)
    motion = (frames - frames.mean(1, keepdim=True)).square().sum((1, 2)) / (frames.square().sum((1, 2)) + 1e-6)
    choice = torch.bucketize(motion, torch.quantile(motion[:50_000], torch.linspace(0, 1, config.codes + 1)[1:-1]))
    for _ in range(ASSIGNMENT_ROUNDS):
        codes = _fit_each(few, weight, choice, config.codes, rest)
        choice = torch.stack([code_error(blocks, rest, code) for code in codes]).argmin(0)
    for _ in range(GATE_ROUNDS):
        codes = _fit_each(few, weight, choice, config.codes, rest)
        cost = [_cost(Blocks.of(row, rest), rest, codes, floor) for row in rows]
        fit_gate(encoder.gate, seen, cost, GATE_STEPS)
        with torch.no_grad():
            choice = torch.cat([rows_of(encoder.gate(s)).argmax(1) for s in seen[some]])
    return _fit_each(few, weight, choice, config.codes, rest)


def _cost(blocks: Blocks, rest: Pair, codes: list[Code], floor: float) -> Tensor:
    """Log error of each code for each block: (r, codes)."""
    return torch.stack([(code_error(blocks, rest, code) / blocks.rows.shape[1] + floor).log() for code in codes], dim=1)


def _fit_each(rows: Tensor, weight: Tensor, choice: Tensor, codes: int, rest: Pair) -> list[Code]:
    """A code for the rows of each choice; all rows serve a choice that has too few."""
    fitted = []
    for k in range(codes):
        mine = choice == k if (choice == k).sum() > 2 * rows.shape[1] else torch.ones_like(choice, dtype=torch.bool)
        fitted.append(fit_code(_covariance([rows[mine]], [weight[mine]]), rest))
    return fitted


def _covariance(rows: list[Tensor], weights: list[Tensor]) -> Tensor:
    total = sum(((row * weight[:, None]).T @ row).double() for row, weight in zip(rows, weights))
    return total / sum(float(weight.sum()) for weight in weights)


def _window_weights(rows: Tensor, pair: Pair, code: Code, windows: int, floor: float) -> Tensor:
    """Each row's weight, the inverse of its window's error, because quality is a mean of decibels, not of squares."""
    error = code_error(Blocks.of(rows, pair), pair, code).view(windows, -1).mean(1) / rows.shape[1]
    return (1 / (error + floor)).repeat_interleave(len(rows) // windows)


def _on_grid(rows: Tensor, window: Tensor) -> Tensor:
    """Rows (B t h w, c) of a batch of windows as (B, c, t, h, w)."""
    batch, _, frames, height, width = window.shape
    return rows.view(batch, (frames + 3) // BLOCK[0], height // BLOCK[1], width // BLOCK[2], -1).permute(0, 4, 1, 2, 3)
