"""`cvvae compat`: its answers, its sentences, and diffusers' models on the image side."""

import json
import sys

import pytest
import torch
import typer
from clips import moving_pictures, write_video
from tiny_model import save_tiny_model

from cvvae_cli.commands import compat
from cvvae_cli.errors import ModelError, OutputError, UsageError, VideoError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two clips, a picture and a tiny model."""
    folder = tmp_path_factory.mktemp("compat")
    write_video(folder / "a.mp4", moving_pictures(10, 50, 34))
    write_video(folder / "b.mp4", moving_pictures(7, 64, 40)[::-1])
    write_video(folder / "picture.png", moving_pictures(1, 40, 40), codec="png")
    save_tiny_model(folder / "tiny.safetensors")
    save_tiny_model(folder / "other.safetensors", seed=1)
    return folder


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """run("a.mp4", "--json", ...) -> (stdout, stderr); errors come as they are raised."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("CVVAE_DEVICE", "cpu")
    app = typer.Typer()
    app.command(epilog=compat.EPILOG)(compat.compat)

    def call(*words, image="other.safetensors"):
        app([*words, "--image", image, "--model", "tiny.safetensors"], standalone_mode=False)
        return capsys.readouterr()

    return call


def test_json_holds_everything(run):
    out, _ = run("a.mp4", "b.mp4", "--frames", "5", "--crop", "32", "--map", "average", "--bound", "--json")
    values = json.loads(out)
    assert (values["model"], values["dtype"], values["image"]) == ("tiny.safetensors", "float32", "other.safetensors")
    assert (values["clips"], values["windows"], values["latent_frames"], values["map"]) == (2, 3, 6, "average")
    assert list(values["psnr"]) == ["pictures", "first", "slice", "average", "random"]
    figure = values["psnr"]["average"]["image_of_video"]
    assert figure["clips"] == 2 and figure["mean_db"] > 0 and figure["standard_error_db"] > 0
    assert values["distances"].keys() == {"same windows", "other half", "zero line"}
    assert len(values["channels"]["video"]["skew"]) == 4
    bound = values["bound"]
    assert bound["sliced_w2"] <= bound["paired"] and len(bound["constants"]) == 3
    assert {c["verdict"] for c in bound["constants"]} <= {"vacuous", "weak", "refuted"}


def test_the_same_command_gives_the_same_answer(run):
    words = ("a.mp4", "--frames", "5", "--size", "24", "--bound", "--json")
    first, second = json.loads(run(*words).out), json.loads(run(*words).out)
    assert first == second
    assert json.loads(run(*words, "--seed", "1").out)["psnr"]["first"] == first["psnr"]["first"]


def test_tables_fit_eighty_columns(run):
    out, err = run("a.mp4", "b.mp4", "--frames", "5", "--bound")
    assert "Jacobian" in err and "Frechet distances of 2 latent frames for 64 features are biased" in err
    for word in ("D_i(E_v(x))", "pictures", "average", "zero line", "sliced W2", "verdict", "±"):
        assert word in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_quiet_says_nothing_and_windows_are_limited(run):
    assert tuple(run("a.mp4", "--frames", "5", "--quiet")) == ("", "")
    assert json.loads(run("a.mp4", "b.mp4", "--frames", "1", "--max-windows", "3", "--json", "--quiet").out)["windows"] == 6


def test_pictures_alone_and_short_clips(run):
    out, err = run("picture.png", "b.mp4", "--json")
    values = json.loads(out)
    assert "b.mp4 is shorter than 17 frames: one window of 5." in err
    assert values["psnr"]["pictures"]["video_own"]["clips"] == 2
    assert values["psnr"]["first"]["video_own"]["clips"] == 1
    assert list(json.loads(run("picture.png", "--json").out)["psnr"]) == ["pictures"]


def test_a_model_beside_itself(run):
    row = json.loads(run("picture.png", "--json", image="tiny.safetensors").out)["psnr"]["pictures"]
    assert row["image_of_video"] == row["image_own"] == row["video_own"]


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderKLTemporalDecoder"])
def test_diffusers_folders_are_image_models(run, folder, kind):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    sizes = {"block_out_channels": (32,) * 4, "layers_per_block": 1, "latent_channels": 4}
    down = {"down_block_types": ("DownEncoderBlock2D",) * 4}
    up = {"up_block_types": ("UpDecoderBlock2D",) * 4, "norm_num_groups": 8} if kind == "AutoencoderKL" else {}
    vae = getattr(diffusers, kind)(**sizes, **down, **up).eval()
    vae.save_pretrained(folder / kind)
    values = json.loads(run("picture.png", "--crop", "16", "--bound", "--json", image=kind).out)
    assert values["image"] == kind and values["psnr"]["pictures"]["image_own"]["mean_db"] > 0
    with torch.no_grad():
        picture = torch.from_numpy(moving_pictures(1, 40, 40)[0][12:28, 12:28]).permute(2, 0, 1)[None].float() / 127.5 - 1
        latents = vae.encode(picture).latent_dist.mean
    expected = latents.mean(dim=(0, 2, 3))
    torch.testing.assert_close(torch.tensor(values["channels"]["image"]["mean"]), expected, atol=1e-5, rtol=1e-4)
    assert values["bound"]["constants"][-1]["m"] > 0


def test_the_plot_is_a_picture_and_is_not_written_over(run, folder):
    words = ("a.mp4", "--frames", "5", "--json", "--plot", "drawn.png")
    assert json.loads(run(*words).out)["plot"] == "drawn.png"
    drawn = (folder / "drawn.png").read_bytes()
    assert drawn.startswith(b"\x89PNG") and len(drawn) > 5000
    with pytest.raises(OutputError, match="exists already"):
        run(*words)
    run(*words, "-y")
    assert (folder / "drawn.png").read_bytes() == drawn
    assert not list(folder.glob("*.part"))


def test_a_plot_without_matplotlib_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    with pytest.raises(UsageError, match=r"needs matplotlib.*pip install 'cvvae\[compat\]'"):
        run("a.mp4", "--plot", "none.png")


@pytest.mark.parametrize(
    "words, error, sentence",
    [
        (("missing.mp4",), VideoError, "missing.mp4 does not exist"),
        (("a.mp4", "--frames", "6"), UsageError, "6 frames are not 1"),
        (("a.mp4", "--map", "median"), UsageError, "Map 'median' is unknown; pass --map first, slice, average or random"),
        (("a.mp4", "--crop", "64"), UsageError, "smaller than the 64 px of --crop"),
        (("a.mp4", "--plot", "plot.jpg"), UsageError, "must end in .png"),
        (("a.mp4", "--plot", "nowhere/plot.png"), OutputError, "the folder nowhere does not exist"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(run, words, error, sentence):
    with pytest.raises(error, match=sentence):
        run(*words)


def test_an_image_model_that_is_not_there(run):
    with pytest.raises(ModelError):
        run("a.mp4", image="missing.safetensors")
