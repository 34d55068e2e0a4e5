"""The models known by name, where their weights come from, and whether they are here already.

Nothing here needs torch, so that `cvvae models` answers at once; huggingface_hub is imported only when a hub
model is asked about. Its cache, token and offline variables (HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE) are its
own affair. This module does not read weights.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import MappingProxyType

from cvvae_cli.errors import ModelError

CONFIG_FILE = "config.json"
# Diffusers' names, in order of preference; the second lists shards that lie beside it.
WEIGHT_FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.bin",
)
SHARD_PATTERN = "diffusion_pytorch_model-*.safetensors"
HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<subfolder>[\w./-]+))?")


@dataclass(frozen=True)
class HubFolder:
    """A diffusers-style folder on the Hugging Face hub; `subfolder` is "" for the repository's root."""

    repo: str
    subfolder: str

    def inside(self, name: str) -> str:
        """The path of file `name` in the repository."""
        return f"{self.subfolder}/{name}" if self.subfolder else name


@dataclass(frozen=True)
class KnownModel:
    """A model that `--model` takes by name.

    Attributes:
        name: what the user writes.
        hub: where its weights come from; None for those inside the package.
        summary: one line for people.
    """

    name: str
    hub: HubFolder | None
    summary: str


_OFFICIAL = "AILab-CVC/CV-VAE"
KNOWN_MODELS: Mapping[str, KnownModel] = MappingProxyType(
    {
        known.name: known
        for known in (
            KnownModel("default", None, "small model inside the package, z = 16, needs no download"),
            KnownModel("default-image", None, "the picture autoencoder whose latents it keeps, inside the package"),
            KnownModel("default-z4", None, "the default's sibling, z = 4, inside the package"),
            KnownModel("cv-vae-sd21", HubFolder(_OFFICIAL, "vae3d"), "official, z = 4, latents of Stable Diffusion 2.1"),
            KnownModel("cv-vae-sd21-v1.1", HubFolder(_OFFICIAL, "vae3d_v1-1"), "official, z = 4, second release"),
            KnownModel("cv-vae-sd3", HubFolder(_OFFICIAL, "vae3d_sd3"), "official, z = 16, latents of Stable Diffusion 3"),
        )
    }
)


def packaged_weights(name: str) -> Path:
    """Path of a model's weights inside the installed package; it may not exist in a partial install."""
    return Path(str(resources.files("cvvae_cli") / "data" / f"{name}.safetensors"))


def shown_name(name: str) -> str:
    """A model's name for files and answers that others read; the folders of a local path are this machine's affair.

    Args:
        name: what the model was loaded by.

    Returns:
        The name of the file or folder that `name` leads to; `name` itself where it leads to none.
    """
    return Path(name).resolve().name if os.path.exists(name) else name


def hub_folder(model: str) -> HubFolder | None:
    """The hub folder that a known name or an `owner/repository[/subfolder]` stands for; None for anything else."""
    if model in KNOWN_MODELS:
        return KNOWN_MODELS[model].hub
    match = HUB_ID.fullmatch(model) if not {".", ".."} & set(model.split("/")) else None
    return HubFolder(match["repo"], match["subfolder"] or "") if match else None


def weight_file(folder: Path) -> Path | None:
    """The file in a diffusers-style folder that holds or lists the weights; None if there is none."""
    return next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)


def cached_path(model: str, revision: str | None = None) -> Path | None:
    """Where the weights of a known name or hub id are on this machine.

    Args:
        model: a name of `KNOWN_MODELS`, or `owner/repository[/subfolder]`.
        revision: branch, tag or commit on the hub; None is its main branch as last fetched.

    Returns:
        The packaged file, or the cached snapshot folder that has config and weights; None if they are not here.
    """
    hub = hub_folder(model)
    if hub is None:
        return packaged_weights(model) if model in KNOWN_MODELS and packaged_weights(model).is_file() else None
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(hub.repo, hub.inside(CONFIG_FILE), revision=revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    return folder if weight_file(folder) else None


def fetch(model: str, revision: str | None = None) -> Path:
    """Give the local path of a model's weights, from the hub's cache if they are there, else over the network.

    Args:
        model: a name of `KNOWN_MODELS`, or `owner/repository[/subfolder]`.
        revision: branch, tag or commit on the hub; None is its main branch.

    Returns:
        As `cached_path`, never None.

    Raises:
        ModelError: no such model, no network, or no weights in that folder.
    """
    cached = cached_path(model, revision)
    if cached is not None:
        return cached
    hub = hub_folder(model)
    if hub is None:
        raise ModelError(f"Model {model!r} has no weights in this installation; reinstall the package or pass another --model.")
    from huggingface_hub import model_info, snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        published = {sibling.rfilename for sibling in model_info(hub.repo, revision=revision).siblings or []}
        weights = next((name for name in WEIGHT_FILES if hub.inside(name) in published), None)
        if weights is None or hub.inside(CONFIG_FILE) not in published:
            raise ModelError(f"Hub folder {hub.inside(hub.repo)!r} has no {CONFIG_FILE} with {WEIGHT_FILES[0]}; check the id.")
        patterns = [hub.inside(name) for name in (CONFIG_FILE, weights)]
        if weights.endswith(".json"):
            patterns.append(hub.inside(SHARD_PATTERN))
        return Path(snapshot_download(hub.repo, revision=revision, allow_patterns=patterns)) / hub.subfolder
    except (OSError, HTTPError, ValueError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        where = hub.repo if revision is None else f"{hub.repo} at revision {revision}"
        raise ModelError(
            f"Model {model!r} is not in the local cache and cannot be fetched from {where} ({reason.rstrip('.')}); "
            "check the name and the network, or pass a local folder to --model."
        ) from error


def resolved_revision(path: Path) -> str | None:
    """The commit that a path inside the hub's cache belongs to (`.../snapshots/<commit>/...`), else None."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else None
