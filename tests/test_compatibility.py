"""The measures of compatibility against slow references, and the bound where everything about it is known exactly."""

import math

import numpy as np
import pytest
import torch
from clips import moving_pictures, write_video
from tiny_model import TINY, save_tiny_model
from torch import nn

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.checkpoint import load_model
from cvvae_cli.compatibility import (
    CompatibilityMeter,
    WindowConfig,
    judge,
    local_singular_values,
    plan_clip,
    read_windows,
)
from cvvae_cli.errors import UsageError, VideoError
from cvvae_cli.image_model import ImageModel, as_image_model
from cvvae_cli.training.regularisation import keyframe_map

Z = 4


class LinearImageModel(ImageModel):
    """Every cell on its own: encode is a matrix, decode another one, so every constant can be had by hand."""

    def __init__(self, synthesis: torch.Tensor, blur: float = 1.0) -> None:
        """
        Args:
            synthesis: (192, z), pixels of a cell from its latent.
            blur: what `encode` multiplies the exact latents by.
        """
        super().__init__("linear", "none", synthesis.shape[1])
        self.encoder = nn.Conv2d(3, synthesis.shape[1], 8, stride=8, bias=False)
        self.decoder = nn.ConvTranspose2d(synthesis.shape[1], 3, 8, stride=8, bias=False)
        with torch.no_grad():
            self.encoder.weight.copy_(blur * torch.linalg.pinv(synthesis).view(-1, 3, 8, 8))
            self.decoder.weight.copy_(synthesis.T.reshape(-1, 3, 8, 8))

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoder(images)

    def _decode(self, z: torch.Tensor) -> torch.Tensor:
        return self.decoder(z)


def synthesis_with(singular_values: list[float]) -> torch.Tensor:
    torch.manual_seed(3)
    left = torch.linalg.qr(torch.randn(192, len(singular_values))).Q
    right = torch.linalg.qr(torch.randn(len(singular_values), len(singular_values))).Q
    return left * torch.tensor(singular_values) @ right.T


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


def test_local_singular_values_of_a_linear_decoder_are_its_own():
    image = LinearImageModel(synthesis_with([5.0, 2.0, 0.5])).double()
    with torch.no_grad():
        values = local_singular_values(image.decode, torch.randn(3, 5, 6))
    expected = torch.tensor([5.0] * 16 + [2.0] * 16 + [0.5] * 16, dtype=torch.float64)
    torch.testing.assert_close(values, expected, atol=1e-6, rtol=0)


def test_local_singular_values_of_a_network_agree_with_autograd(video, tmp_path):
    image = as_image_model(load_model(save_tiny_model(tmp_path / "other.safetensors", seed=5), dtype=torch.float64))
    latent = torch.randn(Z, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    jacobian = torch.autograd.functional.jacobian(lambda z: image.decode(z[None])[0], latent).reshape(-1, latent.numel())
    with torch.no_grad():
        values = local_singular_values(image.decode, latent)
    torch.testing.assert_close(values, torch.linalg.svdvals(jacobian), atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_the_bound_of_a_linear_decoder_by_hand(video):
    synthesis = synthesis_with([4.0, 3.0, 2.0, 1.0])
    image, x = LinearImageModel(synthesis, blur=0.9), window(9, 32, 40)
    meter = CompatibilityMeter(image, video, "average", with_bound=True)
    meter.add(x)
    bound = meter.result().bound

    targets = keyframe_map(x, "average")
    ours, theirs = video.encode(x)[:, :Z], by_frame(image.encode, targets)
    shown, own = by_frame(image.decode, ours), by_frame(image.decode, theirs)
    loss_video = (shown - targets).square().sum(dim=(1, 3, 4)).mean().item()
    loss_image = (own - targets).square().sum(dim=(1, 3, 4)).mean().item()
    assert bound.loss_video == pytest.approx(loss_video, rel=1e-5)
    assert bound.loss_image == pytest.approx(loss_image, rel=1e-5)
    assert bound.paired == pytest.approx((ours - theirs).square().mean().sqrt().item(), rel=1e-5)
    assert bound.spread == pytest.approx(theirs.std(dim=(0, 2, 3, 4), correction=0).square().mean().sqrt().item(), rel=1e-5)

    pairs, images, local = bound.constants
    assert local.m == pytest.approx(1, abs=1e-5), "the smallest singular value"
    by_pair = (shown - own).square().sum(dim=(1, 3, 4)) / (ours - theirs).square().sum(dim=(1, 3, 4))
    assert pairs.m == pytest.approx(by_pair.min().sqrt().item(), rel=1e-5)
    couples = [(i, j) for i in range(3) for j in range(i)]
    among = [((own[:, :, i] - own[:, :, j]).norm() / (theirs[:, :, i] - theirs[:, :, j]).norm()).item() for i, j in couples]
    assert images.m == pytest.approx(min(among), rel=1e-5)
    errors = (math.sqrt(loss_video) + math.sqrt(loss_image)) / math.sqrt(Z * 4 * 5)
    for constant in bound.constants:
        assert 1 - 1e-5 <= constant.m <= 4
        assert constant.bound == pytest.approx(errors / constant.m, rel=1e-5)
        assert constant.decoded <= constant.bound * (1 + 1e-6)
    # The chain of the proof, with constants that hold for these pairs.
    for constant in (pairs, local):
        assert bound.sliced_w2 <= bound.paired * (1 + 1e-6)
        assert bound.paired <= constant.decoded * (1 + 1e-6)


def test_secants_are_taken_to_the_window_before_as_well(video):
    """Two windows of one picture each: only pairs across windows exist."""
    image = LinearImageModel(synthesis_with([4.0, 3.0, 2.0, 1.0]))
    first, second = window(1), window(1).flip(3) * 0.5
    meter = CompatibilityMeter(image, video, with_bound=True)
    meter.add(first)
    meter.add(second)
    with torch.no_grad():
        a, b = (image.encode(x[:, :, 0]) for x in (first, second))
        expected = ((image.decode(a) - image.decode(b)).norm() / (a - b).norm()).item()
    constants = {constant.source: constant.m for constant in meter.result().bound.constants}
    assert constants["smallest secant, image latents"] == pytest.approx(expected, rel=1e-5)


def averaging_video(synthesis: torch.Tensor, gain: float) -> Autoencoder:
    """A video encoder that is `gain` times the linear image encoder of the mean of each group of frames."""
    torch.manual_seed(0)
    model = Autoencoder(TINY).eval()
    per_frame = torch.linalg.pinv(synthesis).view(Z, 3, 8, 8).permute(0, 2, 3, 1).reshape(Z, 1, 192)
    maps = gain * per_frame.expand(Z, 4, 192).reshape(Z, 768, 1, 1, 1) / 4
    with torch.no_grad():
        model.encoder.analysis.weight.copy_(maps[[0, 1, 2, 3, 2, 3]])  # two shared channels, then both bases of the other two
        model.encoder.analysis.bias.zero_()
    return model


def test_video_latents_of_a_mean_are_image_latents_of_the_map_average_and_of_no_other():
    synthesis = synthesis_with([4.0, 3.0, 2.0, 1.0])
    paired = {}
    for kind in ("average", "first"):
        meter = CompatibilityMeter(LinearImageModel(synthesis), averaging_video(synthesis, 1.0), kind, with_bound=True)
        meter.add(window())
        result = meter.result()
        paired[kind] = result.bound.paired
        assert result.psnr["average"].image_of_video.mean_db == pytest.approx(result.psnr["average"].image_own.mean_db, abs=0.01)
    assert paired["average"] < 1e-6 < 0.01 < paired["first"]


def test_the_bound_is_tight_for_a_scaled_isometry():
    """D_i stretches all lengths by 2, pictures lie in its range, and E_v = 0.9 E_i: every step of the proof is an equality."""
    synthesis = synthesis_with([2.0, 2.0, 2.0, 2.0])
    image = LinearImageModel(synthesis)
    with torch.no_grad():
        latents = torch.randn(9, Z, 4, 5, generator=torch.Generator().manual_seed(2))
        x = image.decode(latents).movedim(0, 1)[None]
    meter = CompatibilityMeter(image, averaging_video(synthesis, 0.9), "average", with_bound=True)
    meter.add(x)
    bound = meter.result().bound
    groups = torch.cat([latents[:1], latents[1:].unflatten(0, (2, 4)).mean(dim=1)])
    assert bound.paired == pytest.approx(0.1 * groups.square().mean().sqrt().item(), rel=1e-4)
    assert bound.loss_image == pytest.approx(0, abs=1e-6)
    for constant in bound.constants:
        assert constant.m == pytest.approx(2, rel=1e-4)
        assert constant.decoded == pytest.approx(bound.paired, rel=1e-4)
        assert constant.bound == pytest.approx(bound.paired, rel=1e-2)
        assert constant.verdict == "weak"


def test_a_decoder_that_sees_nothing_or_hardly_anything_bounds_nothing(video):
    image = LinearImageModel(synthesis_with([4.0, 3.0, 2.0, 1e-4]))
    meter = CompatibilityMeter(image, video, with_bound=True)
    meter.add(window(9, 32, 40))
    hardly = meter.result().bound.constants[-1]
    assert hardly.verdict == "vacuous" and hardly.m == pytest.approx(1e-4, rel=1e-2)
    nn.init.zeros_(image.decoder.weight)
    blind = CompatibilityMeter(image, video, with_bound=True)
    blind.add(window())
    constants = blind.result().bound.constants
    assert len(constants) == 3
    assert all((c.m, c.decoded, c.bound, c.verdict) == (0, None, None, "vacuous") for c in constants)


def test_verdicts():
    assert judge(m=1.0, bound=2.1, spread=2.0, secant_of_pairs=0.5) == "vacuous"
    assert judge(m=1.0, bound=1.9, spread=2.0, secant_of_pairs=0.5) == "refuted"
    assert judge(m=0.5, bound=1.9, spread=2.0, secant_of_pairs=0.5) == "weak"
    assert judge(m=0.4, bound=1.9, spread=2.0, secant_of_pairs=0.5) == "weak"


def test_models_of_different_channels_are_refused(video):
    with pytest.raises(UsageError, match="3 latent channels and the video model 4"):
        CompatibilityMeter(LinearImageModel(synthesis_with([3.0, 2.0, 1.0])), video)


def test_no_window_no_result(video):
    with pytest.raises(UsageError, match="no latents to compare"):
        CompatibilityMeter(as_image_model(video), video).result()


def test_windows_follow_one_another_without_overlap_and_are_cut_from_the_centre(tmp_path):
    pictures = moving_pictures(13, 46, 36)
    path = write_video(tmp_path / "clip.mp4", pictures)
    config = WindowConfig(frames=5)
    clip = plan_clip(path, config)
    assert (clip.size, clip.region, clip.num_windows) == ((46, 36), (3, 2, 40, 32), 2)
    windows = list(read_windows(clip, config))
    assert [tuple(x.shape) for x in windows] == [(1, 3, 5, 32, 40)] * 2
    for i, x in enumerate(windows):
        frames = np.stack(pictures[5 * i : 5 * i + 5])[:, 2:34, 3:43]
        np.testing.assert_array_equal(((x[0].permute(1, 2, 3, 0) + 1) * 127.5).round().numpy(), frames)
    config = WindowConfig(frames=5, crop=16, max_windows=1)
    clip = plan_clip(path, config)
    assert (clip.region, clip.num_windows) == ((15, 10, 16, 16), 1)
    assert [tuple(x.shape) for x in read_windows(clip, config)] == [(1, 3, 5, 16, 16)]


def test_a_clip_shorter_than_a_window_gives_what_it_has(tmp_path):
    path = write_video(tmp_path / "clip.mp4", moving_pictures(8, 32, 24))
    config = WindowConfig(frames=17)
    assert [tuple(x.shape) for x in read_windows(plan_clip(path, config), config)] == [(1, 3, 5, 24, 32)]


def test_frames_are_made_smaller_and_never_larger(tmp_path):
    path = write_video(tmp_path / "clip.mp4", moving_pictures(1, 96, 64))
    assert plan_clip(path, WindowConfig(short_side=32)).size == (48, 32)
    assert plan_clip(path, WindowConfig(short_side=640)).size == (96, 64)
    config = WindowConfig(short_side=33)
    (x,) = read_windows(plan_clip(path, config), config)
    assert tuple(x.shape) == (1, 3, 1, 32, 48)


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"frames": 16}, "16 frames are not 1"),
        ({"frames": -3}, "-3 frames are not 1"),
        ({"short_side": 4}, "Short side 4 px must be at least 8"),
        ({"crop": 20}, "Crop 20 px must be a multiple of 8; pass --crop 16"),
        ({"crop": 0}, "pass --crop 8"),
        ({"max_windows": 0}, "pass --max-windows 1"),
    ],
)
def test_cuts_that_cannot_be_are_refused(values, sentence):
    with pytest.raises(UsageError, match=sentence):
        WindowConfig(**values)


def test_clips_that_cannot_be_cut_are_refused(tmp_path):
    path = write_video(tmp_path / "clip.mp4", moving_pictures(1, 64, 24))
    with pytest.raises(UsageError, match="are 64x24 px, smaller than the 32 px of --crop"):
        plan_clip(path, WindowConfig(crop=32))
    with pytest.raises(UsageError, match="smaller than one cell"):
        plan_clip(write_video(tmp_path / "thin.mp4", moving_pictures(1, 64, 6)), WindowConfig())
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError):
        plan_clip(tmp_path / "text.mp4", WindowConfig())
