"""From a picture autoencoder to the video autoencoder that starts from it.

A 2-D kernel goes into one frame of the 3-D kernel: the last where time is causal (every encoder), the centre one
elsewhere; the other frames are zero. Where frames are joined on channels it goes into the slot of the last frame,
where channels are split into frames each frame gets a copy. `docs/inflation.md` says what the result computes, and
where the official architectures do not agree with the picture autoencoders of Stable Diffusion. This module knows
no training and no file.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from cvvae_cli.autoencoder import Autoencoder, Decoder
from cvvae_cli.config import CompactConfig, CVVAEConfig, ModelConfig
from cvvae_cli.errors import ModelError, UsageError
from cvvae_cli.official_names import official_modules

# What two models of the same sizes may differ in: time, and what a diffusion model sees.
FREE_FIELDS = {"temporal", "scaling_factor", "shift_factor"}
GATE_FIELDS = {"codes", "gate_channels"}
QUANT_CONVS = tuple(f"{conv}.{leaf}" for conv in ("quant_conv", "post_quant_conv") for leaf in ("weight", "bias"))
NAMED_PROBLEMS = 4
RIDGE = 1e-6  # of the mean square of an input; normed tokens have one direction without variance


def inflate(image: Autoencoder, config: CompactConfig) -> Autoencoder:
    """Build the video autoencoder that reconstructs pictures exactly as `image` does.

    Of a video it codes the last frame of every group of 4, `E_v(x)[k] = E_i(x[4k])`, and shows each latent frame for
    its whole group, `D_v(z)[4k - 3 .. 4k] = D_i(z[k])`. From a picture autoencoder with one basis a video one with
    several may come: each starts as a copy of it, and the gate, whose choice then makes no difference, at random.

    Args:
        image: a picture autoencoder of the compact family (`temporal = False`).
        config: of the video autoencoder: the same sizes with `temporal = True`; scale and shift may differ, and
            codes and gate_channels where the picture autoencoder has one code.

    Returns:
        A new model on the weights' device and in their dtype, without identity.

    Raises:
        ModelError: the two configs do not belong together.
    """
    if not isinstance(image.config, CompactConfig) or image.config.temporal or not config.temporal:
        raise ModelError("A compact model with temporal = false is inflated to one with temporal = true; correct the configs.")
    free = FREE_FIELDS | (GATE_FIELDS if image.config.codes == 1 else set())
    names = [f.name for f in fields(config) if f.name not in free]
    pairs = [(name, getattr(image.config, name), getattr(config, name)) for name in names]
    differing = [f"{name} ({before} and {after})" for name, before, after in pairs if before != after]
    if differing:
        raise ModelError(f"Picture and video model differ in {', '.join(differing)}; give both the same sizes.")
    return _filled(config, _with_bases(image.state_dict(), image.config, config))


def _with_bases(weights: Mapping[str, Tensor], image: CompactConfig, video: CompactConfig) -> dict[str, Tensor]:
    """A picture autoencoder's weights with its one basis as often as the video model has bases; more stay as they are."""
    if image.codes == video.codes:
        return dict(weights)
    repeated = {name: tensor for name, tensor in weights.items() if ".gate." not in name}
    outputs = [("encoder.analysis.weight", 0), ("encoder.analysis.bias", 0)]
    for name, axis in (*outputs, ("decoder.synthesis.weight", 1), ("decoder.conv_in.weight", 1)):
        shared, basis = repeated[name].split([image.shared_channels, image.gated_channels], dim=axis)
        repeated[name] = torch.cat([shared, *[basis] * video.codes], dim=axis)
    return repeated


def inflate_official(vae: nn.Module | Mapping[str, Tensor], config: CVVAEConfig, latents: Tensor | None = None) -> Autoencoder:
    """Build an official video autoencoder from a picture autoencoder of Stable Diffusion.

    How near its pictures come to its source's is in `docs/inflation.md`.

    Args:
        vae: diffusers' `AutoencoderKL`, or its state dict: Stable Diffusion 2.1's for `sd21`, Stable Diffusion 3's for
            `sd3`. A quant_conv is folded into the encoder's last convolution, a post_quant_conv into the decoder's first.
        config: the official architecture, with the widths, blocks and norm groups of `vae`.
        latents: for `start_temporal_attention`.

    Returns:
        A new model on the weights' device and in their dtype, without identity.

    Raises:
        ModelError: names, shapes or norm groups of `vae` do not fit the config.
        UsageError: the latents do not fit the model.
    """
    groups = getattr(getattr(vae, "config", None), "norm_num_groups", config.norm_groups)
    if groups != config.norm_groups:
        raise ModelError(f"Picture autoencoder has {groups} norm groups, the config {config.norm_groups}; correct the config.")
    source = dict(vae.state_dict() if isinstance(vae, nn.Module) else vae)
    quant = {name: source.pop(name) for name in QUANT_CONVS if name in source}
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in Autoencoder(config).state_dict().items() if ".temporal." not in name}
    names = _diffusers_names(config, wanted)
    _check_source({name: tensor.shape for name, tensor in source.items()}, {names[ours]: shape for ours, shape in wanted.items()})
    _fold(source, quant)
    video = _filled(config, {ours: source[theirs] for ours, theirs in names.items()})
    start_temporal_attention(video, latents)
    return video


def _diffusers_names(config: CVVAEConfig, ours: Iterable[str]) -> dict[str, str]:
    """Our tensor names -> those of diffusers' AutoencoderKL, which the release of `sd3` took over."""
    modules = official_modules(replace(config, variant="sd3"))
    places = [name.rpartition(".") for name in ours]
    return {f"{place}.{leaf}": f"{modules[place].name}.{leaf}" for place, _, leaf in places}


def _check_source(found: Mapping[str, torch.Size], wanted: Mapping[str, torch.Size]) -> None:
    """Check names, and outputs and inputs of every weight but those whose outputs a doubling of time multiplies."""
    wrong = [n for n in sorted(found.keys() & wanted.keys()) if found[n][:2] != wanted[n][:2] and "upsamplers" not in n]
    problems = sorted(found.keys() ^ wanted.keys()) + wrong
    if problems:
        raise ModelError(
            f"Picture autoencoder and config disagree on {len(problems)} tensors ({', '.join(problems[:NAMED_PROBLEMS])}); "
            "pass diffusers' AutoencoderKL with the config's widths and blocks."
        )


def _fold(source: dict[str, Tensor], quant: Mapping[str, Tensor]) -> None:
    """Multiply the 1x1 convolutions between encoder and decoder into their neighbours, in place."""
    if "quant_conv.weight" in quant:
        mix = quant["quant_conv.weight"].flatten(1)
        source["encoder.conv_out.weight"] = torch.einsum("oi,ichw->ochw", mix, source["encoder.conv_out.weight"])
        source["encoder.conv_out.bias"] = mix @ source["encoder.conv_out.bias"] + quant["quant_conv.bias"]
    if "post_quant_conv.weight" in quant:
        kernel = source["decoder.conv_in.weight"]
        source["decoder.conv_in.weight"] = torch.einsum("oihw,ij->ojhw", kernel, quant["post_quant_conv.weight"].flatten(1))
        source["decoder.conv_in.bias"] = source["decoder.conv_in.bias"] + kernel.sum((2, 3)) @ quant["post_quant_conv.bias"]


def place_kernel(image: Tensor, shape: torch.Size, causal: bool) -> Tensor:
    """Put a picture's weight into the shape of a video's.

    Args:
        image: outputs, inputs if any, kernel rows and columns if any, a frame in front of them or none.
        shape: of the result: n times as many outputs (n frames, each a copy), m times as many inputs (m frames, only
            the last is read), any number of frames in the kernel (only one is read).
        causal: of the kernel's frames the last is read, not the centre one.

    Raises:
        ModelError: `image` does not fit into `shape` in this way.
    """
    outputs, inputs, frames, *kernel = _weight_axes(image.shape)
    wanted_outputs, wanted_inputs, taps, *wanted_kernel = _weight_axes(shape)
    if frames != 1 or kernel != wanted_kernel or wanted_outputs % outputs or wanted_inputs % inputs:
        raise ModelError(f"A picture's weight {list(image.shape)} does not fit {list(shape)}; give both models the same sizes.")
    placed = image.new_zeros(wanted_outputs, wanted_inputs, taps, *kernel)
    copies = image.reshape(outputs, inputs, *kernel).repeat(wanted_outputs // outputs, 1, 1, 1)
    placed[:, -inputs:, taps - 1 if causal else taps // 2] = copies
    return placed.reshape(shape)


def _weight_axes(shape: torch.Size) -> tuple[int, ...]:
    """Outputs, inputs, frames, rows, columns; 1 where a weight, bias or norm has no such axis."""
    return (*shape[:2], *(1,) * (5 - len(shape)), *shape[2:])


def _filled(config: ModelConfig, weights: Mapping[str, Tensor]) -> Autoencoder:
    """A model with the pictures' weights in their places; what has no source keeps its random start."""
    some = next(iter(weights.values()))
    video = Autoencoder(config).to(some.device, some.dtype)
    state = video.state_dict()
    for name, tensor in weights.items():
        state[name] = place_kernel(tensor, state[name].shape, causal=name.startswith("encoder."))
    video.load_state_dict(state)
    return video


@torch.no_grad()
def start_temporal_attention(video: Autoencoder, latents: Tensor | None) -> None:
    """Start `sd21`'s attention over time, which has no path around it, as near to doing nothing as it can.

    Query, key and value become the identity: after their norm all tokens have one length, so each frame attends to
    itself and to what resembles it. The output projection becomes the linear map that comes nearest, in least squares
    over all positions of the latents, to giving back what the spatial attention gave. Other models are left as they are.

    Args:
        video: an inflated model.
        latents: (N, z, h, w), unscaled, of typical pictures, with more positions in all than the decoder's widest level has
            channels. None starts the output projection at zero, which turns off the spatial attention before it.

    Raises:
        UsageError: the latents do not fit the model.
    """
    if not isinstance(video.decoder, Decoder) or video.decoder.mid.temporal is None:
        return
    mid, attention = video.decoder.mid, video.decoder.mid.temporal
    for projection in (attention.query, attention.key, attention.value):
        nn.init.eye_(projection.weight)
        nn.init.zeros_(projection.bias)
    nn.init.zeros_(attention.out.weight)
    nn.init.zeros_(attention.out.bias)
    if latents is None:
        return
    if latents.dim() != 4 or latents.shape[1] != video.latent_channels:
        raise UsageError(
            f"Latents must be (N, {video.latent_channels}, h, w), got {tuple(latents.shape)}; encode pictures with the source."
        )
    inputs = attention.out.in_features + 1
    normal = torch.zeros(inputs, inputs, dtype=torch.float64, device=video.device)
    right = normal[:, 1:].clone()
    for z in latents.to(video.device, video.dtype).split(1):
        given = mid.spatial(mid.before(video.decoder.conv_in(z[:, :, None])))
        wanted = given.movedim(1, -1).flatten(0, -2)
        seen = attention.norm(wanted).double()
        rows = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
        normal += rows.T @ rows
        right += rows.T @ wanted.double()
    normal.diagonal().add_(RIDGE * normal.diagonal().mean())
    solution = torch.linalg.solve(normal, right)
    attention.out.weight.copy_(solution[:-1].T)
    attention.out.bias.copy_(solution[-1])
