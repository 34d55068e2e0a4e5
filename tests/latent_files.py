"""Small latent files for the tests."""

from pathlib import Path

import numpy as np

from cvvae_cli.errors import LatentFileError
from cvvae_cli.latent_file import LatentReader
from cvvae_cli.latent_writer import LatentWriter

METADATA = {"model": '{"name":"é ü 漢"}', "video": '{"width":12}', "encoding": "{}"}
CHUNKS = (1, 4, 4, 2)


def latents(frames: int, shape: tuple[int, int, int] = (4, 3, 5), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (frames, *shape)).astype(np.float32)


def small_tensors(frames: int = 41, sidecar: int = 13) -> dict[str, np.ndarray]:
    pts = np.arange(frames, dtype=np.int64) * 512 - 7
    sound = np.random.default_rng(5).integers(0, 256, sidecar, dtype=np.uint8)
    return {"sidecar": sound, "pts": pts, "durations": np.full(frames, 512, np.int64)}


def write(path: Path, dtype: str = "float16", shape: tuple[int, int, int] = (4, 3, 5), overwrite: bool = False) -> np.ndarray:
    """Writes a file of `CHUNKS` and returns its latents."""
    values = latents(sum(CHUNKS), shape)
    with LatentWriter(path, *shape, dtype=dtype, overwrite=overwrite) as writer:
        for part in np.split(values, np.cumsum(CHUNKS)[:-1]):
            writer.append(part)
        assert writer.latent_frames == len(values)
        writer.close(METADATA, small_tensors())
    return values


def read_everything(path: Path) -> None:
    """All that a user of a file can ask for; raises LatentFileError where any of it is damaged."""
    with LatentReader(path) as reader:
        for name in reader.tensor_names:
            reader.tensor(name)
            reader.open_tensor(name).read()
        reader.read(0, reader.shape[0])
        if reader.verify():
            raise LatentFileError("verify found damaged chunks")
