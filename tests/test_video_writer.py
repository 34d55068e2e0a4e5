"""The writer: exact pixels and times through lossless codecs, honest tags, and nothing left behind on failure."""

import resource
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import moving_pictures, psnr
from writers import open_writer

from cvvae_cli.colour import Colour
from cvvae_cli.errors import OutputError, UsageError
from cvvae_cli.video_io import VideoReader, probe
from cvvae_cli.video_writer import VideoWriter

RATE = Fraction(30000, 1001)
BASE = Fraction(1, 30000)
TIMES = [5000, 6001, 6052, 9000, 20000, 20500]


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return moving_pictures(6, 64, 48)


def write(path: Path, pictures: list[np.ndarray], times: list[int] | None = None, **options: object) -> VideoWriter:
    """Writes pictures; the last one lasts 700 ticks, the others until the next."""
    height, width = pictures[0].shape[:2]
    times = times or TIMES[: len(pictures)]
    with open_writer(path, width, height, RATE, BASE, **options) as writer:
        for picture, pts, after in zip(pictures, times, [*times[1:], times[-1] + 700], strict=True):
            writer.write(picture, pts, after - pts)
    return writer


def folder_of(path: Path) -> set[str]:
    return {entry.name for entry in path.parent.iterdir()}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mkv", {"codec": "ffv1"}),
        ("a.mkv", {"codec": "ffv1", "pix_fmt": "gbrp10le"}),
        ("a.mp4", {"codec": "libx264rgb", "options": {"qp": "0"}}),
        ("a.mov", {"codec": "libx264rgb", "options": {"qp": "0"}}),
    ],
)
def test_lossless_codecs_give_every_pixel_back(tmp_path: Path, pictures: list[np.ndarray], name: str, options: dict) -> None:
    path = tmp_path / name
    write(path, pictures, **options)
    with VideoReader(path) as reader:
        frames = list(reader)
    assert all(np.array_equal(frame.rgb, picture) for frame, picture in zip(frames, pictures, strict=True))
    assert folder_of(path) == {name}


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_irregular_times_come_back(tmp_path: Path, pictures: list[np.ndarray], suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write(path, pictures)
    with VideoReader(path) as reader:
        frames = list(reader)
        tick = reader.info.time_base
    tolerance = Fraction(1, 1999) if suffix == ".mkv" else 0  # Matroska counts milliseconds
    assert len(frames) == len(TIMES)
    for frame, pts in zip(frames, TIMES, strict=True):
        assert abs(frame.pts * tick - pts * BASE) <= tolerance
    assert all(psnr(frame.rgb, picture) > 30 for frame, picture in zip(frames, pictures, strict=True))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_the_last_frame_lasts_as_long_as_it_should(tmp_path: Path, pictures: list[np.ndarray], name: str) -> None:
    write(tmp_path / name, pictures, [i * 1001 for i in range(6)], options={"bf": "0"})
    with VideoReader(tmp_path / name) as reader:
        last = list(reader)[-1].duration * reader.info.time_base
    assert abs(last - 700 * BASE) < Fraction(1, 900)


def test_origin_moves_the_beginning_to_zero(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    path = tmp_path / "a.mp4"
    write(path, pictures, origin=TIMES[0] * BASE)
    with VideoReader(path) as reader:
        assert [round(frame.pts * reader.info.time_base / BASE) for frame in reader] == [t - TIMES[0] for t in TIMES]


@pytest.mark.parametrize("matrix", [1, 6])
@pytest.mark.parametrize("limits", [1, 2])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_yuv_is_tagged_as_it_was_computed(
    tmp_path: Path, pictures: list[np.ndarray], matrix: int, limits: int, name: str
) -> None:
    path = tmp_path / name
    options = {"qp": "0"} if name == "a.mp4" else {}
    codec = "libx264" if name == "a.mp4" else "ffv1"
    write(path, pictures[:2], colour=Colour(matrix, limits, 9, 16), codec=codec, pix_fmt="yuv420p", options=options)
    with VideoReader(path) as reader:
        assert reader.info.colour == Colour(matrix, limits, 9, 16)
        assert all(psnr(frame.rgb, picture) > 40 for frame, picture in zip(reader, pictures, strict=False))


@pytest.mark.parametrize("matrix", [1, 6])
@pytest.mark.parametrize("limits", [1, 2])
def test_identity_keeps_luma_and_chroma(tmp_path: Path, matrix: int, limits: int) -> None:
    """Source YUV -> reader's RGB -> writer's YUV: 48 dB and more on each plane."""
    source, copy = tmp_path / "source.mp4", tmp_path / "copy.mp4"
    lossless = {"codec": "libx264", "options": {"qp": "0"}}
    write(source, moving_pictures(4, 96, 64), colour=Colour(matrix, limits, 1, 1), **lossless)
    with VideoReader(source) as reader:
        frames = list(reader)
    write(copy, [frame.rgb for frame in frames], colour=reader.info.colour, **lossless)
    with av.open(str(source)) as first, av.open(str(copy)) as second:
        for a, b in zip(first.decode(video=0), second.decode(video=0), strict=True):
            for plane, again in zip(a.planes, b.planes, strict=True):
                old, new = (np.frombuffer(p, np.uint8).reshape(p.height, -1)[:, : p.width] for p in (plane, again))
                assert psnr(old, new) > 48


def test_unsaid_colour_is_chosen_by_size_and_tagged(tmp_path: Path) -> None:
    for width, matrix in ((64, 6), (1280, 1)):
        path = tmp_path / f"{width}.mp4"
        write(path, [np.full((16, width, 3), (200, 90, 40), np.uint8)], colour=Colour())
        with VideoReader(path) as reader:
            frame = next(iter(reader))
        assert (reader.info.colour.matrix, reader.info.colour.range) == (matrix, 1)
        assert np.abs(frame.rgb.astype(int) - (200, 90, 40)).max() <= 3


@pytest.mark.parametrize(("width", "height"), [(33, 48), (64, 17), (1, 1)])
def test_odd_sizes_are_not_cropped(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "a.mp4"
    write(path, moving_pictures(2, width, height))
    info = probe(path)
    assert (info.width, info.height, info.pix_fmt) == (width, height, "yuv444p")


def test_aspect_and_rate_are_stated(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    path = tmp_path / "a.mp4"
    write(path, pictures, [i * 1001 for i in range(6)], sample_aspect_ratio=Fraction(128, 117))
    info = probe(path)
    assert info.sample_aspect_ratio == Fraction(128, 117)
    assert abs(info.frame_rate - RATE) < Fraction(1)
    assert write(tmp_path / "b.mkv", pictures, sample_aspect_ratio=Fraction(4, 3), codec="ffv1").notes


def test_quality_options_reach_the_encoder(tmp_path: Path) -> None:
    noise = [np.random.default_rng(i).integers(0, 256, (48, 64, 3), np.uint8) for i in range(4)]
    sizes = {}
    for name, options in {
        "default": {},
        "coarse": {"crf": 45},
        "option": {"options": {"crf": "45"}},
        "fine": {"crf": 4, "preset": "ultrafast"},
    }.items():
        path = tmp_path / f"{name}.mp4"
        write(path, noise, **options)
        sizes[name] = path.stat().st_size
    assert sizes["coarse"] < sizes["default"] / 3 < sizes["fine"]
    assert abs(sizes["option"] - sizes["coarse"]) < 64


def test_vp9_in_webm_and_one_png(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    write(tmp_path / "a.webm", pictures)
    assert probe(tmp_path / "a.webm").codec == "vp9"
    write(tmp_path / "a.png", pictures[:1])
    with VideoReader(tmp_path / "a.png") as reader:
        assert np.array_equal(next(iter(reader)).rgb, pictures[0])
    with pytest.raises(UsageError, match="holds one frame"):
        write(tmp_path / "b.png", pictures)
    assert folder_of(tmp_path / "a.png") == {"a.webm", "a.png"}


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("a.xyz", {}, "must end in"),
        ("a", {}, "no extension"),
        ("a.webm", {"codec": "libx264"}, "cannot hold libx264"),
        ("a.mp4", {"codec": "nonsense"}, "no encoder"),
        ("a.mp4", {"codec": "aac"}, "does not encode video"),
        ("a.mkv", {"codec": "ffv1", "crf": 20}, "no option crf"),
        ("a.mp4", {"options": {"sharpness": "9"}}, "no option sharpness"),
        ("a.mp4", {"preset": "lazy"}, "preset=lazy"),
        ("a.mp4", {"pix_fmt": "rgb555"}, "does not encode"),
    ],
)
def test_impossible_wishes_are_refused(tmp_path: Path, name: str, options: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words) as failure:
        open_writer(tmp_path / name, 64, 48, RATE, BASE, **options)
    assert "\n" not in str(failure.value)
    assert not list(tmp_path.iterdir())


def test_outputs_are_not_replaced_unasked(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"exists already; pass -y \(overwrite=True in Python\)"):
        write(path, pictures)
    assert path.read_bytes() == b"precious"
    write(path, pictures, overwrite=True)
    assert probe(path).width == 64
    with pytest.raises(OutputError, match="is a folder"):
        (tmp_path / "d.mp4").mkdir()
        write(tmp_path / "d.mp4", pictures)
    with pytest.raises(OutputError, match="does not exist"):
        write(tmp_path / "none" / "a.mp4", pictures)
    with pytest.raises(OutputError, match="cannot be written"):
        write(tmp_path / ("x" * 250 + ".mp4"), pictures)  # its hidden name is too long


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError])
def test_an_interrupted_output_leaves_nothing(tmp_path: Path, pictures: list[np.ndarray], failure: type) -> None:
    old = tmp_path / "a.mp4"
    old.write_bytes(b"old")
    with pytest.raises(failure), open_writer(old, 64, 48, RATE, BASE, overwrite=True) as writer:
        writer.write(pictures[0], 0, 1001)
        raise failure
    assert old.read_bytes() == b"old"
    assert folder_of(old) == {"a.mp4"}


def test_no_frame_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no frame"), open_writer(tmp_path / "a.mp4", 64, 48, RATE, BASE):
        pass
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_and_cleaned_up(tmp_path: Path) -> None:
    noise = [np.random.default_rng(i).integers(0, 256, (96, 128, 3), np.uint8) for i in range(8)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        with pytest.raises(OutputError, match="no space left"):
            write(tmp_path / "a.mkv", noise, [i * 1001 for i in range(8)], codec="ffv1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_wrong_frames_and_times_are_refused(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    for wrong in (pictures[0][:-1], pictures[0].astype(np.float32)):
        with pytest.raises(UsageError, match="must be uint8"):
            write(tmp_path / "a.mp4", [pictures[0], wrong])
    with pytest.raises(UsageError, match="must rise"):
        write(tmp_path / "a.mp4", pictures[:2], [10, 10])


# ---- segments, and a run that is stopped and goes on

RUN = {"crf": 16}
FRAMES = [np.random.default_rng(i).integers(0, 256, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1) for i in range(23)]
UNEVEN = [1001 * i + (i % 3) * 100 for i in range(23)]


def begun(path: Path, **options: object) -> VideoWriter:
    return open_writer(path, 64, 48, RATE, BASE, **({"segment_frames": 5, "run": RUN} | options))


def carry_on(writer: VideoWriter, stop: int) -> None:
    for index in range(writer.frames, stop):
        writer.write(FRAMES[index], UNEVEN[index], 1001)


def finished(path: Path, **options: object) -> bytes:
    with begun(path, **options) as writer:
        carry_on(writer, 23)
    assert folder_of(path) == {path.name}
    content = path.read_bytes()
    path.unlink()
    return content


def test_segments_are_closed_and_times_stay_exact(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with begun(path, run=None) as writer:
        carry_on(writer, 23)
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        assert [p.is_keyframe for p in packets] == [i % 5 == 0 for i in range(23)]
        assert all(p.dts <= p.pts for p in packets)
        for start in range(0, 23, 5):  # all that is shown before the next segment comes before it
            assert sorted(p.pts for p in packets[start : start + 5]) == sorted(p.pts for p in packets)[start : start + 5]
    with VideoReader(path) as reader:
        shown = list(reader)
        ticks = [frame.pts * reader.info.time_base / BASE for frame in shown]
    assert ticks == UNEVEN
    assert all(psnr(FRAMES[i], frame.rgb) > 20 for i, frame in enumerate(shown))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.mov"])
def test_a_stopped_run_goes_on_and_gives_the_same_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    whole = finished(path)
    for first, second, kept in ((4, 6, 5), (5, 19, 15), (12, 12, 10), (22, 23, 20)):
        for stop, failure in ((first, KeyboardInterrupt), (second, SystemExit)):
            with pytest.raises(failure), begun(path) as writer:
                carry_on(writer, stop)
                raise failure
        assert folder_of(path) == {f".{name}.journal", f".{name}.packets"}
        with pytest.raises(ZeroDivisionError), begun(path) as writer:
            assert writer.frames == kept
            raise ZeroDivisionError
        assert finished(path) == whole


def test_a_run_of_other_options_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    whole = finished(path)
    with pytest.raises(KeyboardInterrupt), begun(path, run={"crf": 30}) as writer:
        carry_on(writer, 12)
        raise KeyboardInterrupt
    assert finished(path) == whole


def test_what_would_fail_again_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must rise"), begun(tmp_path / "a.mp4") as writer:
        carry_on(writer, 12)
        writer.write(FRAMES[0], 0, 1001)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_the_finished_segments(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    options = {"codec": "ffv1"}
    whole = finished(path, **options)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (len(whole) * 2 // 3, len(whole) - 200):  # in the middle of the packets; in the container
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            with pytest.raises(OutputError, match="no space left"), begun(path, **options) as writer:
                carry_on(writer, 23)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert folder_of(path) == {".a.mkv.journal", ".a.mkv.packets"}
    assert finished(path, **options) == whole


def test_two_runs_of_one_output(tmp_path: Path) -> None:
    with begun(tmp_path / "a.mp4") as writer:
        with pytest.raises(OutputError, match="another process"):
            begun(tmp_path / "a.mp4")
        carry_on(writer, 23)
    assert folder_of(tmp_path / "a.mp4") == {"a.mp4"}
