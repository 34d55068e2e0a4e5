"""What a training step minimises: windows in, the loss and its terms out.

The sum of the terms that a recipe asks for. It holds the model, the frozen picture autoencoder and the learned
variances as one module, so that one wrapper serves several devices. It knows neither data nor optimisers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cvvae_cli import compact, layers
from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.compact import CompactDecoder
from cvvae_cli.errors import UsageError
from cvvae_cli.image_model import ImageModel, load_image_model
from cvvae_cli.posterior import DiagonalGaussian
from cvvae_cli.training.discriminator import PatchDiscriminator3d, adaptive_weight, hinge_generator_loss
from cvvae_cli.training.losses import LearnedVariance, kl_per_element, psnr_db, reconstruction_error, temporal_error
from cvvae_cli.training.perceptual import load_perceptual
from cvvae_cli.training.recipe import Recipe
from cvvae_cli.training.regularisation import decoder_side_error, encoder_side_error, keyframe_map


@dataclass
class Outcome:
    """Attributes:
    loss: scalar with its graph.
    terms: scalars for the log, detached: errors as they are, without weights and learned variances.
    y: reconstruction (B, 3, T, H, W), detached.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    y: Tensor


class Objective(nn.Module):
    """The loss of a recipe.

    Args:
        recipe: the run.
        model: what is trained. Where the recipe says `recompute`, its blocks keep their inputs alone from here on.
        image_model: the frozen picture autoencoder, None without regularisation.
    """

    def __init__(self, recipe: Recipe, model: Autoencoder, image_model: ImageModel | None) -> None:
        super().__init__()
        self.recipe, self.model = recipe, model
        if recipe.run.recompute:
            recompute_blocks(model)
        self.image_model = None if image_model is None else image_model.frozen()
        self.perceptual = load_perceptual(recipe.loss.perceptual)
        sides = recipe.regularisation.side
        learned = ["reconstruction"] if recipe.loss.learned_variance else []
        if recipe.regularisation.learned_variance:
            learned += [f"{side}_side" for side in ("decoder", "encoder") if sides in (side, "both")]
        self.variances = nn.ModuleDict({name: LearnedVariance() for name in learned})

    def forward(
        self,
        x: Tensor,
        noise: list[int],
        map_seed: int,
        critic: PatchDiscriminator3d | None,
        mean_over_processes: Callable[[Tensor], Tensor],
    ) -> Outcome:
        """The loss of a batch of windows.

        Args:
            x: (B, 3, T, H, W) in [-1, 1].
            noise: a seed for each window's sample, so that a window's noise depends on its number alone.
            map_seed: draws the frame that the map "random" takes, one for the whole step.
            critic: the discriminator, None before it starts.
            mean_over_processes: of a tensor.
        """
        loss, rule = self.recipe.loss, self.recipe.regularisation
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.recipe.run.precision == "bf16"):
            moments = self.model.encode(x).float()
            z = sample_windows(moments, noise)
            y = self.model.decode(z)
            errors = self._errors(y, x) | self._sides(x, z, map_seed)
        terms = {name: error.mean() for name, error in errors.items()}
        visible = errors["reconstruction"] + (loss.perceptual_weight * errors["perceptual"] if "perceptual" in errors else 0)
        reconstruction = self._weighed("reconstruction", visible)
        flicker = temporal_error(y, x, loss.temporal_norm, loss.floor)
        terms |= {"kl": kl_per_element(DiagonalGaussian(moments)).mean(), "temporal": flicker.mean()}
        total = reconstruction + loss.kl_weight * terms["kl"] + loss.temporal_weight * terms["temporal"]
        for side, weight in (("decoder_side", rule.decoder_weight), ("encoder_side", rule.encoder_weight)):
            if side in errors:
                total = total + weight * self._weighed(side, errors[side])
        if critic is not None:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.recipe.run.precision == "bf16"):
                adversarial = hinge_generator_loss(critic(y))
            weight = adaptive_weight(reconstruction, adversarial, last_weight(self.model), average=mean_over_processes)
            terms |= {"adversarial": adversarial, "adaptive_weight": weight}
            total = total + self.recipe.adversarial.weight * weight * adversarial
        terms |= {f"log_variance_{name}": variance.log_variance for name, variance in self.variances.items()}
        with torch.no_grad():
            terms["psnr_db"] = psnr_db(y, x).mean()
        return Outcome(total, {name: value.detach() for name, value in terms.items()}, y.detach())

    def _errors(self, y: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Each window's reconstruction error, and its perceptual one if the recipe has it: (B,)."""
        loss = self.recipe.loss
        errors = {"reconstruction": reconstruction_error(y, x, loss.reconstruction, loss.floor)}
        return errors if self.perceptual is None else errors | {"perceptual": self.perceptual(y, x)}

    def _sides(self, x: Tensor, z: Tensor, map_seed: int) -> dict[str, Tensor]:
        """Each window's regularisation errors. Pictures take part like videos: of one frame the map is that frame."""
        rule, errors = self.recipe.regularisation, {}
        if rule.side == "none":
            return errors
        targets = keyframe_map(x, rule.map, torch.Generator().manual_seed(map_seed))
        if rule.side in ("decoder", "both"):
            errors["decoder_side"] = decoder_side_error(self.image_model, z, targets, rule.norm)
        if rule.side in ("encoder", "both"):
            errors["encoder_side"] = encoder_side_error(self.model.decode, self.image_model, x, targets, rule.norm)
        return errors

    def _weighed(self, name: str, error: Tensor) -> Tensor:
        """The mean over windows, divided by the learned variance where there is one."""
        return (self.variances[name](error) if name in self.variances else error).mean()


def load_frozen(recipe: Recipe, device: torch.device) -> ImageModel | None:
    """The picture autoencoder that the recipe regularises against, float32; None without regularisation.

    Raises:
        UsageError: its latents have other channels than the recipe's model.
        ModelError: it cannot be loaded.
    """
    rule = recipe.regularisation
    if rule.side == "none":
        return None
    frozen = load_image_model(rule.image_model, device, torch.float32)
    wanted = recipe.model.latent_channels
    if frozen.latent_channels != wanted:
        has = f"{frozen.latent_channels} latent channels"
        raise UsageError(f"Recipe regularisation.image_model has {has} and [model] {wanted}; make them agree.")
    return frozen


def last_weight(model: Autoencoder) -> nn.Parameter:
    """The weight of the decoder's last convolution, where the adaptive weight compares gradients."""
    decoder = model.decoder
    return decoder.patch_out.weight if isinstance(decoder, CompactDecoder) else decoder.out.conv.weight


def sample_windows(moments: Tensor, seeds: list[int]) -> Tensor:
    """A latent of each window, drawn with its own seed: moments (B, 2z, t, h, w) -> (B, z, t, h, w)."""
    windows = zip(moments.split(1), seeds, strict=True)
    return torch.cat([DiagonalGaussian(window).sample(torch.Generator().manual_seed(seed)) for window, seed in windows])


def recompute_blocks(model: nn.Module) -> None:
    """Let every residual block keep its input only and compute the rest again on the way back."""
    for module in model.modules():
        if isinstance(module, (layers.ResidualBlock, compact.ResidualBlock)):
            module.forward = _recomputed(module.forward)


def _recomputed(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: checkpoint(forward, x, use_reentrant=False, preserve_rng_state=False)  # blocks draw nothing
