"""Frames of files: the right ones at the right size, from the file and from the cache; what is left out, and why."""

from fractions import Fraction

import av
import numpy as np
import pytest
from clips import moving_pictures, write_video

from cvvae_cli.errors import OutputError, UsageError, VideoError
from cvvae_cli.training.footage import ArrayStretch, FileStretch, prepare
from cvvae_cli.training.sources import MediaFile
from cvvae_cli.training.streams import StreamConfig

WHOLE = slice(None)


def config(*sources, kind="video", frames=5, crop=32, **changes):
    return StreamConfig(kind, tuple(map(str, sources)), 1, crop, frames, **changes)


def stretch(path, frames, size, rate=25.0):
    return FileStretch(MediaFile(str(path), path, None, path.stat().st_size), frames, rate, size)


def numbered(count):
    """Grey frames of 48x32 px whose level is their number."""
    return [np.full((32, 48, 3), i, np.uint8) for i in range(count)]


def write_picture(path, pixels, pixel_format, codec, exif=b""):
    """A picture of one frame, `exif` put behind the first marker of a JPEG."""
    frame = av.VideoFrame.from_ndarray(pixels, pixel_format)
    context = av.CodecContext.create(codec, "w")
    context.width, context.height, context.time_base = frame.width, frame.height, Fraction(1, 25)
    context.pix_fmt = "yuvj444p" if codec == "mjpeg" else pixel_format
    data = b"".join(bytes(packet) for packet in [*context.encode(frame.reformat(format=context.pix_fmt)), *context.encode(None)])
    path.write_bytes(data[:2] + exif + data[2:])
    return path


def test_frames_are_the_ones_asked_for_wherever_they_begin(tmp_path):
    pictures = moving_pictures(30, 48, 32)  # a key frame every 10
    clip = stretch(write_video(tmp_path / "a.mp4", pictures), 30, (48, 32))
    for times in (range(0, 5), range(7, 16, 2), range(11, 24, 3), range(10, 11), range(25, 30)):
        window = clip.read(times, slice(8, 24), slice(3, 40))
        assert np.array_equal(window, np.stack([pictures[t] for t in times])[:, 8:24, 3:40])
    assert clip.places(5) == 30 - 5 + 1 - 2 and clip.places(29) == clip.places(30) == 1


def test_where_a_file_ends_early_the_window_is_taken_from_its_beginning(tmp_path):
    clip = stretch(write_video(tmp_path / "a.mp4", numbered(12)), 40, (48, 32))
    levels = [clip.read(times, WHOLE, WHOLE)[:, 0, 0, 0].tolist() for times in (range(9, 14), range(30, 39, 2), range(0, 15, 3))]
    assert levels == [[0, 1, 2, 3, 4], [0, 2, 4, 6, 8], [0, 3, 6, 9, 9]]
    clip.file.path.unlink()
    with pytest.raises(VideoError, match="does not exist"):
        clip.read(range(5), WHOLE, WHOLE)


def test_made_smaller_means_averaged_not_skipped(tmp_path):
    board = np.indices((64, 96)).sum(0) % 2 * 255
    path = write_video(tmp_path / "a.png", [np.repeat(board[..., None], 3, 2).astype(np.uint8)], codec="png")
    small = stretch(path, 1, (48, 32)).read(range(1), WHOLE, WHOLE)
    assert small.shape == (1, 32, 48, 3)
    assert np.abs(small[:, 1:-1, 1:-1].astype(float) - 127.5).max() <= 2 and np.abs(small.astype(float) - 127.5).max() <= 8


@pytest.mark.parametrize(
    ("kind", "sides", "sizes"),
    [
        ("video", (), [(90, 60)]),
        ("video", (40, 32, 200), [(48, 32), (60, 40), (90, 60)]),  # never enlarged
        ("video", (60, 70), [(90, 60)]),
        ("image", (33,), [(50, 32)]),  # even
        ("motion", (), [(68, 44), (90, 60)]),  # half would be smaller than the crop
        ("motion", (40,), [(60, 40)]),
    ],
)
def test_sizes_on_offer(tmp_path, kind, sides, sizes):
    name, codec = ("a.png", "png") if kind == "motion" else ("a.mp4", "libx264rgb")
    write_video(tmp_path / name, moving_pictures(1 if kind == "motion" else 8, 90, 60), codec=codec)
    clip = prepare(config(tmp_path, kind=kind, frames=1 if kind == "image" else 5, short_sides=sides), print)[0]
    assert [group[0].size for group in clip.sizes] == sizes
    for (found,), (width, height) in zip(clip.sizes, sizes, strict=True):
        assert found.read(range(1), WHOLE, WHOLE).shape == (1, height, width, 3)


def test_the_cache_is_filled_once_with_the_frames_of_the_file(tmp_path):
    pictures = moving_pictures(14, 48, 32)
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in" / "a.mp4", pictures)
    cached = config(tmp_path / "in", cache=str(tmp_path / "new" / "cache"))
    said = []
    clip = prepare(cached, said.append)[0]
    assert len(said) == 1 and said[0].startswith("Decoded a.")
    assert prepare(cached, said.append) == [clip] and len(said) == 1
    (found,) = clip.sizes[0]
    assert isinstance(found, ArrayStretch) and (found.frames, found.places(5)) == (14, 10)
    window = found.read(range(1, 14, 3), slice(8, 24), slice(3, 40))
    assert np.array_equal(window, np.stack(pictures[1:14:3])[:, 8:24, 3:40]) and window.flags.writeable
    assert [p.suffix for p in (tmp_path / "new" / "cache").iterdir()] == [".npy"]


def test_a_long_clip_is_cached_as_three_stretches_without_gaps(tmp_path):
    write_video(tmp_path / "a.mp4", numbered(60))
    clip = prepare(config(tmp_path / "a.mp4", cache=str(tmp_path / "cache"), frames_per_clip=24), print)[0]
    levels = [found.read(range(found.frames), WHOLE, WHOLE)[:, 0, 0, 0].tolist() for found in clip.sizes[0]]
    assert levels == [list(range(0, 8)), list(range(25, 33)), list(range(50, 58))]
    whole = prepare(config(tmp_path / "a.mp4", cache=str(tmp_path / "cache"), frames_per_clip=55), print)[0]
    assert [found.frames for found in whole.sizes[0]] == [55]  # 9 % longer: kept from its beginning


def test_the_cache_tells_files_of_one_name_and_changed_files_apart(tmp_path):
    folders = [tmp_path / "x", tmp_path / "y"]
    for level, folder in enumerate(folders):
        folder.mkdir()
        write_video(folder / "a.mp4", [np.full((32, 48, 3), 50 * level, np.uint8)] * 6)
    cached = config(*folders, cache=str(tmp_path / "cache"))

    def levels():
        return [int(clip.sizes[0][0].read(range(1), WHOLE, WHOLE).max()) for clip in prepare(cached, lambda text: None)]

    assert levels() == [0, 50]
    write_video(tmp_path / "y" / "a.mp4", [np.full((32, 48, 3), 200, np.uint8)] * 6)
    assert levels() == [0, 200]


def test_a_cache_that_cannot_be_written_is_an_output_error(tmp_path):
    write_video(tmp_path / "a.mp4", numbered(6))
    with pytest.raises(OutputError, match="a.mp4/cache.* cannot be written .*set another cache"):
        prepare(config(tmp_path / "a.mp4", cache=str(tmp_path / "a.mp4" / "cache")), print)


def test_files_without_a_stated_length_are_counted(tmp_path):
    write_video(tmp_path / "a.h264", numbered(20))
    (clip,) = prepare(config(tmp_path), print)
    assert clip.sizes[0][0].frames == 20
    (clip,) = prepare(config(tmp_path, frames_per_clip=15), print)
    assert clip.sizes[0][0].frames == 15


def test_unusable_files_are_left_out_with_a_sentence_each(tmp_path):
    write_video(tmp_path / "good.mp4", numbered(6))
    write_video(tmp_path / "short.mp4", numbered(4))
    write_video(tmp_path / "small.mp4", [picture[:24] for picture in numbered(6)])
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "noise.webm").write_bytes(bytes(range(256)) * 9)
    said = []
    assert [clip.sizes[0][0].file.path.name for clip in prepare(config(tmp_path), said.append)] == ["good.mp4"]
    texts = sorted(said)
    assert len(texts) == 4 and all(text.startswith(f"Skipped: {tmp_path}/") and text.endswith(".") for text in texts)
    assert "empty.mp4 is empty" in texts[0] and "noise.webm is not a video" in texts[1]
    assert "short.mp4 has 4 frames and windows take 5" in texts[2]
    assert "small.mp4 is 48x24 px and windows take 32" in texts[3]
    with pytest.raises(UsageError, match="No file of .* has 9 frames of 32 px or more"):
        prepare(config(tmp_path, frames=9), lambda text: None)


def test_a_file_that_breaks_off_before_it_fills_a_window_is_left_out_of_the_cache(tmp_path):
    path = write_video(tmp_path / "a.mkv", numbered(4), sound_seconds=2.0)  # the file's length is that of its sound
    said = []
    with pytest.raises(UsageError):
        prepare(config(path, cache=str(tmp_path / "cache")), said.append)
    assert "a.mkv ends 4 frames after frame 0" in said[-1]


def test_pictures_come_upright_and_as_rgb(tmp_path):
    ramp = np.add.outer(np.arange(40) * 2, np.arange(56) * 2).astype(np.uint8)
    colours = np.stack([ramp, 255 - ramp, np.full_like(ramp, 90)], -1)
    turned = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6: turn clockwise
    segment = b"\xff\xe1" + (len(turned) + 2).to_bytes(2, "big") + turned
    write_picture(tmp_path / "1.png", ramp, "gray", "png")
    write_picture(tmp_path / "2.png", np.dstack([colours, ramp]), "rgba", "png")
    write_picture(tmp_path / "3.jpg", colours, "rgb24", "mjpeg", segment)
    grey, alpha, upright = [
        clip.sizes[0][0].read(range(1), WHOLE, WHOLE)[0] for clip in prepare(config(tmp_path, kind="image", frames=1), print)
    ]
    assert np.array_equal(grey, np.repeat(ramp[..., None], 3, 2))
    assert np.array_equal(alpha, colours)
    assert upright.shape == (56, 40, 3)
    assert np.abs(upright.astype(int) - np.rot90(colours, -1)).mean() < 6
