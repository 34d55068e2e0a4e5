"""The Karhunen-Loeve transform, the bases and the gate of the code that the compact family starts from."""

from dataclasses import replace

import pytest
import torch
from clips import moving_pictures
from tiny_model import TINY
from torch import Tensor

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.compact import CodeGate
from cvvae_cli.training.linear_code import blocks_of, fit_bases, fit_gate, fit_klt, klt_reconstruct, warm_start


@pytest.fixture(scope="module")
def windows() -> Tensor:
    """12 windows (12, 3, 5, 32, 32) of one moving picture, in [-1, 1]."""
    pictures = torch.stack([torch.from_numpy(picture) for picture in moving_pictures(16, 96, 64)])
    video = pictures.permute(3, 0, 1, 2).float() / 127.5 - 1
    return torch.stack([video[:, i : i + 5, 8 * (i % 4) :, 5 * i :][..., :32, :32] for i in range(12)])


def test_klt_is_the_best_projection_and_matches_svd() -> None:
    torch.manual_seed(0)
    mixing = torch.randn(3 * 5 * 16 * 16, 3 * 5 * 16 * 16) * 0.02
    x = (torch.randn(60, 3 * 5 * 16 * 16) @ mixing).view(60, 3, 5, 16, 16)
    code = fit_klt([x[:30], x[30:]], 6)
    rows = blocks_of(x)[:, :, 1:].permute(0, 2, 3, 4, 1).reshape(-1, 768).double()
    _, values, basis = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    assert torch.allclose(code.variance.double(), values[:6] ** 2 / len(rows), rtol=1e-3)
    ours, theirs = code.basis.double().T @ code.basis.double(), basis[:6].T @ basis[:6]
    assert torch.allclose(ours, theirs, atol=2e-3)
    assert klt_reconstruct(code, x).shape == x.shape


@pytest.mark.parametrize("temporal", [True, False])
def test_warm_start_beats_the_plain_klt_before_any_step(windows: Tensor, temporal: bool) -> None:
    config = replace(TINY, temporal=temporal)
    windows = windows if temporal else windows[:, :, ::2].transpose(1, 2).flatten(0, 1)[:, :, None]
    model = Autoencoder(config)
    code = fit_klt([windows], TINY.latent_channels, model.encoder.reach.block)
    warm_start(model, [windows], 1e-3, 1e-4)
    with torch.no_grad():
        z = model.encode(windows).chunk(2, dim=1)[0]
        y = model.decode(z)
    plain = (klt_reconstruct(code, windows) - windows).square().mean(dim=(1, 2, 3, 4)).log().mean()
    assert (y - windows).square().mean(dim=(1, 2, 3, 4)).log().mean() < plain - 0.05
    assert 0.5 < z[:, :, -1].std(dim=(0, 2, 3)).mean() < 1.5


def test_bases_separate_two_kinds_of_blocks() -> None:
    torch.manual_seed(0)
    still = torch.linalg.qr(torch.randn(192, 3)).Q.T.repeat(1, 4) / 2  # the same in all four frames
    moving = torch.linalg.qr(torch.randn(192, 3)).Q.T
    moving = torch.cat([moving, -moving, moving, -moving], dim=1) / 2
    kind = torch.arange(4000) % 2
    rows = torch.stack([torch.randn(4000, 3) @ still, torch.randn(4000, 3) @ moving])[kind, torch.arange(4000)]
    bases = fit_bases(rows, torch.ones(4000), 2, 3)
    held = torch.stack([(rows @ b.T).square().sum(1) for b in bases], 1) / rows.square().sum(1, keepdim=True)
    assert held.max(dim=1).values.min() > 0.999
    assert (held.argmax(1) == kind).float().mean() in (0.0, 1.0)
    one = fit_bases(rows, torch.ones(4000), 1, 3)[0]
    assert ((rows @ one.T).square().sum(1) / rows.square().sum(1)).mean() < 0.7


def test_gate_learns_which_basis_costs_less() -> None:
    torch.manual_seed(0)
    gate = CodeGate(TINY)
    loud = torch.rand(1, 1, 3, 8, 8) < 0.5
    shared = [torch.where(loud.repeat_interleave(3, 4)[..., :8], 3.0, 0.01).expand(1, 2, 3, 8, 8).clone()]
    better = (shared[0][:, 0] > 1).flatten().long()
    cost = [torch.stack([better.float(), 1 - better.float()], dim=1)]
    fit_gate(gate, shared, cost, 200)
    chosen = gate(shared[0]).permute(0, 2, 3, 4, 1).reshape(-1, 2)
    assert torch.allclose(chosen.sum(1), torch.ones(len(chosen)), atol=1e-5)
    assert (chosen.argmax(1) != better).float().mean() < 0.05
