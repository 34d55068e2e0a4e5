"""Reader and writer with nothing between them, then the whole pipeline around a network that changes nothing.

A lossless codec gives every plane back, in every matrix and range.
"""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from clips import deep_pictures, write_video
from torch import Tensor
from writers import open_writer

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.colour import FULL, LIMITED, Colour
from cvvae_cli.config import CompactConfig, Tiling
from cvvae_cli.decoding import DecodeOptions, decode_file
from cvvae_cli.encoding import EncodeOptions, encode_file
from cvvae_cli.roundtrip import check_video, roundtrip_file
from cvvae_cli.video_io import VideoReader

LEAST_DB = 48.0
"""Of each plane: 8-bit RGB in between costs half a level, 4:2:0 chroma an upsampling and a downsampling."""

LEAST_CHROMA_DB = {"yuv444p10le": 60.0, "yuv422p10le": 51.5, "yuv420p10le": 51.5}
"""16-bit RGB in between costs nothing, but that swscale writes chroma of full range half a level too low."""

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


def assert_came_back(given: list[list[np.ndarray]], found: list[list[np.ndarray]], pix_fmt: str, bits: int) -> None:
    """All planes within their bounds; luma of 10 bits to the last bit."""
    assert len(found) == FRAMES
    pairs = [[(a[plane], b[plane]) for a, b in zip(given, found, strict=True)] for plane in range(3)]
    for plane in range(3):
        assert psnr_db(pairs[plane], bits) >= LEAST_CHROMA_DB.get(pix_fmt, LEAST_DB), plane
    if bits > 8:
        assert all(np.array_equal(*pair) for pair in pairs[0])


@pytest.mark.parametrize(("name", "codec", "options"), [("b.mkv", "ffv1", {}), ("b.mp4", "libx264", {"qp": "0"})])
@pytest.mark.parametrize(("pix_fmt", "bits"), [("yuv420p", 8), ("yuv444p", 8), ("yuv420p10le", 10), ("yuv444p10le", 10)])
@pytest.mark.parametrize("limits", [LIMITED, FULL])
@pytest.mark.parametrize("matrix", [1, 6])
def test_every_plane_comes_back(
    tmp_path: Path, matrix: int, limits: int, pix_fmt: str, bits: int, name: str, codec: str, options: dict[str, str]
) -> None:
    source, copy = tmp_path / "a.mkv", tmp_path / name
    given = [planes_by_definition(scene(i), matrix, limits == FULL, "420" in pix_fmt, bits) for i in range(FRAMES)]
    write_planes(source, given, pix_fmt, matrix, limits)
    with VideoReader(source, deep=True) as reader:
        info = reader.info
        assert reader.deep == (bits > 8)
        assert (info.colour.matrix, info.colour.range, info.pix_fmt) == (matrix, limits, pix_fmt)
        chosen = {"codec": codec, "pix_fmt": pix_fmt, "options": options, "colour": info.colour}
        with open_writer(copy, WIDTH, HEIGHT, info.frame_rate, info.time_base, **chosen) as writer:
            for frame in reader:
                writer.write(frame.rgb, frame.pts, frame.duration)
    assert_came_back(given, planes_of(copy), pix_fmt, bits)
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
    options = {"codec": codec, "pix_fmt": pix_fmt, "options": lossless, "colour": Colour(matrix, limits, 9, 16)}
    with open_writer(tmp_path / "a.mkv", WIDTH, HEIGHT, Fraction(25), Fraction(1, 25), depth=10, **options) as writer:
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


class PassThrough(Autoencoder):
    """Latents that are the pixels, a channel for each place in blocks of 4 frames x 8 x 8 px; the first frame fills a block."""

    def __init__(self) -> None:
        narrow = {"encoder_channels": (8, 8, 8), "decoder_channels": (8, 8, 8), "gate_channels": 8}
        super().__init__(CompactConfig(latent_channels=768, shared_channels=767, codes=1, **narrow))

    def encode(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, :, :1].expand(-1, -1, 3, -1, -1), x], dim=2)
        blocks = x.unflatten(4, (-1, 8)).unflatten(3, (-1, 8)).unflatten(2, (-1, 4))
        mean = blocks.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)
        return torch.cat([mean, torch.zeros_like(mean)], dim=1)

    def decode(self, z: Tensor) -> Tensor:
        blocks = z.unflatten(1, (3, 4, 8, 8)).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return blocks.flatten(6, 7).flatten(4, 5).flatten(2, 3)[:, :, 3:]


@pytest.fixture(scope="module")
def pass_through() -> Autoencoder:
    return PassThrough().eval()


@pytest.mark.parametrize(("pix_fmt", "bits"), [("yuv420p", 8), ("yuv420p10le", 10)])
@pytest.mark.parametrize("limits", [LIMITED, FULL])
@pytest.mark.parametrize("matrix", [1, 6])
def test_the_whole_pipeline_gives_every_plane_back(
    tmp_path: Path, pass_through: Autoencoder, matrix: int, limits: int, pix_fmt: str, bits: int
) -> None:
    given = [planes_by_definition(scene(i), matrix, limits == FULL, True, bits) for i in range(FRAMES)]
    write_planes(tmp_path / "a.mkv", given, pix_fmt, matrix, limits)
    options = EncodeOptions(latent_dtype="float32", check=True)
    tiling = Tiling(tile=64, overlap=16)
    report = encode_file(tmp_path / "a.mkv", tmp_path / "x.latent", model=pass_through, tiling=tiling, options=options)
    assert report.quality is not None and report.quality.psnr_worst_db == 100
    lossless = DecodeOptions(depth=bits, encoder_options=(("qp", "0"),))
    decoded = decode_file(tmp_path / "x.latent", tmp_path / "b.mkv", model=pass_through, options=lossless)
    assert report.notes == decoded.notes == ()
    assert_came_back(given, planes_of(tmp_path / "b.mkv"), pix_fmt, bits)


def test_a_round_trip_to_10_bits_is_measured_at_10_bits(tmp_path: Path, pass_through: Autoencoder) -> None:
    source = write_video(tmp_path / "a.mkv", deep_pictures(3, 64, 48), codec="ffv1", pix_fmt="gbrp10le")
    chosen = {"model": pass_through, "tiling": Tiling(), "encode": EncodeOptions(latent_dtype="float32")}
    for depth in (10, 8):
        copy = tmp_path / f"{depth}.mkv"
        report = roundtrip_file(source, copy, decode=DecodeOptions(codec="ffv1", depth=depth), **chosen)
        measured = (report.quality.psnr_db, report.psnr_file_db, check_video(source, copy).psnr_db)
        # An error spread evenly over an 8-bit level.
        assert measured == ((100, 100, 100) if depth == 10 else pytest.approx((20 * np.log10(255 * 12**0.5),) * 3, abs=0.2))
