"""`cvvae encode`: what it answers, and that its samples can be had again."""

import io
import json
import os
import threading
from fractions import Fraction

import av
import command_line
import pytest
from command_line import QUALITY_KEYS

from cvvae_cli.container_tags import Chapter, ContainerTags
from cvvae_cli.latent_file import LatentReader

folder, latent, cvvae, answer = command_line.folder, command_line.latent, command_line.cvvae, command_line.answer


def test_encode_check_info_and_check_tell_the_same_quality(folder, latent, answer):
    encoded, told = json.loads((folder / "clip.json").read_text()), answer("info", "clip.latent")
    assert set(encoded["quality"]) >= QUALITY_KEYS and encoded["quality"]["frames"] == 20
    assert (encoded["frames"], encoded["width"], encoded["height"], encoded["model"]) == (20, 61, 45, "tiny.safetensors")
    assert told["quality"] == encoded["quality"] == answer("check", "clip.mp4", "clip.latent")
    assert told["shape"] == [6, 4, 6, 8] and told["latent_bytes"] == encoded["latent_bytes"] and told["sound"] is True
    assert told["bits_per_pixel"] == encoded["bits_per_pixel"] == 8 * encoded["latent_bytes"] / (61 * 45 * 20)
    assert told["model"]["name"] == "tiny.safetensors" and told["video"]["source"]["audio_codecs"] == ["aac"]
    assert str(folder.parent).encode() not in latent.read_bytes()


def test_samples_are_reproducible(folder, cvvae, tmp_path):
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        assert cvvae("encode", "clip.mp4", tmp_path / name, "--sample", "--seed", seed)[0] == 0
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_anchors_are_kept_and_used(answer, tmp_path):
    cut = ("--chunk", 9, "--chunk-overlap", 4)
    plain = answer("encode", "clip.mp4", tmp_path / "plain", *cut)
    encoded = answer("encode", "clip.mp4", tmp_path / "x", *cut, "--anchors", "--check")
    assert plain["latent_bytes"] == 6 * 4 * 6 * 8 * 2 and encoded["latent_bytes"] == (6 + 3) * 4 * 6 * 8 * 2
    told = answer("info", tmp_path / "x")
    assert all(told[key] == encoded[key] for key in ("latent_bytes", "bits_per_pixel"))
    assert answer("check", "clip.mp4", tmp_path / "x") == encoded["quality"] != answer("check", "clip.mp4", tmp_path / "plain")
    assert answer("decode", tmp_path / "x", tmp_path / "x.mp4", "--no-audio")["notes"] == []
    assert len(answer("decode", tmp_path / "x", tmp_path / "y.mp4", "--no-audio", "--chunk", 13)["notes"]) == 1


def test_a_video_from_a_pipe_gives_the_bytes_of_the_file(folder, answer, tmp_path, monkeypatch):
    plain = answer("encode", "clip.mp4", tmp_path / "plain")
    with open(folder / "clip.mp4", "rb") as file:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(piped(file.read())))
        piped_in = answer("encode", "-", tmp_path / "piped")
    assert piped_in["frames"] == plain["frames"] == 20
    assert (tmp_path / "piped").read_bytes() == (tmp_path / "plain").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "piped"}


def test_titles_and_chapters_are_kept(folder, answer, tmp_path):
    chapters = [{"id": 1, "start": 0, "end": 500, "time_base": Fraction(1, 1000), "metadata": {"title": "One"}}]
    with av.open(str(folder / "clip.mp4")) as source, av.open(str(tmp_path / "tagged.mkv"), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        output.metadata.update({"title": "A day", "creation_time": "2026-01-01T00:00:00Z"})
        output.set_chapters(chapters)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    answer("encode", tmp_path / "tagged.mkv", tmp_path / "x", "--no-audio")
    with LatentReader(tmp_path / "x") as reader:
        tags = ContainerTags.from_bytes(reader.tensor("tags").tobytes())
    assert tags == ContainerTags((("title", "A day"),), (Chapter(Fraction(0), Fraction(1, 2), (("title", "One"),)),))


def piped(data):
    """The reading end of a real pipe that gives these bytes."""
    reading, writing = os.pipe()
    threading.Thread(target=feed, args=(writing, data)).start()
    return open(reading, "rb")


def feed(writing, data):
    with open(writing, "wb") as file:
        file.write(data)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "Nothing came on the standard input; check the program before the pipe."),
        (bytes(5000), "The standard input is not a video, or is damaged at its beginning"),
        (b"words\n" * 900, "The standard input is"),
    ],
)
def test_a_pipe_without_a_video_is_one_sentence(cvvae, tmp_path, monkeypatch, data, sentence):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(piped(data)))
    status, _, said = cvvae("encode", "-", tmp_path / "x")
    assert status == 3 and said.startswith(f"cvvae: {sentence}") and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_how_a_video_is_read_is_checked_before_a_model_is_loaded(cvvae, tmp_path):
    for words, status, sentence in (
        (("clip.mp4", "--fps", "24"), 2, "--fps 24 is for numbered pictures"),
        (("none%03d.png",), 3, "There is no picture of the name none%03d.png"),
        (("clip.mp4", "--stream", "7"), 2, "clip.mp4 has no video stream 7; choose --stream from 0."),
    ):
        found, _, said = cvvae("encode", words[0], tmp_path / "x", *words[1:])
        assert found == status and sentence in said and not list(tmp_path.iterdir())
