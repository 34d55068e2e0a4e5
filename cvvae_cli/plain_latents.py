"""Latents that other programs saved: safetensors, `.npy` and `torch.save`, whatever the order of their axes.

This module knows neither models nor video, and nothing of the latent files of this program. It imports torch
only to open a file of `torch.save`.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from typing import Literal

import numpy as np

from cvvae_cli.errors import LatentFileError, UsageError
from cvvae_cli.safetensors_header import (
    NAME_LIMIT,
    NUMPY_TYPES,
    open_for_reading,
    parse_header,
    read_exactly,
    read_header,
    to_float,
)

COMFYUI_SCALE = 0.18215
"""What ComfyUI divides a `latent_tensor` by that comes without the tensor `latent_format_version_0`."""
_COMFYUI_MARK = "latent_format_version_0"
_KEYS = ("latents", "latent", "latent_tensor", "samples")
_FLOATING = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


@dataclass(frozen=True)
class PlainHeader:
    """What a file says about latents that another program saved.

    Attributes:
        key: name of the tensor in the file, "" where it has none.
        shape: of the tensor, in the layout of the file.
        dtype: as numpy or torch name it, e.g. "bfloat16".
        multiplied_by: what reading multiplies by, as in `PlainLatents`.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    multiplied_by: float


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
    with _opened(shown) as (header, read):
        with np.errstate(over="ignore", invalid="ignore"):  # what is or becomes infinite or NaN is found below
            values = np.array(read(), np.float32, order="C") * np.float32(header.multiplied_by)
    if not np.isfinite(values).all():
        raise LatentFileError(f"{shown} holds values that are not finite; save the latents without NaN and infinity.")
    return PlainLatents(values, header.key, header.multiplied_by)


def read_plain_header(path: str | os.PathLike) -> PlainHeader:
    """What `read_plain_latents` would read, told without reading the values.

    Raises:
        LatentFileError: as `read_plain_latents`, but for what only the values show.

    Memory: of a file of `torch.save`, all of it.
    """
    with _opened(os.fspath(path)) as (header, _):
        return header


def is_plain_tensor(path: str | os.PathLike) -> bool:
    """Whether a file begins like one that `read_plain_latents` takes; False for what cannot be read."""
    try:
        file, _ = open_for_reading(os.fspath(path))
        with file:
            return _kind_of(file.read(9)) is not None
    except (LatentFileError, OSError):
        return False


def readings(shape: tuple[int, ...]) -> dict[str, tuple[int, int, int, int]]:
    """The layouts that `to_tzhw` may take latents of this shape for, and (t, z, h, w) in each."""
    if 0 in shape or len(shape) not in (4, 5):
        return {}
    if len(shape) == 5:
        one, z, t, h, w = shape
        return {"bzthw": (t, z, h, w)} if one == 1 else {}
    first, second, h, w = shape
    return {"tzhw": (first, second, h, w), "zthw": (second, first, h, w)}


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


_Opened = tuple[PlainHeader, Callable[[], np.ndarray]]
"""What the file says, and the function that reads the values in the layout of the file, not yet multiplied."""


def _kind_of(start: bytes) -> Literal["npy", "safetensors", "torch"] | None:
    """What a file is whose first 9 bytes are `start`, of which safetensors spends 8 on the length of its header."""
    if start.startswith(b"\x93NUMPY"):
        return "npy"
    if start[5:] == b"\0\0\0{":
        return "safetensors"
    return "torch" if start.startswith((b"PK\x03\x04", b"\x80")) else None


@contextmanager
def _opened(path: str) -> Iterator[_Opened]:
    file, size = open_for_reading(path)
    with file:
        kind = _kind_of(file.read(9))
        if kind == "npy":
            yield _npy(path)
        elif kind == "safetensors":
            yield _safetensors(file, size, path)
        elif kind == "torch":
            yield _torch(path)
        else:
            raise LatentFileError(f"{path} is no latent file; pass a .latent, .safetensors, .npy or .pt file.")


def _choose_key(names: list[str], path: str) -> tuple[str, float]:
    """The name of the latents, and what their values are to be multiplied by."""
    for key in _KEYS:
        if key in names:
            return key, 1 / COMFYUI_SCALE if key == "latent_tensor" and _COMFYUI_MARK not in names else 1.0
    others = [name for name in names if name != _COMFYUI_MARK]
    if len(others) != 1:
        listed = ", ".join(repr(name[:NAME_LIMIT]) for name in others[:8]) + (", ..." if len(others) > 8 else "")
        raise LatentFileError(f"{path} holds {len(others)} tensors ({listed}); save the latents alone or as 'latents'.")
    return others[0], 1.0


def _check_floating(dtype: str, floating: bool, path: str) -> None:
    if not floating:
        raise LatentFileError(f"{path} holds {dtype}, not floating-point latents; save them as float32 or float16.")


def _safetensors(file: FileIO, size: int, path: str) -> _Opened:
    _, entries = parse_header(read_header(file, size, path), size, path)
    key, factor = _choose_key(list(entries), path)
    entry = entries[key]
    _check_floating(entry.dtype, entry.dtype in _FLOATING, path)

    def read() -> np.ndarray:
        stored = np.frombuffer(read_exactly(file, entry.start, entry.stop - entry.start, path), NUMPY_TYPES[entry.dtype])
        return to_float(stored, entry.dtype).reshape(entry.shape)

    return PlainHeader(key, entry.shape, _FLOATING[entry.dtype], factor), read


def _npy(path: str) -> _Opened:
    try:
        # Mapped, not loaded: a header that promises more than the file holds then allocates nothing.
        array = np.lib.format.open_memmap(path, "r")
    except Exception as error:  # the header is parsed as Python, which fails in many ways
        reason = type(error).__name__
        raise LatentFileError(f"{path} is no readable .npy file of numbers ({reason}); save it with numpy.save again.") from error
    _check_floating(str(array.dtype), array.dtype.kind == "f", path)
    return PlainHeader("", array.shape, array.dtype.name, 1.0), lambda: array


def _torch(path: str) -> _Opened:
    import torch

    from cvvae_cli.torch_files import are_stored, load_torch_file

    try:
        content = load_torch_file(path)
        named = {"": content} if isinstance(content, torch.Tensor) else content
        tensors = {str(k): v for k, v in named.items() if isinstance(v, torch.Tensor) and v.layout is torch.strided}
    except Exception as error:  # a damaged or hostile pickle fails in many ways
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it needs {refused[1]}, which could run code" if refused else type(error).__name__
        raise LatentFileError(f"{path} is no file of tensors alone ({reason}); save it with torch.save(latents, ...).") from error
    key, factor = _choose_key(list(tensors), path)
    latents = tensors[key]
    if not are_stored([latents], path):
        raise LatentFileError(f"{path} holds fewer values than its tensor has; save it with torch.save(latents.clone(), ...).")
    dtype = str(latents.dtype).removeprefix("torch.")
    _check_floating(dtype, latents.is_floating_point(), path)
    return PlainHeader(key, tuple(latents.shape), dtype, factor), lambda: latents.detach().float().numpy()
