"""Video files to latent files: what is stored and recorded, the check, and nothing left behind on failure."""

import json
from dataclasses import asdict

import av
import encoded_clip
import numpy as np
import pytest
import torch
from clips import psnr, sound_packets, write_video
from encoded_clip import PICTURES, PTS, TICK, TILING, decoded, frames_of
from tiny_model import TINY

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.codec import encode_tensor
from cvvae_cli.config import Tiling
from cvvae_cli.decoding import decode_file
from cvvae_cli.encoding import EncodeOptions, encode_file
from cvvae_cli.errors import OutputError, QualityError, UsageError, VideoError
from cvvae_cli.latent_file import LatentReader
from cvvae_cli.memory_model import fitting_tiling

folder, model = encoded_clip.folder, encoded_clip.model


def test_encoding_twice_gives_the_same_bytes_without_a_path_in_them(folder, model, tmp_path):
    report = encode_file(folder / "clip.mp4", tmp_path / "again.latent", model=model, tiling=TILING)
    data = (tmp_path / "again.latent").read_bytes()
    assert data == (folder / "clip.latent").read_bytes()
    assert str(folder).encode() not in data and b"clip.mp4" not in data
    assert (report.frames, report.width, report.height) == (24, 61, 45)
    assert report.latent_bytes == 7 * 4 * 6 * 8 * 2 and report.bits_per_pixel == 8 * report.latent_bytes / (24 * 61 * 45)
    assert set(report.stages) == {"read", "wait for frames", "to device", "encode", "blend", "write"} and min(report.stages.values()) > 0
    assert sum(seconds for stage, seconds in report.stages.items() if stage != "read") <= report.seconds


def test_the_tiling_that_fits_is_chosen_and_recorded(folder, model, tmp_path):
    report = encode_file(folder / "clip.mp4", tmp_path / "x", model=model)
    assert report.tiling == fitting_tiling(model, 45, 61)
    chosen = Tiling(tile=96, overlap=40, chunk_overlap=8, chunk=13)
    assert encode_file(folder / "clip.mp4", tmp_path / "y", model=model, tiling=chosen).tiling == chosen
    for name, tiling in (("x", report.tiling), ("y", chosen)):
        with LatentReader(tmp_path / name) as reader:
            assert json.loads(reader.metadata["encoding"])["tiling"] == asdict(tiling)
        assert decode_file(tmp_path / name, None, model=model).tiling == tiling


class Small(Autoencoder):
    """A model on a device that holds windows of 9 x 9 cells."""

    def encode(self, x):
        if x.shape[3] * x.shape[4] > 72 * 72:
            raise torch.OutOfMemoryError("out of memory")
        return super().encode(x)


def test_tiles_that_memory_ran_out_on_are_not_recorded(folder, model, tmp_path):
    small = Small(TINY).eval()
    small.load_state_dict(model.state_dict())
    options = EncodeOptions(size=(200, 144))
    report = encode_file(folder / "clip.mp4", tmp_path / "x", model=small, tiling=Tiling(144, 36), options=options)
    assert report.tiling == Tiling(72, 18) and len(report.notes) == 1 and "72 px" in report.notes[0]
    encode_file(folder / "clip.mp4", tmp_path / "y", model=model, tiling=Tiling(72, 18), options=options)
    with LatentReader(tmp_path / "x") as x, LatentReader(tmp_path / "y") as y:
        assert np.array_equal(x.read(0, 7), y.read(0, 7))
        assert json.loads(x.metadata["encoding"])["tiling"] == asdict(Tiling(72, 18))


@pytest.mark.parametrize(
    ("options", "first", "last"),
    [
        ({"start": 0.5}, 7, 23),
        ({"start": 0.5, "max_frames": 6}, 7, 12),
        ({"duration": 0.5}, 0, 6),
        ({"start": 0.33, "duration": 0.36}, 5, 8),
        ({"max_frames": 40}, 0, 23),
    ],
)
def test_a_part_is_encoded_with_its_times_and_its_sound(folder, model, tmp_path, options, first, last):
    report = encode_file(folder / "clip.mp4", tmp_path / "part.latent", model=model, options=EncodeOptions(**options))
    decode_file(tmp_path / "part.latent", tmp_path / "part.mp4", model=model)
    frames, times = frames_of(tmp_path / "part.mp4")
    origin = PTS[first] * TICK if options.get("start") else 0
    assert times == [pts * TICK - origin for pts in PTS[first : last + 1]]
    end = None if last == 23 else PTS[last + 1] * TICK
    sound = [(time - origin, data) for time, data in sound_packets(folder / "clip.mp4")]
    heard = [(time, data) for time, data in sound if (not origin or time >= 0) and (end is None or time < end - origin)]
    assert len(heard) > 10 and [data for _, data in sound_packets(tmp_path / "part.mp4")] == [data for _, data in heard]
    assert all(abs(a - b) < TICK * 2 for (a, _), (b, _) in zip(sound_packets(tmp_path / "part.mp4"), heard))
    alone = encode_tensor(model, torch.from_numpy(np.stack(PICTURES[first : last + 1])).permute(3, 0, 1, 2)[None], report.tiling)
    with LatentReader(tmp_path / "part.latent") as reader:
        assert np.array_equal(reader.read(0, reader.shape[0]), alone[0, :4].half().float().transpose(0, 1).numpy())


def test_another_size_is_encoded_and_the_sources_recorded(folder, model, tmp_path):
    report = encode_file(folder / "clip.mp4", tmp_path / "small.latent", model=model, options=EncodeOptions(size=(34, 22)))
    assert (report.width, report.height) == (34, 22)
    assert decoded(tmp_path / "small.latent", model).shape == (24, 22, 34, 3)
    with LatentReader(tmp_path / "small.latent") as reader:
        video = json.loads(reader.metadata["video"])
    assert (video["source"]["width"], video["source"]["height"], video["width"], video["height"]) == (61, 45, 34, 22)


def test_samples_depend_on_the_seed_alone(folder, model, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        encode_file(folder / "clip.mp4", tmp_path / name, model=model, options=EncodeOptions(seed=seed))
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b and a != c
    assert not np.array_equal(decoded(tmp_path / "a", model), decoded(folder / "clip.latent", model))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_latents_are_stored_as_asked(folder, model, tmp_path, dtype):
    report = encode_file(folder / "clip.mp4", tmp_path / "x", model=model, options=EncodeOptions(latent_dtype=dtype, check=True))
    with LatentReader(tmp_path / "x") as reader:
        assert reader.dtype == dtype and reader.payload_bytes == report.latent_bytes
        assert json.loads(reader.metadata["quality"]) == report.quality.to_dict()
    each = [psnr(a, b) for a, b in zip(PICTURES, decoded(tmp_path / "x", model))]
    assert report.quality.psnr_db == pytest.approx(np.mean(each), abs=1e-9)


def test_the_check_compares_every_frame_with_what_a_decode_will_give(folder, model, tmp_path):
    plain, checked = tmp_path / "plain.latent", tmp_path / "checked.latent"
    tiling = Tiling(tile=64, overlap=16, chunk_overlap=8)
    encode_file(folder / "clip.mp4", plain, model=model, tiling=tiling)
    quality = encode_file(folder / "clip.mp4", checked, model=model, tiling=tiling, options=EncodeOptions(check=True)).quality
    frames = decoded(checked, model)
    assert np.array_equal(frames, decoded(plain, model))
    each = [psnr(a, b) for a, b in zip(PICTURES, frames)]
    assert quality.psnr_db == pytest.approx(np.mean(each), abs=1e-9)
    assert quality.psnr_worst_db == pytest.approx(min(each), abs=1e-9) and quality.worst_frame == int(np.argmin(each))
    assert (quality.frames, quality.frames_missing) == (24, 0)  # the latents hold 25


def test_a_check_that_fails_leaves_nothing(folder, model, tmp_path):
    with pytest.raises(QualityError, match="90 dB"):
        encode_file(folder / "clip.mp4", tmp_path / "x", model=model, options=EncodeOptions(check=True, min_psnr_db=90))
    with pytest.raises(UsageError, match="--check"):
        encode_file(folder / "clip.mp4", tmp_path / "x", model=model, options=EncodeOptions(min_psnr_db=9))
    assert list(tmp_path.iterdir()) == []


def test_the_input_is_never_replaced_by_its_own_latents(folder, model, tmp_path):
    source = (folder / "clip.mp4").read_bytes()
    (tmp_path / "link.mp4").symlink_to(folder / "clip.mp4")
    with pytest.raises(OutputError, match="input"):
        encode_file(folder / "clip.mp4", tmp_path / "link.mp4", model=model, options=EncodeOptions(overwrite=True))
    assert (folder / "clip.mp4").read_bytes() == source


@pytest.mark.parametrize(
    ("raised", "left"), [(KeyboardInterrupt(), {".x.latent.journal", ".x.latent.part"}), (VideoError("gone"), set())]
)
def test_whatever_stops_an_encode_nothing_has_its_name(folder, model, tmp_path, raised, left):
    """What came from outside leaves hidden files that the same call goes on with (test_resume.py)."""

    def stop(done, total):
        raise raised

    with pytest.raises((KeyboardInterrupt, VideoError)) as failure:
        encode_file(folder / "clip.mp4", tmp_path / "x.latent", model=model, progress=stop)
    assert {path.name for path in tmp_path.iterdir()} == left
    assert bool(left) == ("What is done is kept; the same command goes on from there." in getattr(failure.value, "__notes__", ()))


def test_progress_counts_the_frames_whose_latents_are_written(folder, model, tmp_path):
    seen = []
    encode_file(folder / "clip.mp4", tmp_path / "x", model=model, tiling=TILING, progress=lambda *call: seen.append(call))
    assert seen == [(13, 24), (21, 24), (24, 24)]  # each chunk's last latent waits for the next chunk to fade in
    options = EncodeOptions(max_frames=9, overwrite=True)
    encode_file(folder / "clip.mp4", tmp_path / "x", model=model, options=options, progress=lambda *call: seen.append(call))
    assert seen[-1] == (9, 9)


def test_a_clip_that_breaks_off_is_read_as_far_as_it_goes_with_a_word(folder, model, tmp_path):
    write_video(tmp_path / "whole.mov", PICTURES)
    faststart = {"movflags": "faststart"}
    with av.open(str(tmp_path / "whole.mov")) as whole, av.open(str(tmp_path / "front.mp4"), "w", options=faststart) as front:
        stream = front.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                front.mux(packet)
    data = (tmp_path / "front.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    report = encode_file(tmp_path / "cut.mp4", tmp_path / "cut.latent", model=model)
    assert 0 < report.frames < 24 and any(f"counts 24 frames, of which {report.frames} " in note for note in report.notes)
    assert len(decoded(tmp_path / "cut.latent", model)) == report.frames
