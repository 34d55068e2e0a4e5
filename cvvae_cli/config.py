"""Frozen dataclasses: what a model is, how it is tiled. No torch here, so the command line stays quick.

A `CVVAEConfig` describes a member of the official family (`sd21`, `sd3`), a `CompactConfig` the small
family of the model that ships in the package. Both are read from and written to plain dictionaries.
"""

from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

from cvvae_cli.checked_values import INT32, number_of, quoted, text_of, whole_of
from cvvae_cli.errors import ModelError, UsageError
from cvvae_cli.geometry import SPATIAL_COMPRESSION_RATIO, TEMPORAL_COMPRESSION_RATIO, cell_count

WIDEST, MOST_BLOCKS = 8192, 64
"""Channels of a layer, and blocks in a row, that a config may ask for: far more than any release has."""
Variant = Literal["sd21", "sd3"]
Norm = Literal["tile", "global", "exact"]


@dataclass(frozen=True)
class CVVAEConfig:
    """An official CV-VAE architecture.

    Attributes:
        variant: which published family: paddings, norms' eps, attention and names follow from it.
        latent_channels: z.
        channels: width of each level, largest grid first.
        blocks_per_level: residual blocks per level of the encoder; the decoder has one more.
        half_3d: the second convolution of each residual block is 3x3 per frame (released weights), not
            3x3x3 (the paper's all-3D row).
        norm_groups: groups of every GroupNorm.
        scaling_factor, shift_factor: a diffusion model sees (z - shift_factor) * scaling_factor.
    """

    variant: Variant = "sd21"
    latent_channels: int = 4
    channels: tuple[int, int, int, int] = (128, 256, 512, 512)
    blocks_per_level: int = 2
    half_3d: bool = True
    norm_groups: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0

    def __post_init__(self) -> None:
        _check_config(self)
        if self.variant not in get_args(Variant):
            known = ", ".join(get_args(Variant))
            raise ModelError(f"Model variant {quoted(self.variant)} is unknown; this version knows {known}.")


@dataclass(frozen=True)
class CompactConfig:
    """The small norm-free family whose default member ships in the package: a gated linear code of
    4 x 8 x 8 px blocks plus a learned residual.

    Attributes:
        latent_channels: z.
        shared_channels: latent channels that code every block alike, and choose the basis of the others.
        codes: bases to choose from.
        gate_channels: width of the network that chooses.
        encoder_channels, decoder_channels: width at 1/4 size and half rate, at 1/8 size, at the latent grid.
        encoder_blocks, decoder_blocks: residual blocks at the same three places.
        scaling_factor, shift_factor: as in `CVVAEConfig`.
        temporal: a video autoencoder; False is the same network without time, for pictures (T = 1) alone.
        synthesis_rank: channels that the decoder's linear map goes through; 0 maps at once. Few carry all that its blocks
            have in common (`training.narrowing`).
    """

    latent_channels: int = 16
    shared_channels: int = 6
    codes: int = 8
    gate_channels: int = 96
    encoder_channels: tuple[int, int, int] = (32, 96, 160)
    decoder_channels: tuple[int, int, int] = (48, 128, 192)
    encoder_blocks: tuple[int, int, int] = (1, 1, 1)
    decoder_blocks: tuple[int, int, int] = (1, 1, 2)
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    temporal: bool = True
    synthesis_rank: int = 0

    def __post_init__(self) -> None:
        _check_config(self)
        if not 0 < self.shared_channels < self.latent_channels or self.codes < 1:
            raise ModelError(
                f"{self.shared_channels} shared of {self.latent_channels} latent channels and {self.codes} codes make no model; "
                "correct its config."
            )

    @property
    def gated_channels(self) -> int:
        """Latent channels whose basis is chosen."""
        return self.latent_channels - self.shared_channels

    @property
    def spread_channels(self) -> int:
        """Channels once every basis has slots of its own."""
        return self.shared_channels + self.codes * self.gated_channels


_BLOCKS = (0, MOST_BLOCKS)
_RANGES = {"blocks_per_level": _BLOCKS, "encoder_blocks": _BLOCKS, "decoder_blocks": _BLOCKS,
           "shared_channels": (0, WIDEST), "codes": (0, WIDEST), "synthesis_rank": (0, WIDEST)}  # fmt: skip
"""Of the whole numbers that are not from 1 to `WIDEST`."""


def _check_config(config: "ModelConfig") -> None:
    """Refuse a config that is not one, since it may come from a file: each value is to be of its default's type, and in range.

    Raises:
        ModelError: so; the field is named.
    """
    for known in fields(config):
        value, kind = getattr(config, known.name), type(known.default)
        try:
            if kind is bool and type(value) is not bool:
                raise ValueError(f"{quoted(value)} is neither true nor false")
            if kind is tuple and (type(value) is not tuple or len(value) != len(known.default)):
                raise ValueError(f"it must have {len(known.default)} numbers")
            for one in value if kind is tuple else (value,) if kind is int else ():
                whole_of(one, *_RANGES.get(known.name, (1, WIDEST)))
            if kind is float and number_of(value) <= 0 < known.default:
                raise ValueError(f"{quoted(value)} is not above 0")
        except ValueError as error:
            raise ModelError(f"Model config {known.name} is wrong ({error}); correct the config.") from error


ModelConfig = CVVAEConfig | CompactConfig

SD21 = CVVAEConfig()
SD3 = CVVAEConfig(variant="sd3", latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609)


def config_to_dict(config: ModelConfig) -> dict:
    """A JSON-ready dictionary with the key `family` ("cv-vae" or "compact") beside the fields."""
    return {"family": "cv-vae" if isinstance(config, CVVAEConfig) else "compact", **asdict(config)}


def config_from_dict(data: dict) -> ModelConfig:
    """The inverse of `config_to_dict`.

    Raises:
        ModelError: no dictionary, unknown family, keys that do not belong to it, or values that no model has.
    """
    families = {"cv-vae": CVVAEConfig, "compact": CompactConfig}
    name = data.get("family") if isinstance(data, dict) else None
    family = families.get(name) if isinstance(name, str) else None
    if family is None:
        raise ModelError(f"Model family {quoted(name)} is unknown; this version knows {', '.join(families)}.")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "family"}
    extra = sorted(set(values) - {f.name for f in fields(family)})
    if extra:
        raise ModelError(f"Model config has the unknown key {quoted(extra[0])}; it was written by another version.")
    return family(**values)


SMALLEST_TILE = 64
"""Pixels; below it, tiles are mostly overlap."""


SHORTEST_CHUNK, LONGEST_CHUNK = 5, 1025
"""Frames; a chunk is held whole, and a latent file says how long its chunks are."""


@dataclass(frozen=True)
class Tiling:
    """How a video is cut for the network.

    Attributes:
        tile: tile size in pixels; rounded to cells (8 px).
        overlap: least overlap of neighbouring tiles in pixels.
        chunk_overlap: frames that neighbouring chunks crossfade, a multiple of 4; 0 as the release does.
        chunk: frames per chunk, 1 + 4k.
        mode: "blend" (equal tiles, normalised overlap-add) or "official" (the release's algorithm).
        batch: tiles of one row that the network sees in one call; changes nothing but rounding.
        norm: whose statistics group norms use: those of the "tile", of all tiles of a chunk ("global", the tiles then computed
            one by one), or "exact": the result of the network on whole frames, computed in strips of rows, each within the memory
            of a tile.
    """

    tile: int = 256
    overlap: int = 64
    chunk_overlap: int = 4
    chunk: int = 17
    mode: Literal["blend", "official"] = "blend"
    batch: int = 1
    norm: Norm = "tile"

    def __post_init__(self) -> None:
        ratio_t, ratio_s = TEMPORAL_COMPRESSION_RATIO, SPATIAL_COMPRESSION_RATIO
        if self.batch < 1:
            raise UsageError(f"Batch {self.batch} must be 1 tile or more; pass --batch 1.")
        if self.tile < SMALLEST_TILE:
            raise UsageError(f"Tile {self.tile} px is too small; pass --tile {SMALLEST_TILE} or more.")
        if not SHORTEST_CHUNK <= self.chunk <= LONGEST_CHUNK or self.chunk % ratio_t != 1:
            raise UsageError(f"Chunk {self.chunk} must be 1 + 4k frames, {SHORTEST_CHUNK} to {LONGEST_CHUNK}; pass --chunk 17.")
        if self.mode not in ("blend", "official"):
            raise UsageError(f"Tiling {self.mode!r} is unknown; pass --tiling blend or --tiling official.")
        if self.norm not in get_args(Norm):
            raise UsageError(f"Norm {self.norm!r} is unknown; pass --norm tile, --norm global or --norm exact.")
        if self.mode == "official":
            if self.norm != "tile":
                raise UsageError(f"Norm {self.norm!r} does not exist in the official algorithm; pass --norm tile.")
            if self.tile % 72:
                raise UsageError(
                    f"Tile {self.tile} px is not a multiple of 72, where the official algorithm loses pixels; pass --tile 576."
                )
            if self.chunk_overlap:
                raise UsageError(
                    f"Chunk overlap {self.chunk_overlap} does not exist in the official algorithm; pass --chunk-overlap 0."
                )
            return
        if not 0 <= self.overlap or self.overlap_cells >= self.tile_cells:
            raise UsageError(
                f"Overlap {self.overlap} px must be at least 0 and smaller than the tile {self.tile} px; "
                f"pass --overlap {self.tile // 4 // ratio_s * ratio_s}."
            )
        if self.chunk_overlap % ratio_t or not 0 <= self.chunk_overlap <= self.chunk - 1 - ratio_t:
            raise UsageError(
                f"Chunk overlap {self.chunk_overlap} must be a multiple of 4 from 0 to {self.chunk - 1 - ratio_t} frames; "
                "pass --chunk-overlap 4."
            )

    @classmethod
    def official(cls, tile: int = 576) -> "Tiling":
        """The release's tiling: no temporal blend, overlap ratio 0.2222."""
        return cls(tile=tile, overlap=tile * 2 // 9, chunk_overlap=0, mode="official")

    @property
    def tile_cells(self) -> int:
        return max(1, round(self.tile / SPATIAL_COMPRESSION_RATIO))

    @property
    def overlap_cells(self) -> int:
        return cell_count(self.overlap)


def tiling_from_dict(data: dict) -> Tiling:
    """The inverse of `asdict`, of which nothing is believed; keys of later versions are ignored.

    Raises:
        KeyError, TypeError, ValueError: the dictionary is no tiling's.
    """
    sizes = {key: whole_of(data[key], 0, INT32) for key in ("tile", "overlap", "chunk_overlap", "chunk", "batch") if key in data}
    words = {key: text_of(data[key]) for key in ("mode", "norm") if key in data}
    return Tiling(**sizes, **words)
