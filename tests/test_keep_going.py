"""`decode --keep-going`: a damaged chunk costs its own frames, is told, and the rest of the video is what it was."""

import json
import struct

import encoded_clip
import numpy as np
import pytest
from clips import moving_pictures, sound_packets, write_video
from command_line import pictures
from encoded_clip import decoded, frames_of

from cvvae_cli.config import Tiling
from cvvae_cli.decoding import DecodeOptions, decode_file
from cvvae_cli.encoding import encode_file
from cvvae_cli.errors import LatentFileError
from cvvae_cli.latent_file import LatentReader
from cvvae_cli.latent_writer import LatentWriter

folder, model = encoded_clip.folder, encoded_clip.model
PAYLOAD = 16 * 1024
KEEP = DecodeOptions(keep_going=True)


@pytest.fixture(scope="module")
def long(folder, model):
    """65 frames in chunks of 9 frames, that is 17 latent frames, and their decode."""
    write_video(folder / "long.mp4", moving_pictures(65, 48, 48), sound_seconds=2.6)
    encode_file(folder / "long.mp4", folder / "long.latent", model=model, tiling=Tiling(chunk=9))
    return folder / "long.latent"


def spans(path):
    with LatentReader(path) as reader:
        return [reader.chunk_span(index) for index in range(reader.num_chunks)]


def damaged(path, target, *chunks, tensor=None):
    """A copy with a bit flipped in each of some chunks, or in a small tensor."""
    data = bytearray(path.read_bytes())
    with LatentReader(path) as reader:
        frame_bytes = reader.payload_bytes // reader.shape[0]
        for chunk in chunks:
            data[PAYLOAD + reader.chunk_span(chunk)[0] * frame_bytes + 1] ^= 1
    if tensor:
        size = struct.unpack("<Q", data[:8])[0]
        data[8 + size + json.loads(data[8 : 8 + size])[tensor]["data_offsets"][0] + 3] ^= 1
    target.write_bytes(data)
    return target


def decode(path, model, **options):
    frames = []
    options = DecodeOptions(keep_going=True, **options)
    report = decode_file(path, None, model=model, options=options, observe=lambda frame: frames.append(frame.copy()))
    return np.stack(frames), report


def test_a_sound_file_is_decoded_as_ever_and_nothing_is_said(long, model):
    frames, report = decode(long, model)
    assert np.array_equal(frames, decoded(long, model)) and (report.damage, report.replaced_frames, report.notes) == ((), (), ())


def test_frames_far_from_the_damage_are_untouched_and_the_others_come_of_interpolated_latents(long, model, tmp_path):
    start, stop = spans(long)[4]
    frames, report = decode(damaged(long, tmp_path / "x", 4), model)
    first, last = 4 * start - 3, 4 * stop - 4
    assert report.replaced_frames == ((first, last),)
    assert len(report.damage) == 1 and report.damage == report.notes
    assert f"frames {first} to {last}; up to 8 frames beside" in report.damage[0]
    whole = decoded(long, model)
    reach = 8  # a chunk of 9 frames
    assert np.array_equal(frames[: first - reach], whole[: first - reach])
    assert np.array_equal(frames[last + 1 + reach :], whole[last + 1 + reach :])
    with LatentReader(long) as reader:
        values, metadata = reader.read(0, 17), reader.metadata
        way = np.linspace(0, 1, stop - start + 2, dtype=np.float32)[1:-1, None, None, None]
        values[start:stop] = values[start - 1] * (1 - way) + values[stop] * way
        tensors = {name: reader.tensor(name) for name in ("pts", "durations")}
    with LatentWriter(tmp_path / "mended", 4, 6, 6, "float32") as writer:
        writer.append(values)
        writer.close(metadata, tensors)
    assert np.abs(frames.astype(int) - decoded(tmp_path / "mended", model)).max() <= 1


def test_a_part_tells_the_damage_that_it_meets_and_no_other(long, model, tmp_path):
    bad = damaged(long, tmp_path / "x", 4)
    start, stop = spans(long)[4]
    first, last = 4 * start - 3, 4 * stop - 4
    seconds = (last + 9) / 25
    frames, report = decode(bad, model, start=seconds)
    assert report.replaced_frames == () and np.array_equal(frames, decoded(long, model)[last + 9 :])
    frames, report = decode(bad, model, max_frames=first - 8)
    assert report.replaced_frames == () and np.array_equal(frames, decoded(long, model)[: first - 8])
    assert decode(bad, model, start=last / 25, max_frames=1)[1].replaced_frames == ((first, last),)


def test_damage_at_both_ends_and_in_every_second_chunk(long, model, tmp_path):
    count = len(spans(long))
    bad = range(0, count, 2)
    frames, report = decode(damaged(long, tmp_path / "x", *bad), model)
    starts = [(max(0, 4 * start - 3), 4 * stop - 4) for start, stop in spans(long)]
    assert len(frames) == 65 and report.replaced_frames == tuple(starts[::2]) and starts[-1][1] == 64
    with pytest.raises(LatentFileError, match="no sound chunk"):
        decode(damaged(long, tmp_path / "y", *range(count)), model)


def test_many_stretches_are_counted_in_the_note_and_listed_in_the_report(long, model, tmp_path):
    with LatentReader(long) as reader, LatentWriter(tmp_path / "single", 4, 6, 6) as writer:
        for latent in reader.read(0, 17):
            writer.append(latent[None])
        writer.close(reader.metadata, {name: reader.tensor(name) for name in ("pts", "durations")})
    report = decode(damaged(tmp_path / "single", tmp_path / "x", *range(0, 17, 2)), model)[1]
    assert report.replaced_frames == ((0, 0), *((4 * n - 3, 4 * n) for n in range(2, 17, 2)))
    assert ": frames 0, 5 to 8, 13 to 16, " in report.damage[0] and "53 to 56 and 1 more stretch; up to" in report.damage[0]


def test_damaged_sound_is_left_out_and_damaged_times_are_refused(long, model, tmp_path):
    silent = damaged(long, tmp_path / "x", tensor="sidecar")
    with pytest.raises(LatentFileError, match="'sidecar'"):
        decode_file(silent, tmp_path / "x.mp4", model=model)
    report = decode_file(silent, tmp_path / "x.mp4", model=model, options=KEEP)
    assert report.damage == (f"The sound and subtitles of {silent} are damaged and left out.",) and report.replaced_frames == ()
    assert sound_packets(tmp_path / "x.mp4") == [] and len(frames_of(tmp_path / "x.mp4")[0]) == 65
    for tensor in ("pts", "durations", "chunk_end", "chunk_xxh3"):
        with pytest.raises(LatentFileError, match=f"'{tensor}'"):
            decode_file(damaged(long, tmp_path / "y", tensor=tensor), tmp_path / "y.mp4", model=model, options=KEEP)
    assert not (tmp_path / "y.mp4").exists()


def test_the_command_writes_the_video_and_exits_with_4_all_the_same(long, folder, tmp_path, monkeypatch, capsys):
    from cvvae_cli.__main__ import main

    bad = damaged(long, tmp_path / "x.latent", 2, tensor="sidecar")
    words = ["decode", bad, tmp_path / "x.mp4", "--model", folder / "tiny.safetensors", "--device", "cpu", "--json"]
    for more, written in (([], False), (["--keep-going"], True)):
        monkeypatch.setattr("sys.argv", ["cvvae", *map(str, words + more)])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        assert stopped.value.code == 4 and (tmp_path / "x.mp4").exists() == written
    told, (start, stop) = json.loads(said.out), spans(long)[2]
    assert told["replaced_frames"] == [[4 * start - 3, 4 * stop - 4]] and len(told["notes"]) == 2
    assert said.err.splitlines()[-1].startswith(f"cvvae: {bad} is damaged; {tmp_path / 'x.mp4'} was written")
    assert pictures(tmp_path / "x.mp4").shape == (65, 48, 48, 3)
