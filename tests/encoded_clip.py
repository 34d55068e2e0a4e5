"""A clip of variable rate with sound, its latent file and the tiny model that made it: what encoding and decoding are tested on.

A test file takes the fixtures by name: `folder, model = encoded_clip.folder, encoded_clip.model`.
"""

from fractions import Fraction

import av
import numpy as np
import pytest
from clips import moving_pictures, write_video
from tiny_model import save_tiny_model

from cvvae_cli.checkpoint import load_model
from cvvae_cli.config import Tiling
from cvvae_cli.decoding import DecodeOptions, decode_file
from cvvae_cli.encoding import encode_file

TICK = Fraction(1, 12800)
PICTURES = moving_pictures(24, 61, 45)
# Variable rate: frames last 1, 2 or 3 twenty-fifths of a second; 1.84 s in all, with longer sound.
PTS = [512 * sum(1 + i % 3 for i in range(n)) for n in range(24)]
# The memory at hand would allow one chunk; with these, the clip has two.
TILING = Tiling()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoding")
    write_video(folder / "clip.mp4", PICTURES, pts=PTS, sound_seconds=2.5)
    encode_file(folder / "clip.mp4", folder / "clip.latent", model=tiny(folder), tiling=TILING)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return tiny(folder)


def tiny(folder):
    path = folder / "tiny.safetensors"
    return load_model(str(path if path.exists() else save_tiny_model(path)))


def frames_of(path):
    """Pictures and times in seconds, by PyAV alone."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return np.stack([frame.to_ndarray(format="rgb24") for frame in frames]), [frame.pts * frame.time_base for frame in frames]


def decoded(latents, model, **options):
    """All frames that a decode gives, before any codec."""
    frames = []
    options = DecodeOptions(**options)
    report = decode_file(latents, None, model=model, options=options, observe=lambda frame: frames.append(frame.copy()))
    assert report.frames == len(frames)
    return np.stack(frames)
