"""`cvvae bench --fidelity`: its answers, its picture and its sentences."""

import command_line
import pytest

from cvvae_cli.fidelity import Figures

folder = command_line.folder
cvvae = command_line.cvvae
answer = command_line.answer

SMALL = ("--tile", "64", "--overlap", "16", "--size", "96x72", "--clip-frames", "18")


@pytest.fixture
def narrow(cvvae, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    return cvvae


def test_json_holds_the_harm_and_what_it_was_measured_on(answer):
    values = answer("bench", "--fidelity", "clip.mp4", *SMALL, "--chunk", "9", "--chunk-overlap", "4")
    assert (values["model"], values["device"]) == ("tiny.safetensors", "cpu") and values["device_name"]
    assert (values["frames"], values["width"], values["height"]) == (18, 96, 72)
    cut = {"tile": 64, "overlap": 16, "chunk": 9, "chunk_overlap": 4, "mode": "blend", "batch": 1}
    assert values["tiling"].items() >= cut.items()
    assert (values["tiles"], values["chunks"], values["shift"]) == ([2, 2], 4, None)
    for run in ("tiled", "untiled", "one_chunk"):
        assert values[run]["figures"].keys() == Figures.__dataclass_fields__.keys()
        assert values[run]["seconds"] > 0 and values[run]["figures"]["psnr_db"] > 5
    assert values["psnr_loss_db"] == values["untiled"]["figures"]["psnr_db"] - values["tiled"]["figures"]["psnr_db"]
    assert 20 < values["psnr_tiled_to_untiled_db"] < 100
    assert "picture" not in values


def test_by_default_it_is_the_default_tiling(answer):
    values = answer("bench", "--fidelity", "square.mp4")
    assert (values["tiling"]["tile"], values["tiling"]["chunk"], values["tiles"], values["chunks"]) == (256, 17, [1, 1], 1)
    assert values["psnr_tiled_to_untiled_db"] == 100 and values["one_chunk"] is None and values["ghosting"] is None


def test_the_table_fits_eighty_columns_and_progress_names_the_runs(narrow):
    status, out, err = narrow("bench", "--fidelity", "clip.mp4", *SMALL, "--chunk", "13")
    assert status == 0 and max(map(len, out.splitlines())) <= 80
    for word in ("untiled", "one chunk", "seam ratio", "chunk-edge ratio", "ghosting", "flicker", "memory", "2x2 tiles"):
        assert word in out
    for word in ("tiled: 18 of 18 frames", "untiled: 18 of 18 frames", "other chunks: 18 of 18 frames"):
        assert word in err
    assert narrow("bench", "--fidelity", "clip.mp4", *SMALL, "--quiet") == (0, "", "")


def test_the_release_s_tiling_can_be_judged(answer):
    words = ("--tiling", "official", "--tile", "72", "--size", "96x80", "--clip-frames", "18")
    values = answer("bench", "--fidelity", "clip.mp4", *words)
    assert (values["tiling"]["mode"], values["tiles"], values["chunks"], values["ghosting"]) == ("official", [2, 2], 2, None)


def test_the_picture_is_written_and_not_written_over(answer, cvvae, folder):
    words = ("bench", "--fidelity", "clip.mp4", *SMALL, "--picture", "harm.png")
    values = answer(*words)
    drawn = (folder / "harm.png").read_bytes()
    assert drawn.startswith(b"\x89PNG") and values["picture"] == "harm.png"
    assert 1 <= values["errors_amplified"] <= 255 and 1 <= values["differences_amplified"] <= 255
    assert command_line.pictures(folder / "harm.png").shape == (1, 144, 288, 3)
    status, _, err = cvvae(*words)
    assert status == 8 and "harm.png exists already" in err
    assert answer(*words, "-y")["picture"] == "harm.png" and (folder / "harm.png").read_bytes() == drawn
    (folder / "harm.png").unlink()


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("--fidelity clip.mp4 --clip clip.mp4", 2, "one tile alone; drop --clip"),
        ("--fidelity clip.mp4 --against eager", 2, "one tile alone"),
        ("--fidelity clip.mp4 --tile 64 --tile 128", 2, "one tile alone"),
        ("--fidelity clip.mp4 --tile 32", 2, "Tile 32 px is too small"),
        ("--fidelity clip.mp4 --tile 64 --overlap 64", 2, "Overlap 64 px"),
        ("--fidelity clip.mp4 --chunk 16", 2, "Chunk 16"),
        ("--fidelity clip.mp4 --size 12", 2, "Size '12'"),
        ("--fidelity clip.mp4 --picture harm.jpg", 2, "must end in .png"),
        ("--fidelity clip.mp4 --picture nowhere/harm.png", 8, "nowhere"),
        ("--fidelity none.mp4", 3, "none.mp4 does not exist"),
        ("--fidelity text.mp4", 3, "text.mp4"),
        ("--overlap 32", 2, "pass --fidelity VIDEO"),
        ("--clip clip.mp4 --chunk 17", 2, "pass --fidelity VIDEO"),
        ("--picture harm.png", 2, "pass --fidelity VIDEO"),
        ("--clip clip.mp4 --size 64x64", 2, "pass --fidelity VIDEO"),
    ],
)
def test_refusals(cvvae, folder, words, status, said):
    before = command_line.listing(folder)
    got, out, err = cvvae("bench", *words.split(), "--model", "no such model")
    assert (got, out) == (status, "") and said in err and err.count("\n") == 1
    assert command_line.listing(folder) == before
