"""Perceptual terms of the reconstruction: LPIPS where its weights are there, gradients of the picture where not.

Both compare frame by frame and give one value per window. This module knows no model and no weight of a term;
motion is the temporal term's business.
"""

from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cvvae_cli.errors import UsageError

_LUMA = (0.299, 0.587, 0.114)
"""BT.601, as in `metrics`."""


class GradientLoss(nn.Module):
    """Mean absolute error of horizontal and vertical differences at several scales, for luma and two chroma planes.

    What it stands for: the early layers of the network behind LPIPS, which are mostly edge filters of several
    sizes. A reconstruction that loses edges or draws new ones (blur, ringing, blocks) is charged for it more
    than one that is a little too bright, on fine and on coarse structure alike.

    What it cannot do: it compares pixel by pixel, so it does not forgive texture that is right in kind and
    wrong in place, as LPIPS does, and like every L1 it prefers blur where the detail cannot be known. It has
    seen no pictures: no masking by texture, no notion of faces or letters. It does not see errors of the mean
    colour at all, which is the reconstruction term's part.

    Each scale is 2 x 2 averages of the one before (a last odd row or column is left out); the first is the
    frame itself. All of it is linear up to the magnitude, so only the error y - x is filtered.

    Args:
        scales: number of scales, >= 1; a frame needs 2^scales px on its short side.
        chroma: weight of the mean over the chroma planes (B - luma, R - luma) beside luma's, >= 0. Neither
            value was tuned.
    """

    def __init__(self, scales: int = 4, chroma: float = 0.5) -> None:
        super().__init__()
        self.scales, self.chroma = scales, chroma

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """The loss of each window: the mean over scales and both directions, over frames and positions.

        Args:
            y: what the model made, (B, 3, T, H, W), around [-1, 1], any floating dtype; float32 at least is used.
            x: what it should have made, of y's shape, in [-1, 1].

        Returns:
            (B,).

        Raises:
            UsageError: the frames are too small for the scales.
        """
        assert y.shape == x.shape, f"windows differ: {tuple(y.shape)} and {tuple(x.shape)}"
        if min(y.shape[3:]) < 2**self.scales:
            size, least = f"{y.shape[4]}x{y.shape[3]}", 2**self.scales
            raise UsageError(f"Frames of {size} px are too small for {self.scales} scales of gradients; crop {least} px or more.")
        exact = torch.promote_types(y.dtype, torch.float32)
        red, green, blue = (y.to(exact) - x.to(exact)).unbind(1)
        luma = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
        error = torch.stack([luma, blue - luma, red - luma], dim=1)
        total = _mean_slope(error, self.chroma)
        for _ in range(1, self.scales):
            error = F.avg_pool3d(error, (1, 2, 2))
            total = total + _mean_slope(error, self.chroma)
        return total / self.scales


def _mean_slope(error: Tensor, chroma: float) -> Tensor:
    """Mean magnitude of an error's horizontal and vertical differences: planes (B, 3, T, H, W) -> (B,)."""
    slopes = [error.diff(dim=dim).abs().mean(dim=(2, 3, 4)) for dim in (3, 4)]
    luma, blue, red = (0.5 * (slopes[0] + slopes[1])).unbind(1)
    return luma + chroma * 0.5 * (blue + red)


class LpipsLoss(nn.Module):
    """LPIPS with the VGG network, mean over a window's frames; frozen and always in eval mode.

    It runs in float32 whatever the autocast around it: distances of unit feature vectors are differences of
    nearly equal numbers. Its weights are in this module's `state_dict`, so keep it out of a checkpoint.

    Memory: the features of one piece of frames; with gradients a piece is computed again in every backward pass.

    Args:
        frames_per_piece: frames that go through the network at once, >= 1.

    Raises:
        UsageError: the package or the weights of its network cannot be had.

    Source: Zhang, Isola, Efros, Shechtman, Wang, "The unreasonable effectiveness of deep features as a
    perceptual metric", 2018.
    """

    def __init__(self, frames_per_piece: int = 8) -> None:
        super().__init__()
        self.frames_per_piece = frames_per_piece
        self.network = _load_lpips().requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode: its dropout is for fitting LPIPS itself."""
        return super().train(False)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """The mean LPIPS of each window's frames.

        Args:
            y: what the model made, (B, 3, T, H, W), around [-1, 1], any floating dtype; H, W >= 16.
            x: what it should have made, of y's shape, in [-1, 1].

        Returns:
            (B,) float32, at least 0.
        """
        assert y.shape == x.shape, f"windows differ: {tuple(y.shape)} and {tuple(x.shape)}"
        pieces = [frames.transpose(1, 2).flatten(0, 1).split(self.frames_per_piece) for frames in (y, x)]
        # Without the checkpoint the features of all pieces would wait for the backward pass.
        values = [
            checkpoint(self._distances, made, source, use_reentrant=False, preserve_rng_state=False)
            for made, source in zip(*pieces, strict=True)
        ]
        return torch.cat(values).view(y.shape[0], y.shape[2]).mean(dim=1)

    def _distances(self, y: Tensor, x: Tensor) -> Tensor:
        """Frames (N, 3, H, W) in [-1, 1] -> (N,)."""
        with torch.autocast(y.device.type, enabled=False):
            return self.network(y.float(), x.float()).flatten()


def _load_lpips() -> nn.Module:
    advice = (
        'pip install "cvvae[lpips]" with the torchvision of this torch, and connect once so that it can fetch VGG16, '
        "or set the perceptual loss to gradient or none"
    )
    try:
        import lpips

        return lpips.LPIPS(net="vgg", verbose=False)  # verbose prints to stdout, which is for answers
    except ImportError as error:
        raise UsageError(f"Perceptual loss lpips needs the lpips package ({error}); {advice}.") from error
    except (OSError, RuntimeError) as error:  # no network, a damaged download, a torchvision built for another torch
        raise UsageError(f"Perceptual loss lpips cannot load its network ({error}); {advice}.") from error


def load_perceptual(kind: Literal["none", "gradient", "lpips"]) -> nn.Module | None:
    """The perceptual term that a recipe names.

    Args:
        kind: "gradient" needs nothing, "lpips" the optional package and the weights of its network.

    Returns:
        A module that takes (y, x), both (B, 3, T, H, W) in [-1, 1], and returns (B,); None for "none".

    Raises:
        UsageError: another kind, or LPIPS cannot be had.
    """
    if kind == "none":
        return None
    if kind == "gradient":
        return GradientLoss()
    if kind == "lpips":
        return LpipsLoss()
    raise UsageError(f"Perceptual loss {kind!r} is unknown; set it to none, gradient or lpips.")
