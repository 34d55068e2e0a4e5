"""How a model is named to others. What the names lead to is tested with the loading of weights."""

from pathlib import Path

import pytest

from cvvae_cli.model_names import KNOWN_MODELS, HubFolder, hub_folder, shown_name


def test_names_and_hub_ids_are_shown_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (*KNOWN_MODELS, "somebody/something", "somebody/something/vae", "unnamed"):
        assert shown_name(name) == name


def test_of_a_local_path_only_the_last_part_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "secret" / "vae"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    monkeypatch.chdir(folder)
    for name in (folder / "model.safetensors", "model.safetensors", "../vae/model.safetensors"):
        assert shown_name(str(name)) == "model.safetensors"
    for name in (folder, f"{folder}/", "../vae", "."):
        assert shown_name(str(name)) == "vae"


def test_a_hub_id_leads_to_no_other_folder() -> None:
    assert hub_folder("owner/name/sub.folder/x") == HubFolder("owner/name", "sub.folder/x")
    for name in ("../x", "a/..", "a/b/../..", "a/b/./c", "./a", "/a/b", "a/b/c//..", "a", "a\nb/c"):
        assert hub_folder(name) is None
