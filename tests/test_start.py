"""Where a run's first weights come from."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from tiny_model import TINY, TINY_PICTURE, save_tiny_model
from training_runs import tiny_recipe, write_clips

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.checkpoint import load_model, save_model
from cvvae_cli.config import CVVAEConfig
from cvvae_cli.errors import UsageError
from cvvae_cli.training.recipe import StartConfig
from cvvae_cli.training.start import fit_windows, starting_model
from cvvae_cli.training.windows import WindowStream

OFFICIAL = CVVAEConfig("sd21", 4, (8, 8, 16, 24), 1, norm_groups=4)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("start") / "clips")


def silent(line: str) -> None:
    """Nobody listens."""


def streams(recipe) -> list[WindowStream]:
    return [WindowStream(config, seed, silent) for seed, config in enumerate(recipe.streams)]


def test_random_weights_follow_the_seed(clips: Path) -> None:
    recipe = tiny_recipe(clips)
    one, two = (starting_model(r, [], silent).state_dict() for r in (recipe, recipe))
    other = starting_model(tiny_recipe(clips, seed=2), [], silent).state_dict()
    name = "encoder.patch_in.weight"
    assert torch.equal(one[name], two[name]) and not torch.equal(one[name], other[name])


def test_weights_of_a_file_and_of_another_architecture(clips: Path, tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "tiny.safetensors")
    recipe = replace(tiny_recipe(clips), start=StartConfig("weights", str(path)))
    assert torch.equal(starting_model(recipe, [], silent).state_dict()["encoder.patch_in.weight"],
                       load_model(str(path)).state_dict()["encoder.patch_in.weight"])  # fmt: skip
    with pytest.raises(UsageError, match="another architecture"):
        starting_model(replace(recipe, model=replace(TINY, codes=3)), [], silent)


def test_linear_and_inflated_models_are_better_than_random_ones(clips: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(clips)
    opened = streams(recipe)
    windows = torch.cat(fit_windows(recipe, opened, 16))
    linear, path = StartConfig("linear", "", 16), tmp_path / "image.safetensors"
    picture = replace(recipe, streams=recipe.streams[1:], model=replace(TINY_PICTURE, codes=1), start=linear)
    save_model(starting_model(picture, opened[1:], silent), path)
    starts = [StartConfig("random"), linear, *(StartConfig("inflate", str(path), count) for count in (0, 16))]
    errors = []
    for start in starts:
        model = starting_model(replace(recipe, start=start), opened, silent)
        with torch.no_grad():
            errors.append((model.decode(model.encode(windows).chunk(2, dim=1)[0]) - windows).square().mean().item())
    random, coded, inflated, fitted = errors
    assert coded < 0.2 * random and inflated < random and fitted < inflated


def test_pictures_of_diffusers_are_inflated_to_the_official_architecture(clips: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=OFFICIAL.channels, layers_per_block=1, norm_num_groups=4, latent_channels=4, **blocks)
    vae.save_pretrained(tmp_path / "vae")
    recipe = replace(tiny_recipe(clips), model=OFFICIAL, start=StartConfig("inflate", str(tmp_path / "vae")))
    model = starting_model(recipe, streams(recipe), silent)
    assert isinstance(model, Autoencoder) and model.config == OFFICIAL
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        wanted = vae.encode(x).latent_dist.mean
        assert (model.encode(x[:, :, None]).chunk(2, dim=1)[0][:, :, 0] - wanted).abs().max() < 1e-3 * wanted.abs().max()
    with pytest.raises(UsageError, match="diffusers"):
        starting_model(replace(recipe, model=TINY), streams(recipe), silent)
