"""Video of 10 bits: read with all its bits, compared at its depth, written from frames that were rounded once, to 16 bits."""

import json
import math
from fractions import Fraction
from pathlib import Path

import av
import encoded_clip
import numpy as np
import pytest
import torch
from clips import deep_pictures, write_video
from encoded_clip import TILING, decoded
from writers import open_writer

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.codec import decode_tensor, encode_tensor, to_words
from cvvae_cli.decoding import DecodeOptions, decode_file
from cvvae_cli.encoding import EncodeOptions, encode_file
from cvvae_cli.errors import UsageError
from cvvae_cli.latent_file import LatentReader
from cvvae_cli.latent_video import LatentVideo
from cvvae_cli.metrics import Comparison, Quality
from cvvae_cli.roundtrip import SourceComparison, check_latents, roundtrip_file
from cvvae_cli.video_io import VideoReader, probe

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


def test_deep_frames_are_compared_with_an_8_bit_source_at_16_bits(folder: Path) -> None:
    comparison = SourceComparison(folder / "clip.mp4", None)
    for index, picture in enumerate(encoded_clip.PICTURES):
        comparison.add(picture.astype(np.uint16) * 257 + np.uint16(index == 3))
    quality = comparison.result()
    assert (quality.worst_frame, quality.psnr_worst_db) == (3, pytest.approx(20 * math.log10(65535)))
    assert quality.psnr_db == pytest.approx((23 * 100 + quality.psnr_worst_db) / 24) and not comparison.deep
    comparison.close()


@pytest.fixture(scope="module")
def deep_clip(folder: Path, model: Autoencoder) -> Path:
    """A clip of 10 bits, and its latents with a check."""
    write_video(folder / "deep.mkv", deep_pictures(20, 61, 45), codec="ffv1", pix_fmt="gbrp10le")
    options = EncodeOptions(check=True)
    encode_file(folder / "deep.mkv", folder / "deep.latent", model=model, tiling=TILING, options=options)
    return folder / "deep.mkv"


def test_all_bits_of_a_deep_source_reach_the_network(deep_clip: Path, model: Autoencoder) -> None:
    with av.open(str(deep_clip)) as container:
        frames = [frame.to_ndarray(channel_last=True) for frame in container.decode(video=0)]
    assert {frame.dtype for frame in frames} == {np.dtype(np.uint16)} and max(frame.max() for frame in frames) < 1024
    x = torch.from_numpy(np.stack(frames).astype(np.float32) / 1023 * 2 - 1).permute(3, 0, 1, 2)[None]
    exact = encode_tensor(model, x, TILING)[0, :4].transpose(0, 1)
    with LatentReader(deep_clip.with_suffix(".latent")) as reader:
        stored = torch.from_numpy(reader.read(0, reader.shape[0]).astype(np.float32))
    rounded = encode_tensor(model, (((x + 1) * 127.5).round() / 127.5 - 1), TILING)[0, :4].transpose(0, 1)
    half = (exact.half().float() - exact).abs().max()
    assert (stored - exact).abs().max() <= half + 1e-4 < (rounded - exact).abs().max() / 2


def test_a_deep_source_is_checked_at_its_depth(deep_clip: Path, model: Autoencoder, tmp_path: Path) -> None:
    latents = deep_clip.with_suffix(".latent")
    with VideoReader(deep_clip, deep=True) as reader:
        source = [frame.rgb for frame in reader]
    exact, comparison = decoded(latents, model), Comparison()
    assert exact.dtype == np.uint16
    for pair in zip(source, exact, strict=True):
        comparison.add(*pair)
    with LatentVideo.open(latents, model.config) as opened:
        assert opened.bit_depth == 10 and check_latents(deep_clip, opened, model, TILING) == comparison.result()
        stored = Quality(**json.loads(LatentReader(latents).metadata["quality"]))
    assert stored == comparison.result()
    seen: list[np.ndarray] = []
    report = decode_file(latents, tmp_path / "a.mkv", model=model, options=DecodeOptions(codec="ffv1"), observe=seen.append)
    assert seen[0].dtype == np.uint8 and report.notes == (
        "The source has 10 bits for each colour, of which 8 are written; --depth 10 keeps more.",
    )
    assert decode_file(latents, tmp_path / "b.mkv", model=model, options=DecodeOptions(depth=10)).notes == ()


def test_a_round_trip_of_10_bits(deep_clip: Path, model: Autoencoder, tmp_path: Path) -> None:
    for output, depth in ((None, 8), (tmp_path / "a.mkv", 8), (tmp_path / "b.mkv", 10)):
        options = DecodeOptions(codec="ffv1", depth=depth)
        report = roundtrip_file(deep_clip, output, model=model, tiling=TILING, decode=options)
        with LatentReader(deep_clip.with_suffix(".latent")) as reader:
            checked = json.loads(reader.metadata["quality"])
        # Rounded to 8 bits, the decoded frames are not quite the same.
        assert (report.quality.to_dict() == checked) == (output is None or depth == 10)
        assert report.quality.psnr_db == pytest.approx(checked["psnr_db"], abs=0.05)
        if output:
            assert probe(output).bit_depth == depth and report.psnr_file_db == pytest.approx(report.quality.psnr_db, abs=0.01)
        assert report.harm.chunk_edge_ratio is not None


@pytest.mark.parametrize("depth", [7, 9, 12])
def test_another_depth_is_refused(depth: int) -> None:
    with pytest.raises(UsageError, match=f"{depth} bits is not to be had; pass --depth 8 or --depth 10"):
        DecodeOptions(depth=depth)


@pytest.mark.parametrize(
    ("name", "options", "pixels"),
    [
        ("a.mp4", {}, "yuv420p10le"),
        ("a.mkv", {"codec": "libsvtav1"}, "yuv420p10le"),
        ("a.mov", {"codec": "prores_ks"}, "yuv422p10le"),
    ],
)
def test_which_format_10_bits_take(tmp_path: Path, name: str, options: dict[str, str], pixels: str) -> None:
    with open_writer(tmp_path / name, 64, 64, Fraction(25), Fraction(1, 25), depth=10, **options) as writer:
        writer.write(np.full((64, 64, 3), 30000, np.uint16), 0, 1)
    assert probe(tmp_path / name).pix_fmt == pixels
    with open_writer(tmp_path / "odd.mp4", 33, 64, Fraction(25), Fraction(1, 25), depth=10) as writer:
        writer.write(np.full((64, 33, 3), 30000, np.uint16), 0, 1)
    assert probe(tmp_path / "odd.mp4").pix_fmt == "yuv444p10le"


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [("a.webm", {}, "libvpx-vp9 makes no 10-bit video"), ("a.mp4", {"pix_fmt": "yuv420p"}, "yuv420p has 8 bits")],
)
def test_what_has_no_10_bits_is_refused(tmp_path: Path, name: str, options: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        open_writer(tmp_path / name, 64, 64, Fraction(25), Fraction(1, 25), depth=10, **options)
    assert not list(tmp_path.iterdir())
