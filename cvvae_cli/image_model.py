"""Picture autoencoders behind one interface: our own, and the two kinds of diffusers.

What measures or regularises a video autoencoder needs no more of a picture autoencoder than mean latents and their
decode, unscaled, for a batch of pictures. diffusers is imported only when one of its folders is loaded. This module
knows no video: a video autoencoder given to it sees every picture as a window of one frame.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Union

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.checkpoint import PICKLE_SUFFIXES, load_model, resolve_device, weights_sha256
from cvvae_cli.errors import ModelError, UsageError
from cvvae_cli.geometry import RGB, SPATIAL_COMPRESSION_RATIO
from cvvae_cli.model_names import CONFIG_FILE, KNOWN_MODELS, fetch, hub_folder

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder

    Diffusers = Union[AutoencoderKL, AutoencoderKLTemporalDecoder]

# Pixels that go through a network at once: one picture of 1024 px, or four of 512.
PIECE_PIXELS = 1024 * 1024
NAMED_PROBLEMS = 4
DIFFUSERS_CLASSES = ("AutoencoderKL", "AutoencoderKLTemporalDecoder")


class ImageModel(nn.Module, ABC):
    """A picture autoencoder, 8x in space; made by `as_image_model` and `load_image_model`.

    Memory: batches beyond `PIECE_PIXELS` go through the network piece by piece. Where a gradient is wanted, such pieces
    are computed again in the backward pass, so that the bound holds there too.

    Args:
        name: what the user called it.
        identity: sha256 of its weights, as `weights_sha256` gives it.
        latent_channels: z.

    Attributes: as Args.
    """

    def __init__(self, name: str, identity: str, latent_channels: int) -> None:
        super().__init__()
        self.name, self.identity, self.latent_channels = name, identity, latent_channels

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype, in which `encode` and `decode` answer."""
        return next(self.parameters()).dtype

    def frozen(self) -> "ImageModel":
        """This model, its weights without gradients; gradients still flow through it."""
        return self.requires_grad_(False).eval()

    def encode(self, images: Tensor) -> Tensor:
        """Mean latents of pictures.

        Args:
            images: (N, 3, H, W) floating, RGB in [-1, 1], on the model's device; H and W multiples of 8.

        Returns:
            (N, z, H/8, W/8), unscaled.

        Raises:
            UsageError: the shape or dtype breaks one of these rules.
        """
        _check(images, "pictures", RGB)
        height, width = images.shape[2:]
        if height % SPATIAL_COMPRESSION_RATIO or width % SPATIAL_COMPRESSION_RATIO:
            raise UsageError(f"Picture size {width}x{height} is not a multiple of 8; pad or crop it.")
        return _in_pieces(self._encode, images.to(self.dtype), height * width)

    def decode(self, z: Tensor) -> Tensor:
        """Pictures of latents.

        Args:
            z: (N, z, h, w) floating, unscaled, on the model's device.

        Returns:
            (N, 3, 8h, 8w), RGB around [-1, 1], not clamped.

        Raises:
            UsageError: the shape or dtype breaks one of these rules.
        """
        _check(z, "latents", self.latent_channels)
        return _in_pieces(self._decode, z.to(self.dtype), z.shape[2] * z.shape[3] * SPATIAL_COMPRESSION_RATIO**2)

    @abstractmethod
    def _encode(self, images: Tensor) -> Tensor:
        """`encode` of one piece, checked and in the weights' dtype."""

    @abstractmethod
    def _decode(self, z: Tensor) -> Tensor:
        """`decode` of one piece, checked and in the weights' dtype."""


class _OurImages(ImageModel):
    """Our own autoencoder, in windows of one frame."""

    def __init__(self, name: str, identity: str, network: Autoencoder) -> None:
        super().__init__(name, identity, network.latent_channels)
        self.network = network

    def _encode(self, images: Tensor) -> Tensor:
        return self.network.encode(images[:, :, None]).chunk(2, dim=1)[0][:, :, 0]

    def _decode(self, z: Tensor) -> Tensor:
        return self.network.decode(z[:, :, None])[:, :, 0]


class _DiffusersImages(ImageModel):
    """diffusers' `AutoencoderKL`."""

    network: "Diffusers"

    def __init__(self, name: str, identity: str, network: "Diffusers") -> None:
        super().__init__(name, identity, network.config.latent_channels)
        self.network = network

    def _encode(self, images: Tensor) -> Tensor:
        return self.network.encode(images).latent_dist.mean

    def _decode(self, z: Tensor) -> Tensor:
        return self.network.decode(z).sample


class _TemporalDiffusersImages(_DiffusersImages):
    """diffusers' `AutoencoderKLTemporalDecoder` (Stable Video Diffusion's).

    Every picture is a clip of one frame, so the decoder's layers over time see nothing but zero padding around it.
    """

    network: "AutoencoderKLTemporalDecoder"

    def _decode(self, z: Tensor) -> Tensor:
        return self.network.decode(z, num_frames=1).sample


def as_image_model(model: Autoencoder) -> ImageModel:
    """Use one of our autoencoders on pictures; the weights are shared, not copied.

    Its identity is the one that loading gave it, else a fingerprint of the weights as they are now.
    """
    known = model.identity
    if known is not None:
        return _OurImages(known.name, known.sha256, model)
    return _OurImages("unnamed", weights_sha256(model.state_dict()), model)


def load_image_model(name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> ImageModel:
    """Load a picture autoencoder.

    Args:
        name: a folder or hub id `owner/repository[/subfolder]` of diffusers' `AutoencoderKL` or
            `AutoencoderKLTemporalDecoder` (its config.json tells), or anything that `load_model` takes. What exists on
            disk comes before a hub id, the hub's cache before the network.
        device: as `load_model` takes it.
        dtype: what the weights are converted to.

    Returns:
        The model on `device`, in eval mode, its weights still with gradients.

    Raises:
        ModelError: not found, not fetched, unreadable, another architecture, or diffusers is not installed.
        DeviceError: the device is not there.
    """
    target = resolve_device(device)
    folder = _diffusers_style_folder(name)
    kind = None if folder is None else _class_name(folder)
    if folder is None or kind not in DIFFUSERS_CLASSES:
        return as_image_model(load_model(name, target, dtype))
    vae = _load_diffusers(folder, temporal=kind == DIFFUSERS_CLASSES[1])
    halvings = len(vae.config.block_out_channels) - 1
    if 2**halvings != SPATIAL_COMPRESSION_RATIO or (vae.config.in_channels, vae.config.out_channels) != (RGB, RGB):
        raise ModelError(
            f"Image model {name!r} shrinks {vae.config.in_channels} channels {2**halvings} times; "
            "pass one that shrinks RGB 8 times."
        )
    wrapper = _TemporalDiffusersImages if kind == DIFFUSERS_CLASSES[1] else _DiffusersImages
    return wrapper(name, weights_sha256(vae.state_dict()), vae.to(target, dtype)).eval()


def _check(x: Tensor, what: str, channels: int) -> None:
    if x.dim() != 4 or x.shape[1] != channels or 0 in x.shape:
        raise UsageError(f"A batch of {what} must have the shape (N, {channels}, H, W), got {tuple(x.shape)}; add or move axes.")
    if not x.is_floating_point():
        raise UsageError(f"A batch of {what} must be floating point, got {x.dtype}; convert it (pixels to [-1, 1]).")


def _in_pieces(run: Callable[[Tensor], Tensor], batch: Tensor, pixels: int) -> Tensor:
    """Run a network over a batch whose items have `pixels` pixels each."""
    pieces = batch.split(max(1, PIECE_PIXELS // pixels))
    if len(pieces) == 1:
        return run(batch)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(run, piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces])
    return torch.cat([run(piece) for piece in pieces])


def _diffusers_style_folder(name: str) -> Path | None:
    """The local or cached folder that a name means, fetched if need be; None for a known name, a file or nonsense."""
    path = Path(name)
    if name in KNOWN_MODELS or path.is_file() or path.suffix in (".safetensors", *PICKLE_SUFFIXES):
        return None
    if path.is_dir():
        return path
    return fetch(name) if hub_folder(name) else None


def _class_name(folder: Path) -> str | None:
    """What the folder's config calls its class; None if it says nothing readable, which `load_model` explains."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("_class_name") if isinstance(config, dict) else None


def _load_diffusers(folder: Path, temporal: bool) -> "Diffusers":
    """One of diffusers' two autoencoders in float32, every weight from the file."""
    try:
        from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
    except ImportError as error:
        raise ModelError(
            f"Image model {str(folder)!r} is read by diffusers, which is not here; run pip install 'cvvae[compat]'."
        ) from error
    kind = AutoencoderKLTemporalDecoder if temporal else AutoencoderKL
    try:
        vae, found = kind.from_pretrained(
            folder, torch_dtype=torch.float32, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ModelError(f"Image model {str(folder)!r} cannot be read ({reason}); fetch it again.") from error
    wrong = sorted([*found["missing_keys"], *found["unexpected_keys"]])
    if wrong:
        raise ModelError(
            f"Image model {str(folder)!r} does not fit its config in {len(wrong)} tensors ({', '.join(wrong[:NAMED_PROBLEMS])}); "
            "fetch it again."
        )
    return vae
