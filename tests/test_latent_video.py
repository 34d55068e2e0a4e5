"""Latents with the video they stand for: what is read from a file, what plain tensors are taken for, what is refused."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from clips import moving_pictures, write_video
from safetensors.torch import save_file
from tiny_model import TINY, save_tiny_model

from cvvae_cli.checkpoint import load_model
from cvvae_cli.config import CompactConfig
from cvvae_cli.encoding import EncodeOptions, encode_file
from cvvae_cli.errors import LatentFileError, UsageError
from cvvae_cli.latent_file import LatentReader
from cvvae_cli.latent_video import LatentVideo, Times, check_model, recorded_model
from cvvae_cli.latent_writer import LatentWriter


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    write_video(folder / "clip.mp4", moving_pictures(11, 30, 20), aspect=Fraction(4, 3))
    model = load_model(str(save_tiny_model(folder / "tiny.safetensors")))
    encode_file(folder / "clip.mp4", folder / "clip.latent", model=model)
    encode_file(folder / "clip.mp4", folder / "wide.latent", model=model, options=EncodeOptions(size=(40, 20), start=0.1))
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load_model(str(folder / "tiny.safetensors"))


def stored(folder):
    with LatentReader(folder / "clip.latent") as reader:
        return torch.from_numpy(reader.read(0, reader.shape[0]))


def test_a_latent_file_tells_its_video(folder):
    with LatentVideo.open(folder / "clip.latent", TINY) as video:
        assert (video.num_frames, video.width, video.height, video.latent_frames) == (11, 30, 20, 4)
        assert video.sample_aspect_ratio == Fraction(4, 3)
        assert video.times().time_base == Fraction(1, 12800)
        assert video.times().pts.tolist() == [512 * i for i in range(11)] and set(video.times().durations.tolist()) == {512}
        assert (video.start, video.to_end, video.has_sidecar, video.sidecar()) == (0.0, True, False, None)
        assert video.model["name"] == "tiny.safetensors"


def test_another_size_keeps_the_shape_of_the_picture_and_a_part_begins_at_zero(folder):
    with LatentVideo.open(folder / "wide.latent", TINY) as video:
        assert (video.num_frames, video.width, video.height) == (8, 40, 20)
        assert video.sample_aspect_ratio * Fraction(40, 20) == Fraction(4, 3) * Fraction(30, 20)
        assert video.start == 0.1 and video.times().origin(0) == Fraction(3 * 512, 12800)


def test_the_origin_of_a_part_is_its_first_frame():
    times = Times(np.array([5, 7, 12]), np.array([2, 5, 4]), Fraction(1, 10), Fraction(4), zero=Fraction(1, 5))
    assert times.origin(0) == Fraction(1, 5) and times.origin(2) == Fraction(12, 10)
    assert times.end(1) == Fraction(7, 10) and times.end(3) == Fraction(16, 10)


@pytest.mark.parametrize(
    ("start", "frames", "want"),
    [(0, None, (0, 11)), (0.08, None, (2, 11)), (0.081, 3, (3, 6)), (0.0799, 1, (2, 3)), (0.4, 5, (10, 11))],
)
def test_a_span_begins_with_the_first_frame_not_before_the_start(folder, start, frames, want):
    with LatentVideo.open(folder / "clip.latent", TINY) as video:
        assert video.span(start, frames) == want


def test_a_span_counts_in_the_rate_that_is_asked_for_and_has_a_frame(folder):
    with LatentVideo.open(folder / "clip.latent", TINY) as video:
        assert video.span(0.5, 2, Fraction(10)) == (5, 7)
        with pytest.raises(UsageError, match=r"0\.400 s"):
            video.span(0.5, None)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 0, 2, 3), "batch"])
@pytest.mark.parametrize("kind", ["npy", "pt", "safetensors", "comfyui"])
def test_plain_tensors_are_the_latents_whatever_their_order_and_file(folder, tmp_path, kind, order):
    z = torch.randn(3, 4, 2, 5, generator=torch.Generator().manual_seed(1))
    tensor = z.transpose(0, 1)[None] if order == "batch" else z.permute(order)
    tensor, path = tensor.contiguous(), tmp_path / f"plain.{kind}"
    if kind == "npy":
        np.save(path, tensor.numpy())
    elif kind == "pt":
        torch.save(tensor, path)
    elif kind == "safetensors":
        save_file({"anything": tensor}, path)
    else:
        save_file({"latent_tensor": tensor, "latent_format_version_0": torch.zeros(0)}, path)
    with LatentVideo.open(path, TINY) as video:
        assert np.array_equal(video.read(0, 3), z.numpy()) and np.array_equal(video.read(1, 2), z[1:2].numpy())
        assert (video.num_frames, video.width, video.height, video.model) == (9, 40, 16, None)
        assert video.times().frame_rate == 24 and video.times(Fraction(10)).end(9) == Fraction(9, 10)


def test_scaled_tensors_are_scaled_back(tmp_path):
    z = np.random.default_rng(0).normal(size=(3, 4, 2, 2)).astype(np.float32)
    np.save(tmp_path / "scaled.npy", (z - TINY.shift_factor) * TINY.scaling_factor)
    with LatentVideo.open(tmp_path / "scaled.npy", TINY, scaled=True) as video:
        assert np.allclose(video.read(0, 3), z, atol=1e-6)


def test_the_layout_can_be_given_and_is_refused_for_latent_files(folder, tmp_path):
    z = np.random.default_rng(0).normal(size=(4, 4, 2, 2)).astype(np.float32)
    np.save(tmp_path / "square.npy", z)
    with LatentVideo.open(tmp_path / "square.npy", TINY, layout="zthw") as video:
        assert np.array_equal(video.read(0, 4), z.swapaxes(0, 1))
    with pytest.raises(UsageError, match="--layout"):
        LatentVideo.open(tmp_path / "square.npy", TINY)
    for given in ({"layout": "tzhw"}, {"scaled": True}):
        with pytest.raises(UsageError, match="drop --layout"):
            LatentVideo.open(folder / "clip.latent", TINY, **given)


def test_another_models_latents_are_refused_by_name(folder, model, tmp_path):
    with pytest.raises(LatentFileError, match=r"tiny\.safetensors .*z = 4.*z = 16.*--model"):
        LatentVideo.open(folder / "clip.latent", CompactConfig())
    other = load_model(str(save_tiny_model(tmp_path / "other.safetensors", seed=1)))
    with LatentVideo.open(folder / "clip.latent", TINY) as video:
        check_model(video, model)
        with pytest.raises(LatentFileError, match=r"tiny\.safetensors .*other\.safetensors .*--model"):
            check_model(video, other)


def test_the_recorded_model_is_found_without_loading_it(folder, tmp_path):
    assert recorded_model(folder / "clip.latent") == ("tiny.safetensors", None)
    np.save(tmp_path / "plain.npy", np.zeros((1, 4, 2, 2), np.float32))
    assert recorded_model(tmp_path / "plain.npy") == (None, None)


def described(folder):
    with LatentReader(folder / "clip.latent") as reader:
        tensors = {"pts": reader.tensor("pts"), "durations": reader.tensor("durations")}
        return {key: json.loads(text) for key, text in reader.metadata.items()}, tensors


def spoil_tiling(metadata, tensors):
    metadata["encoding"]["tiling"]["tile"] = 3


def spoil_rate(metadata, tensors):
    metadata["video"]["source"]["frame_rate"] = "1/0"


def drop_model(metadata, tensors):
    metadata["model"] = ["tiny"]


def one_frame_more(metadata, tensors):
    metadata["video"]["num_frames"] = 12


def no_frames(metadata, tensors):
    metadata["video"]["num_frames"], tensors["pts"], tensors["durations"] = 0, np.zeros(0, np.int64), np.zeros(0, np.int64)


def another_size(metadata, tensors):
    metadata["video"]["width"] = 64


def drop_times(metadata, tensors):
    del tensors["pts"]


@pytest.mark.parametrize("spoil", [spoil_tiling, spoil_rate, drop_model, one_frame_more, no_frames, another_size, drop_times])
def test_a_description_that_does_not_fit_is_refused(folder, tmp_path, spoil):
    metadata, tensors = described(folder)
    spoil(metadata, tensors)
    with LatentWriter(tmp_path / "spoilt.latent", 4, 3, 4) as writer:
        writer.append(stored(folder).numpy())
        writer.close({key: json.dumps(value) for key, value in metadata.items()}, tensors)
    with pytest.raises(LatentFileError, match="spoilt.latent"):
        LatentVideo.open(tmp_path / "spoilt.latent", TINY)


def test_latents_that_were_scaled_back_already_are_not_scaled_back_twice(tmp_path):
    save_file({"latent_tensor": torch.zeros(2, TINY.latent_channels, 3, 3)}, tmp_path / "old.safetensors")
    with pytest.raises(UsageError, match="drop --scaled"):
        LatentVideo.open(tmp_path / "old.safetensors", TINY, scaled=True)
