"""Latent regularisation: keeps the latents of a video those of a frozen picture autoencoder.

With the picture autoencoder (E_i, D_i), the video autoencoder (E_v, D_v) and a map psi from 1 + 4k frames to 1 + k,
the decoder side is |psi(x) - D_i(E_v(x))|, the encoder side |x - D_v(E_i(psi(x)))|. A picture is a window of one
frame, for which psi is the identity, so both hold for pictures as they are. Weights and schedule are the loop's.

Source: the paper's method (CV-VAE, arXiv 2405.20279); means instead of sums, so that a weight does not depend on the size.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from cvvae_cli.errors import UsageError
from cvvae_cli.geometry import TEMPORAL_COMPRESSION_RATIO
from cvvae_cli.image_model import ImageModel
from cvvae_cli.layers import as_frames, from_frames
from cvvae_cli.training.losses import reconstruction_error

KeyframeMap = Literal["first", "slice", "average", "random"]
Norm = Literal["l1", "l2"]


def keyframe_map(x: Tensor, kind: KeyframeMap, generator: torch.Generator | None = None) -> Tensor:
    """psi: one frame for every latent frame.

    Args:
        x: (B, 3, 1 + 4k, H, W).
        kind: what stands for each group of 4 after the first frame, which stands for itself: "first" and "slice", its
            first and its last; "average", its mean; "random", one drawn per call, the same in every group and window.
        generator: source of the draw; on the CPU, where drawing does not wait for a device. None takes torch's own.

    Returns:
        (B, 3, 1 + k, H, W).

    Raises:
        UsageError: another number of frames, or an unknown kind.
    """
    if x.shape[2] % TEMPORAL_COMPRESSION_RATIO != 1:
        raise UsageError(f"{x.shape[2]} frames are not 1 + 4k; cut windows of such a length.")
    if kind not in ("first", "slice", "average", "random"):
        raise UsageError(f"Keyframe map {kind!r} is unknown; choose first, slice, average or random.")
    if x.shape[2] == 1:
        return x
    groups = x[:, :, 1:].unflatten(2, (-1, TEMPORAL_COMPRESSION_RATIO))
    if kind == "average":
        return torch.cat([x[:, :, :1], groups.mean(dim=3)], dim=2)
    index = {"first": 0, "slice": TEMPORAL_COMPRESSION_RATIO - 1}.get(kind)
    if index is None:
        device = "cpu" if generator is None else generator.device
        index = int(torch.randint(TEMPORAL_COMPRESSION_RATIO, (), generator=generator, device=device))
    return torch.cat([x[:, :, :1], groups[:, :, :, index]], dim=2)


def decoder_side_error(image: ImageModel, latents: Tensor, targets: Tensor, norm: Norm = "l1") -> Tensor:
    """|psi(x) - D_i(E_v(x))| of each window: can the picture decoder read the video latents?

    Args:
        image: the picture autoencoder; freeze it (`ImageModel.frozen`), the gradient flows through it into `latents`.
        latents: (B, z, t, h, w), unscaled, of the video encoder.
        targets: (B, 3, t, 8h, 8w), psi(x) of the same windows.
        norm: mean absolute ("l1") or mean squared ("l2") difference.

    Returns:
        (B,), at least float32.

    Raises:
        UsageError: the latents are not of `image`'s shape, or the norm is unknown.
    """
    pictures = from_frames(image.decode(as_frames(latents)), len(latents))
    return reconstruction_error(pictures, targets, norm, floor=0.0)


def encoder_side_error(
    decode: Callable[[Tensor], Tensor], image: ImageModel, x: Tensor, targets: Tensor, norm: Norm = "l1"
) -> Tensor:
    """|x - D_v(E_i(psi(x)))| of each window: can the video decoder read the picture latents?

    Args:
        decode: the video decoder, (B, z, t, h, w) -> (B, 3, T, H, W); the only one to get a gradient.
        image: the picture autoencoder, run without gradients.
        x: (B, 3, T, H, W) in [-1, 1].
        targets: (B, 3, t, H, W), psi(x).
        norm: as in `decoder_side_error`.

    Returns:
        (B,), at least float32.

    Raises:
        UsageError: the pictures are not of `image`'s shape, or the norm is unknown.
    """
    with torch.no_grad():
        latents = from_frames(image.encode(as_frames(targets)), len(targets))
    return reconstruction_error(decode(latents), x, norm, floor=0.0)
