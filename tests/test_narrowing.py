"""The decoder's linear map through few channels: exact where the blocks allow it, and what it loses elsewhere."""

from dataclasses import replace

import pytest
import torch
from tiny_model import TINY, TINY_PICTURE, random_model
from training_runs import tiny_recipe, write_clips

from cvvae_cli.errors import UsageError
from cvvae_cli.training.loop import Trainer
from cvvae_cli.training.narrowing import exported_model, narrow_synthesis

def windows(count: int = 4) -> list[torch.Tensor]:
    torch.manual_seed(3)
    return [torch.rand(1, 3, 9, 24, 32) * 2 - 1 for _ in range(count)]


@pytest.mark.parametrize("rank", [768, 300])
def test_a_rank_that_holds_all_directions_changes_nothing(rank):
    # 6 slots in 27 places: the map has rank 162 at most.
    model = random_model(TINY)
    narrow = narrow_synthesis(model, rank, windows(10))
    assert narrow.config == replace(TINY, synthesis_rank=rank) and not narrow.training
    z = torch.randn(1, 4, 3, 3, 4)
    with torch.no_grad():
        torch.testing.assert_close(narrow.decode(z), model.decode(z), rtol=1e-4, atol=1e-4)
        x = windows(1)[0]
        assert torch.equal(narrow.encode(x), model.encode(x))


def test_what_is_lost_is_the_variance_in_the_other_directions():
    model, seen = random_model(TINY), windows()
    narrow = narrow_synthesis(model, 12, seen)
    wide_rows, lost = [], 0.0
    with torch.no_grad():
        for x in seen:
            code = model.decoder.spread(model.encode(x).chunk(2, dim=1)[0])
            padded = torch.nn.functional.pad(code, (1, 1, 1, 1, 1, 1), mode="replicate")
            wide = model.decoder.synthesis(padded)
            lost += (wide - narrow.decoder.synthesis_out(narrow.decoder.synthesis(padded))).double().square().sum().item()
            wide_rows.append((wide - model.decoder.synthesis.bias.view(-1, 1, 1, 1)).movedim(1, -1).reshape(-1, 768).double())
    moment = torch.cat(wide_rows).T @ torch.cat(wide_rows)
    assert lost == pytest.approx(torch.linalg.eigvalsh(moment)[:-12].sum().item(), rel=1e-3)


@pytest.mark.parametrize("config", [TINY_PICTURE, replace(TINY, synthesis_rank=5)])
def test_only_a_wide_map_of_a_video_model_is_narrowed(config):
    with pytest.raises(UsageError, match="wide linear map"):
        narrow_synthesis(random_model(config), 4, [])


@pytest.mark.parametrize("rank", [0, 769])
def test_an_impossible_rank_is_refused(rank):
    with pytest.raises(UsageError, match=f"Rank {rank} must lie in 1 .. 768"):
        narrow_synthesis(random_model(TINY), rank, [])


def test_a_run_exports_what_its_recipe_asks_for(tmp_path):
    write_clips(tmp_path / "clips")
    recipe = tiny_recipe(tmp_path / "clips", steps=1)
    for rank in (0, 9):
        trainer = Trainer(replace(recipe, run=replace(recipe.run, export_rank=rank)), tmp_path / "run", "cpu", lambda line: None)
        trainer.run()
        assert exported_model(trainer).config == replace(TINY, synthesis_rank=rank)
        trainer.close()
