"""Metrics against slow float64 references, hand-computed cases and FFmpeg's filters."""

import json
import math
from fractions import Fraction

import av
import numpy as np
import pytest
from scipy import ndimage

from cvvae_cli.errors import QualityError, UsageError
from cvvae_cli.metrics import PSNR_CAP_DB, Comparison, frame_psnr, frame_ssim


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth coloured picture with some texture: SSIM of pure noise would say little."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (4, 5, 3))
    smooth = ndimage.zoom(coarse, (height / 4, width / 5, 1), order=1)[:height, :width]
    return np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)


def spoiled(frame: np.ndarray, amount: float, seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, amount, frame.shape)
    return np.clip(frame + noise, 0, 255).astype(np.uint8)


def naive_psnr(a: np.ndarray, b: np.ndarray) -> float:
    mse = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return 100.0 if mse == 0 else min(100.0, 10 * math.log10(255**2 / mse))


def naive_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang's formula in float64: five two-dimensional correlations with the full window."""

    def window(size: int) -> np.ndarray:
        n = min(11, size if size % 2 else size - 1)
        w = np.exp(-((np.arange(n) - n // 2) ** 2) / (2 * 1.5**2))
        return w / w.sum()

    kernel = np.outer(window(a.shape[0]), window(a.shape[1]))
    top, left = kernel.shape[0] // 2, kernel.shape[1] // 2

    def blur(plane: np.ndarray) -> np.ndarray:
        return ndimage.correlate(plane, kernel)[top : plane.shape[0] - top, left : plane.shape[1] - left]

    x, y = (f.astype(np.float64) @ np.array([0.299, 0.587, 0.114]) for f in (a, b))
    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(np.mean((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))))


def naive_flicker(source: list[np.ndarray], decoded: list[np.ndarray]) -> float:
    s, d = np.array(source, np.float64), np.array(decoded, np.float64)
    return float(np.sqrt(np.mean((np.diff(d, axis=0) - np.diff(s, axis=0)) ** 2)))


@pytest.mark.parametrize("size", [(11, 11), (37, 53), (42, 43), (75, 12), (130, 90)])
@pytest.mark.parametrize("amount", [0.5, 6, 60])
def test_one_frame_equals_the_naive_reference(size: tuple[int, int], amount: float) -> None:
    source = picture(*size)
    decoded = spoiled(source, amount)
    assert frame_psnr(source, decoded) == pytest.approx(naive_psnr(source, decoded), abs=1e-9)
    assert frame_ssim(source, decoded) == pytest.approx(naive_ssim(source, decoded), abs=2e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (10, 10), (2, 9), (8, 64), (64, 5)])
def test_frames_smaller_than_the_window(size: tuple[int, int]) -> None:
    source = picture(*size)
    decoded = spoiled(source, 20)
    assert frame_ssim(source, decoded) == pytest.approx(naive_ssim(source, decoded), abs=2e-5)
    assert frame_ssim(source, source) == 1.0


def test_ssim_on_flat_frames_by_hand() -> None:
    black, white = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)
    c1 = 2.55**2
    assert frame_ssim(black, white) == pytest.approx(c1 / (255**2 + c1), rel=1e-3)
    a, b = np.full((16, 16, 3), 100, np.uint8), np.full((16, 16, 3), 110, np.uint8)
    assert frame_ssim(a, b) == pytest.approx((2 * 100 * 110 + c1) / (100**2 + 110**2 + c1), abs=1e-6)


def test_ssim_of_an_inverted_texture_is_negative() -> None:
    checks = (np.indices((32, 32)).sum(0) % 2 * 100 + 78).astype(np.uint8)
    source = np.stack([checks] * 3, axis=2)
    assert frame_ssim(source, 255 - source) < -0.9


def test_psnr_by_hand() -> None:
    source = np.full((4, 5, 3), 7, np.uint8)
    off_by_one = source.copy()
    off_by_one[0, 0, 0] = 8
    assert frame_psnr(source, source + np.uint8(1)) == pytest.approx(20 * math.log10(255))
    assert frame_psnr(source, off_by_one) == pytest.approx(10 * math.log10(255**2 * 60))
    assert frame_psnr(source, source) == PSNR_CAP_DB
    # uint8 must not wrap around: 0 against 255 is the worst there is.
    assert frame_psnr(np.zeros((3, 3, 3), np.uint8), np.full((3, 3, 3), 255, np.uint8)) == pytest.approx(0)


def test_psnr_is_capped_even_when_frames_differ() -> None:
    source = np.zeros((450, 450, 3), np.uint8)
    decoded = source.copy()
    decoded[5, 5, 1] = 1
    assert frame_psnr(source, decoded) == PSNR_CAP_DB


def test_a_video_equals_the_naive_reference() -> None:
    source = [picture(30, 41, seed) for seed in range(6)]
    decoded = [spoiled(frame, 3 + 5 * (i == 4), seed=i) for i, frame in enumerate(source)]
    comparison = Comparison()
    for pair in zip(source, decoded):
        comparison.add(*pair)
    quality = comparison.result(frames_missing=2)
    each = [naive_psnr(*pair) for pair in zip(source, decoded)]
    assert quality.psnr_db == pytest.approx(np.mean(each), abs=1e-9)
    assert (quality.psnr_worst_db, quality.worst_frame) == (pytest.approx(min(each), abs=1e-9), 4)
    assert quality.ssim == pytest.approx(np.mean([naive_ssim(*pair) for pair in zip(source, decoded)]), abs=2e-5)
    assert quality.flicker == pytest.approx(naive_flicker(source, decoded), rel=1e-12)
    assert (quality.frames, quality.frames_missing) == (6, 2)
    assert list(quality.to_dict()) == ["psnr_db", "psnr_worst_db", "worst_frame", "ssim", "flicker", "frames", "frames_missing"]


def test_identical_videos_and_the_first_of_equal_worst_frames() -> None:
    comparison = Comparison()
    for seed in range(3):
        frame = picture(20, 20, seed)
        comparison.add(frame, frame.copy())
    quality = comparison.result()
    assert (quality.psnr_db, quality.psnr_worst_db, quality.worst_frame) == (PSNR_CAP_DB, PSNR_CAP_DB, 0)
    assert (quality.ssim, quality.flicker) == (1.0, 0.0)


def test_one_frame_has_no_flicker() -> None:
    comparison = Comparison()
    comparison.add(picture(16, 16), picture(16, 16, seed=9))
    assert comparison.result().flicker == 0.0
    assert comparison.result().frames == 1


def test_flicker_sees_change_of_the_error_and_not_the_error() -> None:
    grey = np.full((12, 12, 3), 100, np.uint8)
    steady, shaky = Comparison(), Comparison()
    for i in range(5):
        steady.add(grey, grey + np.uint8(9))
        shaky.add(grey, grey + np.uint8(9 if i % 2 else 3))
    assert steady.result().flicker == 0.0
    assert steady.result().psnr_db == pytest.approx(20 * math.log10(255 / 9))
    assert shaky.result().flicker == pytest.approx(6.0)


def test_the_largest_errors_sum_exactly() -> None:
    black, white = np.zeros((90, 77, 3), np.uint8), np.full((90, 77, 3), 255, np.uint8)
    comparison = Comparison(with_ssim=False)
    comparison.add(black, white)
    comparison.add(white, black)
    assert comparison.result().flicker == 510.0
    assert comparison.result().ssim is None


def test_a_result_in_between_and_inputs_left_alone() -> None:
    source, decoded = picture(24, 24), spoiled(picture(24, 24), 9)
    kept = source.copy(), decoded.copy()
    source.flags.writeable = decoded.flags.writeable = False
    comparison = Comparison()
    comparison.add(source, decoded)
    first = comparison.result()
    comparison.add(source, source)
    comparison.add(source[:, ::-1], decoded[:, ::-1])
    assert first.frames == 1 and comparison.result().frames == 3
    assert comparison.result().flicker > 0
    assert np.array_equal(source, kept[0]) and np.array_equal(decoded, kept[1])


def deepened(frame: np.ndarray) -> np.ndarray:
    return frame.astype(np.uint16) * 257


@pytest.mark.parametrize("size", [(37, 53), (9, 12)])
def test_16_bits_equal_the_naive_reference(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(4)
    source = [deepened(picture(*size, seed)) for seed in range(4)]
    decoded = [np.clip(frame + rng.normal(0, 700, frame.shape), 0, 65535).astype(np.uint16) for frame in source]
    comparison = Comparison()
    for pair in zip(source, decoded):
        comparison.add(*pair)
    quality, levels = comparison.result(), [[frame / 257 for frame in frames] for frames in (source, decoded)]
    each = [naive_psnr(*pair) for pair in zip(*levels)]
    assert (quality.psnr_db, quality.psnr_worst_db) == pytest.approx((np.mean(each), min(each)), abs=1e-9)
    assert quality.ssim == pytest.approx(np.mean([naive_ssim(*pair) for pair in zip(*levels)]), abs=2e-5)
    assert quality.flicker == pytest.approx(naive_flicker(*levels), rel=1e-12)
    assert frame_psnr(source[0], decoded[0]) == pytest.approx(each[0], abs=1e-9)


def test_unlike_depths_are_compared_at_16_bits() -> None:
    source = picture(24, 31)
    assert frame_psnr(source, deepened(source)) == PSNR_CAP_DB and frame_ssim(deepened(source), source) == 1.0
    off_by_one = deepened(source)
    off_by_one[3, 4, 1] ^= 1
    by_hand = min(100.0, 10 * math.log10(65535**2 * source.size))
    assert frame_psnr(source, off_by_one) == frame_psnr(off_by_one, source) == by_hand == PSNR_CAP_DB
    assert frame_psnr(source, deepened(source) ^ np.uint16(1)) == pytest.approx(20 * math.log10(65535))
    mixed, alike = Comparison(), Comparison()
    for seed in range(3):
        frame, other = picture(24, 31, seed), spoiled(picture(24, 31, seed), 5, seed)
        mixed.add(frame, deepened(other))
        alike.add(frame, other)
    for name, value in alike.result().to_dict().items():
        assert getattr(mixed.result(), name) == pytest.approx(value, rel=1e-6), name


def test_the_largest_errors_of_16_bits_sum_exactly() -> None:
    """More of them than are summed at once, and one that would be lost in a sum of rounded numbers."""
    black, white = np.zeros((431, 411, 3), np.uint16), np.full((431, 411, 3), 65535, np.uint16)
    nearly = white.copy()
    nearly[-1, -1, -1] -= 1
    comparison = Comparison(with_ssim=False)
    comparison.add(black, white)
    comparison.add(nearly, black)
    squares = 131070**2 * (black.size - 1) + 131069**2
    assert comparison.result().flicker == math.sqrt(squares / black.size) / 257
    assert black.size > 2**19 and frame_psnr(black, white) == 0


def test_wrong_input_is_refused_in_a_sentence() -> None:
    frame = picture(16, 16)
    comparison = Comparison()
    with pytest.raises(QualityError, match="No frame was compared and 3 are missing"):
        comparison.result(frames_missing=3)
    with pytest.raises(UsageError, match="16x16 and the decoded frame 20x16"):
        comparison.add(frame, picture(16, 20))
    with pytest.raises(UsageError, match="float32"):
        comparison.add(frame.astype(np.float32), frame)
    with pytest.raises(UsageError, match=r"\[16, 16\]"):
        comparison.add(frame[..., 0], frame[..., 0])
    comparison.add(frame, frame)
    with pytest.raises(UsageError, match="Frame 1 has another depth"):
        comparison.add(deepened(frame), frame)
    with pytest.raises(UsageError, match="Frame 1 is 20x16, but the frames before it are 16x16"):
        comparison.add(picture(16, 20), picture(16, 20))
    assert comparison.result().frames == 1


def ffmpeg_values(name: str, source: av.VideoFrame, decoded: av.VideoFrame) -> dict[str, str]:
    """What FFmpeg's two-input filter `name` writes into the metadata of one pair of frames."""
    graph = av.filter.Graph()
    node, sink = graph.add(name), graph.add("buffersink")
    for i, frame in enumerate((decoded, source)):
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        buffer = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
        buffer.link_to(node, 0, i)
    node.link_to(sink)
    graph.configure()
    for i, frame in enumerate((decoded, source)):
        graph.push(frame, at=i)
    return dict(graph.pull().metadata)


@pytest.mark.parametrize("amount", [1, 12])
def test_psnr_equals_ffmpeg(amount: float) -> None:
    source = picture(96, 128)
    decoded = spoiled(source, amount)
    # Planar, because the filter works on planes; the conversion only reorders bytes.
    frames = [av.VideoFrame.from_ndarray(f, "rgb24").reformat(format="gbrp") for f in (source, decoded)]
    found = ffmpeg_values("psnr", *frames)
    assert frame_psnr(source, decoded) == pytest.approx(float(found["lavfi.psnr.psnr_avg"]), abs=0.01)


def test_ssim_is_near_ffmpeg() -> None:
    # FFmpeg's filter has 8 x 8 boxes of equal weight instead of the Gaussian, so it agrees only roughly.
    source = picture(160, 192)
    values = []
    for amount in (2, 6, 15, 40):
        decoded = spoiled(source, amount)
        grey = [np.rint(f @ np.array([0.299, 0.587, 0.114])).astype(np.uint8) for f in (source, decoded)]
        found = ffmpeg_values("ssim", *(av.VideoFrame.from_ndarray(plane, "gray") for plane in grey))
        values.append((frame_ssim(source, decoded), float(found["lavfi.ssim.All"])))
        assert values[-1][0] == pytest.approx(values[-1][1], abs=0.03)
    assert values == sorted(values, reverse=True) and values[0][0] - values[-1][0] > 0.3


@pytest.mark.parametrize("with_ssim", [True, False])
def test_a_comparison_goes_on_from_its_sums_to_the_same_figures(with_ssim: bool) -> None:
    source = [picture(24, 32, seed) for seed in range(6)]
    decoded = [spoiled(frame, 3 + 7 * (i == 2), seed=i) for i, frame in enumerate(source)]
    whole = Comparison(with_ssim)
    for pair in zip(source, decoded):
        whole.add(*pair)
    for stop in range(1, 7):
        begun = Comparison(with_ssim)
        for i in range(stop):
            begun.add(source[i], decoded[i])
        went_on = Comparison(with_ssim, json.loads(json.dumps(begun.sums)))
        assert went_on.result() == begun.result() and went_on.result().frames == stop
        for i in range(stop - 1, 6):
            went_on.add(source[i], decoded[i])
        assert went_on.result(2) == whole.result(2) and went_on.sums == whole.sums
