"""`cvvae roundtrip`: what it answers."""

import av
import command_line
from clips import deep_pictures, moving_pictures, write_video
from command_line import QUALITY_KEYS, pictures
from safetensors.torch import load_file

folder, cvvae, answer = command_line.folder, command_line.cvvae, command_line.answer
ROUNDTRIP_KEYS = QUALITY_KEYS | {"psnr_file_db", "harm", "latent_bytes", "bits_per_pixel", "encode_fps", "decode_fps", "peak_mib"}


def test_roundtrip_prints_what_is_promised(folder, answer, tmp_path):
    values = answer("roundtrip", "clip.mp4", "--dtype", "float32")
    assert set(values) >= ROUNDTRIP_KEYS and values["psnr_file_db"] is None
    assert values["device"] == "cpu" and values["dtype"] == "float32"
    words = ["--frames", "6", "--size", "40x24", "--tile", "100", "--latent-dtype", "float32"]
    values = answer("roundtrip", "clip.mp4", tmp_path / "back.mkv", "--codec", "ffv1", "--latents", tmp_path / "x", *words)
    assert (values["frames"], values["width"], values["height"]) == (6, 40, 24)
    assert values["psnr_file_db"] == values["psnr_db"] and values["latent_bytes"] == 3 * 4 * 3 * 5 * 4
    assert pictures(tmp_path / "back.mkv").shape == (6, 24, 40, 3) and load_file(tmp_path / "x")["latents"].shape == (3, 4, 3, 5)
    assert "Tile 100 px with overlap 24 px is rounded to 96 and 24 px (cells of 8 px)." in values["notes"]


def test_ten_bits_are_kept_on_request(answer, cvvae, tmp_path):
    source = write_video(tmp_path / "deep.mkv", deep_pictures(6, 32, 24), codec="ffv1", pix_fmt="gbrp10le")
    values = answer("roundtrip", source, tmp_path / "back.mkv", "--codec", "ffv1", "--depth", "10")
    with av.open(str(tmp_path / "back.mkv")) as container:
        assert container.streams.video[0].pix_fmt == "gbrp10le"
    assert values["notes"] == [] and abs(values["psnr_file_db"] - values["psnr_db"]) < 0.01
    notes = answer("roundtrip", source, tmp_path / "back.mkv", "--codec", "ffv1", "-y")["notes"]
    assert notes == ["The source has 10 bits for each colour, of which 8 are written; --depth 10 keeps more."]
    status, out, err = cvvae("roundtrip", source, tmp_path / "x.mkv", "--depth", "9")
    assert status == 2 and "pass --depth 8 or --depth 10" in err and not (tmp_path / "x.mkv").exists()


def test_numbered_pictures_and_options_of_reading_reach_both_sides(answer, tmp_path):
    for number, picture in enumerate(moving_pictures(6, 32, 24)):
        write_video(tmp_path / f"{number}.png", [picture], codec="png")
    values = answer("roundtrip", tmp_path / "%d.png", tmp_path / "back.mkv", "--fps", "30", "--codec", "ffv1")
    assert (values["frames"], values["frames_missing"], values["notes"]) == (6, 0, [])
    assert values["psnr_file_db"] == values["psnr_db"]
    with av.open(str(tmp_path / "back.mkv")) as container:
        assert [round(30 * frame.time, 1) for frame in container.decode(video=0)] == [0, 1, 2, 3, 4, 5]


def test_numbered_pictures_as_output(folder, answer, cvvae, tmp_path):
    values = answer("roundtrip", "clip.mp4", tmp_path / "%d.png", "--frames", "6")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{number}.png" for number in range(1, 7)]
    assert values["psnr_file_db"] == values["psnr_db"] and any("sound is left out" in note for note in values["notes"])
    status, out, err = cvvae("roundtrip", tmp_path / "%d.png", tmp_path / "%d.png", "-y")
    assert status == 8 and "is an input too" in err
    status, out, err = cvvae("roundtrip", "clip.mp4", tmp_path / "%d.png", "--frames", "6")
    assert status == 8 and "exists already" in err and len(list(tmp_path.iterdir())) == 6
