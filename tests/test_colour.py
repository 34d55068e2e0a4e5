"""Colour conversion against the definitions of BT.601 and BT.709 computed in numpy, and orientation by hand."""

from fractions import Fraction

import numpy as np
import pytest
from av.video.frame import VideoFrame

from cvvae_cli.colour import FULL, LIMITED, Colour, FrameToRgb, Orientation, RgbToFrame

KR_KB = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}


def yuv_by_definition(rgb: np.ndarray, matrix: int, full: bool) -> np.ndarray:
    """8-bit Y, Cb, Cr of RGB colours, straight from the standards' text."""
    kr, kb = KR_KB[matrix]
    red, green, blue = (rgb[..., i].astype(np.float64) / 255 for i in range(3))
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    cb, cr = (blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)
    scale, offset, swing = (255, 0, 255) if full else (219, 16, 224)
    return np.stack([luma * scale + offset, cb * swing + 128, cr * swing + 128], -1)


def patches() -> np.ndarray:
    """Twelve colours as flat squares of 16 pixels, so that chroma siting and scaling cannot matter inside."""
    levels = np.array([[c >> 2 & 1, c >> 1 & 1, c & 1] for c in range(8)]) * 235 + 10
    colours = np.concatenate([levels, [[128, 128, 128], [200, 90, 40], [30, 120, 210], [90, 200, 140]]]).astype(np.uint8)
    return colours.reshape(3, 4, 3).repeat(16, 0).repeat(16, 1)


def planes(frame: VideoFrame) -> list[np.ndarray]:
    return [np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width] for plane in frame.planes]


@pytest.mark.parametrize("matrix", [1, 6, 9])
@pytest.mark.parametrize("limits", [LIMITED, FULL])
def test_rgb_becomes_the_yuv_of_the_standard_and_comes_back(matrix: int, limits: int) -> None:
    rgb = patches()
    colour = Colour(matrix, limits, 1, 1)
    frame = RgbToFrame(64, 48, "yuv420p", colour, Fraction(1, 25))(rgb, 3, 1)
    expected = yuv_by_definition(rgb, matrix, limits == FULL)
    luma, cb, cr = planes(frame)
    assert np.abs(luma[8::16, 8::16] - expected[8::16, 8::16, 0]).max() <= 1
    assert np.abs(cb[4::8, 4::8] - expected[8::16, 8::16, 1]).max() <= 1
    assert np.abs(cr[4::8, 4::8] - expected[8::16, 8::16, 2]).max() <= 1
    assert (int(frame.colorspace), int(frame.color_range), frame.pts) == (matrix, limits, 3)

    back = FrameToRgb(colour, Orientation(), 64, 48)(frame)
    assert np.abs(back[8::16, 8::16].astype(int) - rgb[8::16, 8::16]).max() <= 2


def test_untagged_frames_are_read_as_players_read_them() -> None:
    rgb = patches()
    for width, height, matrix in ((64, 48, 6), (1280, 48, 1), (64, 720, 1)):
        image = np.resize(rgb, (height, width, 3)) if (width, height) != (64, 48) else rgb
        image = np.ascontiguousarray(np.broadcast_to(np.array([200, 90, 40], np.uint8), image.shape))
        frame = RgbToFrame(width, height, "yuv444p", Colour(matrix, LIMITED), Fraction(1))(image, 0, 1)
        frame.colorspace = 2
        got = FrameToRgb(Colour(), Orientation(), width, height)(frame)
        assert np.abs(got.astype(int) - image).max() <= 2, (width, height)


def test_what_a_source_leaves_unsaid_is_decided_and_said() -> None:
    assert Colour().for_yuv(480, 854) == Colour(6, LIMITED, 2, 2)
    assert Colour().for_yuv(720, 1280) == Colour(1, LIMITED, 2, 2)
    assert Colour(0, FULL, 1, 13).for_yuv(64, 64) == Colour(1, LIMITED, 1, 13)
    assert Colour(5, FULL, 9, 16).for_yuv(1080, 1920) == Colour(5, FULL, 9, 16)
    assert Colour(8, 0).for_yuv(1080, 1920).matrix == 1  # YCgCo is beyond swscale


def test_smooth_pictures_survive_yuv_without_a_bias() -> None:
    y, x = np.mgrid[0:96, 0:128] / 128.0
    waves = [127 + 90 * np.sin(3 * x + 2 * y + phase) for phase in (0.0, 1.0, 2.0)]
    rgb = np.stack(waves, -1).round().astype(np.uint8)
    colour = Colour(1, LIMITED)
    frame = RgbToFrame(128, 96, "yuv420p", colour, Fraction(1))(rgb, 0, 1)
    back = FrameToRgb(colour, Orientation(), 128, 96)(frame)
    error = back.astype(np.float64) - rgb
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 50
    assert np.abs(error.mean((0, 1))).max() < 0.15


def test_chroma_is_sited_left() -> None:
    """A chroma ramp keeps its place: centred siting would move it by a quarter of its step per pixel."""
    ramp = np.linspace(60, 190, 64)
    rgb = np.broadcast_to(np.stack([ramp, 250 - ramp, np.full(64, 120.0)], -1), (32, 64, 3)).round().astype(np.uint8)
    cr = planes(RgbToFrame(64, 32, "yuv420p", Colour(6, FULL), Fraction(1))(rgb, 0, 1))[2]
    exact = yuv_by_definition(np.stack([ramp, 250 - ramp, np.full(64, 120.0)], -1), 6, True)[:, 2]
    inner = slice(4, 28)
    left, centre = exact[0::2][inner], ((exact[0::2] + exact[1::2]) / 2)[inner]
    got = cr[8, inner].astype(float)
    assert np.abs(got - left).mean() < np.abs(got - centre).mean()


@pytest.mark.parametrize("quarter", [0, 1, 2, 3])
def test_orientation_turns_as_rot90_does(quarter: int) -> None:
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    turned = Orientation.from_rotation(90 * quarter - 360).apply(image)
    assert np.array_equal(turned, np.rot90(image, quarter))
    assert turned.flags.c_contiguous


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, -1, 0), (0, -1, 1, 0), (0, 1, 1, 0)])
def test_display_matrix_moves_every_pixel_where_it_says(matrix: tuple[int, int, int, int]) -> None:
    a, b, c, d = matrix
    image = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    nine = np.array([a, b, 0, c, d, 0, 0, 0, 16384], np.int32) * 65536
    shown = Orientation.from_matrix(nine).apply(image)
    points = {(a * x + c * y, b * x + d * y): image[y, x] for y in range(3) for x in range(5)}
    left, top = min(p[0] for p in points), min(p[1] for p in points)
    for (x, y), pixel in points.items():
        assert np.array_equal(shown[y - top, x - left], pixel)


def test_resizing_happens_upright_and_alpha_is_ignored() -> None:
    rgba = np.zeros((8, 16, 4), np.uint8)
    rgba[:, :8, 0], rgba[..., 3] = 255, 7
    frame = VideoFrame.from_ndarray(rgba, "rgba")
    small = FrameToRgb(Colour(), Orientation(transposed=True), 4, 8)(frame)
    assert small.shape == (8, 4, 3)
    assert small[:3, :, 0].min() > 240 and small[5:, :, 0].max() < 15


def deep_frame(planes: list[np.ndarray], pix_fmt: str) -> VideoFrame:
    """A frame of components of more than 8 bits, little-endian; a packed format has one plane [H, W x components]."""
    components = 1 if len(planes) > 1 or "gray" in pix_fmt else 3
    height, width = planes[0].shape
    frame = VideoFrame(width // components, height, pix_fmt)
    for plane, values in zip(frame.planes, planes, strict=True):
        padded = np.zeros((plane.height, plane.line_size // 2), np.uint16)
        padded[:, : values.shape[1]] = values
        plane.update(padded.tobytes())
    return frame


def rgb_by_definition(planes: list[np.ndarray], matrix: int, full: bool, bits: int) -> np.ndarray:
    """What Y, Cb and Cr mean, 0 to 65535, not rounded."""
    kr, kb = KR_KB[matrix]
    unit, top = 1 << (bits - 8), (1 << bits) - 1
    scale, offset, swing = (top, 0, top) if full else (219 * unit, 16 * unit, 224 * unit)
    luma, cb, cr = (plane.astype(np.float64) for plane in planes)
    luma, cb, cr = (luma - offset) / scale, (cb - 128 * unit) / swing, (cr - 128 * unit) / swing
    red, blue = luma + cr * (2 - 2 * kr), luma + cb * (2 - 2 * kb)
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    return np.clip(np.stack([red, green, blue], -1), 0, 1) * 65535


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("limits", [LIMITED, FULL])
@pytest.mark.parametrize("matrix", [1, 6, 9])
def test_deep_yuv_becomes_the_16_bit_rgb_of_the_standard(matrix: int, limits: int, bits: int) -> None:
    """Every value of each component, above white and below black too."""
    top, random = (1 << bits) - 1, np.random.default_rng(bits)
    values = [random.integers(0, top, (64, 128), endpoint=True) for _ in range(3)]
    values[0][:32], values[1][:48] = np.resize(np.arange(top + 1), (32, 128)), 1 << (bits - 1)
    values[2][16:] = 1 << (bits - 1)
    frame = deep_frame(values, f"yuv444p{bits}le")
    exact = rgb_by_definition(values, matrix, limits == FULL, bits)
    found = FrameToRgb(Colour(matrix, limits), Orientation(), 128, 64, deep=True)(frame)
    error = found - exact
    assert found.dtype == np.uint16 and np.abs(error).max() <= 6 and np.abs(error.mean()) < 1
    assert (found[exact == 65535] == 65535).all() and (found[exact == 0] == 0).all()


@pytest.mark.parametrize("limits", [LIMITED, FULL])
@pytest.mark.parametrize("size", [(64, 48), (32, 24), (96, 72)])
def test_subsampled_and_resized_deep_patches_keep_their_colours(limits: int, size: tuple[int, int]) -> None:
    colour = Colour(9, limits)
    yuv = np.moveaxis(yuv_by_definition(patches(), 9, limits == FULL), -1, 0) * 4
    luma, cb, cr = (plane.round() for plane in yuv)
    found = FrameToRgb(colour, Orientation(), *size, deep=True)(deep_frame([luma, cb[::2, ::2], cr[::2, ::2]], "yuv420p10le"))
    step = size[0] // 4
    middles = found[step // 2 :: step, step // 2 :: step]
    error = middles - rgb_by_definition([luma, cb, cr], 9, limits == FULL, 10)[8::16, 8::16]
    assert np.abs(error).max() <= 6


@pytest.mark.parametrize(
    ("pix_fmt", "bits"), [("gbrp10le", 10), ("gbrp12le", 12), ("rgb48le", 16), ("gray10le", 10), ("gray16le", 16)]
)
@pytest.mark.parametrize("stated", [LIMITED, FULL])
def test_deep_rgb_and_grey_reach_white_resized_or_not(pix_fmt: str, bits: int, stated: int) -> None:
    """They have no limited range, whatever their tag says."""
    top = (1 << bits) - 1
    bars = np.resize(np.round(np.linspace(0, top, 8)), (32, 8)).repeat(16, 1)
    planes = {"gray": [bars], "rgb4": [bars.repeat(3, 1)]}.get(pix_fmt[:4], [bars] * 3)
    frame = deep_frame(planes, pix_fmt)
    for width, height in ((128, 32), (64, 16)):
        found = FrameToRgb(Colour(0, stated), Orientation(), width, height, deep=True)(frame)
        middles = found[:, width // 16 :: width // 8]
        assert np.abs(middles - bars[0, ::16, None] / top * 65535).max() <= 6, width
        assert middles[:, 0].max() == 0 and middles[:, -1].min() >= 65530


def test_frames_of_8_bits_in_a_deep_stream_are_spread_to_16() -> None:
    rgb, colour = patches(), Colour(1, LIMITED)
    frame = RgbToFrame(64, 48, "yuv420p", colour, Fraction(1))(rgb, 0, 1)
    plain, deep = (FrameToRgb(colour, Orientation(), 64, 48, deep)(frame) for deep in (False, True))
    assert deep.dtype == np.uint16 and np.array_equal(deep, plain.astype(np.uint16) * 257)


def test_deep_frames_are_turned_upright() -> None:
    picture = np.random.default_rng(0).integers(0, 65536, (6, 8, 3), dtype=np.uint16)
    frame = VideoFrame.from_ndarray(picture, "rgb48le")
    found = FrameToRgb(Colour(), Orientation.from_rotation(90), 6, 8, deep=True)(frame)
    assert found.dtype == np.uint16 and np.array_equal(found, np.rot90(picture)) and found.flags.c_contiguous
