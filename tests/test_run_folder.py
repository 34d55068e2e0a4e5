"""The checkpoint on disk. Which runs may go on from it is tested with the loop."""

import json
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_runs import tiny_recipe

from cvvae_cli.errors import ModelError, OutputError, UsageError
from cvvae_cli.training.recipe import recipe_to_dict
from cvvae_cli.training.run_folder import RunFolder


def test_the_last_state_comes_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "new" / "run")
    assert folder.load() is None
    for step in (1, 2):
        folder.save({"step": step, "weights": torch.arange(3.0) * step})
    state = folder.load()
    assert state is not None and state["step"] == 2 and state["weights"].tolist() == [0, 2, 4]
    assert [path.name for path in folder.path.iterdir()] == ["checkpoint.pt"]


def test_a_failed_save_keeps_the_last_state(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save({"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OutputError, match=r"checkpoint.pt cannot be written .*free some space"):
            folder.save({"step": 2, "weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert folder.load() == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_places_and_files_that_are_of_no_use(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be made.*pass another --run-dir"):
        RunFolder(tmp_path / "file" / "run")
    folder = RunFolder(tmp_path)
    folder.save({"step": 1})
    for data in (folder.checkpoint.read_bytes()[:-100], b"half of it"):
        folder.checkpoint.write_bytes(data)
        with pytest.raises(ModelError, match="is damaged; remove it"):
            folder.load()


def test_what_a_newer_version_added_has_its_default_in_an_older_checkpoint(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    stored = recipe_to_dict(recipe)
    del stored["model"]["synthesis_rank"], stored["run"]["export_rank"]
    state = {"step": 1, "recipe": json.dumps(stored)}
    RunFolder(tmp_path).check(state, replace(recipe, run=replace(recipe.run, export_rank=3)), {})
    with pytest.raises(UsageError, match="optim.clip"):
        RunFolder(tmp_path).check(state, replace(recipe, optim=replace(recipe.optim, clip=3.0)), {})
