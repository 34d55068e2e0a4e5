"""Options that several commands share, and the way from their words to the pipeline's objects."""

import os
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvvae_cli.config import Tiling
from cvvae_cli.errors import CvvaeError, DeviceError, LatentFileError, ModelError, OutputError, UsageError, VideoError
from cvvae_cli.geometry import SPATIAL_COMPRESSION_RATIO as CELL
from cvvae_cli.model_names import KNOWN_MODELS, hub_folder, shown_name
from cvvae_cli.picture_sequence import find_sequence, is_sequence
from cvvae_cli.reading import Reading
from cvvae_cli.standard_input import STANDARD_INPUT

if TYPE_CHECKING:
    from cvvae_cli.autoencoder import Autoencoder

MODEL, DEVICE, CUTTING, SOURCE, VIDEO = "Model", "Device", "Tiles and chunks", "Reading the video", "Video file"

_MODEL_HELP = (
    "A name (see `cvvae models`), hub id, folder or weights file. By default the model in the package; "
    "for a latent file, the one that made it, where its name is a known one."
)
_DTYPE_HELP = "Type to compute in: auto, float32, bfloat16 or float16."
_TILE_HELP = (
    "Tile size in pixels, 64 or more. auto, the default, fits tiles and chunks to the memory at hand (on decode: those the "
    "file records, or smaller tiles); beside other options of this panel it is 256, or 576 with --tiling official."
)
_CHUNK_HELP = "Frames that neighbouring chunks share and blend, a multiple of 4; 4 by default, always 0 with --tiling official."
_CRF_HELP = "Constant quality of the encoder, smaller is better; 16 for x264."

Model = Annotated[str | None, typer.Option(envvar="CVVAE_MODEL", help=_MODEL_HELP, rich_help_panel=MODEL)]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.", rich_help_panel=MODEL)]
Device = Annotated[str, typer.Option(envvar="CVVAE_DEVICE", help="auto, cpu, cuda or cuda:N.", rich_help_panel=DEVICE)]
Dtype = Annotated[str, typer.Option(envvar="CVVAE_DTYPE", help=_DTYPE_HELP, rich_help_panel=DEVICE)]
Tile = Annotated[str, typer.Option(metavar="PX", help=_TILE_HELP, rich_help_panel=CUTTING)]
Overlap = Annotated[
    int | None, typer.Option(metavar="PX", help="Overlap of neighbouring tiles; 64 unless auto chooses.", rich_help_panel=CUTTING)
]
Chunk = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Frames that the network sees at once, 1 + 4k; 17 unless auto chooses.", rich_help_panel=CUTTING
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Tiles that the network sees at once; 1 unless auto chooses.", rich_help_panel=CUTTING),
]
ChunkOverlap = Annotated[int | None, typer.Option(metavar="N", help=_CHUNK_HELP, rich_help_panel=CUTTING)]
Norm = Annotated[
    str | None,
    typer.Option(
        help="Whose statistics group norms use: tile (the default), global (all tiles of a chunk), exact (as without tiles).",
        rich_help_panel=CUTTING,
    ),
]
TilingMode = Annotated[
    str | None,
    typer.Option("--tiling", help="blend (the default) or official, the release's own algorithm.", rich_help_panel=CUTTING),
]
SOURCE_HELP = (
    "A video, a picture (a video of one frame), numbered pictures (frames/%04d.png), or - for a video on the standard input, "
    "which is first copied beside the output, to a file without a name that is gone at the end."
)
_STRICT_HELP = "Stop at a damaged packet, a lost frame or a wrong timestamp, instead of going on as players do."
_STREAM_HELP = "Which video stream, as ffprobe numbers them; by default the first that is no cover picture."
_RATE_HELP = "Pictures per second of numbered pictures; 24 by default."
Strict = Annotated[bool, typer.Option("--strict", help=_STRICT_HELP, rich_help_panel=SOURCE)]
Stream = Annotated[int | None, typer.Option(min=0, metavar="N", help=_STREAM_HELP, rich_help_panel=SOURCE)]
Deinterlace = Annotated[
    bool, typer.Option("--deinterlace", help="Make whole pictures of interlaced ones, one for one.", rich_help_panel=SOURCE)
]
SourceRate = Annotated[str | None, typer.Option("--fps", metavar="RATE", help=_RATE_HELP, rich_help_panel=SOURCE)]
Start = Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Skip so many seconds first.")]
Frames = Annotated[int | None, typer.Option(min=1, metavar="N", help="Stop after so many frames.")]
Audio = Annotated[bool, typer.Option("--audio/--no-audio", help="Keep sound and subtitles.")]
MinPsnr = Annotated[float | None, typer.Option(metavar="DB", help="Exit with status 7 where the mean PSNR is lower.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer with one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no table, only errors (and --json).")]
Overwrite = Annotated[bool, typer.Option("--overwrite", "-y", help="Replace an existing output.")]
LatentDtype = Annotated[str, typer.Option(help="How latents are stored: float16, bfloat16 or float32.")]
KeepGoing = Annotated[
    bool,
    typer.Option("--keep-going", help="Fill damaged chunks from their neighbours, write the video and exit with status 4."),
]
Size = Annotated[str | None, typer.Option(metavar="WxH", help="Resize to exactly so many pixels before encoding.")]
Codec = Annotated[
    str | None, typer.Option(help="Video encoder; libx264 by default (libvpx-vp9 for .webm).", rich_help_panel=VIDEO)
]
Crf = Annotated[float | None, typer.Option(help=_CRF_HELP, rich_help_panel=VIDEO)]
Preset = Annotated[str | None, typer.Option(help="Preset of the encoder, e.g. veryfast.", rich_help_panel=VIDEO)]
PixFmt = Annotated[str | None, typer.Option(help="Pixel format, e.g. yuv444p or yuv422p10le (10 bits).", rich_help_panel=VIDEO)]
Depth = Annotated[
    int,
    typer.Option(min=8, max=10, metavar="8|10", help="Bits per component; 10 keeps what 8 would round away.", rich_help_panel=VIDEO),
]
EncoderOpt = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="An option of the encoder; may be repeated.", rich_help_panel=VIDEO),
]


def examples(*commands: str) -> str:
    """The end of a command's help: commands to try, each on a line of its own."""
    return "\n\n".join(["Examples:", *(f"- `{command}`" for command in commands)])


@dataclass(frozen=True)
class Cut:
    """What the options say of tiles and chunks; None where they say nothing.

    Attributes:
        tile: "auto" or pixels.
        overlap: pixels.
        chunk, chunk_overlap: frames.
        batch: tiles.
        mode: "blend" or "official".
        norm: "tile", "global" or "exact".
    """

    tile: str = "auto"
    overlap: int | None = None
    chunk: int | None = None
    chunk_overlap: int | None = None
    batch: int | None = None
    mode: str | None = None
    norm: str | None = None

    def tiling(self, base: Tiling | None = None) -> Tiling | None:
        """The tiling that the options describe on top of `base` (the recorded one on decode); None if they say nothing.

        Raises:
            UsageError: they contradict one another.
        """
        if self == Cut():
            return None
        if self.mode not in (None, "blend", "official"):
            raise UsageError(f"Tiling {self.mode!r} is unknown; pass --tiling blend or --tiling official.")
        if self.tile != "auto" and not self.tile.isdecimal():
            raise UsageError(f"Tile {self.tile!r} must be auto or pixels; pass for example --tile 256.")
        given = None if self.tile == "auto" else int(self.tile)
        base = base or Tiling()
        batch, norm = base.batch if self.batch is None else self.batch, self.norm or base.norm
        if (self.mode or base.mode) == "official":
            self._check_official()
            official = Tiling.official(given if given is not None else base.tile if base.mode == "official" else 576)
            return replace(official, batch=batch, norm=self.norm or official.norm)
        base = Tiling() if base.mode == "official" else base
        tile = base.tile if given is None else given
        return Tiling(
            tile=tile,
            overlap=min(base.overlap, max(tile // 4 // CELL * CELL, 0)) if self.overlap is None else self.overlap,
            chunk_overlap=base.chunk_overlap if self.chunk_overlap is None else self.chunk_overlap,
            chunk=base.chunk if self.chunk is None else self.chunk,
            batch=batch,
            norm=norm,
        )

    def _check_official(self) -> None:
        if self.overlap is not None:
            found = f"Overlap {self.overlap} cannot be chosen with official tiles (it is 2/9 of the tile)"
            raise UsageError(f"{found}; drop --overlap.")
        if self.chunk_overlap:
            found = f"Chunk overlap {self.chunk_overlap} does not exist in the official algorithm"
            raise UsageError(f"{found}; pass --chunk-overlap 0.")
        if self.chunk not in (None, 17):
            raise UsageError(f"Chunk {self.chunk} cannot be chosen with official tiles (it is 17 frames); drop --chunk.")


def rounding_notes(tiling: Tiling | None) -> list[str]:
    """A word about sizes that are not whole cells."""
    if tiling is None or (tiling.tile % CELL == 0 and tiling.overlap % CELL == 0):
        return []
    used = f"{tiling.tile_cells * CELL} and {tiling.overlap_cells * CELL} px"
    return [f"Tile {tiling.tile} px with overlap {tiling.overlap} px is rounded to {used} (cells of {CELL} px)."]


def size_of(text: str | None) -> tuple[int, int] | None:
    """WIDTHxHEIGHT as two numbers.

    Raises:
        UsageError: not of that form.
    """
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not match:
        raise UsageError(f"Size {text!r} must be WIDTHxHEIGHT in pixels; pass for example --size 854x480.")
    return int(match[1]), int(match[2])


def rate_of(text: str | None) -> Fraction | None:
    """A frame rate as a number or a fraction.

    Raises:
        UsageError: not a positive number.
    """
    if text is None:
        return None
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= 1000:
        raise UsageError(f"Frame rate {text!r} must be above 0 and at most 1000; pass for example --fps 24 or --fps 30000/1001.")
    return rate


def require_source(source: Path) -> None:
    """Fail at once where there is no such video.

    Raises:
        VideoError: there is no such file and no such numbered picture.
    """
    if is_sequence(source):
        find_sequence(source)
    else:
        require_file(source, VideoError)


def reading_of(source: Path, stream: int | None, fps: str | None, deinterlace: bool, strict: bool) -> Reading:
    """How the options say that a video is read.

    Raises:
        UsageError: a rate for what has its own times.
        VideoError: there is no such file and no such numbered picture.
    """
    rate, numbered = rate_of(fps), is_sequence(source)
    if source != STANDARD_INPUT:
        require_source(source)
    if rate is not None and not numbered:
        raise UsageError(f"--fps {fps} is for numbered pictures, and {source} has times of its own; leave it out.")
    return Reading(stream, rate, deinterlace, strict)


def encoder_options_of(pairs: list[str] | None) -> tuple[tuple[str, str], ...]:
    """NAME=VALUE pairs.

    Raises:
        UsageError: one has no "=".
    """
    split = [pair.partition("=") for pair in pairs or []]
    wrong = next(("".join(parts) for parts in split if not parts[1]), None)
    if wrong is not None:
        raise UsageError(f"Encoder option {wrong!r} must be NAME=VALUE; pass for example --encoder-opt tune=film.")
    return tuple((name, value) for name, _, value in split)


def model_of(name: str | None, revision: str | None, device: str, dtype: str) -> "Autoencoder":
    """Load the model that the options name; without a name the default."""
    from cvvae_cli.checkpoint import load_model, resolve_device, resolve_dtype
    from cvvae_cli.memory_model import keep_memory

    target = resolve_device(device)
    if target.type not in ("cpu", "cuda"):
        raise DeviceError(f"Device {device!r} is not supported; pass cpu, cuda, cuda:N or auto.")
    model = load_model(name or "default", target, resolve_dtype(dtype, target), revision)
    keep_memory(model)
    return model


def model_of_latents(path: Path, name: str | None, revision: str | None, device: str, dtype: str) -> "Autoencoder":
    """Load the model that the options name; without a name the one that the latent file was made with, if it is a known one.

    A file may come from a stranger: no path and no repository is opened on its word alone.

    Raises:
        LatentFileError: both are known models and not the same; said before anything is loaded or fetched.
        ModelError: the recorded model is no known one, or is not to be had.
    """
    from cvvae_cli.latent_video import recorded_model

    recorded, made_at = recorded_model(path)
    made_by = known_model(recorded)
    if name:
        given = known_model(name)
        if made_by and given and made_by != given:
            raise LatentFileError(f"{path} holds latents of {made_by}, and the model given is {given}; pass --model {made_by}.")
        return model_of(name, revision, device, dtype)
    if recorded is None:
        return model_of(None, revision, device, dtype)
    if made_by is None:
        found = f"{path} was made with the model {recorded!r}"
        raise ModelError(f"{found}, which is no known one and loaded at your word alone; pass --model {recorded}.")
    commit = made_at if made_at and re.fullmatch("[0-9a-f]{40}", made_at) else None
    try:
        return model_of(made_by, revision or commit, device, dtype)
    except ModelError as error:
        reason = str(error).rstrip(".")
        raise ModelError(f"{path} was made with the model {made_by!r}, not at hand here ({reason}); pass --model.") from error


def known_model(model: str | None) -> str | None:
    """The known name of a model given by this name or by its hub id; None for weights that only loading can tell apart."""
    if model is None or model in KNOWN_MODELS:
        return model
    hub = None if os.path.exists(model) else hub_folder(model)
    return next((known.name for known in KNOWN_MODELS.values() if hub and known.hub == hub), None)


def described(model: "Autoencoder") -> dict[str, str | None]:
    """The model, device and dtype that an answer in JSON names."""
    return {
        "model": shown_name(model.identity.name) if model.identity else None,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def require_file(path: Path, error: type[CvvaeError]) -> None:
    """Fail before a model is loaded where an input is missing.

    Raises:
        CvvaeError: of the kind `error`.
    """
    if not os.path.exists(path):
        raise error(f"{path} does not exist; check the path.")


def require_free(path: Path | None, overwrite: bool) -> None:
    """Fail before a model is loaded where an output cannot be made.

    Raises:
        OutputError: it exists, or its folder does not.
    """
    if path is None:
        return
    if os.path.exists(path) and not overwrite:
        raise OutputError(f"{path} exists already; pass -y to replace it or name another output.")
    if not os.path.isdir(path.parent):
        raise OutputError(f"{path} cannot be written, because the folder {path.parent} does not exist; make it first.")
