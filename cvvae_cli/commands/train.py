"""`cvvae train`."""

from pathlib import Path
from typing import Annotated

import typer

from cvvae_cli.commands import options as o
from cvvae_cli.console import Reporter

EPILOG = o.examples(
    "cvvae train recipes/default-image.toml --export runs/default-image.safetensors",
    "cvvae train recipes/default.toml --run-dir runs/default --export runs/default.safetensors",
)


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The run's values, a .toml file.")],
    run_dir: Annotated[Path | None, typer.Option(help="Folder of checkpoint and log; runs/NAME by default.")] = None,
    export: Annotated[
        Path | None, typer.Option(help="At the end, write the averaged weights here (float16 safetensors).")
    ] = None,
    device: o.Device = "auto",
    overwrite: o.Overwrite = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Train a model from a recipe; the same command goes on where a run stopped."""
    reporter = Reporter(as_json, quiet)
    from cvvae_cli.training.recipe import load_recipe

    plan = load_recipe(recipe)
    folder = run_dir or Path("runs") / plan.run.name
    import torch

    from cvvae_cli.training.run_folder import RunFolder

    RunFolder(folder)  # made before the export is looked at, which may lie beside it
    o.require_free(export, overwrite)
    from cvvae_cli.checkpoint import resolve_device, save_model
    from cvvae_cli.training.loop import Trainer
    from cvvae_cli.training.narrowing import exported_model

    trainer = Trainer(plan, folder, resolve_device(device), reporter.note)
    trainer.run()
    if trainer.processes.leads:
        values = {"run_dir": str(folder), "steps": trainer.step, **trainer.last_terms, "exported": None}
        if export is not None:
            values["exported"] = str(export)
            values["sha256"] = save_model(exported_model(trainer), export, trainer.provenance(), torch.float16)
        reporter.answer(values, plan.run.name, [(key, str(value)) for key, value in values.items()])
    trainer.close()
