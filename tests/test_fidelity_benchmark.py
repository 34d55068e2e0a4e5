"""Round trips cut and not cut: a network that sees nothing beside a pixel is not harmed, and others are as far as they look."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from clips import moving_pictures, write_video
from tiny_model import TINY, random_model

from cvvae_cli import fidelity_benchmark
from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.codec import decode_tensor, encode_tensor, to_bytes
from cvvae_cli.config import CVVAEConfig, Tiling
from cvvae_cli.errors import DeviceError, UsageError
from cvvae_cli.fidelity import cut_of, figures_of, ghosting
from cvvae_cli.fidelity_benchmark import RoundTrips, measure_fidelity, one_chunk_tiling, read_clip, shift_of, untiled_tiling
from cvvae_cli.metrics import Comparison

FRAMES, WIDTH, HEIGHT = 30, 84, 75
TILING = Tiling(tile=64, overlap=16, chunk=17, chunk_overlap=4)
GROUPNORM = CVVAEConfig(channels=(8, 8, 8, 8), blocks_per_level=1, norm_groups=4)


@pytest.fixture(scope="module")
def source() -> np.ndarray:
    return np.stack(moving_pictures(FRAMES, WIDTH, HEIGHT))


@pytest.fixture(scope="module")
def model() -> Autoencoder:
    return random_model(encoder=0.04).eval()


def decoded(model: Autoencoder, source: np.ndarray, tiling: Tiling) -> np.ndarray:
    """The round trip by the functions for whole tensors."""
    moments = encode_tensor(model, torch.from_numpy(source).permute(3, 0, 1, 2)[None], tiling)
    video = to_bytes(decode_tensor(model, moments[:, : model.latent_channels], tiling))
    return video[0].permute(1, 2, 3, 0).numpy()[: len(source), : source.shape[1], : source.shape[2]]


def test_a_report_holds_what_each_run_gave(model: Autoencoder, source: np.ndarray) -> None:
    said: list[tuple[int, int | None]] = []
    report = measure_fidelity(RoundTrips(model, source, lambda *done: said.append(done)), TILING)
    whole, long = Tiling(tile=128, overlap=0), Tiling(tile=64, overlap=16, chunk=33, chunk_overlap=0)
    tiled, untiled, one = (decoded(model, source, tiling) for tiling in (TILING, whole, long))
    cut = cut_of(TILING, FRAMES, HEIGHT, WIDTH)
    assert (report.frames, report.width, report.height, report.tiling) == (FRAMES, WIDTH, HEIGHT, TILING)
    assert (report.tiles, report.chunks, report.shift) == ((2, 2), 3, None)
    for run, frames in ((report.tiled, tiled), (report.untiled, untiled), (report.one_chunk, one)):
        assert run.figures == figures_of(source, frames, cut)
        assert run.seconds > 0 and run.cpu_seconds > 0
    assert report.psnr_loss_db == report.untiled.figures.psnr_db - report.tiled.figures.psnr_db
    comparison = Comparison(with_ssim=False)
    for a, b in zip(untiled, tiled):
        comparison.add(a, b)
    assert report.psnr_tiled_to_untiled_db == comparison.result().psnr_db < 100
    assert report.ghosting == ghosting(source, tiled, one, cut.crossfaded)
    assert said == [(i + 1, FRAMES) for _ in range(3) for i in range(FRAMES)]
    json.dumps(report.to_dict(), allow_nan=False)


def test_runs_are_made_once(model: Autoencoder, source: np.ndarray) -> None:
    trips = RoundTrips(model, source[:5])
    first = trips.run(TILING)
    assert trips.run(dataclasses.replace(TILING)) is first and trips.run(TILING, 1) is not first
    assert np.array_equal(trips.source, source[:5]) and len(trips.run(TILING, 1).frames) == 4


def test_a_clip_that_is_not_cut_is_not_harmed(model: Autoencoder, source: np.ndarray) -> None:
    report = measure_fidelity(RoundTrips(model, source[:9, :64, :64]), TILING)
    assert (report.tiles, report.chunks, report.psnr_loss_db, report.psnr_tiled_to_untiled_db) == ((1, 1), 1, 0, 100)
    assert report.tiled.figures == report.untiled.figures and report.tiled.figures.seam_ratio is None
    assert report.one_chunk is report.ghosting is report.shift is None


def test_one_frame(model: Autoencoder, source: np.ndarray) -> None:
    report = measure_fidelity(RoundTrips(model, source[:1]), TILING)
    assert (report.frames, report.chunks, report.tiled.figures.flicker) == (1, 1, 0) and report.one_chunk is None


def test_a_model_of_short_windows_has_its_chunks_shifted(source: np.ndarray) -> None:
    model = random_model(GROUPNORM).eval()
    small = source[:, :32, :40]
    tiling = Tiling(tile=64, overlap=16, chunk=13, chunk_overlap=4)
    report = measure_fidelity(RoundTrips(model, small), tiling)
    assert (report.one_chunk, report.shift, report.chunks) == (None, 4, 4)
    tiled, shifted = decoded(model, small, tiling), decoded(model, small[4:], tiling)
    inside = np.concatenate([small[:4], shifted])
    assert report.ghosting == ghosting(small, tiled, inside, cut_of(tiling, FRAMES, 32, 40).crossfaded)


def test_tiles_of_a_group_norm_show(source: np.ndarray) -> None:
    trips = RoundTrips(random_model(GROUPNORM).eval(), source[:5])
    report = measure_fidelity(trips, Tiling(tile=64, overlap=0, chunk=5, chunk_overlap=0))
    assert report.psnr_tiled_to_untiled_db < 60
    assert report.tiled.figures.seam_ratio > report.untiled.figures.seam_ratio


@pytest.mark.parametrize(
    ("chunk", "overlap", "shift"), [(17, 4, 4), (17, 0, None), (17, 8, None), (33, 4, 12), (33, 8, 12), (33, 12, None)]
)
def test_a_shift_keeps_crossfaded_frames_apart(chunk: int, overlap: int, shift: int | None) -> None:
    tiling = Tiling(chunk=chunk, chunk_overlap=overlap)
    assert shift_of(tiling) == shift
    if shift:
        here, there = (cut_of(tiling, 200 - first, 8, 8).crossfaded for first in (0, shift))
        assert here.any() and not (here[shift:] & there).any()


def test_references_of_a_tiling() -> None:
    assert untiled_tiling(Tiling(batch=4), 720, 1281) == Tiling(tile=1288, overlap=0)
    assert untiled_tiling(Tiling(), 16, 16) == Tiling(overlap=0)
    assert untiled_tiling(Tiling.official(), 600, 100) == Tiling(tile=600, overlap=0, chunk_overlap=0)
    assert one_chunk_tiling(Tiling(), 66) == Tiling(chunk=69, chunk_overlap=0)
    assert one_chunk_tiling(Tiling(), 1).chunk == 5


def test_clips_are_read_up_to_a_limit(tmp_path, source: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "clip.mp4", list(source[:6]))
    assert np.array_equal(read_clip(path, 65), source[:6]) and np.array_equal(read_clip(path, 2), source[:2])
    assert read_clip(path, 3, (40, 24)).shape == (3, 24, 40, 3)
    monkeypatch.setattr(fidelity_benchmark, "MOST_PIXELS", 4 * WIDTH * HEIGHT)
    assert len(read_clip(path, 4)) == 4 and len(read_clip(path, 65, (40, 24))) == 6
    with pytest.raises(UsageError, match="84x75 px each, .* pass --clip-frames 4 or a smaller --size"):
        read_clip(path, 65)
    monkeypatch.setattr(fidelity_benchmark, "MOST_PIXELS", 4)
    with pytest.raises(UsageError, match="; pass a smaller --size[.]"):
        read_clip(path, 65)


def test_a_window_beyond_memory_is_refused_before_it_runs() -> None:
    huge = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (5, 200_000, 200_000, 3), (0, 0, 0, 0))
    with pytest.raises(DeviceError, match="A window of 200000x200000 px and 5 frames takes about .* GiB"):
        RoundTrips(random_model(TINY), huge).run(Tiling(tile=200_000, chunk=5, chunk_overlap=0))
