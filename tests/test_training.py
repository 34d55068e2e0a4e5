"""The training loop: recipes, data, the linear code, resume, loss terms."""

import json
import math

import numpy as np
import pytest
import torch
from clips import moving_pictures, write_video
from tiny_model import TINY

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.compact import CodeGate
from cvvae_cli.errors import UsageError
from cvvae_cli.training.data import DataConfig, WindowDataset, prepare
from cvvae_cli.training.linear_code import blocks_of, fit_bases, fit_gate, fit_klt, klt_reconstruct, warm_start
from cvvae_cli.training.loop import Trainer, parameter_groups, rate_factor, reconstruction_loss
from cvvae_cli.training.recipe import OptimConfig, Recipe, RunConfig, load_recipe, recipe_to_dict



@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    (folder / "clips").mkdir()
    for i in range(2):
        write_video(folder / "clips" / f"clip{i}.mp4", moving_pictures(14, 64 + 16 * i, 48))
    return DataConfig(str(folder / "clips"), cache=str(folder / "cache"), short_sides=(48,), frames=5, crop=32, max_stride=2)


def recipe(data, steps=6, **run):
    return Recipe(RunConfig("test", warm_windows=8, workers=0, log_every=1, **run), OptimConfig(steps=steps, batch=2, warmup=2, cooldown=2), data, TINY)


def test_clips_are_decoded_once_and_windows_depend_on_seed_and_number_only(data):
    said = []
    arrays = prepare(data, said.append)
    assert len(said) == len(arrays) == 2
    prepare(data, said.append)
    assert len(said) == 2
    one, two = WindowDataset(data, arrays, seed=1, length=8), WindowDataset(data, arrays, seed=2, length=8)
    assert one[3].shape == (3, 5, 32, 32) and one[3].abs().max() <= 1
    assert torch.equal(one[3], WindowDataset(data, arrays, seed=1, length=8)[3])
    assert not torch.equal(one[3], one[4]) and not torch.equal(one[3], two[3])
    assert torch.equal(one.with_seed(2)[3], two[3])


def test_klt_is_the_best_projection_and_matches_svd():
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


def test_warm_start_beats_the_plain_klt_before_any_step(data):
    windows = torch.stack([WindowDataset(data, prepare(data, print), 3, 12)[i] for i in range(12)])
    code = fit_klt([windows], TINY.latent_channels)
    model = Autoencoder(TINY)
    warm_start(model, [windows], 1e-3, 1e-4)
    with torch.no_grad():
        y = model.decode(model.encode(windows).chunk(2, dim=1)[0])
    plain = (klt_reconstruct(code, windows) - windows).square().mean(dim=(1, 2, 3, 4)).log().mean()
    assert (y - windows).square().mean(dim=(1, 2, 3, 4)).log().mean() < plain - 0.05
    z = model.encode(windows).chunk(2, dim=1)[0]
    assert 0.5 < z[:, :, 1:].std(dim=(0, 2, 3, 4)).mean() < 1.5


def test_bases_separate_two_kinds_of_blocks():
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


def test_gate_learns_which_basis_costs_less():
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


def test_loss_by_hand():
    x = torch.zeros(2, 3, 1, 2, 2)
    y = torch.stack([torch.full((3, 1, 2, 2), 0.1), torch.full((3, 1, 2, 2), 0.2)])
    loss, psnr = reconstruction_loss(y, x, floor=0.0)
    assert loss.item() == pytest.approx((math.log(0.01) + math.log(0.04)) / 4, rel=1e-5)
    assert psnr.item() == pytest.approx((10 * math.log10(4 / 0.01) + 10 * math.log10(4 / 0.04)) / 2, rel=1e-5)


def test_rate_rises_stays_and_ends_at_zero():
    optim = OptimConfig(steps=20, warmup=4, cooldown=5)
    rates = [rate_factor(step, optim) for step in range(21)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0] and rates[4:16] == [1.0] * 12
    assert rates[16:] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])


def test_linear_maps_have_their_own_rate_and_every_parameter_is_in_one_group():
    model = Autoencoder(TINY)
    groups = parameter_groups(model, OptimConfig(steps=1))
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    assert groups[1]["peak"] < groups[0]["peak"] and len(groups[1]["params"]) == 4


def test_a_run_stopped_and_resumed_equals_one_that_was_not(data, tmp_path):
    whole = Trainer(recipe(data), tmp_path / "whole", "cpu", lambda text: None)
    whole.run()
    part = Trainer(recipe(data, checkpoint_every=1), tmp_path / "part", "cpu", lambda text: None)
    part.train_step(torch.stack([part.dataset[i] for i in range(2)]))
    part.train_step(torch.stack([part.dataset[i] for i in range(2, 4)]))
    part.save()
    resumed = Trainer(recipe(data, checkpoint_every=1), tmp_path / "part", "cpu", lambda text: None)
    assert resumed.step == 2
    resumed.run()
    for a, b in ((whole.model.state_dict(), resumed.model.state_dict()), (whole.average, resumed.average)):
        assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)
    logs = [[json.loads(line)["loss"] for line in (tmp_path / f / "log.jsonl").read_text().splitlines()] for f in ("whole", "part")]
    assert logs[1] == pytest.approx(logs[0][2:], abs=1e-5)


def test_training_lowers_the_loss_on_what_it_sees(data, tmp_path):
    trainer = Trainer(recipe(data, steps=40), tmp_path, "cpu", lambda text: None)
    x = torch.stack([trainer.dataset[i] for i in range(4)])
    losses = [trainer.train_step(x)["loss"] for _ in range(40)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.02


def test_a_run_folder_of_another_recipe_is_refused(data, tmp_path):
    Trainer(recipe(data), tmp_path, "cpu", lambda text: None).save()
    with pytest.raises(UsageError, match="another recipe"):
        Trainer(recipe(data, seed=2), tmp_path, "cpu", lambda text: None)
    Trainer(recipe(data, steps=9), tmp_path, "cpu", lambda text: None)  # prolonged


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[run]\nname='a'\n[optim]\nsteps=1\nspeed=2\n[data]\nclips='c'", "optim.speed"),
        ("[run]\nname='a'\n[data]\nclips='c'", "steps"),
        ("[run", "TOML"),
        ("[run]\nname='a'\n[optim]\nsteps=1\n[data]\nclips='c'\nframes=8", "1 \\+ 4k"),
        ("[other]\n", "other"),
    ],
)
def test_wrong_recipes_are_refused_with_the_key(tmp_path, text, word):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=word):
        load_recipe(path)


def test_recipes_of_the_repository_load():
    from pathlib import Path

    for path in (Path(__file__).parents[1] / "recipes").glob("*.toml"):
        assert recipe_to_dict(load_recipe(path))["run"]["name"] == path.stem
