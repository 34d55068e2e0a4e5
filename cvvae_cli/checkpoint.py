"""Weights from and to disk: one function that loads any model the tool accepts, one that saves ours.

Whatever the container (safetensors, pickle, shards, hub folder), the tensors are checked by name and shape
before the network is touched, and a pickle is only ever opened by torch's restricted loader. Not known here:
tiling, video and training.
"""

import hashlib
import json
import os
import pickle
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cvvae_cli.autoencoder import Autoencoder, ModelIdentity
from cvvae_cli.config import CVVAEConfig, ModelConfig, config_from_dict, config_to_dict
from cvvae_cli.errors import DeviceError, ModelError, OutputError, UsageError
from cvvae_cli.model_names import (
    CONFIG_FILE,
    KNOWN_MODELS,
    WEIGHT_FILES,
    fetch,
    hub_folder,
    resolved_revision,
    weight_file,
)
from cvvae_cli.official_names import OfficialTensor, config_from_official, config_from_shapes, official_layout
from cvvae_cli.torch_files import are_stored, load_torch_file
from cvvae_cli.whole_file import written_whole

PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt")
NAMED_PROBLEMS = 8
NAME_LIMIT = 80
"""Characters that are shown of a tensor's name."""
JSON_LIMIT = 4 * 1024 * 1024
"""Bytes of a config or a list of shards: Python's objects for JSON take many times the bytes of the text."""


@dataclass(frozen=True)
class Weights:
    """What a file or folder holds, before any network is built.

    Attributes:
        config: the architecture that they belong to.
        tensors: name in the file -> tensor as stored.
        official: the names are a release's, not ours.
    """

    config: ModelConfig
    tensors: dict[str, Tensor]
    official: bool


def load_model(
    model: str | os.PathLike[str] = "default",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
) -> Autoencoder:
    """Load a model, ready for inference or training.

    Args:
        model: a name of `KNOWN_MODELS`, a local diffusers-style folder, one .safetensors, .bin, .ckpt or .pt
            file, or a hub id `owner/repository[/subfolder]`. What exists on disk comes before a hub id.
        device: "cpu", "cuda", "cuda:1", ...; "auto" is CUDA where there is one, else the CPU.
        dtype: what the weights are converted to.
        revision: branch, tag or commit on the hub; None is its main branch.

    Returns:
        The model on `device`, in channels_last_3d, with its `identity` set.

    Raises:
        ModelError: not found, not fetched, unreadable, refused, or its tensors do not fit the architecture.
        DeviceError: the device is not there.
    """
    target = resolve_device(device)
    name = os.fspath(model)
    path = _locate(name, revision)
    weights = _read_folder(path) if path.is_dir() else _read_file(path)
    with torch.device("meta"):
        autoencoder = Autoencoder(weights.config)
    stored = _to_our_names(weights, autoencoder, path)
    autoencoder.identity = ModelIdentity(name, weights_sha256(stored), resolved_revision(path), weights.config)
    weights_here = {key: placed(tensor, target, dtype) for key, tensor in stored.items()}
    autoencoder.load_state_dict(weights_here, assign=True)
    return autoencoder.eval()


def resolve_device(device: str | torch.device) -> torch.device:
    """The device that a user's word means.

    Raises:
        DeviceError: there is no such device on this machine.
    """
    cuda_count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return torch.device("cuda" if cuda_count else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(f"Device {device!r} is not a device name; pass cpu, cuda or auto.") from error
    if resolved.type == "cuda" and (resolved.index or 0) >= cuda_count:
        raise DeviceError(f"Device {str(device)!r} is not here, torch sees {cuda_count} CUDA devices; pass --device cpu.")
    return resolved


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype that a user's word means: "auto" is bfloat16 where the device multiplies it in hardware, else float32.

    Raises:
        UsageError: the word is unknown.
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype == "auto":
        if device.type == "cuda":
            quick = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            quick = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if quick else torch.float32
    if dtype not in known:
        raise UsageError(f"Dtype {dtype!r} is unknown; pass auto, {', '.join(known)}.")
    return known[dtype]


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Fingerprint of weights: the same for the same content in any container and any order.

    Args:
        tensors: our tensor names -> tensors as stored, on any device.

    Returns:
        Hexadecimal SHA-256 over each tensor's name, dtype, shape and SHA-256 of its bytes, sorted by name.
    """
    names = sorted(tensors)
    with ThreadPoolExecutor() as pool:
        contents = list(pool.map(_bytes_sha256, (tensors[name] for name in names)))
    digest = hashlib.sha256()
    for name, content in zip(names, contents):
        digest.update(f"{name}\0{tensors[name].dtype}\0{tuple(tensors[name].shape)}\0{content}\0".encode())
    return digest.hexdigest()


def _bytes_sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def official_state_dict(autoencoder: Autoencoder) -> dict[str, Tensor]:
    """The weights under the release's names and shapes: what the official code would load.

    Raises:
        ModelError: the model is no member of the official family.
    """
    if not isinstance(autoencoder.config, CVVAEConfig):
        raise ModelError("A compact model has no official names; save it with save_model.")
    state = autoencoder.state_dict()
    layout = official_layout(autoencoder.config, {name: tuple(t.shape) for name, t in state.items()})
    return {layout[name].name: tensor.reshape(layout[name].shape) for name, tensor in state.items()}


def save_model(
    autoencoder: Autoencoder,
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> str:
    """Write the weights and their config as one safetensors file that `load_model` takes.

    The file appears whole or not at all.

    Args:
        autoencoder: what to save, on any device.
        path: where; an existing file is replaced.
        metadata: more strings for the file's header; `config` is ours.
        dtype: what to store, torch.float16 halves the file; None stores what the model has.

    Returns:
        The sha256 that `load_model` will put in the identity.

    Raises:
        OutputError: the file cannot be written.
    """
    state = {k: v.detach().to("cpu", dtype or v.dtype).contiguous() for k, v in autoencoder.state_dict().items()}
    header = {**(metadata or {}), "config": json.dumps(config_to_dict(autoencoder.config))}
    try:
        with written_whole(path) as part:
            part.write_bytes(save(state, header))  # save_file would hide the file from other users (mode 0600)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"Model file {str(Path(path))!r} cannot be written ({error}); choose another path.") from error
    return weights_sha256(state)


def _locate(name: str, revision: str | None) -> Path:
    if name not in KNOWN_MODELS:
        if Path(name).exists():
            return Path(name)
        if hub_folder(name) is None or Path(name).suffix in (".safetensors", *PICKLE_SUFFIXES):
            known = ", ".join(KNOWN_MODELS)
            raise ModelError(f"Model {name!r} is no known name ({known}), folder or file; see cvvae models.")
    return fetch(name, revision)


def placed(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A weight in its final place and order, channels last; always a copy, so that none stays tied to a mapped file."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.to(device, dtype, copy=True, memory_format=formats.get(tensor.dim(), torch.contiguous_format))


def _to_our_names(weights: Weights, autoencoder: Autoencoder, path: Path) -> dict[str, Tensor]:
    """Check every name and shape, then rename and reshape to ours."""
    shapes = {name: tuple(tensor.shape) for name, tensor in autoencoder.state_dict().items()}
    if weights.official and isinstance(weights.config, CVVAEConfig):
        layout = official_layout(weights.config, shapes)
    else:
        layout = {name: OfficialTensor(name, shape) for name, shape in shapes.items()}
    wanted = {entry.name: entry.shape for entry in layout.values()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.tensors.items()}
    shared = sorted(wanted.keys() & found.keys())
    wrong = [f"{n} is {list(found[n])} not {list(wanted[n])}" for n in shared if found[n] != wanted[n]]
    problems = [
        _listed("missing", sorted(wanted.keys() - found.keys())),
        _listed("not expected", sorted(found.keys() - wanted.keys())),
        _listed("of the wrong shape", wrong),
        _listed("not floating point", [n for n, t in sorted(weights.tensors.items()) if not t.is_floating_point()]),
    ]
    if any(problems):
        listed = "; ".join(filter(None, problems))
        raise ModelError(f"Weights {str(path)!r} do not fit their architecture: {listed}; check the file and its config.")
    return {name: weights.tensors[entry.name].reshape(shapes[name]) for name, entry in layout.items()}


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - NAMED_PROBLEMS} more" if len(names) > NAMED_PROBLEMS else ""
    return f"{len(names)} {what} ({', '.join(name[:NAME_LIMIT] for name in names[:NAMED_PROBLEMS])}{more})"


def _read_folder(folder: Path) -> Weights:
    """A diffusers-style folder: config.json beside one weight file, or an index beside its shards."""
    config_path, weights_path = folder / CONFIG_FILE, weight_file(folder)
    if weights_path is None or not config_path.is_file():
        raise ModelError(
            f"Folder {str(folder)!r} must hold {CONFIG_FILE} and {WEIGHT_FILES[0]} (or .bin); pass such a folder or one file."
        )
    config = config_from_official(_read_json(config_path))
    if weights_path.suffix != ".json":
        return Weights(config, _read_tensors(weights_path)[0], official=True)
    names = _read_json(weights_path).get("weight_map")
    shards = sorted(set(names.values())) if isinstance(names, dict) else []
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or not (folder / shard).is_file():
            raise ModelError(f"Shard {shard!r} of {str(weights_path)!r} is not a file in its folder; fetch the model again.")
        tensors |= _read_tensors(folder / shard)[0]
    return Weights(config, tensors, official=True)


def _read_file(path: Path) -> Weights:
    """One weight file: with our config in its header, or a release's tensors that tell their own architecture."""
    tensors, header = _read_tensors(path)
    if "config" in header:
        try:
            return Weights(config_from_dict(json.loads(header["config"])), tensors, official=False)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"The config in {str(path)!r} cannot be read ({error}); fetch the model again.") from error
    return Weights(config_from_shapes({name: tuple(t.shape) for name, t in tensors.items()}), tensors, official=True)


def _read_json(path: Path) -> dict:
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise ValueError(f"it has more than {JSON_LIMIT} bytes")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"File {str(path)!r} is not readable JSON ({error}); fetch the model again.") from error
    if not isinstance(data, dict):
        raise ModelError(f"File {str(path)!r} holds a {type(data).__name__}, not keys and values; fetch the model again.")
    return data


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of one file by name, and its header's strings (empty for a pickle)."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})
        except (OSError, SafetensorError) as error:
            raise ModelError(f"File {str(path)!r} is not readable safetensors ({error}); fetch the model again.") from error
    if path.suffix not in PICKLE_SUFFIXES:
        raise ModelError(f"File {str(path)!r} is no weight file; pass .safetensors, {', '.join(PICKLE_SUFFIXES)} or a folder.")
    return _read_pickle(path), {}


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        content = load_torch_file(path)
    except pickle.UnpicklingError as error:
        refused = _refused_globals(path, error)
        if refused:
            named = ", ".join(refused)
            raise ModelError(f"File {str(path)!r} wants to run code ({named}), refused; use a safetensors file.") from error
        raise ModelError(f"File {str(path)!r} is not a torch checkpoint of plain tensors; use a safetensors file.") from error
    except Exception as error:  # noqa: BLE001 - damaged bytes make the unpickler fail in any way at all
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"File {str(path)!r} cannot be read ({reason}); fetch the model again.") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        # A training checkpoint carries its losses' networks (discriminator, LPIPS) beside the autoencoder.
        content = {k: v for k, v in content["state_dict"].items() if not str(k).startswith("loss.")}
    if not isinstance(content, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
        raise ModelError(f"File {str(path)!r} does not hold named tensors, alone or under 'state_dict'; pass a file of weights.")
    if not are_stored(content.values(), path):
        raise ModelError(f"File {str(path)!r} holds tensors that are sparse or larger than the file; use a safetensors file.")
    return content


def _refused_globals(path: Path, error: pickle.UnpicklingError) -> list[str]:
    """Names of what a pickle would import and torch does not allow."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (RuntimeError, ValueError, OSError, pickle.UnpicklingError):
        # Only zip archives can be listed; for the older format the loader's own complaint names the first.
        return re.findall(r"GLOBAL (\S+)", str(error))[:1]
