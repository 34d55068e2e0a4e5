"""Reader and writer with nothing between them: a lossless codec gives every plane back, in every matrix and range."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from cvvae_cli.colour import FULL, LIMITED, Colour
from cvvae_cli.video_io import VideoReader, VideoWriter

LEAST_DB = 48.0
"""Of each plane: 8-bit RGB in between costs half a level, 4:2:0 chroma an upsampling and a downsampling."""

KR_KB = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
WIDTH, HEIGHT, FRAMES = 160, 96, 2


def scene(index: int) -> np.ndarray:
    """Colourful waves with a soft edge and film grain in the luma, float RGB 0..1 [HEIGHT, WIDTH, 3]."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / 24.0
    waves = [0.5 + 0.3 * np.sin(x * a + y * b + 0.5 * index) for a, b in ((1.1, 0.4), (0.3, 0.9), (0.7, -0.6))]
    edge = 0.12 * np.tanh(3 * (x - 3 - 0.2 * index))
    grain = np.random.default_rng(index).normal(0, 0.01, (HEIGHT, WIDTH))
    return np.clip(np.stack(waves, -1) + (edge + grain)[..., None], 0.02, 0.98)


def planes_by_definition(rgb: np.ndarray, matrix: int, full: bool, subsampled: bool, bits: int = 8) -> list[np.ndarray]:
    """Planes straight from the standards' text; chroma of 4:2:0 is sited left, filtered by 1 2 1 across and 1 1 down."""
    kr, kb = KR_KB[matrix]
    red, green, blue = np.moveaxis(rgb, -1, 0)
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    chroma = [(blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)]
    if subsampled:
        padded = [np.pad(plane, ((0, 0), (1, 1)), "edge") for plane in chroma]
        across = [(p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:])[:, ::2] / 4 for p in padded]
        chroma = [(p[::2] + p[1::2]) / 2 for p in across]
    unit, top = 1 << (bits - 8), (1 << bits) - 1
    scale, offset, swing = (top, 0, top) if full else (219 * unit, 16 * unit, 224 * unit)
    values = (luma * scale + offset, *(c * swing + 128 * unit for c in chroma))
    return [np.round(plane).astype(np.uint8 if bits == 8 else np.uint16) for plane in values]


def write_planes(path: Path, pictures: list[list[np.ndarray]], pix_fmt: str, matrix: int, limits: int) -> None:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate=25, width=WIDTH, height=HEIGHT, pix_fmt=pix_fmt)
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = matrix, limits, matrix, matrix
        for planes in pictures:
            frame = av.VideoFrame(WIDTH, HEIGHT, pix_fmt)
            frame.colorspace, frame.color_range = matrix, limits
            for plane, values in zip(frame.planes, planes, strict=True):
                padded = np.zeros((plane.height, plane.line_size // values.itemsize), values.dtype)
                padded[:, : plane.width] = values
                plane.update(padded.tobytes())
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def planes_of(path: Path) -> list[list[np.ndarray]]:
    with av.open(str(path)) as container:
        return [[values_of(p, frame.format.components[0].bits) for p in frame.planes] for frame in container.decode(video=0)]


def values_of(plane: av.video.plane.VideoPlane, bits: int) -> np.ndarray:
    return np.frombuffer(plane, np.uint8 if bits == 8 else np.uint16).reshape(plane.height, -1)[:, : plane.width]


def psnr_db(pairs: list[tuple[np.ndarray, np.ndarray]], bits: int = 8) -> float:
    mean = np.mean([np.mean((a.astype(np.float64) - b) ** 2) for a, b in pairs])
    return float(20 * np.log10((1 << bits) - 1) - 10 * np.log10(max(mean, 1e-9)))


@pytest.mark.parametrize(("name", "codec", "options"), [("b.mkv", "ffv1", {}), ("b.mp4", "libx264", {"qp": "0"})])
@pytest.mark.parametrize(("pix_fmt", "bits"), [("yuv420p", 8), ("yuv444p", 8), ("yuv420p10le", 10)])
@pytest.mark.parametrize("limits", [LIMITED, FULL])
@pytest.mark.parametrize("matrix", [1, 6])
def test_every_plane_comes_back(
    tmp_path: Path, matrix: int, limits: int, pix_fmt: str, bits: int, name: str, codec: str, options: dict[str, str]
) -> None:
    source, copy = tmp_path / "a.mkv", tmp_path / name
    given = [planes_by_definition(scene(i), matrix, limits == FULL, "420" in pix_fmt, bits) for i in range(FRAMES)]
    write_planes(source, given, pix_fmt, matrix, limits)
    with VideoReader(source) as reader:
        info = reader.info
        assert (info.colour.matrix, info.colour.range, info.pix_fmt) == (matrix, limits, pix_fmt)
        chosen = {"codec": codec, "pix_fmt": pix_fmt, "encoder_options": options, "colour": info.colour}
        with VideoWriter(copy, WIDTH, HEIGHT, info.frame_rate, info.time_base, **chosen) as writer:
            for frame in reader:
                writer.write(frame.rgb, frame.pts, frame.duration)
    found = planes_of(copy)
    assert len(found) == FRAMES
    for plane in range(3):
        assert psnr_db([(a[plane], b[plane]) for a, b in zip(given, found, strict=True)], bits) >= LEAST_DB, plane
    with av.open(str(copy)) as container:
        frame = next(container.decode(video=0))
        assert (int(frame.colorspace), int(frame.color_range)) == (matrix, limits)


@pytest.mark.parametrize(("codec", "pix_fmt"), [("ffv1", "yuv444p10le"), ("libx264", "yuv420p10le"), ("libx265", "yuv420p10le")])
@pytest.mark.parametrize("limits", [LIMITED, FULL])
@pytest.mark.parametrize("matrix", [1, 6, 9])
def test_frames_of_16_bits_give_the_10_bit_planes_of_the_standard(
    tmp_path: Path, matrix: int, limits: int, pix_fmt: str, codec: str
) -> None:
    """PQ is carried through. Luma out of frames of 8 bits would have 63 dB at most."""
    lossless = {"libx264": {"qp": "0"}, "libx265": {"x265-params": "lossless=1:log-level=error"}, "ffv1": {}}[codec]
    wanted = [planes_by_definition(scene(i), matrix, limits == FULL, "420" in pix_fmt, 10) for i in range(FRAMES)]
    options = {"codec": codec, "pix_fmt": pix_fmt, "encoder_options": lossless, "colour": Colour(matrix, limits, 9, 16)}
    with VideoWriter(tmp_path / "a.mkv", WIDTH, HEIGHT, Fraction(25), Fraction(1, 25), depth=10, **options) as writer:
        for index in range(FRAMES):
            writer.write(np.round(scene(index) * 65535).astype(np.uint16), index, 1)
    assert writer.deep
    found = planes_of(tmp_path / "a.mkv")
    for plane in range(3):
        least = 70 if plane == 0 else 60
        assert psnr_db([(a[plane], b[plane]) for a, b in zip(wanted, found, strict=True)], 10) >= least, plane
    with VideoReader(tmp_path / "a.mkv") as reader:
        assert reader.info.colour == Colour(matrix, limits, 9, 16) and reader.info.bit_depth == 10


def test_the_measure_sees_a_wrong_matrix_and_a_wrong_range() -> None:
    """The bound is not one that any copy would keep."""
    right = planes_by_definition(scene(0), 1, False, True)
    for wrong in (planes_by_definition(scene(0), 6, False, True), planes_by_definition(scene(0), 1, True, True)):
        assert min(psnr_db([(a, b)]) for a, b in zip(right, wrong, strict=True)) < 40
