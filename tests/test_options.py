"""What the options of several commands share."""

from cvvae_cli.commands.options import known_model


def test_known_models_are_known_by_their_hub_id_too(monkeypatch, tmp_path):
    names = ["default", "cv-vae-sd3", "AILab-CVC/CV-VAE/vae3d_sd3", "AILab-CVC/CV-VAE/vae3d"]
    assert [known_model(name) for name in names] == ["default", "cv-vae-sd3", "cv-vae-sd3", "cv-vae-sd21"]
    assert not any(map(known_model, ["other/CV-VAE/vae3d", "x.safetensors", None]))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "AILab-CVC/CV-VAE/vae3d").mkdir(parents=True)  # what lies here comes before the hub
    assert known_model("AILab-CVC/CV-VAE/vae3d") is None
