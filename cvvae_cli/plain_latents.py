"""Latents that other programs saved: safetensors, `.npy` and `torch.save`, whatever the order of their axes.

This module knows neither models nor video, and nothing of the latent files of this program. It imports torch
only to open a file of `torch.save`.
"""

import os
import re
import warnings
from dataclasses import dataclass
from io import FileIO

import numpy as np

from cvvae_cli.errors import LatentFileError, UsageError
from cvvae_cli.safetensors_header import NUMPY_TYPES, open_for_reading, parse_header, read_exactly, read_header, to_float

COMFYUI_SCALE = 0.18215
"""What ComfyUI divides a `latent_tensor` by that comes without the tensor `latent_format_version_0`."""
_COMFYUI_MARK = "latent_format_version_0"
_KEYS = ("latents", "latent", "latent_tensor", "samples")


@dataclass(frozen=True)
class PlainLatents:
    """Latents that another program saved.

    Attributes:
        values: float32, in the layout of the file, already multiplied by `multiplied_by`.
        key: name of the tensor in the file, "" where it has none.
        multiplied_by: 1, or 1 / 0.18215 for a scaled `latent_tensor` of an old ComfyUI.
    """

    values: np.ndarray
    key: str
    multiplied_by: float


def read_plain_latents(path: str | os.PathLike) -> PlainLatents:
    """Reads latents that another program saved as safetensors, `.npy` or with `torch.save`.

    The kind is told from the content, whatever the extension. In a file of several tensors the latents are
    `latents`, `latent`, `latent_tensor` (ComfyUI) or `samples`; a file of one tensor may call it anything.
    Pickles are loaded with `weights_only=True`, so they cannot run code.

    Raises:
        LatentFileError: the file is missing, of another kind, damaged, or holds no latents of floating type.
    """
    shown = os.fspath(path)
    file, size = open_for_reading(shown)
    with file:
        start = file.read(9)
        if start.startswith(b"\x93NUMPY"):
            key, values, scaled = "", _from_npy(shown), False
        elif start[8:9] == b"{":
            key, values, scaled = _from_safetensors(file, size, shown)
        elif start.startswith((b"PK\x03\x04", b"\x80")):
            key, values, scaled = _from_torch(shown)
        else:
            raise LatentFileError(f"{shown} is no latent file; pass a .latent, .safetensors, .npy or .pt file.")
    factor = 1 / COMFYUI_SCALE if scaled else 1.0
    with np.errstate(over="ignore"):  # a float64 beyond float32 is found below, as infinity
        values = np.array(values, np.float32, order="C") * np.float32(factor)
    if not np.isfinite(values).all():
        raise LatentFileError(f"{shown} holds values that are not finite; save the latents without NaN and infinity.")
    return PlainLatents(values, key, factor)


def to_tzhw(array: np.ndarray, channels: int, layout: str | None = None) -> np.ndarray:
    """Brings latents of another program into the order [t, z, h, w].

    Args:
        array: [t, z, h, w] ("tzhw"), [z, t, h, w] ("zthw") or [1, z, t, h, w] ("bzthw").
        channels: z of the model that shall decode them.
        layout: one of the three names; None tells them apart by z.

    Returns:
        A view of `array`.

    Raises:
        UsageError: unknown layout, one of another number of axes, or one that cannot be told (t equals z).
        LatentFileError: no axis holds z channels, more than one video, or no values.
    """
    axes = {"tzhw": (4, 1), "zthw": (4, 0), "bzthw": (5, 1)}
    shape = list(array.shape)
    if layout is not None and layout not in axes:
        raise UsageError(f"Layout {layout!r} is unknown; pass --layout {', '.join(axes)}.")
    if layout is not None and axes[layout][0] != len(shape):
        raise UsageError(f"Layout {layout} has {axes[layout][0]} axes, but the latents are {shape}; pass another --layout.")
    asked = axes if layout is None else {layout: axes[layout]}
    fitting = [name for name, (ndim, axis) in asked.items() if ndim == len(shape) and shape[axis] == channels]
    if not fitting or array.size == 0:
        raise LatentFileError(
            f"Latents {shape} do not fit the model, which has z = {channels}; "
            f"pass latents of that model as [t, {channels}, h, w], [{channels}, t, h, w] or [1, {channels}, t, h, w]."
        )
    if len(fitting) > 1:
        raise UsageError(f"Latents {shape} can be read as [t, z, h, w] and as [z, t, h, w]; pass --layout tzhw or --layout zthw.")
    if fitting[0] == "bzthw":
        if shape[0] != 1:
            raise LatentFileError(f"Latents {shape} hold {shape[0]} videos; save one per file, as [1, {channels}, t, h, w].")
        array = array[0]
    return array if fitting[0] == "tzhw" else array.swapaxes(0, 1)


def _choose_key(names: list[str], path: str) -> tuple[str, bool]:
    """The name of the latents, and whether they are scaled."""
    for key in _KEYS:
        if key in names:
            return key, key == "latent_tensor" and _COMFYUI_MARK not in names
    others = [name for name in names if name != _COMFYUI_MARK]
    if len(others) != 1:
        listed = ", ".join(map(repr, others[:8])) + (", ..." if len(others) > 8 else "")
        raise LatentFileError(f"{path} holds {len(others)} tensors ({listed}); save the latents alone or as 'latents'.")
    return others[0], False


def _check_floating(dtype: str, floating: bool, path: str) -> None:
    if not floating:
        raise LatentFileError(f"{path} holds {dtype}, not floating-point latents; save them as float32 or float16.")


def _from_safetensors(file: FileIO, size: int, path: str) -> tuple[str, np.ndarray, bool]:
    _, entries = parse_header(read_header(file, size, path), size, path)
    key, scaled = _choose_key(list(entries), path)
    entry = entries[key]
    _check_floating(entry.dtype, entry.dtype in ("F16", "BF16", "F32", "F64"), path)
    stored = np.frombuffer(read_exactly(file, entry.start, entry.stop - entry.start, path), NUMPY_TYPES[entry.dtype])
    return key, to_float(stored, entry.dtype).reshape(entry.shape), scaled


def _from_npy(path: str) -> np.ndarray:
    try:
        # Mapped, not loaded: a header that promises more than the file holds then allocates nothing.
        array = np.lib.format.open_memmap(path, "r")
    except Exception as error:  # the header is parsed as Python, which fails in many ways
        reason = type(error).__name__
        raise LatentFileError(f"{path} is no readable .npy file of numbers ({reason}); save it with numpy.save again.") from error
    _check_floating(str(array.dtype), array.dtype.kind == "f", path)
    return array


def _from_torch(path: str) -> tuple[str, np.ndarray, bool]:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on pickles of other versions; the result is what counts
            content = torch.load(path, map_location="cpu", weights_only=True)
        named = {"": content} if isinstance(content, torch.Tensor) else content
        tensors = {str(k): v for k, v in named.items() if isinstance(v, torch.Tensor) and v.layout is torch.strided}
    except Exception as error:  # a damaged or hostile pickle fails in many ways
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it needs {refused[1]}, which could run code" if refused else type(error).__name__
        raise LatentFileError(f"{path} is no file of tensors alone ({reason}); save it with torch.save(latents, ...).") from error
    key, scaled = _choose_key(list(tensors), path)
    _check_floating(str(tensors[key].dtype), tensors[key].is_floating_point(), path)
    return key, tensors[key].detach().float().numpy(), scaled
