"""The published checkpoints' own words: names and shapes of their tensors, keys of their config.json.

`sd21` is written in latent-diffusion's dialect, `sd3` in diffusers'. Ours has one name for each place in both,
and stores every pointwise kernel as a matrix; `official_layout` says, tensor by tensor, what a release calls
it and how many kernel axes of size 1 it adds. This module knows names, not tensors and not files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cvvae_cli.checked_values import quoted
from cvvae_cli.config import SD3, SD21, CVVAEConfig, Variant
from cvvae_cli.errors import ModelError


@dataclass(frozen=True)
class Dialect:
    """How one release names the modules; `{0}` is a number.

    Attributes:
        encoder_level, decoder_level, block: containers.
        downsample, upsample: the convolutions in them.
        before, attention, after: the mid block's parts.
        norm_out: before the last convolution.
        shortcut: of a residual block that changes its width.
        spatial, temporal: our names of the attention's parts -> theirs.
        decoder_level_counts_down: their decoder level 0 is the largest grid, ours the smallest.
        shortcut_axes, spatial_axes: kernel axes of size 1 that their shortcut and attention weights end with.
    """

    encoder_level: str
    decoder_level: str
    block: str
    downsample: str
    upsample: str
    before: str
    attention: str
    after: str
    norm_out: str
    shortcut: str
    spatial: Mapping[str, str]
    temporal: Mapping[str, str]
    decoder_level_counts_down: bool
    shortcut_axes: int
    spatial_axes: int


DIALECTS: dict[Variant, Dialect] = {
    "sd21": Dialect(
        encoder_level="down.{0}",
        decoder_level="up.{0}",
        block="block.{0}",
        downsample="downsample.conv",
        upsample="upsample.conv",
        before="mid.block_1",
        attention="mid.attn_1",
        after="mid.block_2",
        norm_out="norm_out",
        shortcut="nin_shortcut",
        spatial={"norm": "norm", "query": "q", "key": "k", "value": "v", "out": "proj_out"},
        temporal={"norm": "norm_t", "query": "q_t", "key": "k_t", "value": "v_t", "out": "proj_out_t"},
        decoder_level_counts_down=True,
        shortcut_axes=3,
        spatial_axes=2,
    ),
    "sd3": Dialect(
        encoder_level="down_blocks.{0}",
        decoder_level="up_blocks.{0}",
        block="resnets.{0}",
        downsample="downsamplers.0.conv",
        upsample="upsamplers.0.conv",
        before="mid_block.resnets.0",
        attention="mid_block.attentions.0",
        after="mid_block.resnets.1",
        norm_out="conv_norm_out",
        shortcut="conv_shortcut",
        spatial={"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"},
        temporal={},
        decoder_level_counts_down=False,
        shortcut_axes=2,
        spatial_axes=0,
    ),
}


@dataclass(frozen=True)
class OfficialModule:
    """A module's name in a release, and the axes of size 1 that its weight has there beyond ours."""

    name: str
    extra_axes: int = 0


def _residual_block(ours: str, theirs: str, dialect: Dialect) -> dict[str, OfficialModule]:
    return {
        f"{ours}.first.norm": OfficialModule(f"{theirs}.norm1"),
        f"{ours}.first.conv": OfficialModule(f"{theirs}.conv1"),
        f"{ours}.second.norm": OfficialModule(f"{theirs}.norm2"),
        f"{ours}.second.conv": OfficialModule(f"{theirs}.conv2"),
        f"{ours}.shortcut": OfficialModule(f"{theirs}.{dialect.shortcut}", dialect.shortcut_axes),
    }


def _side(side: str, blocks: int, level_names: list[str], dialect: Dialect) -> dict[str, OfficialModule]:
    """Modules of the encoder or decoder; `level_names` are theirs, in the order of ours."""
    modules = {
        f"{side}.conv_in": OfficialModule(f"{side}.conv_in"),
        f"{side}.out.norm": OfficialModule(f"{side}.{dialect.norm_out}"),
        f"{side}.out.conv": OfficialModule(f"{side}.conv_out"),
    }
    for i, level in enumerate(level_names):
        for j in range(blocks):
            modules |= _residual_block(f"{side}.levels.{i}.blocks.{j}", f"{side}.{level}.{dialect.block.format(j)}", dialect)
        modules[f"{side}.levels.{i}.downsample"] = OfficialModule(f"{side}.{level}.{dialect.downsample}")
        modules[f"{side}.levels.{i}.upsample.conv"] = OfficialModule(f"{side}.{level}.{dialect.upsample}")
    modules |= _residual_block(f"{side}.mid.before", f"{side}.{dialect.before}", dialect)
    modules |= _residual_block(f"{side}.mid.after", f"{side}.{dialect.after}", dialect)
    for ours, theirs in dialect.spatial.items():
        axes = 0 if ours == "norm" else dialect.spatial_axes
        modules[f"{side}.mid.spatial.{ours}"] = OfficialModule(f"{side}.{dialect.attention}.{theirs}", axes)
    for ours, theirs in dialect.temporal.items():
        modules[f"{side}.mid.temporal.{ours}"] = OfficialModule(f"{side}.{dialect.attention}.{theirs}")
    return modules


def official_modules(config: CVVAEConfig) -> dict[str, OfficialModule]:
    """Every place that our modules of this family may have a tensor in -> what the release calls it.

    Places that a config leaves out (a shortcut between equal widths, say) are listed too.
    """
    dialect = DIALECTS[config.variant]
    numbers = list(range(len(config.channels)))
    down = [dialect.encoder_level.format(i) for i in numbers]
    up = [dialect.decoder_level.format(i) for i in (numbers[::-1] if dialect.decoder_level_counts_down else numbers)]
    return _side("encoder", config.blocks_per_level, down, dialect) | _side("decoder", config.blocks_per_level + 1, up, dialect)


@dataclass(frozen=True)
class OfficialTensor:
    """A tensor's name and shape in a release."""

    name: str
    shape: tuple[int, ...]


def official_layout(config: CVVAEConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, OfficialTensor]:
    """Translate tensor names and shapes.

    Args:
        config: the architecture.
        shapes: our tensor name -> our shape, as the module of this config has them.

    Returns:
        Our tensor name -> name and shape in the release of `config.variant`.
    """
    modules = official_modules(config)
    layout = {}
    for name, shape in shapes.items():
        place, _, leaf = name.rpartition(".")
        module = modules[place]
        ones = (1,) * module.extra_axes if leaf == "weight" else ()
        layout[name] = OfficialTensor(f"{module.name}.{leaf}", (*shape, *ones))
    return layout


# What a release's config may say where another value would mean another network than ours.
ALLOWED_VALUES: dict[Variant, dict[str, tuple[object, ...]]] = {
    "sd21": {
        "double_z": (True,),
        "in_channels": (3,),
        "out_ch": (3,),
        "attn_resolutions": ([],),
        "use_3d_conv": (True,),
        "causal_encoder": (True,),
        "causal_decoder": (False,),
        "encoder_attn_type": ("vanilla-xformers", "vanilla"),
        "decoder_attn_type": ("spatial-temporal-xformer",),
        "time_n_compress": (4,),
        "spatial_n_compress": (8,),
    },
    "sd3": {
        "double_z": (True,),
        "in_channels": (3,),
        "down_block_types": (["DownEncoderBlock3D"] * 4,),
        "up_block_types": (["UpDecoderBlock3D"] * 4,),
        "act_fn": ("silu",),
        "mid_block_add_attention": (True,),
        "causal_encoder": (True,),
        "causal_decoder": (False,),
        "time_n_compress": (4,),
        "spatial_n_compress": (8,),
    },
}
CLASS_VARIANTS: dict[str, Variant] = {"CVVAEModel": "sd21", "CVVAESD3Model": "sd3"}


def config_from_official(data: Mapping[str, object]) -> CVVAEConfig:
    """Read a release's config.json; keys that do not change the network (tile size, dropout, ...) are not read.

    Raises:
        ModelError: another class, a value that these architectures cannot have, or one of the wrong kind.
    """
    name = data.get("_class_name")
    variant = CLASS_VARIANTS.get(name) if isinstance(name, str) else None
    if variant is None:
        known = ", ".join(CLASS_VARIANTS)
        raise ModelError(f"Model class {quoted(name)} in config.json is not one of {known}; pass a CV-VAE folder.")
    for key, allowed in ALLOWED_VALUES[variant].items():
        if key in data and data[key] not in allowed:
            found = f"config.json says {key} = {quoted(data[key])}"
            raise ModelError(f"{found}, but {variant} needs {allowed[0]!r}; pass a CV-VAE folder.")
    default = SD21 if variant == "sd21" else SD3
    try:
        if variant == "sd21":
            base = _positive(data, "ch", 128)
            channels = tuple(base * m for m in _four(data, "ch_mult", (1, 2, 4, 4)))
            latent, blocks, groups = _positive(data, "z_channels", 4), _positive(data, "num_res_blocks", 2), 32
        else:
            channels = _four(data, "block_out_channels", default.channels)
            latent, blocks = _positive(data, "out_channels", 16), _positive(data, "layers_per_block", 2)
            groups = _positive(data, "norm_num_groups", 32)
        scale = float(data.get("scaling_factor", default.scaling_factor))
        shift = float(data.get("shift_factor", default.shift_factor))
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"config.json cannot be used: {error}; fetch it again.") from error
    return CVVAEConfig(variant, latent, channels, blocks, bool(data.get("half_3d", True)), groups, scale, shift)


def _positive(data: Mapping[str, object], key: str, default: int) -> int:
    value = data.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{key} = {quoted(value)} is not a positive whole number")
    return value


def _four(data: Mapping[str, object], key: str, default: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    values = data.get(key, default)
    if not isinstance(values, list | tuple) or len(values) != 4 or not all(isinstance(v, int) and v > 0 for v in values):
        raise ValueError(f"{key} = {quoted(values)} is not four positive whole numbers")
    return values[0], values[1], values[2], values[3]


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> CVVAEConfig:
    """Infer the architecture from the tensors of a release when no config.json says it.

    The number of norm groups leaves no trace in the shapes: 32, as in every release.

    Raises:
        ModelError: the names belong to neither family.
    """
    for default in (SD21, SD3):
        dialect = DIALECTS[default.variant]
        first_blocks = [f"encoder.{dialect.encoder_level.format(i)}.{dialect.block.format(0)}" for i in range(4)]
        widths = [shapes.get(f"{block}.conv1.weight", (0,))[0] for block in first_blocks]
        second = shapes.get(f"{first_blocks[0]}.conv2.weight", ())
        latent = shapes.get("decoder.conv_in.weight", ())
        if not all(widths) or len(second) not in (4, 5) or len(latent) != 5:
            continue
        level = f"encoder.{dialect.encoder_level.format(0)}"
        blocks = sum(name.startswith(f"{level}.") and name.endswith(".conv1.weight") for name in shapes)
        channels = (widths[0], widths[1], widths[2], widths[3])
        return replace(default, latent_channels=latent[1], channels=channels, blocks_per_level=blocks, half_3d=len(second) == 4)
    some = ", ".join(sorted(shapes)[:3]) or "no tensors"
    raise ModelError(f"The weights ({some}, ...) are not named like a CV-VAE's; pass a file of one, or its folder.")
