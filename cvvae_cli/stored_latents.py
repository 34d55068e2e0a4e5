"""Latents in the type that a latent file stores them in; what it cannot hold is refused."""

import math

import numpy as np

from cvvae_cli.errors import LatentFileError
from cvvae_cli.safetensors_header import to_stored

_EXPONENT_BITS = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000}
"""All set in infinities and NaN, and in nothing else."""


def stored_latents(values: np.ndarray, dtype: str, name: str, first: int) -> np.ndarray:
    """Round latents to the type of a file.

    Args:
        values: float32 [n, z, h, w].
        dtype: "F16", "BF16" or "F32".
        name: what one of the n is called in a message, e.g. "Latent frame".
        first: the number of the first one.

    Returns:
        Contiguous [n, z, h, w] as `to_stored` gives it.

    Raises:
        LatentFileError: a value is not finite, or not in `dtype`.
    """
    stored = to_stored(values, dtype)
    mask = _EXPONENT_BITS[dtype]
    bad = (stored.view(f"u{stored.itemsize}") & mask) == mask
    if not bad.any():
        return stored
    place = tuple(np.argwhere(bad)[0])
    found, value = f"{name} {first + int(place[0])}", float(values[place])
    if math.isfinite(value):
        wider = "float32" if dtype == "BF16" else "float32 (or bfloat16)"
        raise LatentFileError(f"{found} holds {value:.6g}, too large for the file's {dtype}; pass --latent-dtype {wider}.")
    raise LatentFileError(
        f"{found} holds {value}, which is not finite, so the network itself overflowed; "
        "encode again with --dtype float32 --latent-dtype float32."
    )
