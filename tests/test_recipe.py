"""Recipes: typed, complete, and refused with the key that is wrong."""

from pathlib import Path

import pytest

from cvvae_cli.config import CVVAEConfig
from cvvae_cli.errors import UsageError
from cvvae_cli.training.recipe import load_recipe, recipe_from_dict, recipe_to_dict

RUN = "[run]\nname='a'\n"
OPTIM = "[optim]\nsteps=1\n"
STREAM = "[[streams]]\nkind='video'\nsources=['c']\nbatch=2\ncrop=32\nframes=5\n"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (RUN + "[optim]\nsteps=1\nspeed=2\n" + STREAM, "optim.speed"),
        (RUN + STREAM, "steps"),
        ("[run", "TOML"),
        (RUN + OPTIM, "streams"),
        (RUN + OPTIM + STREAM.replace("=5", "=8"), "1 \\+ 4k"),
        (RUN + OPTIM + STREAM.replace("[[streams]]", "[streams]"), r"\[\[streams\]\]"),
        ("[other]\n", "other"),
        (RUN + "[optim]\nsteps='many'\n" + STREAM, "optim.steps = 'many'"),
        (RUN + "[optim]\nsteps=true\n" + STREAM, "optim.steps = True"),
        (RUN + "[optim]\nsteps=5\nhold=9\n" + STREAM, "hold 9"),
        (RUN + OPTIM + "[loss]\nreconstruction='l3'\n" + STREAM, "'l3' must be one of 'l1', 'l2', 'log_mse'"),
        (RUN + OPTIM + "[loss]\nreconstruction='log_mse'\nlearned_variance=true\n" + STREAM, "learned_variance"),
        (RUN + OPTIM + "[regularisation]\nside='decoder'\n" + STREAM, "image_model"),
        (RUN + OPTIM + "[start]\nkind='inflate'\n" + STREAM, "start.model"),
        (RUN + OPTIM + "[start]\nkind='linear'\n[model]\nfamily='cv-vae'\n" + STREAM, "compact"),
        (RUN + OPTIM + "[model]\nfamily='compact'\ntemporal=false\n" + STREAM, "frames = 1"),
        (RUN + OPTIM + "[model]\nfamily='other'\n" + STREAM, "model"),
        ("model=3\n" + RUN + OPTIM + STREAM, "section model"),
        (RUN + "log_every=0\n" + OPTIM + STREAM, "run.log_every 0 must be 1 or more"),
        (RUN + "[optim]\nsteps=1\nema=2.0\n" + STREAM, "optim.ema 2.0 must be 0 or more and below 1"),
        (RUN + "[optim]\nsteps=1\nlearning_rate=nan\n" + STREAM, "learning_rate nan"),
        (RUN + "[optim]\nsteps=1\nclip=inf\n" + STREAM, "optim.clip inf must be 0 or more; correct it"),
        (RUN + "[optim]\nsteps=1\nbetas=[0.9,1.0]\n" + STREAM, r"optim.betas\[1\] 1.0 must be 0 or more and below 1"),
        (RUN + OPTIM + "[adversarial]\nlayers=0\n" + STREAM, "adversarial.layers 0 must be 1 or more"),
        (RUN + "[optim]\nsteps=1\nbetas=[0.9]\n" + STREAM, "betas"),
        (RUN + OPTIM + "[start]\nkind='linear'\n" + STREAM.replace("video", "image").replace("=5", "=1"), "more than one frame"),
        (RUN + OPTIM + "[adversarial]\nweight=1.0\nlayers=6\n" + STREAM, "crops of 64 px"),
        (RUN + "export_rank=8\n" + OPTIM + "[model]\nfamily='cv-vae'\n" + STREAM, "run.export_rank narrows a compact video model"),
        (RUN + OPTIM + "[start]\nkind='linear'\n[model]\nfamily='compact'\nsynthesis_rank=8\n" + STREAM, "synthesis_rank to 0"),
        (RUN + OPTIM + "[adversarial]\nweight=1.0\nlayers=1000000000000\n" + STREAM, "layers 1000000000000 must be 10 or less"),
        (RUN + OPTIM + STREAM.replace("batch=2", "batch=99999999"), "streams.batch 99999999 must be 65536 or less"),
        (RUN + "seed=99999999999999999999\n" + OPTIM + STREAM, "run.seed = a huge number is not of the type"),
        (RUN + "[optim]\nsteps=1\nclip=1" + "0" * 400 + "\n" + STREAM, "optim.clip = a huge number is not"),
        (RUN + "[optim]\nsteps=1\nclip=1" + "0" * 5000 + "\n" + STREAM, "not valid TOML"),
        (RUN + "[optim]\nsteps=1\neps=nan\n" + STREAM, "optim.eps nan"),
        (RUN + OPTIM + "[model]\nfamily='compact'\nencoder_blocks=[1,1,1000000000]\n" + STREAM, "encoder_blocks is wrong"),
        (RUN + OPTIM + STREAM + "x=" + "[" * 5000 + "]" * 5000, "not valid TOML"),
        (RUN + OPTIM + "[loss]\nreconstruction" + ".a" * 3 + "=1\n" + STREAM, "loss.reconstruction = a dict must be one of"),
        (RUN + OPTIM + "[loss]\nreconstruction" + ".a" * 30_000 + "=1\n" + STREAM, "a key has more parts"),
        (RUN + OPTIM + "[loss]\nx = {" + ' "a b" . ' * 5000 + "c = 1}\n" + STREAM, "a key has more parts"),
        (RUN + OPTIM + STREAM + "#" * 70_000, "more than 65536 bytes"),
        ("[run]\nname='../../etc'\n" + OPTIM + STREAM, "run.name '../../etc' must be a plain name"),
        (RUN + OPTIM + STREAM.replace("video", "v" * 5000), "streams.kind = 'v{40}' is not of the type str, or too large"),
        ("[run]\nname='..'\n" + OPTIM + STREAM, "plain name"),
        ("[run]\nname='/x'\n" + OPTIM + STREAM, "plain name"),
        ("[run]\nname=''\n" + OPTIM + STREAM, "plain name"),
    ],
)
def test_wrong_recipes_are_refused_with_the_key(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=word) as caught:
        load_recipe(path)
    assert len(str(caught.value)) < 600


def test_a_recipe_survives_its_dictionary() -> None:
    for path in (Path(__file__).parents[1] / "recipes").glob("*.toml"):
        recipe = load_recipe(path)
        assert recipe.run.name == path.stem
        assert recipe_from_dict(_listed(recipe_to_dict(recipe))) == recipe


def _listed(value):
    """Tuples as lists, as TOML has them."""
    if isinstance(value, dict):
        return {key: _listed(v) for key, v in value.items()}
    return [_listed(v) for v in value] if isinstance(value, (list, tuple)) else value


def test_the_published_runs_are_the_official_architectures_with_decoder_side_regularisation() -> None:
    for name, channels in (("sd21", 4), ("sd3", 16)):
        recipe = load_recipe(Path(__file__).parents[1] / "recipes" / f"{name}.toml")
        assert isinstance(recipe.model, CVVAEConfig) and recipe.model.variant == name and recipe.model.latent_channels == channels
        assert (recipe.regularisation.side, recipe.regularisation.map) == ("decoder", "random")
