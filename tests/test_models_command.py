"""`cvvae models`: the list."""

import command_line

folder, cvvae, answer = command_line.folder, command_line.cvvae, command_line.answer


def test_models_are_listed_with_their_sources(answer):
    entries = {entry["name"]: entry for entry in answer("models")["models"]}
    assert entries["default"]["source"] == "in the package"
    assert entries["cv-vae-sd3"]["source"] == "AILab-CVC/CV-VAE/vae3d_sd3" and entries["cv-vae-sd21"]["summary"]
    assert set(entries) == {"default", "default-image", "default-z4", "cv-vae-sd21", "cv-vae-sd21-v1.1", "cv-vae-sd3"}
