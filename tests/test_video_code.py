"""The closed-form fit of an inflated model's linear maps: what it minimises, and that the picture decoder still understands."""

from dataclasses import replace

import pytest
import torch
from clips import moving_pictures
from tiny_model import TINY
from torch import Tensor

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.training.inflation import inflate
from cvvae_cli.training.linear_code import warm_start
from cvvae_cli.training.losses import psnr_db
from cvvae_cli.training.regularisation import keyframe_map
from cvvae_cli.training.video_code import Blocks, Pair, code_error, fit_code, fit_video_code


def random_pair(strength: float) -> tuple[Tensor, Tensor, Pair]:
    """Rows (400, 12) of low rank, their covariance, and a picture decoder of four of twelve directions."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(400, 12, generator=generator) * torch.linspace(3, 0.1, 12)
    mean = torch.eye(6, dtype=torch.float64).repeat(1, 2) / 2
    decoder = torch.linalg.qr(torch.randn(6, 4, generator=generator, dtype=torch.float64)).Q
    pair = Pair(torch.eye(12, dtype=torch.float64), mean, decoder, strength)
    return rows, (rows.T @ rows).double() / len(rows), pair


def test_without_the_picture_it_is_the_best_projection() -> None:
    rows, covariance, pair = random_pair(0.0)
    values, vectors = torch.linalg.eigh(covariance)
    left = code_error(Blocks.of(rows, pair), pair, fit_code(covariance, pair)).mean()
    assert left == pytest.approx(values[:-4].sum().item(), rel=1e-3)


def test_the_stronger_the_picture_the_better_it_is_seen_and_the_worse_the_video() -> None:
    video, picture = [], []
    for strength in (0.0, 0.1, 1.0, 10.0):
        rows, covariance, pair = random_pair(strength)
        code = fit_code(covariance, pair)
        z = rows @ code.analysis.T.float()
        video.append((rows - z @ code.synthesis.T.float()).square().sum(1).mean().item())
        picture.append((rows @ pair.picture.T.float() - z @ pair.decoder.T.float()).square().sum(1).mean().item())
    assert video == sorted(video) and picture == sorted(picture, reverse=True)
    best = rows @ pair.picture.T.float() @ (torch.eye(6) - (pair.decoder @ pair.decoder.T).float())
    assert picture[-1] == pytest.approx(best.square().sum(1).mean().item(), rel=0.1)


def test_no_small_change_of_the_analysis_is_better() -> None:
    rows, covariance, pair = random_pair(0.5)
    code = fit_code(covariance, pair)
    found = code_error(Blocks.of(rows, pair), pair, code).mean()
    for seed in range(5):
        step = 1e-2 * torch.randn(code.analysis.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert code_error(Blocks.of(rows, pair), pair, replace(code, analysis=code.analysis + step)).mean() > found


def test_the_fit_gains_on_video_and_keeps_the_pictures() -> None:
    pictures = torch.stack([torch.from_numpy(picture) for picture in moving_pictures(24, 96, 64)])
    video = pictures.permute(3, 0, 1, 2).float() / 127.5 - 1
    windows = torch.stack([video[:, i : i + 9, 8 * (i % 4) :, 5 * i :][..., :32, :32] for i in range(12)])
    torch.manual_seed(0)
    image = Autoencoder(replace(TINY, temporal=False, codes=1))
    warm_start(image, [windows.transpose(1, 2).flatten(0, 1)[:, :, None]], 1e-3, 1e-4)
    model = inflate(image, TINY)

    @torch.no_grad()
    def quality() -> tuple[float, float]:
        z = model.encode(windows).chunk(2, dim=1)[0]
        shown = torch.cat([image.decode(z[:, :, k : k + 1]) for k in range(z.shape[2])], dim=2)
        return psnr_db(model.decode(z), windows).mean().item(), psnr_db(shown, keyframe_map(windows, "average")).mean().item()

    before = quality()
    fit_video_code(model, image, [windows], 0.3, 1e-4)
    after = quality()
    assert after[0] > before[0] + 1
    assert after[1] > before[1] - 3
