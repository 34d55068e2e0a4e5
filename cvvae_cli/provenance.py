"""Which source this program runs from."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def source_commit() -> str | None:
    """The git commit of the source tree; None for an installed package, whatever repository it lies in."""
    if not (ROOT / "pyproject.toml").is_file():
        return None
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None
