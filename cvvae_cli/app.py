"""The command line: one Typer app, one file per verb."""

from typing import Annotated

import typer

from cvvae_cli import __version__
from cvvae_cli.commands import bench, check, compat, decode, demo, encode, info, models, roundtrip, train, verify

app = typer.Typer(
    name="cvvae",
    help="Move long video into the latent space of CV-VAE, a causal 3-D autoencoder, and back.",
    epilog="Start with `cvvae demo`: it makes a clip, takes it to latents and back, and says how close it came.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cvvae {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Options of the program itself."""


app.command(epilog=encode.EPILOG)(encode.encode)
app.command(epilog=decode.EPILOG)(decode.decode)
app.command(epilog=roundtrip.EPILOG)(roundtrip.roundtrip)
app.command(epilog=check.EPILOG)(check.check)
app.command(epilog=info.EPILOG)(info.info)
app.command(epilog=verify.EPILOG)(verify.verify)
app.command(epilog=bench.EPILOG)(bench.bench)
app.add_typer(models.app, name="models")
app.command(epilog=train.EPILOG)(train.train)
app.command(epilog=compat.EPILOG)(compat.compat)
app.command(epilog=demo.EPILOG)(demo.demo)
