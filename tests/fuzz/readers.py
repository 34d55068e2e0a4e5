"""What is fuzzed: each reader with the bytes it is given, and a watch over the time and the memory that it takes.

A reader may take a file or refuse it with its own kind of error, in one short line. Anything else is a finding.
"""

import contextlib
import resource
import signal
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from files import config_files, latent_files, plain_files, recipe_files, time_tables
from hypothesis.strategies import SearchStrategy
from safetensors.torch import save
from tiny_model import TINY

from cvvae_cli.checkpoint import load_model
from cvvae_cli.errors import CvvaeError, LatentFileError, ModelError, UsageError, VideoError
from cvvae_cli.geometry import chunk_stride
from cvvae_cli.latent_file import LatentReader
from cvvae_cli.latent_video import LatentVideo, recorded_model
from cvvae_cli.mended_latents import MendedLatents
from cvvae_cli.packet_times import parse_times
from cvvae_cli.plain_latents import read_plain_latents
from cvvae_cli.tiling import chunk_count
from cvvae_cli.training.recipe import load_recipe

MOST_BYTES = 8 * 2**20
"""Memory that a reader may take at a time for a file of a few thousand bytes, most of it a block of 1 MiB that it reads into."""
MOST_GROWTH = 32 * 2**20
MOST_SECONDS = 10
LONGEST_MESSAGE = 1000


@dataclass(frozen=True)
class Reader:
    """Attributes:
    name: of the reader.
    files: the bytes that it is tried with.
    read: reads a file.
    error: what it may raise.
    """

    name: str
    files: SearchStrategy[bytes]
    read: Callable[[Path], object]
    error: type[CvvaeError]


def read_latents(path: Path) -> None:
    """All that encoding, decoding and verifying ask of a latent file."""
    recorded_model(path)
    with LatentReader(path) as reader:
        for name in reader.tensor_names:
            reader.tensor(name)
        reader.read(0, reader.shape[0])
        if reader.verify():
            MendedLatents(reader).read(0, reader.shape[0])
            raise LatentFileError("Chunks are damaged.")
    with LatentVideo.open(path, TINY) as video:
        first, stop = video.span(0.0, None)
        assert (first, stop) == (0, video.num_frames) and video.times().end(stop) >= video.times().origin(stop - 1)
        video.tags()
        if video.has_anchors and video.tiling is not None:
            anchors = video.anchors()
            for index in range(1, chunk_count(video.latent_frames, video.tiling)):
                anchors.read(index * chunk_stride(video.tiling.chunk, video.tiling.chunk_overlap))
        sidecar = video.sidecar()
        assert sidecar is None or sidecar.read() is not None


def read_config(path: Path) -> None:
    """A weight file's config as loading takes it: the network is laid out, without memory, and its tensors are missed."""
    weights = path.with_suffix(".safetensors")
    weights.write_bytes(save_with_config(path.read_bytes()))
    load_model(str(weights))


def save_with_config(text: bytes) -> bytes:
    """A weight file of one small tensor."""
    import torch

    return save({"a": torch.zeros(1)}, {"config": text.decode("utf-8", "replace")})


def read_times(path: Path) -> None:
    """A table of packet times, and the first of its times."""
    _, times = parse_times(path.read_bytes().decode("utf-8", "replace"))
    for _, (pts, duration) in zip(range(1000), times):
        assert max(abs(pts), abs(duration)) < 2**62


READERS = [
    Reader("latents", latent_files(), read_latents, LatentFileError),
    Reader("plain", plain_files(), read_plain_latents, LatentFileError),
    Reader("recipe", recipe_files(), load_recipe, UsageError),
    Reader("config", config_files(), read_config, ModelError),
    Reader("times", time_tables(), read_times, VideoError),
]


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    """Fail where the context takes more than `MOST_SECONDS`."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"The reader took more than {MOST_SECONDS} s.")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def traced() -> Iterator[None]:
    """Fail where the context takes more than `MOST_BYTES` at a time; exact, but slow."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MOST_BYTES, f"The reader took {peak} bytes."


@contextlib.contextmanager
def weighed() -> Iterator[None]:
    """Fail where the process's peak grows by `MOST_GROWTH`; quick."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < MOST_GROWTH, f"The process grew by {grown} bytes."


def attempt(reader: Reader, path: Path, data: bytes, watch: Callable[[], AbstractContextManager[None]] = traced) -> bool:
    """Let a reader read these bytes.

    Returns:
        Whether it took them.
    """
    path.write_bytes(data)
    with watch(), in_time():
        try:
            reader.read(path)
        except reader.error as error:
            assert "\n" not in str(error) and len(str(error)) < LONGEST_MESSAGE, str(error)[:2000]
            return False
    return True
