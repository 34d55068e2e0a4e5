"""Stream configurations: what is derived from them and what is refused."""

import pytest

from cvvae_cli.errors import UsageError
from cvvae_cli.training.streams import StreamConfig

VIDEO = {"kind": "video", "sources": ("clips",), "batch": 2, "crop": 64, "frames": 9}


def test_a_moving_picture_takes_one_frame_of_its_source():
    assert StreamConfig(**VIDEO).frames_read == 9
    assert StreamConfig(**VIDEO | {"kind": "motion"}).frames_read == 1
    assert StreamConfig(**VIDEO | {"kind": "image", "frames": 1}).frames_read == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "film"}, "kind 'film' is unknown; use video, image, motion"),
        ({"sources": ()}, "needs sources"),
        ({"batch": 0}, "batch 0 must be 1 or more"),
        ({"max_stride": 0}, "max_stride 0 must be 1 or more"),
        ({"max_pan": -1.0}, "max_pan -1.0 must be 0 or more"),
        ({"max_pan": float("inf")}, "max_pan inf"),
        ({"share": 0.0}, "share 0.0 must be above 0"),
        ({"share": float("nan")}, "share nan"),
        ({"max_zoom": 1.0}, "max_zoom 1.0 must be from 0 to below 1"),
        ({"crop": 100}, "crop 100 must be a multiple of 8 px; use 96"),
        ({"crop": 0}, "crop 0 must be a multiple of 8 px; use 8"),
        ({"frames": 8}, "frames 8 must be 1 \\+ 4k"),
        ({"frames": 1}, "use kind image for 1"),
        ({"kind": "image"}, "frames 9 must be 1 for kind image"),
        ({"frames_per_clip": 26}, "frames_per_clip 26 must be at least 3 times the 9 frames of a window; use 27"),
        ({"short_sides": (128, 56)}, "short side 56 must be at least the crop, 64 px"),
        ({"augment": ("flip", "blur")}, "augment 'blur' is unknown or named twice; use flip, reverse, dim"),
        ({"augment": ("flip", "flip")}, "augment 'flip' is unknown or named twice"),
    ],
)
def test_wrong_values_are_refused_with_the_rule(change, words):
    with pytest.raises(UsageError, match=words):
        StreamConfig(**VIDEO | change)


def test_the_limits_themselves_are_taken():
    StreamConfig(**VIDEO | {"frames_per_clip": 27, "short_sides": (64,), "max_pan": 0.0, "max_zoom": 0.0})
    StreamConfig(**VIDEO | {"augment": ("dim", "flip", "reverse")})
    StreamConfig(**VIDEO | {"kind": "motion", "frames_per_clip": 3, "frames": 17})
