"""cvvae: long video into the latent space of CV-VAE, a causal 3-D autoencoder, and back.

The names below are the Python API; torch is imported when one of them is first used, so that the command
line can answer `--help` without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "Autoencoder": "autoencoder",
    "CVVAEConfig": "config",
    "CompactConfig": "config",
    "Tiling": "config",
    "CvvaeError": "errors",
    "load_model": "checkpoint",
    "save_model": "checkpoint",
    "encode_tensor": "codec",
    "decode_tensor": "codec",
    "EncodeOptions": "encoding",
    "DecodeOptions": "decoding",
    "encode_file": "encoding",
    "decode_file": "decoding",
    "LatentVideo": "latent_video",
    "check_latents": "roundtrip",
    "check_video": "roundtrip",
    "roundtrip_file": "roundtrip",
}

__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    from cvvae_cli.autoencoder import Autoencoder as Autoencoder
    from cvvae_cli.checkpoint import load_model as load_model
    from cvvae_cli.checkpoint import save_model as save_model
    from cvvae_cli.codec import decode_tensor as decode_tensor
    from cvvae_cli.codec import encode_tensor as encode_tensor
    from cvvae_cli.config import CompactConfig as CompactConfig
    from cvvae_cli.config import CVVAEConfig as CVVAEConfig
    from cvvae_cli.config import Tiling as Tiling
    from cvvae_cli.decoding import DecodeOptions as DecodeOptions
    from cvvae_cli.decoding import decode_file as decode_file
    from cvvae_cli.encoding import EncodeOptions as EncodeOptions
    from cvvae_cli.encoding import encode_file as encode_file
    from cvvae_cli.errors import CvvaeError as CvvaeError
    from cvvae_cli.latent_video import LatentVideo as LatentVideo
    from cvvae_cli.roundtrip import check_latents as check_latents
    from cvvae_cli.roundtrip import check_video as check_video
    from cvvae_cli.roundtrip import roundtrip_file as roundtrip_file


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f"cvvae_cli.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'cvvae_cli' has no attribute {name!r}")
