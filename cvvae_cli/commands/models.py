"""`cvvae models` and `cvvae models get NAME`."""

from typing import Annotated

import typer

from cvvae_cli.commands import options as o
from cvvae_cli.console import Reporter
from cvvae_cli.errors import ModelError
from cvvae_cli.model_names import KNOWN_MODELS, HubFolder, KnownModel, cached_path, fetch, hub_folder

EPILOG = o.examples("cvvae models", "cvvae models get cv-vae-sd3", "cvvae encode in.mp4 out.latent --model cv-vae-sd3")
HEAD = ["name", "here", "what, and where from"]

app = typer.Typer(help="Names of models, where their weights come from, what is here already.", epilog=EPILOG)


@app.callback(invoke_without_command=True)
def models(context: typer.Context, as_json: o.AsJson = False, quiet: o.Quiet = False) -> None:
    """List the models known by name."""
    if context.invoked_subcommand:
        return
    entries = [
        {
            "name": known.name,
            "source": _source(known.hub),
            "path": str(found) if (found := cached_path(known.name)) else None,
            "summary": known.summary,
        }
        for known in KNOWN_MODELS.values()
    ]
    rows = [[e["name"], "yes" if e["path"] else "no", about(KNOWN_MODELS[e["name"]])] for e in entries]
    Reporter(as_json, quiet).grid({"models": entries}, "Models", HEAD, rows)


def about(known: KnownModel) -> str:
    """A model for people: what it is and, where it is fetched, from where."""
    return known.summary if known.hub is None else f"{known.summary}\n({_source(known.hub)})"


def _source(hub: HubFolder | None) -> str:
    return "in the package" if hub is None else "/".join(filter(None, (hub.repo, hub.subfolder)))


@app.command(epilog=o.examples("cvvae models get cv-vae-sd3"))
def get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name from the list, or a hub id.")],
    revision: o.Revision = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Fetch a model's weights into the hub's cache and say where they are."""
    if name not in KNOWN_MODELS and hub_folder(name) is None:
        raise ModelError(f"Model {name!r} is no known name ({', '.join(KNOWN_MODELS)}) and no hub id; see cvvae models.")
    path = fetch(name, revision)
    Reporter(as_json, quiet).answer({"name": name, "path": str(path)}, name, [("path", str(path))])
