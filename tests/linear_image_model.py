"""An image model for the tests whose every constant can be had by hand."""

import torch
from torch import nn

from cvvae_cli.image_model import ImageModel


class LinearImageModel(ImageModel):
    """Every cell on its own: encode is a matrix, decode another one."""

    def __init__(self, synthesis: torch.Tensor, blur: float = 1.0) -> None:
        """
        Args:
            synthesis: (192, z), pixels of a cell from its latent.
            blur: what `encode` multiplies the exact latents by.
        """
        super().__init__("linear", "none", synthesis.shape[1])
        self.encoder = nn.Conv2d(3, synthesis.shape[1], 8, stride=8, bias=False)
        self.decoder = nn.ConvTranspose2d(synthesis.shape[1], 3, 8, stride=8, bias=False)
        with torch.no_grad():
            self.encoder.weight.copy_(blur * torch.linalg.pinv(synthesis).view(-1, 3, 8, 8))
            self.decoder.weight.copy_(synthesis.T.reshape(-1, 3, 8, 8))

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoder(images)

    def _decode(self, z: torch.Tensor) -> torch.Tensor:
        return self.decoder(z)


def synthesis_with(singular_values: list[float]) -> torch.Tensor:
    """A matrix (192, z) with these singular values, as many as z."""
    torch.manual_seed(3)
    left = torch.linalg.qr(torch.randn(192, len(singular_values))).Q
    right = torch.linalg.qr(torch.randn(len(singular_values), len(singular_values))).Q
    return left * torch.tensor(singular_values) @ right.T
