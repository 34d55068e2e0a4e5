"""Comparisons and the round trip, against figures computed here frame by frame."""

import numpy as np
import pytest
from clips import moving_pictures, psnr, write_video
from tiny_model import TINY, save_tiny_model

from cvvae_cli.checkpoint import load_model
from cvvae_cli.config import Tiling
from cvvae_cli.decoding import DecodeOptions, decode_file
from cvvae_cli.encoding import EncodeOptions, encode_file
from cvvae_cli.errors import LatentFileError, OutputError, QualityError, UsageError, VideoError
from cvvae_cli.fidelity import cut_of, figures_of
from cvvae_cli.latent_video import LatentVideo
from cvvae_cli.roundtrip import check_latents, check_video, roundtrip_file

PICTURES = moving_pictures(20, 61, 45)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("roundtrip")
    write_video(folder / "clip.mp4", PICTURES)
    save_tiny_model(folder / "tiny.safetensors")
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load_model(str(folder / "tiny.safetensors"))


def decoded(latents, model):
    frames = []
    decode_file(latents, None, model=model, observe=lambda frame: frames.append(frame.copy()))
    return frames


def naive_flicker(source, copy):
    s, d = np.stack(source).astype(float), np.stack(copy).astype(float)
    return np.sqrt(np.mean((np.diff(d, axis=0) - np.diff(s, axis=0)) ** 2))


def test_the_report_says_what_a_slow_comparison_finds(folder, model, tmp_path):
    report = roundtrip_file(
        folder / "clip.mp4", tmp_path / "back.mkv", model=model, latents=tmp_path / "kept.latent",
        tiling=Tiling(tile=64, overlap=16), decode=DecodeOptions(codec="ffv1"),
    )  # fmt: skip
    frames = decoded(tmp_path / "kept.latent", model)
    each = [psnr(a, b) for a, b in zip(PICTURES, frames)]
    values = report.to_dict()
    assert values["psnr_db"] == pytest.approx(np.mean(each), abs=1e-9)
    assert values["psnr_worst_db"] == pytest.approx(min(each), abs=1e-9) and values["worst_frame"] == int(np.argmin(each))
    assert values["flicker"] == pytest.approx(naive_flicker(PICTURES, frames), rel=1e-9)
    assert values["psnr_file_db"] == values["psnr_db"]  # ffv1 loses nothing
    assert (values["frames"], values["frames_missing"], values["width"], values["height"]) == (20, 0, 61, 45)
    assert values["latent_bytes"] == 6 * 4 * 6 * 8 * 2
    assert values["bits_per_pixel"] == 8 * values["latent_bytes"] / (61 * 45 * 20)
    assert values["encode_fps"] == 20 / values["encode_seconds"] and values["decode_fps"] == 20 / values["decode_seconds"]
    assert values["peak_mib"] > 50 and -1 <= values["ssim"] <= 1


def test_a_lossy_codec_shows_in_the_files_figure_alone(folder, model, tmp_path):
    first = PICTURES[0]
    steady = [np.clip(first.astype(int) + 9 * (i % 2), 0, 255).astype(np.uint8) for i in range(6)]
    write_video(tmp_path / "clip.mp4", steady)
    fine, coarse = (
        roundtrip_file(tmp_path / "clip.mp4", tmp_path / f"{crf}.mp4", model=model, decode=decode)
        for crf, decode in [(crf, DecodeOptions(crf=crf, pix_fmt="yuv444p")) for crf in (1, 51)]
    )
    assert fine.quality == coarse.quality
    assert abs(fine.psnr_file_db - fine.quality.psnr_db) < 0.3 < abs(coarse.psnr_file_db - coarse.quality.psnr_db)


def test_without_an_output_only_the_latents_asked_for_are_left(folder, model, tmp_path):
    report = roundtrip_file(folder / "clip.mp4", None, model=model, encode=EncodeOptions(max_frames=5))
    assert report.psnr_file_db is None and report.quality.frames == 5 and report.quality.frames_missing == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{}, {"start": 0.3, "max_frames": 7}, {"size": (40, 24)}, {"duration": 0.2}])
def test_a_check_afterwards_equals_the_check_during_encoding(folder, model, tmp_path, options):
    settings = EncodeOptions(check=True, **options)
    report = encode_file(folder / "clip.mp4", tmp_path / "x.latent", model=model, options=settings)
    with LatentVideo.open(tmp_path / "x.latent", TINY) as latents:
        assert check_latents(folder / "clip.mp4", latents, model) == report.quality
    assert report.quality.frames_missing == 0


def test_a_part_is_compared_with_that_part(folder, model, tmp_path):
    encode_file(folder / "clip.mp4", tmp_path / "x.latent", model=model, options=EncodeOptions(start=0.3, max_frames=6))
    with LatentVideo.open(tmp_path / "x.latent", TINY) as latents:
        quality = check_latents(folder / "clip.mp4", latents, model)
    each = [psnr(a, b) for a, b in zip(PICTURES[8:14], decoded(tmp_path / "x.latent", model), strict=True)]
    assert quality.psnr_db == pytest.approx(np.mean(each), abs=1e-9)


def test_frames_without_a_partner_are_missing(folder, model, tmp_path):
    encode_file(folder / "clip.mp4", tmp_path / "x.latent", model=model)
    for count, missing in ((17, 3), (20, 0), (24, 4)):
        source = write_video(tmp_path / f"{count}.mp4", moving_pictures(count, 61, 45))
        with LatentVideo.open(tmp_path / "x.latent", TINY) as latents:
            quality = check_latents(source, latents, model)
        assert (quality.frames, quality.frames_missing) == (min(count, 20), missing)


def test_a_copy_is_compared_frame_by_frame(folder, tmp_path):
    dim = [np.clip(picture.astype(int) - 10, 0, 255).astype(np.uint8) for picture in PICTURES]
    write_video(tmp_path / "dim.mkv", dim[:18], codec="ffv1")
    calls = []
    assert check_video(tmp_path / "dim.mkv", folder / "clip.mp4").frames_missing == 2
    quality = check_video(folder / "clip.mp4", tmp_path / "dim.mkv", lambda *call: calls.append(call))
    assert (quality.frames, quality.frames_missing) == (18, 2) and [done for done, _ in calls] == list(range(1, 19))
    assert quality.psnr_db == pytest.approx(np.mean([psnr(a, b) for a, b in zip(PICTURES, dim[:18])]), abs=1e-9)
    write_video(tmp_path / "other.mp4", moving_pictures(3, 64, 48))
    with pytest.raises(QualityError, match="61x45 px and the copy 64x48"):
        check_video(folder / "clip.mp4", tmp_path / "other.mp4")


def test_latents_of_another_model_are_not_checked(folder, model, tmp_path):
    encode_file(folder / "clip.mp4", tmp_path / "x.latent", model=model)
    other = load_model(str(save_tiny_model(tmp_path / "other.safetensors", seed=1)))
    with LatentVideo.open(tmp_path / "x.latent", TINY) as latents, pytest.raises(LatentFileError, match="--model"):
        check_latents(folder / "clip.mp4", latents, other)


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("back.avi", {}, UsageError),
        ("back.mp4", {"codec": "nosuch"}, UsageError),
        ("back.mp4", {"preset": "hasty"}, UsageError),
        ("none/back.mp4", {}, OutputError),
        ("clip.mp4", {"overwrite": True}, OutputError),
    ],
)
def test_an_output_that_cannot_be_written_is_found_out_before_the_work(folder, model, tmp_path, name, options, error):
    write_video(tmp_path / "clip.mp4", PICTURES[:5])
    data, calls = (tmp_path / "clip.mp4").read_bytes(), []
    with pytest.raises(error):
        roundtrip_file(
            tmp_path / "clip.mp4", tmp_path / name, model=model, decode=DecodeOptions(**options),
            progress=lambda *call: calls.append(call),
        )  # fmt: skip
    assert not calls and [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    assert (tmp_path / "clip.mp4").read_bytes() == data
    with pytest.raises(VideoError):
        roundtrip_file(tmp_path / "missing.mp4", tmp_path / "back.mp4", model=model)


def test_the_harm_of_cuts_is_that_of_the_decoded_frames(folder, model, tmp_path):
    tiling, pictures = Tiling(tile=64, overlap=16, chunk=17, chunk_overlap=4), moving_pictures(40, 150, 61)
    source = write_video(tmp_path / "wide.mp4", pictures)
    report = roundtrip_file(source, None, model=model, latents=tmp_path / "kept.latent", tiling=tiling)
    expected = figures_of(np.stack(pictures), np.stack(decoded(tmp_path / "kept.latent", model)), cut_of(tiling, 40, 61, 150))
    found = report.to_dict()["harm"]
    assert found == {key: getattr(expected, key) for key in found}
    assert found["seam_ratio_columns"] and found["chunk_edge_ratio"] and found["seam_ratio_rows"] is None
    whole = roundtrip_file(folder / "clip.mp4", None, model=model, tiling=Tiling(chunk=33, chunk_overlap=0))
    assert set(whole.to_dict()["harm"].values()) == {None}
