"""The same networks in the plainest form: what a fast implementation is compared with, in speed and in truth.

Padding, convolution, norm and activation are separate calls of torch, as one writes them from a description of the
architecture: contiguous, nothing in place, no kernel folded, the upsampled grid really made. Weights and their names
are those of an `Autoencoder`; none of its code runs. This module knows no clock.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from cvvae_cli.autoencoder import DOWNSAMPLE_STRIDES, Autoencoder
from cvvae_cli.compact import GATE_FLOOR, RESIDUAL_GAIN, reach_of
from cvvae_cli.config import CompactConfig, CVVAEConfig
from cvvae_cli.layers import STYLES, Padding

_MODES = {"replicate": "replicate", "zeros": "constant"}
_LAYER_NORM_EPS = 1e-5


class PlainForm:
    """An autoencoder's network without anything clever.

    Args:
        model: whose weights are copied; later changes of it change nothing here.
        dtype: to compute in.

    Attributes:
        config: the model's.
        dtype: as given.
        weights_bytes: of all tensors.

    Memory: a second copy of the weights, and of activations whatever torch's separate calls need.
    """

    def __init__(self, model: Autoencoder, dtype: torch.dtype = torch.float32) -> None:
        self.config = model.config
        self.dtype = dtype
        tensors = {
            name: tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
            for name, tensor in model.state_dict().items()
        }
        self.weights_bytes = sum(tensor.nbytes for tensor in tensors.values())
        self._encoder, self._decoder = _Weights(tensors, "encoder"), _Weights(tensors, "decoder")

    def encode(self, x: Tensor) -> Tensor:
        """The moments of one window.

        Args:
            x: (B, 3, T, H, W) as `Autoencoder.encode` takes it, on the weights' device; not checked.

        Returns:
            (B, 2z, t, h, w), contiguous.
        """
        x = x.to(self.dtype).contiguous()
        if isinstance(self.config, CompactConfig):
            return _encode_compact(x, self._encoder, self.config)
        return _encode_official(x, self._encoder, self.config)

    def decode(self, z: Tensor) -> Tensor:
        """The video of one window of latents.

        Args:
            z: (B, z, t, h, w) as `Autoencoder.decode` takes it, on the weights' device; not checked.

        Returns:
            (B, 3, T, H, W), contiguous, not clamped.
        """
        z = z.to(self.dtype).contiguous()
        if isinstance(self.config, CompactConfig):
            return _decode_compact(z, self._decoder, self.config)
        return _decode_official(z, self._decoder, self.config)


class _Weights:
    """The tensors of one module and of those inside it."""

    def __init__(self, tensors: Mapping[str, Tensor], name: str) -> None:
        self._tensors, self._name = tensors, name

    def __getitem__(self, name: str) -> "_Weights":
        return _Weights(self._tensors, f"{self._name}.{name}")

    def __contains__(self, name: str) -> bool:
        return any(key.startswith(f"{self._name}.{name}.") for key in self._tensors)

    @property
    def weight(self) -> Tensor:
        return self._tensors[f"{self._name}.weight"]

    @property
    def bias(self) -> Tensor | None:
        return self._tensors.get(f"{self._name}.bias")


def _linear(x: Tensor, w: _Weights) -> Tensor:
    return F.linear(x, w.weight, w.bias)


def _conv3d(x: Tensor, w: _Weights, padding: tuple[int, int, int] = (0, 0, 0)) -> Tensor:
    return F.conv3d(x, w.weight, w.bias, padding=padding)


# The official family.


def _encode_official(x: Tensor, w: _Weights, config: CVVAEConfig) -> Tensor:
    style = STYLES[config.variant]
    x = _padded_conv(x, w["conv_in"], style.encoder)
    for i in range(len(config.channels)):
        for j in range(config.blocks_per_level):
            x = _residual_block(x, w[f"levels.{i}.blocks.{j}"], config, style.encoder)
        if i < len(DOWNSAMPLE_STRIDES):
            x = _padded_conv(x, w[f"levels.{i}.downsample"], style.downsample, DOWNSAMPLE_STRIDES[i])
    x = _mid_block(x, w["mid"], config, style.encoder)
    return _padded_conv(_norm_silu(x, w["out.norm"], config), w["out.conv"], style.encoder)


def _decode_official(z: Tensor, w: _Weights, config: CVVAEConfig) -> Tensor:
    style = STYLES[config.variant]
    x = _padded_conv(z, w["conv_in"], style.decoder)
    x = _mid_block(x, w["mid"], config, style.decoder)
    for i in range(len(config.channels)):
        for j in range(config.blocks_per_level + 1):
            x = _residual_block(x, w[f"levels.{i}.blocks.{j}"], config, style.decoder)
        if i < len(DOWNSAMPLE_STRIDES):
            x = F.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="nearest")
            x = _padded_conv(x, w[f"levels.{i}.upsample.conv"], style.upsample)
            if DOWNSAMPLE_STRIDES[-1 - i][0] == 2:
                x = _interleave_time(x)
    return _padded_conv(_norm_silu(x, w["out.norm"], config), w["out.conv"], style.decoder)


def _padded_conv(x: Tensor, w: _Weights, padding: Padding, stride: tuple[int, int, int] = (1, 1, 1)) -> Tensor:
    top, bottom, left, right = padding.space
    sides = (left, right, top, bottom)
    if padding.time_mode == padding.space_mode:
        x = F.pad(x, (*sides, *padding.time), _MODES[padding.time_mode])
    else:
        x = F.pad(x, (0, 0, 0, 0, *padding.time), _MODES[padding.time_mode])
        x = F.pad(x, (*sides, 0, 0), _MODES[padding.space_mode])
    return F.conv3d(x, w.weight, w.bias, stride)


def _norm(x: Tensor, w: _Weights, config: CVVAEConfig) -> Tensor:
    return F.group_norm(x, config.norm_groups, w.weight, w.bias, STYLES[config.variant].eps)


def _norm_silu(x: Tensor, w: _Weights, config: CVVAEConfig) -> Tensor:
    return F.silu(_norm(x, w, config))


def _residual_block(x: Tensor, w: _Weights, config: CVVAEConfig, padding: Padding) -> Tensor:
    h = _norm_silu(x, w["first.norm"], config)
    h = _padded_conv(h, w["first.conv"], padding)
    h = _norm_silu(h, w["second.norm"], config)
    h = _frame_conv(h, w["second.conv"]) if config.half_3d else _padded_conv(h, w["second.conv"], padding)
    if "shortcut" in w:
        x = F.conv3d(x, w["shortcut"].weight[:, :, None, None, None], w["shortcut"].bias)
    return x + h


def _frame_conv(x: Tensor, w: _Weights) -> Tensor:
    """A 3x3 convolution of each frame."""
    return _from_frames(F.conv2d(_frames(x), w.weight, w.bias, padding=1), len(x))


def _frames(x: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B T, C, H, W)."""
    return x.transpose(1, 2).flatten(0, 1).contiguous()


def _from_frames(frames: Tensor, batch: int) -> Tensor:
    """(B T, C, H, W) -> (B, C, T, H, W)."""
    return frames.unflatten(0, (batch, -1)).transpose(1, 2).contiguous()


def _mid_block(x: Tensor, w: _Weights, config: CVVAEConfig, padding: Padding) -> Tensor:
    x = _residual_block(x, w["before"], config, padding)
    h = _spatial_attention(x, w["spatial"], config)
    if "temporal" in w:
        h = _temporal_attention(h, w["temporal"])
    return _residual_block(x + h, w["after"], config, padding)


def _spatial_attention(x: Tensor, w: _Weights, config: CVVAEConfig) -> Tensor:
    """Attention over the pixels of each frame, after a norm of each frame."""
    batch, channels, _, height, width = x.shape
    tokens = _norm(_frames(x), w["norm"], config).flatten(2).transpose(1, 2)
    frames = _attention(tokens, w).transpose(1, 2).reshape(-1, channels, height, width)
    return _from_frames(frames, batch)


def _temporal_attention(x: Tensor, w: _Weights) -> Tensor:
    """Attention over the frames at each pixel, after a norm of each position."""
    batch, channels, frames, height, width = x.shape
    tokens = x.permute(0, 3, 4, 2, 1).reshape(-1, frames, channels)
    tokens = F.layer_norm(tokens, (channels,), w["norm"].weight, w["norm"].bias, _LAYER_NORM_EPS)
    mixed = _attention(tokens, w).reshape(batch, height, width, frames, channels)
    return mixed.permute(0, 4, 3, 1, 2).contiguous()


def _attention(tokens: Tensor, w: _Weights) -> Tensor:
    """One-head attention, (N, tokens, C) to the same shape."""
    query, key, value = (_linear(tokens, w[name])[:, None] for name in ("query", "key", "value"))
    return _linear(F.scaled_dot_product_attention(query, key, value)[:, 0], w["out"])


def _interleave_time(x: Tensor) -> Tensor:
    """(B, 2C, T, H, W) -> (B, C, 2T - 1, H, W): channel group n of frame k becomes frame 2k + n, the first goes."""
    pairs = x.unflatten(1, (2, -1)).permute(0, 2, 3, 1, 4, 5)
    return pairs.flatten(2, 3)[:, :, 1:].contiguous()


# The compact family.


def _encode_compact(x: Tensor, w: _Weights, config: CompactConfig) -> Tensor:
    reach = reach_of(config)
    n1, n2, n3 = config.encoder_blocks
    h = _conv3d(_join(x, reach.patch), w["patch_in"])
    h = _compact_stage(h, w["stage1"], n1, causal=True)
    h = _conv3d(_space_to_channel(h, (1, 2, 2)), w["down2"])
    h = _compact_stage(h, w["stage2"], n2, causal=True)
    h = _conv3d(_join(h, reach.halving), w["down3"])
    h = _compact_stage(h, w["stage3"], n3, causal=True)
    h = _repeat_border(_layer_norm_silu(h, w["norm_out"]), (0, 0, 0, 0, reach.taps - 1, 0))
    mean, logvar = _conv3d(h, w["conv_out"], padding=(0, 1, 1)).chunk(2, dim=1)

    projections = _conv3d(_join(x, reach.block), w["analysis"])
    shared = projections[:, : config.shared_channels] + RESIDUAL_GAIN * mean[:, : config.shared_channels]
    gates = _gates(shared, w["gate"], reach.look)
    gated = RESIDUAL_GAIN * mean[:, config.shared_channels :]
    for code, slots in enumerate(projections[:, config.shared_channels :].split(config.gated_channels, dim=1)):
        gated = gated + gates[:, code, None] * slots
    return torch.cat([shared, gated, logvar], dim=1)


def _decode_compact(z: Tensor, w: _Weights, config: CompactConfig) -> Tensor:
    reach = reach_of(config)
    n1, n2, n3 = config.decoder_blocks
    aside = reach.taps // 2
    shared, gated = z[:, : config.shared_channels], z[:, config.shared_channels :]
    gates = _gates(shared, w["gate"], reach.look)
    code = torch.cat([shared, *(gates[:, i, None] * gated for i in range(config.codes))], dim=1)

    blocks = _conv3d(_repeat_border(code, (1, 1, 1, 1, aside, aside)), w["synthesis"])
    if config.synthesis_rank:
        blocks = _conv3d(blocks, w["synthesis_out"])
    linear = _split(blocks, reach.block)
    h = _conv3d(code, w["conv_in"], padding=(aside, 1, 1))
    h = _compact_stage(h, w["stage3"], n3, causal=False)
    h = _split(_conv3d(h, w["up2"]), reach.halving)
    h = _compact_stage(h, w["stage2"], n2, causal=False)
    h = _channel_to_space(_conv3d(h, w["up1"]), (1, 2, 2))
    h = _compact_stage(h, w["stage1"], n1, causal=False)
    h = _split(_conv3d(_layer_norm_silu(h, w["norm_out"]), w["patch_out"]), reach.patch)
    return linear + RESIDUAL_GAIN * h


def _gates(shared: Tensor, w: _Weights, look: int) -> Tensor:
    """Weights of the bases from the magnitudes of the shared channels, in 3 x 3 cells of `look` latent frames."""
    energy = _repeat_border((shared.abs() + GATE_FLOOR).log(), (1, 1, 1, 1, look - 1, 0))
    return _conv3d(F.silu(_conv3d(energy, w["look"])), w["choose"]).softmax(dim=1)


def _compact_stage(x: Tensor, w: _Weights, blocks: int, causal: bool) -> Tensor:
    for i in range(blocks):
        first, second = w[f"{i}.conv1"], w[f"{i}.conv2"]
        taps = first.weight.shape[2]
        h = _layer_norm_silu(x, w[f"{i}.norm1"])
        if causal:
            h = _repeat_border(h, (0, 0, 0, 0, taps - 1, 0))
        h = _conv3d(h, first, padding=(0 if causal else taps // 2, 1, 1))
        h = _layer_norm_silu(h, w[f"{i}.norm2"])
        x = x + _conv3d(h, second, padding=(0, 1, 1))
    return x


def _layer_norm_silu(x: Tensor, w: _Weights) -> Tensor:
    """LayerNorm over the channels of each position, then SiLU."""
    last = F.layer_norm(x.movedim(1, -1), w.weight.shape, w.weight, w.bias, _LAYER_NORM_EPS)
    return F.silu(last).movedim(-1, 1).contiguous()


def _repeat_border(x: Tensor, padding: tuple[int, ...]) -> Tensor:
    """`padding` is (left, right, top, bottom, front, back)."""
    return F.pad(x, padding, "replicate")


def _join(x: Tensor, block: tuple[int, int, int]) -> Tensor:
    """Blocks of pixels to channels, the first frame repeated until it fills one."""
    return _space_to_channel(_repeat_border(x, (0, 0, 0, 0, block[0] - 1, 0)), block)


def _split(x: Tensor, block: tuple[int, int, int]) -> Tensor:
    """The inverse of `_join`."""
    return _channel_to_space(x, block)[:, :, block[0] - 1 :].contiguous()


def _space_to_channel(x: Tensor, block: tuple[int, int, int]) -> Tensor:
    """(B, C, T, H, W) -> (B, pt ph pw C, T/pt, H/ph, W/pw), channels in the order (pt, ph, pw, C)."""
    pt, ph, pw = block
    blocks = x.unflatten(4, (-1, pw)).unflatten(3, (-1, ph)).unflatten(2, (-1, pt))
    return blocks.permute(0, 3, 5, 7, 1, 2, 4, 6).flatten(1, 4).contiguous()


def _channel_to_space(x: Tensor, block: tuple[int, int, int]) -> Tensor:
    """The inverse of `_space_to_channel`."""
    blocks = x.unflatten(1, (*block, -1)).permute(0, 4, 5, 1, 6, 2, 7, 3)
    return blocks.flatten(6, 7).flatten(4, 5).flatten(2, 3).contiguous()
