"""`cvvae train`."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from cvvae_cli.commands import options as o
from cvvae_cli.console import Reporter
from cvvae_cli.errors import OutputError

EPILOG = (
    "Example: `cvvae train recipes/default.toml --run-dir runs/default --export default.safetensors`; run it again to go on."
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
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Run folder {folder} cannot be made: {error.strerror}; pass another --run-dir.") from error
    o.require_free(export, overwrite)
    import torch

    from cvvae_cli.checkpoint import resolve_device, save_model
    from cvvae_cli.training.loop import Trainer

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a terminated run keeps its last step, as Ctrl-C does
    trainer = Trainer(plan, folder, resolve_device(device), reporter.note)
    trainer.run()
    if trainer.processes.leads:
        values = {"run_dir": str(folder), "steps": trainer.step, **trainer.last_terms, "exported": None}
        if export is not None:
            values["exported"] = str(export)
            values["sha256"] = save_model(trainer.averaged_model(), export, trainer.provenance(), torch.float16)
        reporter.answer(values, plan.run.name, [(key, str(value)) for key, value in values.items()])
    trainer.close()
