"""`cvvae` and `python -m cvvae_cli`: run the app, turn expected failures into a sentence and an exit status."""

import io
import signal
import sys

from cvvae_cli.app import app
from cvvae_cli.console import fail
from cvvae_cli.errors import CvvaeError

TERMINATED = 128 + signal.SIGTERM


def main() -> None:
    """Run the command line and exit. Typer itself turns Ctrl-C into 130 and a closed pipe into 1."""
    # A terminated run (a batch system, `timeout`) cleans up behind itself as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        app()
    except CvvaeError as error:
        fail(str(error))
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
