"""Windows of clips: where they are cut, and clips that cannot be."""

import numpy as np
import pytest
from clips import moving_pictures, write_video

from cvvae_cli.clip_windows import WindowConfig, plan_clip, read_windows
from cvvae_cli.errors import UsageError, VideoError


def test_windows_follow_one_another_without_overlap_and_are_cut_from_the_centre(tmp_path):
    pictures = moving_pictures(13, 46, 36)
    path = write_video(tmp_path / "clip.mp4", pictures)
    config = WindowConfig(frames=5)
    clip = plan_clip(path, config)
    assert (clip.size, clip.region, clip.num_windows) == ((46, 36), (3, 2, 40, 32), 2)
    windows = list(read_windows(clip, config))
    assert [tuple(x.shape) for x in windows] == [(1, 3, 5, 32, 40)] * 2
    for i, x in enumerate(windows):
        frames = np.stack(pictures[5 * i : 5 * i + 5])[:, 2:34, 3:43]
        np.testing.assert_array_equal(((x[0].permute(1, 2, 3, 0) + 1) * 127.5).round().numpy(), frames)
    config = WindowConfig(frames=5, crop=16, max_windows=1)
    clip = plan_clip(path, config)
    assert (clip.region, clip.num_windows) == ((15, 10, 16, 16), 1)
    assert [tuple(x.shape) for x in read_windows(clip, config)] == [(1, 3, 5, 16, 16)]


def test_a_clip_shorter_than_a_window_gives_what_it_has(tmp_path):
    path = write_video(tmp_path / "clip.mp4", moving_pictures(8, 32, 24))
    config = WindowConfig(frames=17)
    assert [tuple(x.shape) for x in read_windows(plan_clip(path, config), config)] == [(1, 3, 5, 24, 32)]


def test_frames_are_made_smaller_and_never_larger(tmp_path):
    path = write_video(tmp_path / "clip.mp4", moving_pictures(1, 96, 64))
    assert plan_clip(path, WindowConfig(short_side=32)).size == (48, 32)
    assert plan_clip(path, WindowConfig(short_side=640)).size == (96, 64)
    config = WindowConfig(short_side=33)
    (x,) = read_windows(plan_clip(path, config), config)
    assert tuple(x.shape) == (1, 3, 1, 32, 48)


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"frames": 16}, "16 frames are not 1"),
        ({"frames": -3}, "-3 frames are not 1"),
        ({"short_side": 4}, "Short side 4 px must be at least 8"),
        ({"crop": 20}, "Crop 20 px must be a multiple of 8; pass --crop 16"),
        ({"crop": 0}, "pass --crop 8"),
        ({"max_windows": 0}, "pass --max-windows 1"),
    ],
)
def test_cuts_that_cannot_be_are_refused(values, sentence):
    with pytest.raises(UsageError, match=sentence):
        WindowConfig(**values)


def test_clips_that_cannot_be_cut_are_refused(tmp_path):
    path = write_video(tmp_path / "clip.mp4", moving_pictures(1, 64, 24))
    with pytest.raises(UsageError, match="are 64x24 px, smaller than the 32 px of --crop"):
        plan_clip(path, WindowConfig(crop=32))
    with pytest.raises(UsageError, match="smaller than one cell"):
        plan_clip(write_video(tmp_path / "thin.mp4", moving_pictures(1, 64, 6)), WindowConfig())
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError):
        plan_clip(tmp_path / "text.mp4", WindowConfig())
