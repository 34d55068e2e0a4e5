"""What does closeness in pixels say about closeness of latents? An image decoder's lower Lipschitz constant, and its bound.

`BoundMeter` takes pairs of latents and what the decoder D_i makes of them, and measures stand-ins for the constant m:
the smallest secants and the smallest local singular value found. `docs/compatibility.md` has the claim, its proof, its
limits and the symbols. Nothing here knows the video model, where latents come from, or the command line.

Memory: latents and pictures of the window before, a few crops of latents, sums; see `local_singular_values`.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cvvae_cli.image_model import ImageModel

JACOBIAN_CROPS, JACOBIAN_GRID, JACOBIAN_PATCH = 4, 8, 4
"""Crops of image latents, their cells, and the cells in their middle that are varied: borders matter less there."""
DIFFERENCE_STEP = 1e-4
"""Of central differences, latent units: what curvature and float64 rounding add is then around 1e-8 of the result."""
COLUMNS_AT_ONCE = 16
ROUNDING = 1e-6
"""Of secants, relative: a float32 difference of two pictures is no better."""


@dataclass(frozen=True)
class LowerConstant:
    """A measured stand-in for the image decoder's lower Lipschitz constant m, and the bound that it gives.

    Attributes:
        source: how it was measured.
        m: pixel values in [-1, 1] (L2 norm) per latent unit (L2 norm).
        decoded: |D_i(E_v(x)) - D_i(E_i(psi(x)))| over m, root mean square per latent value; None where m is 0.
        bound: (sqrt(L_v) + sqrt(L_i)) / m per latent value; None where m is 0.
        verdict: "vacuous", the bound lies above the latents' own spread; "refuted", a pair of one moment has a smaller
            secant than m, so m is no lower constant; else "weak", true of these pairs but above their measured distance.
    """

    source: str
    m: float
    decoded: float | None
    bound: float | None
    verdict: str


@dataclass(frozen=True)
class LipschitzBound:
    """The bound on W2 between video and image latents beside what was measured; W2 here is that of the windows seen.

    "Per latent value": divided by the root of the number of values of a latent frame, so that sizes compare.

    Attributes:
        loss_video, loss_image: L_v and L_i, squared L2 distances to psi(x), pixels in [-1, 1], not clamped, summed over a
            frame, mean over frames.
        paired: root mean square of E_v(x) - E_i(psi(x)) per latent value, an upper bound of W2 itself.
        sliced_w2: at sampled positions, a lower bound of W2 per latent value (up to the sampling).
        spread: root mean square over channels of the image latents' standard deviation: the distance at which all
            video latents would lie if they were one and the same, the mean.
        constants: what m was measured as, with its bound.
    """

    loss_video: float
    loss_image: float
    paired: float
    sliced_w2: float
    spread: float
    constants: tuple[LowerConstant, ...]


class BoundMeter:
    """Sums of squares and smallest secants over pairs of latents, and a few crops for the Jacobian."""

    def __init__(self, seed: int) -> None:
        """
        Args:
            seed: fixes the crops.
        """
        self._frames = self._values = 0
        self._loss_video = self._loss_image = self._decoded = self._paired = 0.0
        self._secant_of_pairs = self._secant_of_images = math.inf
        self._before: tuple[Tensor, Tensor] | None = None
        self._generator = torch.Generator().manual_seed(seed)
        self._crops: list[tuple[float, Tensor]] = []

    def add(self, video: Tensor, image: Tensor, from_video: Tensor, from_image: Tensor, targets: Tensor) -> None:
        """Add the latent frames of one window.

        Args:
            video, image: E_v(x) and E_i(psi(x)), (N, z, h, w) float32.
            from_video, from_image: D_i of these, (N, 3, 8h, 8w) float32, around [-1, 1] and not clamped.
            targets: psi(x), as many in [-1, 1].
        """
        self._frames += len(video)
        self._values += video.numel()
        self._loss_video += _squares(from_video, targets).sum().item()
        self._loss_image += _squares(from_image, targets).sum().item()
        apart, decoded = _squares(video, image), _squares(from_video, from_image)
        self._paired += apart.sum().item()
        self._decoded += decoded.sum().item()
        self._secant_of_pairs = min(self._secant_of_pairs, _smallest_ratio(decoded, apart))
        for latents, pictures in self._partners(image, from_image):
            secant = _smallest_ratio(_squares(pictures, from_image), _squares(latents, image))
            self._secant_of_images = min(self._secant_of_images, secant)
        self._before = image, from_image
        for latent in image:
            self._offer_crop(latent)

    def _partners(self, latents: Tensor, pictures: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Other image latents for each: those of this window in every rotation, then those of the window before."""
        for shift in range(1, len(latents) // 2 + 1):
            yield latents.roll(shift, 0), pictures.roll(shift, 0)
        if self._before is not None and self._before[0].shape == latents.shape:
            for shift in range(len(latents)):
                yield self._before[0].roll(shift, 0), self._before[1].roll(shift, 0)

    def _offer_crop(self, latent: Tensor) -> None:
        """Draw a key and a place; the crops with the smallest keys stay, a uniform choice among all latent frames."""
        key, down, right = torch.rand(3, generator=self._generator).tolist()
        height, width = (min(size, JACOBIAN_GRID) for size in latent.shape[1:])
        top, left = int(down * (latent.shape[1] - height + 1)), int(right * (latent.shape[2] - width + 1))
        self._crops.append((key, latent[:, top : top + height, left : left + width].clone()))
        self._crops = sorted(self._crops, key=lambda crop: crop[0])[:JACOBIAN_CROPS]

    def result(self, image: ImageModel, spread: float, sliced_w2: float) -> LipschitzBound:
        """The bound with each measured m; this is where the Jacobians are computed.

        Args:
            image: the model of D_i, in any dtype; a copy in float64 is differentiated.
            spread, sliced_w2: of all latents added; the attributes of `LipschitzBound`.
        """
        exact = copy.deepcopy(image).double()
        with torch.inference_mode():
            local = [local_singular_values(exact.decode, crop)[-1].item() for _, crop in self._crops]
        measured = {
            "smallest secant, E_v(x) to E_i(psi(x))": self._secant_of_pairs,
            "smallest secant, image latents": self._secant_of_images,
            "smallest local singular value": min(local),
        }
        return LipschitzBound(
            loss_video=self._loss_video / self._frames,
            loss_image=self._loss_image / self._frames,
            paired=math.sqrt(self._paired / self._values),
            sliced_w2=sliced_w2,
            spread=spread,
            constants=tuple(self._constant(source, m, spread) for source, m in measured.items() if m < math.inf),
        )

    def _constant(self, source: str, m: float, spread: float) -> LowerConstant:
        if m == 0:
            return LowerConstant(source, m, None, None, "vacuous")
        bound = (math.sqrt(self._loss_video / self._values) + math.sqrt(self._loss_image / self._values)) / m
        verdict = judge(m, bound, spread, self._secant_of_pairs)
        return LowerConstant(source, m, math.sqrt(self._decoded / self._values) / m, bound, verdict)


def judge(m: float, bound: float, spread: float, secant_of_pairs: float) -> str:
    """The verdict of `LowerConstant` on a measured m."""
    if bound > spread:
        return "vacuous"
    return "refuted" if m > secant_of_pairs * (1 + ROUNDING) else "weak"


def local_singular_values(decode: Callable[[Tensor], Tensor], latent: Tensor) -> Tensor:
    """Singular values of a decoder's Jacobian at a latent, with respect to the cells in its middle.

    The whole Jacobian of those cells, by central differences in float64, because a smallest singular value is the last
    that an iteration finds. Varying more cells can only make it smaller.

    Args:
        decode: (N, z, h, w) float64 -> (N, 3, 8h, 8w), item by item, smooth.
        latent: (z, h, w), any floating dtype.

    Returns:
        (z n,) descending, for n = 4 x 4 cells or fewer: L2 norm of pixel values per latent unit.

    Memory: a column of 192 h w numbers for each, and `COLUMNS_AT_ONCE` windows of activations.
    """
    latent = latent.double()
    channels, height, width = latent.shape
    rows, columns = min(height, JACOBIAN_PATCH), min(width, JACOBIAN_PATCH)
    top, left = (height - rows) // 2, (width - columns) // 2
    units = torch.eye(channels * rows * columns, dtype=torch.float64, device=latent.device).view(-1, channels, rows, columns)
    units = F.pad(units, (left, width - left - columns, top, height - top - rows))
    jacobian = []
    for part in (DIFFERENCE_STEP * units).split(COLUMNS_AT_ONCE):
        jacobian.append((decode(latent + part) - decode(latent - part)).flatten(1) / (2 * DIFFERENCE_STEP))
    return torch.linalg.svdvals(torch.cat(jacobian))


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared L2 distance of each item of two batches, (N,), summed in float64."""
    return (a - b).square().flatten(1).sum(dim=1, dtype=torch.float64)


def _smallest_ratio(decoded: Tensor, apart: Tensor) -> float:
    """Smallest secant, from squared distances; infinite where no pair of latents differs."""
    different = apart > 0
    return math.inf if not different.any() else (decoded[different] / apart[different]).min().sqrt().item()
