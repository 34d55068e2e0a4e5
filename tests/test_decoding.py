"""Latent files back to video files: nothing lost, parts equal to wholes, nothing left behind on failure."""

from fractions import Fraction

import av
import encoded_clip
import numpy as np
import pytest
import torch
from clips import sound_packets, write_video
from encoded_clip import PICTURES, PTS, TICK, TILING, decoded, frames_of
from tiny_model import TINY

from cvvae_cli import memory_model
from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.codec import decode_tensor, encode_tensor, to_bytes
from cvvae_cli.config import Tiling
from cvvae_cli.decoding import DecodeOptions, decode_file
from cvvae_cli.encoding import EncodeOptions, encode_file
from cvvae_cli.errors import LatentFileError, OutputError, QualityError, VideoError
from cvvae_cli.latent_file import LatentReader
from cvvae_cli.latent_video import LatentVideo

folder, model = encoded_clip.folder, encoded_clip.model


def test_frames_times_size_and_sound_come_back(folder, model, tmp_path):
    report = decode_file(folder / "clip.latent", tmp_path / "back.mkv", model=model, options=DecodeOptions(codec="ffv1"))
    assert (report.frames, report.width, report.height, report.notes) == (24, 61, 45, ())
    frames, _ = frames_of(tmp_path / "back.mkv")
    assert np.array_equal(frames, decoded(folder / "clip.latent", model))
    decode_file(folder / "clip.latent", tmp_path / "back.mp4", model=model)
    frames, times = frames_of(tmp_path / "back.mp4")
    assert frames.shape == (24, 45, 61, 3) and times == [pts * TICK for pts in PTS]
    assert sound_packets(tmp_path / "back.mp4") == sound_packets(folder / "clip.mp4")


def test_a_cut_that_does_not_fit_is_made_smaller_and_said(folder, model, tmp_path, monkeypatch):
    encode_file(folder / "clip.mp4", tmp_path / "long.latent", model=model, tiling=Tiling(128, 32, 4, 33))
    monkeypatch.setattr(memory_model, "memory_budget", lambda device: 1)
    report = decode_file(tmp_path / "long.latent", tmp_path / "a.mkv", model=model)
    assert report.tiling == Tiling(64, 16, 4, 17)
    (note,) = report.notes
    assert "128 px and chunks of 33 frames" in note and "64 px and chunks of 17 frames were decoded" in note
    assert decode_file(tmp_path / "long.latent", tmp_path / "b.mkv", model=model, tiling=Tiling(64, 16, 4, 17)).notes == ()
    assert (tmp_path / "a.mkv").read_bytes() == (tmp_path / "b.mkv").read_bytes()


def test_the_frames_are_those_of_the_tensor_functions(folder, model):
    x = torch.from_numpy(np.stack(PICTURES)).permute(3, 0, 1, 2)[None]
    z = encode_tensor(model, x, TILING)[:, :4].half().float()
    with LatentReader(folder / "clip.latent") as reader:
        assert np.array_equal(reader.read(0, 7), z[0].transpose(0, 1).numpy())
    want = to_bytes(decode_tensor(model, z, TILING))[0].permute(1, 2, 3, 0).numpy()[:24, :45, :61]
    assert np.array_equal(decoded(folder / "clip.latent", model), want)


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


def test_the_stages_and_the_tiling_are_reported(folder, model, tmp_path):
    options, seen = DecodeOptions(max_frames=9), []
    report = decode_file(folder / "clip.latent", tmp_path / "x.mp4", model=model, options=options, observe=seen.append)
    assert report.tiling == TILING and len(seen) == 9
    assert set(report.stages) == {"read", "decode", "blend", "from device", "wait for writer", "write", "observe"}
    assert sum(seconds for stage, seconds in report.stages.items() if stage not in ("write", "observe")) <= report.seconds
    assert min(report.stages.values()) > 0 and not torch.is_inference_mode_enabled()


def test_sound_is_read_by_a_handle_of_its_own(folder, model, tmp_path):
    """One thread reads the sound while the other reads latents: in one open file each would move the other's place."""
    with LatentVideo.open(folder / "clip.latent", TINY) as opened:
        opened.sidecar = lambda: pytest.fail("the handle of the latents was asked for the sound")
        decode_file(opened, tmp_path / "back.mp4", model=model)
    assert sound_packets(tmp_path / "back.mp4") == sound_packets(folder / "clip.mp4")


class Small(Autoencoder):
    """A model on a device that holds windows of 9 x 9 cells."""

    def decode(self, z):
        if z.shape[3] * z.shape[4] > 9 * 9:
            raise torch.OutOfMemoryError("out of memory")
        return super().decode(z)


def test_a_decode_that_runs_out_of_memory_goes_on_with_smaller_tiles_and_says_so(folder, model, tmp_path):
    small = Small(TINY).eval()
    small.load_state_dict(model.state_dict())
    encode_file(
        folder / "clip.mp4", tmp_path / "x", model=model, tiling=Tiling(144, 36, batch=2), options=EncodeOptions(size=(200, 144))
    )
    frames = []
    report = decode_file(tmp_path / "x", None, model=small, observe=lambda frame: frames.append(frame.copy()))
    assert report.tiling == Tiling(72, 18) and any("72 px" in note for note in report.notes)
    frames_small = []
    decode_file(tmp_path / "x", None, model=model, tiling=Tiling(72, 18), observe=lambda frame: frames_small.append(frame.copy()))
    # Another batch or number of threads may order sums otherwise, which shows in rounding alone.
    assert np.abs(np.array(frames, int) - np.array(frames_small, int)).max() <= 1


def test_an_error_of_the_observer_is_the_callers(folder, model, tmp_path):
    def refuse(frame):
        raise QualityError("too dark")

    with pytest.raises(QualityError, match="too dark"):
        decode_file(folder / "clip.latent", tmp_path / "x.mp4", model=model, observe=refuse)
    assert list(tmp_path.iterdir()) == [] and not torch.is_inference_mode_enabled()


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


def test_a_damaged_chunk_leaves_no_video_and_an_old_one_alone(folder, model, tmp_path):
    data = bytearray((folder / "clip.latent").read_bytes())
    data[16 * 1024 + 2000] ^= 1
    (tmp_path / "x.latent").write_bytes(data)
    (tmp_path / "old.mp4").write_bytes(b"old")
    for name in ("new.mp4", "old.mp4"):
        with pytest.raises(LatentFileError, match="chunk 1"):
            decode_file(tmp_path / "x.latent", tmp_path / name, model=model, options=DecodeOptions(overwrite=True))
    assert {path.name for path in tmp_path.iterdir()} == {"x.latent", "old.mp4"} and (tmp_path / "old.mp4").read_bytes() == b"old"


def test_the_latents_are_never_replaced_by_their_own_video(folder, model, tmp_path):
    latents = (folder / "clip.latent").read_bytes()
    (tmp_path / "link.mp4").hardlink_to(folder / "clip.latent")
    with pytest.raises(OutputError, match="input"):
        decode_file(folder / "clip.latent", tmp_path / "link.mp4", model=model, options=DecodeOptions(overwrite=True))
    assert (folder / "clip.latent").read_bytes() == latents


@pytest.mark.parametrize("raised", [KeyboardInterrupt, VideoError("gone")])
def test_whatever_stops_a_decode_nothing_is_left_behind(folder, model, tmp_path, raised):
    def stop(done, total):
        raise raised

    with pytest.raises((KeyboardInterrupt, VideoError)):
        decode_file(folder / "clip.latent", tmp_path / "x.mp4", model=model, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_every_frame(folder, model):
    seen = []
    options = DecodeOptions(max_frames=9)
    decode_file(folder / "clip.latent", None, model=model, options=options, progress=lambda *call: seen.append(call))
    assert seen == [(i, 9) for i in range(1, 10)]


def test_a_picture_is_a_video_of_one_frame(model, tmp_path):
    write_video(tmp_path / "still.png", PICTURES[:1], codec="png")
    assert encode_file(tmp_path / "still.png", tmp_path / "still.latent", model=model).frames == 1
    decode_file(tmp_path / "still.latent", tmp_path / "back.png", model=model)
    assert np.array_equal(frames_of(tmp_path / "back.png")[0], decoded(tmp_path / "still.latent", model))


def test_titles_and_chapters_come_back(folder, model, tmp_path):
    source = tmp_path / "titled.mkv"
    with av.open(str(folder / "clip.mp4")) as original, av.open(str(source), "w") as copy:
        stream = copy.add_stream_from_template(original.streams.video[0])
        copy.metadata["title"] = "Waves"
        copy.set_chapters([
            {"id": i + 1, "start": start, "end": end, "time_base": Fraction(1, 1000), "metadata": {"title": name}}
            for i, (start, end, name) in enumerate([(0, 700, "first"), (700, 1840, "second")])
        ])  # fmt: skip
        for packet in original.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    encode_file(source, tmp_path / "a.latent", model=model, tiling=TILING)
    for name, options, chapters in (
        ("a.mp4", DecodeOptions(), [(0, 700, "first"), (700, 1840, "second")]),
        ("b.mkv", DecodeOptions(), [(0, 700, "first"), (700, 1840, "second")]),
        ("c.mkv", DecodeOptions(max_frames=4), [(0, 280, "first")]),
    ):
        decode_file(tmp_path / "a.latent", tmp_path / name, model=model, options=options)
        with av.open(str(tmp_path / name)) as back:
            found = [[round(c[key] * Fraction(c["time_base"]) * 1000) for key in ("start", "end")] for c in back.chapters()]
            assert back.metadata["title"] == "Waves"
            assert [(*times, c["metadata"]["title"]) for times, c in zip(found, back.chapters(), strict=True)] == chapters
