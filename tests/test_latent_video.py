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


def write_spoilt(folder, path, metadata, tensors):
    with LatentWriter(path, 4, 3, 4, overwrite=True) as writer:
        writer.append(stored(folder).numpy())
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
        writer.close(texts, tensors)


@pytest.mark.parametrize("spoil", [spoil_tiling, spoil_rate, drop_model, one_frame_more, no_frames, another_size, drop_times])
def test_a_description_that_does_not_fit_is_refused(folder, tmp_path, spoil):
    metadata, tensors = described(folder)
    spoil(metadata, tensors)
    write_spoilt(folder, tmp_path / "spoilt.latent", metadata, tensors)
    with pytest.raises(LatentFileError, match="spoilt.latent"):
        LatentVideo.open(tmp_path / "spoilt.latent", TINY)


HUGE = 10**400
TEXTS = ("", "x", "1e999999999", "1/0", "-1/2", "1/3/5")
STRANGE = [None, True, -1, 0, 2**40, HUGE, 1.5, float("nan"), float("inf"), [], {}, *TEXTS]
LEGIT = {  # what is a fair value after all
    "source.num_frames": (None, 0, 2**40),
    "source.duration_seconds": (None, -1, 0, 2**40, 1.5),
    "source.rotation": (0,),
    "source.pix_fmt": TEXTS,
    "source.codec": TEXTS,
    "source.audio_codecs": (*TEXTS, [], {}),
    "colour.matrix": (0,),
    "colour.range": (0,),
    "video.start": (-1, 0, 2**40, 1.5),
    "video.origin": ("-1/2",),
    "tiling.overlap": (0,),
    "tiling.chunk_overlap": (0,),
    "model.name": (None, *TEXTS),
    "model.sha256": (None, *TEXTS),
}


@pytest.mark.parametrize(
    ("table", "key"),
    [("video", key) for key in ("width", "height", "num_frames", "start", "origin", "source")]
    + [("source", key) for key in ("width", "frame_rate", "time_base", "num_frames", "duration_seconds", "sample_aspect_ratio")]
    + [("source", key) for key in ("rotation", "pix_fmt", "codec", "bit_depth", "audio_codecs", "colour")]
    + [("colour", "matrix"), ("colour", "range"), ("model", "name"), ("model", "sha256")]
    + [("tiling", key) for key in ("tile", "overlap", "chunk", "chunk_overlap", "batch", "mode", "norm")],
)
def test_strange_values_are_refused_in_one_short_sentence(folder, tmp_path, table, key):
    for value in STRANGE:
        metadata, tensors = described(folder)
        source = metadata["video"]["source"]
        tables = {"source": source, "colour": source["colour"], "tiling": metadata["encoding"]["tiling"]} | metadata
        tables[table][key] = value
        write_spoilt(folder, tmp_path / "x", metadata, tensors)
        if any(type(value) is type(one) and value == one for one in LEGIT.get(f"{table}.{key}", ())):
            LatentVideo.open(tmp_path / "x", TINY).close()
            continue
        with pytest.raises(LatentFileError) as caught:
            LatentVideo.open(tmp_path / "x", TINY)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400, value
        recorded_model(tmp_path / "x")


@pytest.mark.parametrize("key", ["video", "encoding", "model"])
@pytest.mark.parametrize("text", ["[" * 100_000, "", "null", "3", "[]", '"text"', "{}", '{"source":' * 900 + "1" + "}" * 900])
def test_strange_json_is_refused(folder, tmp_path, key, text):
    metadata, tensors = described(folder)
    write_spoilt(folder, tmp_path / "x", metadata | {key: text}, tensors)
    with pytest.raises(LatentFileError, match="lacks a description"):
        LatentVideo.open(tmp_path / "x", TINY)
    recorded_model(tmp_path / "x")


@pytest.mark.parametrize("place", [0, 5, 10])
@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), 2**60])
def test_times_that_do_not_rise_or_overflow_are_refused(folder, tmp_path, place, value):
    metadata, tensors = described(folder)
    for name in ("pts", "durations"):
        changed = tensors | {name: tensors[name].copy()}
        changed[name][place] = value
        write_spoilt(folder, tmp_path / "x", metadata, changed)
        with pytest.raises(LatentFileError, match="times or a pixel aspect"):
            LatentVideo.open(tmp_path / "x", TINY)
    write_spoilt(folder, tmp_path / "x", metadata, tensors | {"pts": tensors["pts"].astype(np.float64)})
    with pytest.raises(LatentFileError, match="another video"):
        LatentVideo.open(tmp_path / "x", TINY)


@pytest.mark.parametrize("aspect", ["8193/1", "1/8193", "2147483647/1", "1/2147483647"])
def test_a_pixel_aspect_that_ffmpeg_cannot_hold_is_refused(folder, tmp_path, aspect):
    small, large = {"width": 1, "height": 65535}, {"width": 65535, "height": 1}
    for size in ({}, large if aspect.endswith("/1") else small):
        metadata, tensors = described(folder)
        metadata["video"]["source"] |= {"sample_aspect_ratio": aspect, **size}
        write_spoilt(folder, tmp_path / "x", metadata, tensors)
        with pytest.raises(LatentFileError, match="pixel aspect"):
            LatentVideo.open(tmp_path / "x", TINY)
    metadata["video"]["source"] |= {"sample_aspect_ratio": "2147483647/2147483646", "width": 65535, "height": 65534}
    write_spoilt(folder, tmp_path / "x", metadata, tensors)
    with LatentVideo.open(tmp_path / "x", TINY) as video:
        assert video.sample_aspect_ratio.denominator <= 2**18
        assert abs(video.sample_aspect_ratio - Fraction(2147483647 * 65535 * 20, 2147483646 * 65534 * 30)) < 1e-10


def test_what_a_later_version_may_add_to_the_description_is_passed_over(folder, tmp_path):
    metadata, tensors = described(folder)
    source = metadata["video"]["source"]
    for table in (metadata["video"], source, source["colour"], metadata["encoding"]["tiling"], metadata["model"]):
        table["later"] = {"deep": [1]}
    write_spoilt(folder, tmp_path / "x", metadata | {"more": "no JSON"}, tensors | {"depth": np.zeros(3, np.uint8)})
    with LatentVideo.open(tmp_path / "x", TINY) as new, LatentVideo.open(folder / "clip.latent", TINY) as old:
        assert (new.colour, new.tiling, new.model, new.num_frames) == (old.colour, old.tiling, old.model, old.num_frames)
        assert np.array_equal(new.read(0, 4), old.read(0, 4))


def test_latents_that_were_scaled_back_already_are_not_scaled_back_twice(tmp_path):
    save_file({"latent_tensor": torch.zeros(2, TINY.latent_channels, 3, 3)}, tmp_path / "old.safetensors")
    with pytest.raises(UsageError, match="drop --scaled"):
        LatentVideo.open(tmp_path / "old.safetensors", TINY, scaled=True)
