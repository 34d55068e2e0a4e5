"""What shapes the output of a run from file to file: two runs of one description give the same bytes."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import av
import torch
from xxhash import xxh3_64

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.config import Tiling, tiling_from_dict
from cvvae_cli.machine import device_name
from cvvae_cli.run_journal import RunJournal

_SAMPLE = 1024 * 1024


def describe_run(
    sources: Sequence[str | Path], model: Autoencoder, tiling: Tiling | None, options: dict[str, object], parts: dict[str, object]
) -> dict | None:
    """Describe a run for its journal.

    Args:
        sources: the files that are read.
        model: the one that runs; threads and device are part of the description, because they decide how sums are rounded.
        tiling: as it was asked for; None where the run measures what fits.
        options: JSON-ready but for what `str` says well.
        parts: how the output is made in parts.

    Returns:
        JSON-ready; None where nobody can tell whether a later run is the same: a source that is no regular file, a model
        without an identity.
    """
    if model.identity is None or not all(map(os.path.isfile, sources)):
        return None
    return {
        "sources": [_mark_of(source) for source in sources],
        "model": [model.identity.sha256, str(model.dtype)],
        "device": [model.device.type, device_name(model.device), torch.get_num_threads()],
        "versions": [version("cvvae"), torch.__version__, av.__version__],
        "tiling": asdict(tiling) if tiling else None,
        "options": {key: str(value) for key, value in options.items()},
        "parts": parts,
    }


def settled_tiling(journal: RunJournal | None, choose: Callable[[], Tiling]) -> Tiling:
    """The tiling that an unfinished run began with, whatever would fit now; else a new one, which is noted down.

    Args:
        journal: of the run, None where it has none.
        choose: gives the tiling of a run that begins.
    """
    for kind, *values in journal.entries if journal else ():
        if kind == "tiling":
            return tiling_from_dict(values[0])
    tiling = choose()
    if journal is not None:
        journal.add(["tiling", asdict(tiling)])
    return tiling


def _mark_of(path: str | Path) -> list[int]:
    """Size and time of change of a file, and a checksum of its beginning and end."""
    with open(path, "rb") as file:
        stat = os.fstat(file.fileno())
        digest = xxh3_64(file.read(_SAMPLE))
        file.seek(max(0, stat.st_size - _SAMPLE))
        digest.update(file.read(_SAMPLE))
    return [stat.st_size, stat.st_mtime_ns, digest.intdigest()]
