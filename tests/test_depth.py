"""Video of 10 bits: what the network gives is rounded once, and nothing of it passes through 8 bits."""

from fractions import Fraction
from pathlib import Path

import av
import encoded_clip
import numpy as np
import pytest
import torch
from encoded_clip import TILING, decoded

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.codec import decode_tensor, to_words
from cvvae_cli.decoding import DecodeOptions, decode_file
from cvvae_cli.errors import UsageError
from cvvae_cli.latent_file import LatentReader
from cvvae_cli.roundtrip import SourceComparison
from cvvae_cli.video_io import VideoWriter, probe

folder, model = encoded_clip.folder, encoded_clip.model


def test_words_are_rounded_and_clamped() -> None:
    values = torch.tensor([-9.0, -1.0, -1 + 0.7 / 32767.5, 0.0, 1.0, 9.0])
    assert to_words(values).tolist() == [0, 0, 1, 32768, 65535, 65535] and to_words(values).dtype == torch.uint16


def values_of(folder: Path, model: Autoencoder) -> np.ndarray:
    """What the network gives for the clip, [F, H, W, 3] from 0 to 1."""
    with LatentReader(folder / "clip.latent") as reader:
        z = torch.from_numpy(reader.read(0, reader.shape[0])).float().transpose(0, 1)[None]
    frames = decode_tensor(model, z, TILING)[0, :, :24, :45, :61].permute(1, 2, 3, 0)
    return ((frames.clamp(-1, 1) + 1) / 2).double().numpy()


@pytest.mark.parametrize(("name", "codec", "pixels"), [("a.mkv", "ffv1", "gbrp10le"), ("%d.png", None, "rgb48be")])
def test_a_depth_of_10_keeps_what_8_bits_round_away(
    folder: Path, model: Autoencoder, tmp_path: Path, name: str, codec: str | None, pixels: str
) -> None:
    options = DecodeOptions(codec=codec, depth=10)
    decode_file(folder / "clip.latent", tmp_path / name, model=model, options=options, tiling=TILING)
    with av.open(str(tmp_path / name)) as container:
        frames = list(container.decode(video=0))
    assert {frame.format.name for frame in frames} == {pixels}
    found = np.stack([frame.to_ndarray(format="rgb48le") for frame in frames]) / 65535
    # gbrp10le comes back as 16 bits by shifting, up to a level of 10 bits too low.
    assert np.abs(found - values_of(folder, model)).max() <= (1.1 / 1023 if codec else 0.51 / 65535)


def test_a_deep_pixel_format_alone_is_deep_too(folder: Path, model: Autoencoder, tmp_path: Path) -> None:
    seen: list[np.ndarray] = []
    options = DecodeOptions(pix_fmt="yuv444p10le", encoder_options=(("qp", "0"),))
    decode_file(folder / "clip.latent", tmp_path / "a.mkv", model=model, options=options, observe=seen.append)
    assert {frame.dtype for frame in seen} == {np.dtype(np.uint16)} and probe(tmp_path / "a.mkv").pix_fmt == "yuv444p10le"
    plain = decoded(folder / "clip.latent", model)
    assert plain.dtype == np.uint8
    # Rounding twice differs only where the first rounding ends at half a level.
    assert np.abs((np.stack(seen).astype(np.int64) + 128) // 257 - plain).max() <= 1


def test_deep_frames_are_compared_at_the_sources_8_bits(folder: Path) -> None:
    comparison = SourceComparison(folder / "clip.mp4", None)
    for picture in encoded_clip.PICTURES:
        comparison.add(picture.astype(np.uint16) * 257)
    assert comparison.result().psnr_db == 100
    comparison.close()


@pytest.mark.parametrize(
    ("name", "options", "pixels"),
    [
        ("a.mp4", {}, "yuv420p10le"),
        ("a.mkv", {"codec": "libsvtav1"}, "yuv420p10le"),
        ("a.mov", {"codec": "prores_ks"}, "yuv422p10le"),
    ],
)
def test_which_format_10_bits_take(tmp_path: Path, name: str, options: dict[str, str], pixels: str) -> None:
    with VideoWriter(tmp_path / name, 64, 64, Fraction(25), Fraction(1, 25), depth=10, **options) as writer:
        writer.write(np.full((64, 64, 3), 30000, np.uint16), 0, 1)
    assert probe(tmp_path / name).pix_fmt == pixels
    with VideoWriter(tmp_path / "odd.mp4", 33, 64, Fraction(25), Fraction(1, 25), depth=10) as writer:
        writer.write(np.full((64, 33, 3), 30000, np.uint16), 0, 1)
    assert probe(tmp_path / "odd.mp4").pix_fmt == "yuv444p10le"


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [("a.webm", {}, "libvpx-vp9 makes no 10-bit video"), ("a.mp4", {"pix_fmt": "yuv420p"}, "yuv420p has 8 bits")],
)
def test_what_has_no_10_bits_is_refused(tmp_path: Path, name: str, options: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        VideoWriter(tmp_path / name, 64, 64, Fraction(25), Fraction(1, 25), depth=10, **options)
    assert not list(tmp_path.iterdir())
