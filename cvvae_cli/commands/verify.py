"""`cvvae verify`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvvae_cli.commands import options as o
from cvvae_cli.console import Callback, Reporter, counted, size_text
from cvvae_cli.errors import LatentFileError
from cvvae_cli.geometry import frame_count

if TYPE_CHECKING:
    from cvvae_cli.latent_file import LatentReader

EPILOG = o.examples("cvvae verify out.latent", "cvvae verify archive/*.latent --json")

_TABLE = ("chunk_end", "chunk_xxh3")


@dataclass(frozen=True)
class BadChunk:
    """Attributes:
    chunk: its number, from 0.
    latent_frames: its first and its last.
    frames: first and last frame of the video that it stands for.
    """

    chunk: int
    latent_frames: tuple[int, int]
    frames: tuple[int, int]


@dataclass(frozen=True)
class Verdict:
    """What is known of one file when all of it was read.

    Attributes:
        path: as given.
        bytes, frames, chunks: of a file with an intact header, else 0.
        error: why the file, or the rest of it, could not be checked; None where all of it was.
        damaged_tensors: names of the small tensors that do not match their checksums.
        damaged_chunks: likewise of the latents.
    """

    path: str
    bytes: int = 0
    frames: int = 0
    chunks: int = 0
    error: str | None = None
    damaged_tensors: tuple[str, ...] = ()
    damaged_chunks: tuple[BadChunk, ...] = ()

    @property
    def intact(self) -> bool:
        """Nothing is wrong."""
        return self.error is None and not self.damaged_tensors and not self.damaged_chunks


def verify(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Latent files.")],
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Check every byte of latent files against their checksums, and say what is damaged.

    No model is loaded and nothing is decoded. A damaged file does not keep the others from being checked.
    """
    reporter = Reporter(as_json, quiet)
    verdicts = []
    for path in paths:
        with reporter.progress("verify") as progress:
            verdicts.append(_check(path, progress))
    bad = [verdict.path for verdict in verdicts if not verdict.intact]
    files = [asdict(verdict) | {"intact": verdict.intact} for verdict in verdicts]
    values = {"files": files, "intact": len(paths) - len(bad), "damaged": len(bad)}
    title = f"{counted(len(paths), 'file')}, {size_text(sum(verdict.bytes for verdict in verdicts))}"
    reporter.grid(values, title, ("file", "part", "finding"), [row for verdict in verdicts for row in _rows(verdict)])
    if bad:
        found = f"{len(bad)} of {counted(len(paths), 'file')} damaged or no latent file ({', '.join(bad)})"
        raise LatentFileError(f"{found}; copy the file again or encode the video again.")


def _check(path: Path, progress: Callback) -> Verdict:
    from cvvae_cli.latent_file import LatentReader

    try:
        reader = LatentReader(path)
    except LatentFileError as error:
        return Verdict(str(path), error=str(error))
    with reader:
        frames = _frames(reader)
        known = (str(path), reader.file_bytes, frames, reader.num_chunks)
        tensors: tuple[str, ...] = ()
        try:
            tensors = tuple(reader.damaged_tensors())
            if set(tensors) & set(_TABLE):
                raise LatentFileError(f"The table of chunks of {path} is damaged, so its latents cannot be checked.")
            bad = reader.damaged_chunks(lambda done: progress(min(frames, frame_count(done)), frames))
        except LatentFileError as error:
            return Verdict(*known, error=str(error), damaged_tensors=tensors)
        return Verdict(*known, damaged_tensors=tensors, damaged_chunks=tuple(_place(reader, index, frames) for index in bad))


def _place(reader: "LatentReader", index: int, frames: int) -> BadChunk:
    start, stop = reader.chunk_span(index)
    return BadChunk(index, (start, stop - 1), (max(0, frame_count(start)), min(frames, frame_count(stop)) - 1))


def _frames(reader: "LatentReader") -> int:
    """Frames of the video, of which the last latent frame may stand for fewer than four."""
    whole = frame_count(reader.shape[0])
    try:
        stated = json.loads(reader.metadata["video"])["num_frames"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return whole
    return stated if type(stated) is int and max(0, frame_count(reader.shape[0] - 1)) < stated < whole else whole


def _rows(verdict: Verdict) -> list[tuple[str, str, str]]:
    found = [] if verdict.error is None else [("unreadable", verdict.error)]
    found += [(f"tensor {name!r}", "damaged") for name in verdict.damaged_tensors]
    for bad in verdict.damaged_chunks:
        (start, stop), (first, last) = bad.latent_frames, bad.frames
        found.append((f"chunk {bad.chunk}", f"damaged: frames {first} to {last}, latent frames {start} to {stop}"))
    whole = ("all", f"intact: {counted(verdict.frames, 'frame')} in {counted(verdict.chunks, 'chunk')}")
    return [(verdict.path, *finding) for finding in found or [whole]]
