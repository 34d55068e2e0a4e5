"""Video files to latent files and back: nothing lost, parts equal to wholes, nothing left behind on failure."""

import json
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from clips import moving_pictures, psnr, sound_packets, write_video
from tiny_model import save_tiny_model

from cvvae_cli.checkpoint import load_model
from cvvae_cli.codec import decode_tensor, encode_tensor, to_bytes
from cvvae_cli.config import Tiling
from cvvae_cli.decoding import DecodeOptions, decode_file
from cvvae_cli.encoding import EncodeOptions, encode_file
from cvvae_cli.errors import LatentFileError, OutputError, QualityError, UsageError, VideoError
from cvvae_cli.latent_file import LatentReader

TICK = Fraction(1, 12800)
PICTURES = moving_pictures(24, 61, 45)
# Variable rate: frames last 1, 2 or 3 twenty-fifths of a second; 1.84 s in all, with longer sound.
PTS = [512 * sum(1 + i % 3 for i in range(n)) for n in range(24)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoding")
    write_video(folder / "clip.mp4", PICTURES, pts=PTS, sound_seconds=2.5)
    encode_file(folder / "clip.mp4", folder / "clip.latent", model=tiny(folder))
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return tiny(folder)


def tiny(folder):
    path = folder / "tiny.safetensors"
    return load_model(str(path if path.exists() else save_tiny_model(path)))


def frames_of(path):
    """Pictures and times in seconds, by PyAV alone."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return np.stack([frame.to_ndarray(format="rgb24") for frame in frames]), [frame.pts * frame.time_base for frame in frames]


def decoded(latents, model, **options):
    """All frames that a decode gives, before any codec."""
    frames = []
    options = DecodeOptions(**options)
    report = decode_file(latents, None, model=model, options=options, observe=lambda frame: frames.append(frame.copy()))
    assert report.frames == len(frames)
    return np.stack(frames)


def test_frames_times_size_and_sound_come_back(folder, model, tmp_path):
    report = decode_file(folder / "clip.latent", tmp_path / "back.mkv", model=model, options=DecodeOptions(codec="ffv1"))
    assert (report.frames, report.width, report.height, report.notes) == (24, 61, 45, ())
    frames, _ = frames_of(tmp_path / "back.mkv")
    assert np.array_equal(frames, decoded(folder / "clip.latent", model))
    decode_file(folder / "clip.latent", tmp_path / "back.mp4", model=model)
    frames, times = frames_of(tmp_path / "back.mp4")
    assert frames.shape == (24, 45, 61, 3) and times == [pts * TICK for pts in PTS]
    assert sound_packets(tmp_path / "back.mp4") == sound_packets(folder / "clip.mp4")


def test_the_frames_are_those_of_the_tensor_functions(folder, model):
    x = torch.from_numpy(np.stack(PICTURES)).permute(3, 0, 1, 2)[None]
    z = encode_tensor(model, x)[:, :4].half().float()
    with LatentReader(folder / "clip.latent") as reader:
        assert np.array_equal(reader.read(0, 7), z[0].transpose(0, 1).numpy())
    want = to_bytes(decode_tensor(model, z))[0].permute(1, 2, 3, 0).numpy()[:24, :45, :61]
    assert np.array_equal(decoded(folder / "clip.latent", model), want)


def test_encoding_twice_gives_the_same_bytes_without_a_path_in_them(folder, model, tmp_path):
    report = encode_file(folder / "clip.mp4", tmp_path / "again.latent", model=model)
    data = (tmp_path / "again.latent").read_bytes()
    assert data == (folder / "clip.latent").read_bytes()
    assert str(folder).encode() not in data and b"clip.mp4" not in data
    assert (report.frames, report.width, report.height) == (24, 61, 45)
    assert report.latent_bytes == 7 * 4 * 6 * 8 * 2 and report.bits_per_pixel == 8 * report.latent_bytes / (24 * 61 * 45)


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
    encode_file(folder / "clip.mp4", tmp_path / "part.latent", model=model, options=EncodeOptions(**options))
    decode_file(tmp_path / "part.latent", tmp_path / "part.mp4", model=model)
    frames, times = frames_of(tmp_path / "part.mp4")
    origin = PTS[first] * TICK if options.get("start") else 0
    assert times == [pts * TICK - origin for pts in PTS[first : last + 1]]
    end = None if last == 23 else PTS[last + 1] * TICK
    sound = [(time - origin, data) for time, data in sound_packets(folder / "clip.mp4")]
    heard = [(time, data) for time, data in sound if (not origin or time >= 0) and (end is None or time < end - origin)]
    assert len(heard) > 10 and [data for _, data in sound_packets(tmp_path / "part.mp4")] == [data for _, data in heard]
    assert all(abs(a - b) < TICK * 2 for (a, _), (b, _) in zip(sound_packets(tmp_path / "part.mp4"), heard))
    alone = encode_tensor(model, torch.from_numpy(np.stack(PICTURES[first : last + 1])).permute(3, 0, 1, 2)[None])
    with LatentReader(tmp_path / "part.latent") as reader:
        assert np.array_equal(reader.read(0, reader.shape[0]), alone[0, :4].half().float().transpose(0, 1).numpy())


@pytest.mark.parametrize(("start", "count", "first"), [(0.0, 5, 0), (0.5, 6, 7), (0.84, 1, 11), (1.2, None, 15)])
def test_decoding_a_part_gives_the_same_frames_and_the_sound_beside_them(folder, model, tmp_path, start, count, first):
    whole = decoded(folder / "clip.latent", model)
    last = 23 if count is None else first + count - 1
    options = DecodeOptions(start=start, max_frames=count)
    part = decoded(folder / "clip.latent", model, start=start, max_frames=count)
    assert np.array_equal(part, whole[first : last + 1])
    decode_file(folder / "clip.latent", tmp_path / "part.mp4", model=model, options=options)
    frames, times = frames_of(tmp_path / "part.mp4")
    origin = PTS[first] * TICK
    assert times == [pts * TICK - origin for pts in PTS[first : last + 1]]
    end = PTS[last + 1] * TICK if last < 23 else 100
    heard = [data for time, data in sound_packets(folder / "clip.mp4") if (not origin or time >= origin) and time < end]
    assert heard and [data for _, data in sound_packets(tmp_path / "part.mp4")] == heard


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


def test_a_constant_rate_replaces_times_and_leaves_the_sound_out(folder, model, tmp_path):
    options = DecodeOptions(frame_rate=Fraction(10), start=1.0, max_frames=4)
    report = decode_file(folder / "clip.latent", tmp_path / "x.mp4", model=model, options=options)
    frames, times = frames_of(tmp_path / "x.mp4")
    assert times == [Fraction(i, 10) for i in range(4)] and sound_packets(tmp_path / "x.mp4") == []
    assert len(report.notes) == 1 and "--fps" in report.notes[0]
    part = decoded(folder / "clip.latent", model, start=1.0, max_frames=4, frame_rate=Fraction(10))
    assert np.array_equal(part, decoded(folder / "clip.latent", model)[10:14])


@pytest.mark.parametrize(("offset", "back"), [(3600, 0), (0.2, 0.2)])
def test_a_recorders_clock_is_dropped_and_a_short_delay_kept(folder, model, tmp_path, offset, back):
    begin = int(offset / TICK)
    write_video(tmp_path / "late.mkv", PICTURES[:6], pts=[begin + 512 * i for i in range(6)], codec="ffv1")
    encode_file(tmp_path / "late.mkv", tmp_path / "late.latent", model=model)
    decode_file(tmp_path / "late.latent", tmp_path / "back.mkv", model=model)
    assert [float(time) for time in frames_of(tmp_path / "back.mkv")[1]] == pytest.approx([back + i / 25 for i in range(6)])
    frames = decoded(tmp_path / "late.latent", model, start=0.12 + back)
    assert len(frames) == 3


def test_an_input_is_never_replaced_by_its_own_output(folder, model, tmp_path):
    source, latents = (folder / "clip.mp4").read_bytes(), (folder / "clip.latent").read_bytes()
    (tmp_path / "link.mp4").symlink_to(folder / "clip.mp4")
    (tmp_path / "link2.mp4").hardlink_to(folder / "clip.latent")
    with pytest.raises(OutputError, match="input"):
        encode_file(folder / "clip.mp4", tmp_path / "link.mp4", model=model, options=EncodeOptions(overwrite=True))
    with pytest.raises(OutputError, match="input"):
        decode_file(folder / "clip.latent", tmp_path / "link2.mp4", model=model, options=DecodeOptions(overwrite=True))
    assert (folder / "clip.mp4").read_bytes() == source and (folder / "clip.latent").read_bytes() == latents


def test_a_damaged_chunk_leaves_no_video_and_an_old_one_alone(folder, model, tmp_path):
    data = bytearray((folder / "clip.latent").read_bytes())
    data[16 * 1024 + 2000] ^= 1
    (tmp_path / "x.latent").write_bytes(data)
    (tmp_path / "old.mp4").write_bytes(b"old")
    for name in ("new.mp4", "old.mp4"):
        with pytest.raises(LatentFileError, match="chunk 1"):
            decode_file(tmp_path / "x.latent", tmp_path / name, model=model, options=DecodeOptions(overwrite=True))
    assert {path.name for path in tmp_path.iterdir()} == {"x.latent", "old.mp4"} and (tmp_path / "old.mp4").read_bytes() == b"old"


@pytest.mark.parametrize("raised", [KeyboardInterrupt, VideoError("gone")])
def test_whatever_stops_a_run_nothing_is_left_behind(folder, model, tmp_path, raised):
    def stop(done, total):
        raise raised

    with pytest.raises((KeyboardInterrupt, VideoError)):
        encode_file(folder / "clip.mp4", tmp_path / "x.latent", model=model, progress=stop)
    with pytest.raises((KeyboardInterrupt, VideoError)):
        decode_file(folder / "clip.latent", tmp_path / "x.mp4", model=model, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_frames_up_to_the_total(folder, model, tmp_path):
    encoded, shown = [], []
    encode_file(folder / "clip.mp4", tmp_path / "x", model=model, progress=lambda *call: encoded.append(call))
    assert encoded[-1] == (24, 24) and encoded == sorted(encoded) and len(encoded) > 1
    options = EncodeOptions(max_frames=9, overwrite=True)
    encode_file(folder / "clip.mp4", tmp_path / "x", model=model, options=options, progress=lambda *call: encoded.append(call))
    assert encoded[-1] == (9, 9)
    decode_file(tmp_path / "x", None, model=model, progress=lambda *call: shown.append(call))
    assert shown == [(i, 9) for i in range(1, 10)]


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


def test_a_picture_is_a_video_of_one_frame(model, tmp_path):
    write_video(tmp_path / "still.png", PICTURES[:1], codec="png")
    assert encode_file(tmp_path / "still.png", tmp_path / "still.latent", model=model).frames == 1
    decode_file(tmp_path / "still.latent", tmp_path / "back.png", model=model)
    assert np.array_equal(frames_of(tmp_path / "back.png")[0], decoded(tmp_path / "still.latent", model))
