"""From file to file: what is measured adds up, and nothing is left behind."""

import json

import command_line
import pytest
from clips import moving_pictures, write_video
from tiny_model import random_model

from cvvae_cli.file_benchmark import measure_file

folder, cvvae, answer = command_line.folder, command_line.cvvae, command_line.answer


def test_stages_add_up_to_the_whole(tmp_path):
    write_video(tmp_path / "clip.mp4", moving_pictures(24, 61, 45))
    report = measure_file(random_model().eval(), tmp_path / "clip.mp4", 20, "ultrafast", "tiny", "abc")
    assert (report.frames, report.width, report.height, report.preset) == (20, 61, 45, "ultrafast")
    assert report.double_work >= 1 and report.to_dict()["tiling"]["tile"] == report.tiling.tile
    encode, decode = report.rows
    assert set(encode.stages) == {"read", "wait for frames", "to device", "encode", "blend", "write"}
    assert set(decode.stages) == {"read", "decode", "blend", "from device", "wait for writer", "write"}
    for row, beside in ((encode, {"read"}), (decode, {"write"})):
        one_thread = sum(seconds for stage, seconds in row.stages.items() if stage not in beside)
        assert 0 < one_thread <= row.seconds and row.fps == pytest.approx(20 / row.seconds)
        assert row.network_fps == pytest.approx(20 / row.stages[row.direction])
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_the_command_answers_with_stages(cvvae, answer, folder):
    values = answer("bench", "--clip", "clip.mp4", "--clip-frames", "6")
    assert values["frames"] == 6 and [row["direction"] for row in values["rows"]] == ["encode", "decode"]
    status, out, _ = cvvae("bench", "--clip", "clip.mp4", "--clip-frames", "6", "--preset", "ultrafast")
    assert status == 0 and "file to file" in out and "blend" in out and max(map(len, out.splitlines())) <= 80
    status, _, err = cvvae("bench", "--clip", "clip.mp4", "--tile", "64")
    assert status == 2 and "drop --tile" in err
    assert json.dumps(values)
