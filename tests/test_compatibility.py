"""The measures of compatibility against slow references."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from clips import moving_pictures
from linear_image_model import LinearImageModel, synthesis_with
from tiny_model import TINY, save_tiny_model

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.checkpoint import load_model
from cvvae_cli.compatibility import CompatibilityMeter
from cvvae_cli.errors import UsageError
from cvvae_cli.image_model import as_image_model
from cvvae_cli.training.regularisation import keyframe_map

Z = 4


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return load_model(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny.safetensors"))


def window(frames: int = 9, height: int = 16, width: int = 24, batch: int = 1) -> torch.Tensor:
    pictures = np.stack(moving_pictures(batch * frames, width, height)).reshape(batch, frames, height, width, 3)
    return torch.from_numpy(pictures).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean over frames of (B, 3, T, H, W), of 8-bit values, by the definition."""
    a, b = (((t.clamp(-1, 1) + 1) * 127.5).round().double() for t in (a, b))
    errors = (a - b).square().mean(dim=(1, 3, 4)).flatten()
    return (10 * torch.log10(255**2 / errors)).mean().item()


def by_frame(network, x: torch.Tensor) -> torch.Tensor:
    return torch.stack([network(x[:, :, i]) for i in range(x.shape[2])], dim=2)


@torch.no_grad()
def test_each_psnr_is_of_what_it_says(video):
    image = LinearImageModel(synthesis_with([4.0, 3.0, 2.0, 1.0]))
    x = window()
    meter = CompatibilityMeter(image, video, "slice")
    meter.add(x, "a")
    result = meter.result()
    latents = video.encode(x)[:, :Z]
    assert list(result.psnr) == ["pictures", "first", "slice", "average", "random"]
    for kind in ("first", "slice", "average"):
        targets = keyframe_map(x, kind)
        row, theirs = result.psnr[kind], by_frame(image.encode, targets)
        assert row.image_of_video.mean_db == pytest.approx(psnr(by_frame(image.decode, latents), targets), abs=1e-4)
        assert row.image_own.mean_db == pytest.approx(psnr(by_frame(image.decode, theirs), targets), abs=1e-4)
        assert row.video_of_image.mean_db == pytest.approx(psnr(video.decode(theirs), x), abs=1e-4)
        assert row.video_own.mean_db == pytest.approx(psnr(video.decode(latents), x), abs=1e-4)
    picture = x[:, :, :1]
    shown = by_frame(image.decode, video.encode(picture)[:, :Z])
    assert result.psnr["pictures"].image_of_video.mean_db == pytest.approx(psnr(shown, picture), abs=1e-4)


@torch.no_grad()
def test_random_map_draws_one_index_of_four_and_a_seed_fixes_it(video):
    image, x = as_image_model(video), window()
    shown = by_frame(image.decode, video.encode(x)[:, :Z])
    groups = x[:, :, 1:].unflatten(2, (-1, 4))
    possible = [psnr(shown, torch.cat([x[:, :, :1], groups[:, :, :, i]], dim=2)) for i in range(4)]
    found = set()
    for seed in range(12):
        values = []
        for _ in range(2):
            meter = CompatibilityMeter(image, video, seed=seed)
            meter.add(x)
            values.append(meter.result().psnr["random"].image_of_video.mean_db)
        assert values[0] == values[1]
        found.add(int(np.argmin([abs(value - values[0]) for value in possible])))
        assert min(abs(value - values[0]) for value in possible) < 1e-4
    assert len(found) > 1


@torch.no_grad()
def test_frames_of_half_precision_are_rounded_once(tmp_path):
    video = load_model(save_tiny_model(tmp_path / "tiny.safetensors"), dtype=torch.bfloat16)
    x = window()
    meter = CompatibilityMeter(as_image_model(video), video, with_bound=True)
    meter.add(x)
    result = meter.result()
    decoded = video.decode(video.encode(x)[:, :Z]).float()
    assert result.psnr["first"].video_own.mean_db == pytest.approx(psnr(decoded, x), abs=1e-4)
    assert all(constant.m > 0 for constant in result.bound.constants)


def test_a_model_is_compatible_with_itself_on_pictures(video):
    meter = CompatibilityMeter(as_image_model(video), video, with_bound=True)
    for part in window(1, batch=4).split(2):
        meter.add(part, "pictures")
    result = meter.result()
    assert list(result.psnr) == ["pictures"] and result.windows == 2 and result.latent_frames == 4
    row = result.psnr["pictures"]
    assert row.image_of_video == row.image_own == row.video_of_image == row.video_own
    same, zero = result.distances["same windows"], result.distances["zero line"]
    assert same.sliced_w2 == same.mean_gap == same.std_gap == same.skew_gap == 0
    assert same.frechet == pytest.approx(0, abs=1e-6)
    assert zero == result.distances["other half"] and zero.sliced_w2 > 0.01
    assert result.bound.paired == 0
    sources = [constant.source for constant in result.bound.constants]
    assert sources == ["smallest secant, image latents", "smallest local singular value"]


def test_clips_count_alike_whatever_their_length_and_give_the_standard_error(video):
    image = as_image_model(video)
    parts = {"long": [window(), window().flip(2)], "short": [window().flip(3)], "dim": [window() * 0.5]}
    alone = []
    meter = CompatibilityMeter(image, video)
    for clip, windows in parts.items():
        single = CompatibilityMeter(image, video)
        for x in windows:
            meter.add(x, clip)
            single.add(x, clip)
        alone.append(single.result().psnr["first"].video_own)
    assert all(figure.standard_error_db is None and figure.clips == 1 for figure in alone)
    means = np.array([figure.mean_db for figure in alone])
    together = meter.result().psnr["first"].video_own
    assert together.clips == 3
    assert together.mean_db == pytest.approx(means.mean(), abs=1e-6)
    assert together.standard_error_db == pytest.approx(means.std(ddof=1) / math.sqrt(3), abs=1e-6)


@torch.no_grad()
def test_distances_are_between_latents_of_the_same_moments(video):
    image = LinearImageModel(synthesis_with([4.0, 3.0, 2.0, 1.0]))
    windows = [window(), window().flip(2)]
    meter = CompatibilityMeter(image, video, "average")
    for x in windows:
        meter.add(x)
    result = meter.result()
    ours = torch.cat([video.encode(x)[:, :Z] for x in windows])
    theirs = torch.cat([by_frame(image.encode, keyframe_map(x, "average")) for x in windows])
    for name, latents in (("video", ours), ("image", theirs)):
        mean, std = latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4), correction=0)
        assert result.channels[name]["mean"] == pytest.approx(mean.tolist(), abs=1e-5)
        assert result.channels[name]["std"] == pytest.approx(std.tolist(), abs=1e-5)
    counts = [(d.frames, d.reference_frames, d.positions) for d in result.distances.values()]
    assert counts == [(6, 6, 36), (3, 3, 18), (3, 3, 18)]
    assert len(result.histograms) == Z


@torch.no_grad()
def test_the_bound_is_of_the_latents_and_pictures_of_one_map(video):
    image, x = LinearImageModel(synthesis_with([4.0, 3.0, 2.0, 1.0]), blur=0.9), window(9, 32, 40)
    meter = CompatibilityMeter(image, video, "average", with_bound=True)
    meter.add(x)
    bound = meter.result().bound

    targets = keyframe_map(x, "average")
    ours, theirs = video.encode(x)[:, :Z], by_frame(image.encode, targets)
    shown, own = by_frame(image.decode, ours), by_frame(image.decode, theirs)
    assert bound.loss_video == pytest.approx((shown - targets).square().sum(dim=(1, 3, 4)).mean().item(), rel=1e-5)
    assert bound.loss_image == pytest.approx((own - targets).square().sum(dim=(1, 3, 4)).mean().item(), rel=1e-5)
    assert bound.paired == pytest.approx((ours - theirs).square().mean().sqrt().item(), rel=1e-5)
    assert bound.spread == pytest.approx(theirs.std(dim=(0, 2, 3, 4), correction=0).square().mean().sqrt().item(), rel=1e-5)

    pairs, _, local = bound.constants
    by_pair = (shown - own).square().sum(dim=(1, 3, 4)) / (ours - theirs).square().sum(dim=(1, 3, 4))
    assert pairs.m == pytest.approx(by_pair.min().sqrt().item(), rel=1e-5)
    assert local.m == pytest.approx(1, abs=1e-5), "the smallest singular value"
    # The chain of the proof, from what is measured without a decoder to the bound.
    chain = [bound.sliced_w2, bound.paired, pairs.decoded, pairs.bound]
    assert 0 < chain[0] and all(lower <= upper * (1 + 1e-6) for lower, upper in pairwise(chain))


def averaging_video(synthesis: torch.Tensor) -> Autoencoder:
    """A video encoder that is the linear image encoder of the mean of each group of frames."""
    torch.manual_seed(0)
    model = Autoencoder(TINY).eval()
    per_frame = torch.linalg.pinv(synthesis).view(Z, 3, 8, 8).permute(0, 2, 3, 1).reshape(Z, 1, 192)
    maps = per_frame.expand(Z, 4, 192).reshape(Z, 768, 1, 1, 1) / 4
    with torch.no_grad():
        model.encoder.analysis.weight.copy_(maps[[0, 1, 2, 3, 2, 3]])  # two shared channels, then both bases of the other two
        model.encoder.analysis.bias.zero_()
    return model


def test_video_latents_of_a_mean_are_image_latents_of_the_map_average_and_of_no_other():
    synthesis = synthesis_with([4.0, 3.0, 2.0, 1.0])
    paired = {}
    for kind in ("average", "first"):
        meter = CompatibilityMeter(LinearImageModel(synthesis), averaging_video(synthesis), kind, with_bound=True)
        meter.add(window())
        result = meter.result()
        paired[kind] = result.bound.paired
        assert result.psnr["average"].image_of_video.mean_db == pytest.approx(result.psnr["average"].image_own.mean_db, abs=0.01)
    assert paired["average"] < 1e-6 < 0.01 < paired["first"]


def test_models_of_different_channels_are_refused(video):
    with pytest.raises(UsageError, match="3 latent channels and the video model 4"):
        CompatibilityMeter(LinearImageModel(synthesis_with([3.0, 2.0, 1.0])), video)


def test_no_window_no_result(video):
    with pytest.raises(UsageError, match="no latents to compare"):
        CompatibilityMeter(as_image_model(video), video).result()
