"""Windows by number, what is drawn for them, and the steps that take them."""

import tarfile

import numpy as np
import pytest
import torch
from clips import moving_pictures, write_video
from torch.utils.data import DataLoader

from cvvae_cli.errors import UsageError
from cvvae_cli.training.streams import StreamConfig
from cvvae_cli.training.windows import MixedWindows, StepSampler, WindowStream, moving_photo


def stream(*sources, kind="video", frames=5, crop=32, seed=1, **changes):
    return WindowStream(StreamConfig(kind, tuple(map(str, sources)), 4, crop, frames, **changes), seed, lambda text: None)


def levels(window):
    """Grey level of each frame's first pixel."""
    return (window[0, :, 0, 0] * 127.5 + 127.5).round().int().tolist()


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """32 frames of 32x32 px whose level is 4 times their number."""
    frames = [np.full((32, 32, 3), 4 * i, np.uint8) for i in range(32)]
    return write_video(tmp_path_factory.mktemp("numbered") / "a.mp4", frames)


@pytest.fixture(scope="module")
def ramp(tmp_path_factory):
    """A picture of 160x128 px: red is x, green is y, blue is 200."""
    y, x = np.mgrid[0:128, 0:160]
    picture = np.stack([x, y, np.full_like(x, 200)], -1).astype(np.uint8)
    return write_video(tmp_path_factory.mktemp("ramp") / "ramp.png", [picture], codec="png")


def test_a_window_that_is_the_whole_clip_holds_its_pixels(tmp_path):
    pictures = moving_pictures(5, 32, 32)
    window = stream(write_video(tmp_path / "a.mp4", pictures)).window(7)
    assert window.dtype == torch.float32 and window.is_contiguous()
    expected = torch.from_numpy(np.stack(pictures).astype(np.float32) / 127.5 - 1).permute(3, 0, 1, 2)
    assert torch.allclose(window, expected, atol=1e-6)


def test_windows_depend_on_seed_and_number_only(tmp_path):
    write_video(tmp_path / "a.mp4", moving_pictures(14, 64, 48))
    write_video(tmp_path / "b.mp4", moving_pictures(9, 80, 48))
    changes = {"max_stride": 2, "short_sides": (32, 40), "augment": ("flip", "reverse", "dim")}
    one, two = stream(tmp_path, **changes), stream(tmp_path, seed=2, **changes)
    fourth = one.window(4)
    assert fourth.shape == (3, 5, 32, 32) and fourth.abs().max() <= 1
    one.window(3)
    assert torch.equal(one.window(4), fourth)
    assert torch.equal(one.with_seed(2).window(4), two.window(4))
    assert len({tuple(w.flatten()[:50].tolist()) for w in (fourth, one.window(5), two.window(4), two.window(5))}) == 4


def test_strides_have_their_weights_and_all_first_frames_their_turn(numbered, tmp_path):
    found = stream(numbered, max_stride=3, cache=str(tmp_path))
    windows = [levels(found.window(i)) for i in range(600)]
    strides = [(w[1] - w[0]) // 4 for w in windows]
    assert all(np.diff(w).tolist() == [4 * s] * 4 for w, s in zip(windows, strides))
    shares = np.bincount(strides, minlength=4)[1:] / 600
    assert np.abs(shares - np.array([6, 3, 2]) / 11).max() < 0.06  # weights 1, 1/2, 1/3; three standard deviations
    assert {w[0] // 4 for w, s in zip(windows, strides) if s == 1} == set(range(28))
    assert {w[0] // 4 for w, s in zip(windows, strides) if s == 3} == set(range(20))


def test_a_stride_that_does_not_fit_is_not_drawn(tmp_path):
    write_video(tmp_path / "a.mp4", [np.full((32, 32, 3), 4 * i, np.uint8) for i in range(9)])
    found = stream(tmp_path, max_stride=4, cache=str(tmp_path / "cache"))
    assert {w[1] - w[0] for w in (levels(found.window(i)) for i in range(40))} == {4, 8}


def test_single_frames_of_clips_and_pictures_make_images(numbered, ramp, tmp_path):
    found = stream(numbered, ramp, kind="image", frames=1, cache=str(tmp_path))
    windows = [found.window(i) for i in range(60)]
    assert all(w.shape == (3, 1, 32, 32) for w in windows)
    frames = {levels(w)[0] for w in windows if w.std() < 1e-6}
    assert len(frames) > 10 and all(level % 4 == 0 for level in frames)
    corners = {levels(w)[0] for w in windows if w.std() > 1e-6}
    assert len(corners) > 10 and max(corners) <= 160 - 32


def test_augmentations_are_the_named_ones(numbered, ramp):
    plain = [stream(numbered).window(i) for i in range(8)]
    reversed_ = [stream(numbered, augment=("reverse",)).window(i) for i in range(8)]
    turned = [torch.equal(a.flip(1), b) for a, b in zip(plain, reversed_)]
    assert all(t or torch.equal(a, b) for a, b, t in zip(plain, reversed_, turned)) and 0 < sum(turned) < 8
    plain = [stream(ramp, kind="image", frames=1).window(i) for i in range(8)]
    mirrored = [stream(ramp, kind="image", frames=1, augment=("flip",)).window(i) for i in range(8)]
    turned = [torch.equal(a.flip(3), b) for a, b in zip(plain, mirrored)]
    assert all(t or torch.equal(a, b) for a, b, t in zip(plain, mirrored, turned)) and 0 < sum(turned) < 8


def test_dimmed_windows_are_darker_and_few(ramp, tmp_path):
    found = stream(ramp, kind="image", frames=1, augment=("dim",), cache=str(tmp_path))
    factors = np.array([float(found.window(i)[2].mean() + 1) * 127.5 / 200 for i in range(400)])
    dimmed = factors[factors < 0.999]
    assert 0.1 < len(dimmed) / 400 < 0.2 and dimmed.min() >= 0.2
    assert dimmed.min() < 0.35 and dimmed.max() > 0.85


def test_a_moving_picture_moves_at_one_speed_within_the_limit(ramp):
    found = stream(ramp, kind="motion", short_sides=(128,), max_pan=2.0, max_zoom=0.0)
    speeds = []
    for i in range(60):
        window = (found.window(i) + 1) * 127.5
        centre = window[:2, :, 16, 16]
        # the ramp's value is its position, except near a border, where it is mirrored
        if window[0].min() > 2 and window[0].max() < 157 and window[1].min() > 2 and window[1].max() < 125:
            steps = centre.diff(dim=1)
            speeds.append(float(steps.mean(dim=1).norm()))
            assert (steps - steps.mean(dim=1, keepdim=True)).abs().max() < 1.01  # whole-pixel paths jump by up to one
    assert len(speeds) > 20 and min(speeds) == 0.0 and 1.0 < max(speeds) < 2.1


def test_a_still_moving_picture_is_a_cut_of_the_picture():
    photo = torch.rand(3, 40, 48) * 255
    config = StreamConfig("motion", ("x",), 1, 32, 5, max_pan=0.0, max_zoom=0.0)
    cuts = {(y, x): photo[:, y : y + 32, x : x + 32] for y in range(9) for x in range(17)}
    exact = 0
    for seed in range(40):
        window = moving_photo(photo, config, np.random.default_rng(seed))
        assert torch.allclose(window, window[:, :1].expand_as(window), atol=1e-3)
        exact += any(torch.allclose(window[:, 0], cut, atol=0.02) for cut in cuts.values())
    assert 8 <= exact <= 28  # those on whole pixels: 15 % and 30 % of the rest


def test_zoom_grows_by_the_same_factor_in_every_frame(ramp):
    found = stream(ramp, kind="motion", short_sides=(128,), max_pan=0.0, max_zoom=0.05, frames=9)
    factors = []
    for i in range(40):
        red = (found.window(i)[0] + 1) * 127.5
        widths = red[:, 16, 24] - red[:, 16, 8]  # of 16 px of the window, in px of the picture
        if red.min() > 2 and red.max() < 157:
            ratios = widths[1:] / widths[:-1]
            assert (ratios - ratios.mean()).abs().max() < 0.02 and abs(widths[4] - 16) < 0.2
            factors.append(float(ratios.mean()))
    assert len(factors) > 10 and 0.95 <= min(factors) < 0.98 and 1.02 < max(factors) <= 1.05


def test_the_fingerprint_changes_with_files_and_sizes_only(tmp_path):
    write_video(tmp_path / "a.mp4", moving_pictures(8, 48, 48))
    first = stream(tmp_path).fingerprint()
    assert len(first) == 16
    assert first == stream(tmp_path, seed=5, augment=("flip",)).fingerprint()
    assert first == stream(tmp_path / "a.mp4").fingerprint()
    others = [stream(tmp_path, short_sides=(40,)).fingerprint(), stream(tmp_path, cache=str(tmp_path / "cache")).fingerprint()]
    write_video(tmp_path / "b.mp4", moving_pictures(8, 48, 64))
    others.append(stream(tmp_path).fingerprint())
    (tmp_path / "a.mp4").unlink()
    others.append(stream(tmp_path).fingerprint())
    assert len({first, *others}) == 5


@pytest.mark.parametrize("kind", ["image", "motion"])
def test_a_cache_of_pictures_changes_no_window(ramp, tmp_path, kind):
    frames = 1 if kind == "image" else 5
    direct, cached = (stream(ramp, kind=kind, frames=frames, short_sides=(48, 100), cache=c) for c in ("", str(tmp_path)))
    assert direct.fingerprint() == cached.fingerprint()
    assert all(torch.equal(direct.window(i), cached.window(i)) for i in range(6))


def test_a_shard_gives_the_windows_of_its_files(tmp_path):
    (tmp_path / "clips").mkdir()
    for name, width in (("a", 48), ("b", 64)):
        write_video(tmp_path / "clips" / f"{name}.mp4", moving_pictures(9, width, 48))
    with tarfile.open(tmp_path / "s-0.tar", "w") as archive:
        for path in sorted((tmp_path / "clips").iterdir()):
            archive.add(path, path.name)
    folder, shard = stream(tmp_path / "clips"), stream(tmp_path / "s-{0..0}.tar")
    assert folder.fingerprint() == shard.fingerprint()
    assert all(torch.equal(folder.window(i), shard.window(i)) for i in range(6))


def test_windows_are_the_same_with_any_number_of_workers(numbered, ramp, tmp_path):
    write_video(tmp_path / "b.mp4", moving_pictures(9, 80, 48))
    mixed = MixedWindows(
        [
            stream(numbered, tmp_path / "b.mp4", max_stride=2, augment=("flip", "reverse", "dim")),
            stream(ramp, tmp_path / "b.mp4", kind="image", frames=1),
            stream(ramp, kind="motion"),
        ]
    )
    sampler = StepSampler([(1.0, 3), (1.0, 4), (1.0, 2)], seed=3, first_step=0, last_step=8)
    runs = [list(DataLoader(mixed, batch_sampler=sampler, num_workers=workers)) for workers in (0, 1, 2)]
    assert {batch.shape[2] for batch in runs[0]} == {1, 5}
    for (index, numbers), *batches in zip(sampler, *runs, strict=True):
        assert torch.equal(batches[0], torch.stack([mixed[index, number] for number in numbers]))
        assert torch.equal(batches[0], batches[1]) and torch.equal(batches[0], batches[2])


def test_steps_take_streams_by_their_shares():
    steps = list(StepSampler([(4.0, 8), (1.0, 2), (2.5, 1), (2.5, 1)], seed=7, first_step=0, last_step=4000))
    shares = np.bincount([index for index, _ in steps]) / 4000
    assert np.abs(shares - [0.4, 0.1, 0.25, 0.25]).max() < 0.025  # three standard deviations
    assert steps != list(StepSampler([(4.0, 8), (1.0, 2), (2.5, 1), (2.5, 1)], seed=8, first_step=0, last_step=4000))
    assert {index for index, _ in StepSampler([(0.5, 3)], 1, 0, 20)} == {0}


def test_numbers_rise_and_never_come_twice():
    seen: dict[int, list[int]] = {0: [], 1: []}
    for step, (index, numbers) in enumerate(StepSampler([(1.0, 4), (1.0, 6)], 1, 0, 200)):
        assert len(numbers) == (4, 6)[index] and numbers[0] == step * (4, 6)[index]
        seen[index] += numbers
    assert all(numbers == sorted(set(numbers)) for numbers in seen.values())


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_devices_together_take_what_one_would(world_size):
    shares = [(1.0, 6), (2.0, 12)]
    alone = list(StepSampler(shares, 5, 10, 40))
    ranks = [list(StepSampler(shares, 5, 10, 40, rank, world_size)) for rank in range(world_size)]
    for (index, numbers), *parts in zip(alone, *ranks, strict=True):
        assert {part[0] for part in parts} == {index} and len({len(part[1]) for part in parts}) == 1
        assert sum((part[1] for part in parts), []) == numbers


def test_a_resumed_run_goes_on_where_it_stopped():
    shares = [(1.0, 2), (3.0, 3)]
    whole = list(StepSampler(shares, 5, 0, 30))
    rest = StepSampler(shares, 5, 12, 30)
    assert list(rest) == whole[12:] and len(rest) == 18
    assert list(StepSampler(shares, 5, 31, 30)) == [] and len(StepSampler(shares, 5, 31, 30)) == 0


def test_a_batch_that_cannot_be_split_is_refused():
    with pytest.raises(UsageError, match="Batch 6 of stream 2 cannot be split evenly over 4 devices; use 8"):
        StepSampler([(1.0, 4), (1.0, 6)], 1, 0, 10, rank=0, world_size=4)
