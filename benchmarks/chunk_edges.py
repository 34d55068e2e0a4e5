r"""What ways to cut time cost and harm: crossfades, anchors and windows that look around, against all frames in one chunk.

    OMP_NUM_THREADS=1 python benchmarks/chunk_edges.py ../shared/clips/dev/*.mp4 --out benchmarks/chunk_edges.json

The first 65 frames of every clip, the short side reduced to 360 px where it is larger, every window over the whole frame:
nothing but time is cut. Latents are means in float32, in memory.

- "overlap N": chunks of 17 frames that share and crossfade N, on encode and on decode. "anchors" decodes each with its own
  first latent.
- "look": chunks of 16 new frames, or fewer where it says so, whose windows are longer by so many latent frames at their
  beginning and end (a chunk's own first latent comes before its new frames anyhow). Outputs are cut, not crossfaded. The
  encoder is causal and looks back alone.

`loss_db` is the PSNR of one chunk less that of the way. Ratios are those of `cvvae bench --fidelity` at the way's chunk
edges; "over" divides by the same figure of the run in one chunk. Costs are frames that go into the encoder, and frames that come
out of the decoder, for each frame of the clip. Intervals are 95 %, from Student's t over the clips.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from fidelity import over, reduced_size, summary
from torch import Tensor

from cvvae_cli.anchors import with_anchors
from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.checkpoint import load_model, resolve_device, resolve_dtype
from cvvae_cli.codec import pad_to_cells, to_bytes, to_pixels
from cvvae_cli.config import Tiling
from cvvae_cli.fidelity import Figures, cut_of, figures_of
from cvvae_cli.fidelity_benchmark import one_chunk_tiling, read_clip
from cvvae_cli.geometry import frame_count, latent_frame_count
from cvvae_cli.machine import device_name
from cvvae_cli.model_names import shown_name
from cvvae_cli.posterior import DiagonalGaussian
from cvvae_cli.provenance import source_commit
from cvvae_cli.tiling import DECODE, ENCODE, Direction, cut_windows, run_chunks

WHOLE = 1 << 16
"""Pixels of a tile that holds any frame."""


@dataclass(frozen=True)
class Way:
    """A way to cut time.

    Attributes:
        name: in the table.
        overlap: frames that chunks share and crossfade; of a way that looks around, 0.
        anchors: each chunk is decoded with its own first latent.
        new: latent frames that a window adds, where it looks around; 0 for chunks as `Tiling` has them.
        encode_back, decode_back, decode_ahead: latent frames that a window reads before the new ones and behind them.
    """

    name: str
    overlap: int = 0
    anchors: bool = False
    new: int = 0
    encode_back: int = 1
    decode_back: int = 1
    decode_ahead: int = 0

    @property
    def tiling(self) -> Tiling:
        """Where its chunks meet."""
        return Tiling(WHOLE, 0, self.overlap, 1 + 4 * self.new if self.new else 17)


WAYS = [
    Way("overlap 0"),
    Way("overlap 4", overlap=4),
    Way("overlap 8", overlap=8),
    Way("anchors, overlap 0", anchors=True),
    Way("anchors, overlap 4", overlap=4, anchors=True),
    Way("look: decode 1", new=4, decode_back=2, decode_ahead=1),
    Way("look: encode 1, decode 1", new=4, encode_back=2, decode_back=2, decode_ahead=1),
    Way("look: encode 2, decode 1", new=4, encode_back=3, decode_back=2, decode_ahead=1),
    Way("look: encode 2, decode 2", new=4, encode_back=3, decode_back=3, decode_ahead=2),
    Way("look: encode 1, decode 1, 12 new", new=3, encode_back=2, decode_back=2, decode_ahead=1),
]


class Counted:
    """One side of a model, which counts the frames of its windows.

    Attributes:
        frames: that went into the encoder, or came out of the decoder.
    """

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        self.frames = 0
        self._run = run

    def __call__(self, x: Tensor) -> Tensor:
        y = self._run(x)
        self.frames += max(x.shape[2], y.shape[2])
        return y


@dataclass(frozen=True)
class Trip:
    """What came back, and what it took.

    Attributes:
        frames: uint8 RGB [T, H, W, 3].
        encoded, decoded: frames of all windows.
    """

    frames: np.ndarray
    encoded: int
    decoded: int


def round_trip(model: Autoencoder, source: np.ndarray, way: Way, tiling: Tiling) -> Trip:
    """One clip there and back.

    Args:
        source: uint8 RGB [T, H, W, 3], T = 1 + 4k.
        tiling: the way's, or one of a single chunk.
    """
    video = pad_to_cells(to_pixels(torch.from_numpy(source).permute(3, 0, 1, 2)[None], model.dtype)).to(model.device)
    encoder, decoder = Counted(model.encode), Counted(model.decode)
    run = looked_around if way.new and tiling == way.tiling else chunked
    pieces = [to_bytes(piece).cpu() for piece in run(encoder, decoder, video, way, tiling)]
    frames = torch.cat(pieces, dim=2)[0].permute(1, 2, 3, 0)[:, : source.shape[1], : source.shape[2]]
    return Trip(frames.numpy(), encoder.frames, decoder.frames)


def chunked(encoder: Counted, decoder: Counted, video: Tensor, way: Way, tiling: Tiling) -> Iterator[Tensor]:
    """Decoded frames of chunks as `encode_frames` and `decode_frames` cut them."""
    moments: list[Tensor] = []
    anchors: dict[int, Tensor] = {}
    for band in run_chunks(encoder, cut_windows([video], tiling, ENCODE), tiling, ENCODE):
        moments += band.pieces
        if band.dropped is not None:
            anchors[band.frame - 1] = mean(band.dropped)
    windows = cut_windows([mean(torch.cat(moments, dim=2))], tiling, DECODE)
    windows = with_anchors(windows, anchors.__getitem__) if way.anchors else windows
    for band in run_chunks(decoder, windows, tiling, DECODE):
        yield from band.pieces


def looked_around(encoder: Counted, decoder: Counted, video: Tensor, way: Way, tiling: Tiling) -> Iterator[Tensor]:
    """Decoded frames of windows that look around."""
    moments = torch.cat(list(cores(encoder, video, ENCODE, way.new, way.encode_back, 0)), dim=2)
    yield from cores(decoder, mean(moments), DECODE, way.new, way.decode_back, way.decode_ahead)


def cores(network: Counted, x: Tensor, direction: Direction, new: int, back: int, ahead: int) -> Iterator[Tensor]:
    """What each window alone answers for, cut out of what it gives.

    Args:
        x: (1, C, n, H, W), all of the video.
        new, back, ahead: latent frames that a window adds, and reads before and behind them.
    """
    read, write = direction.read_frame, direction.write_frame
    latents = (x.shape[2] - 1) // read + 1
    for begin, end in pairwise([0, *range(1 + new, latents, new), latents]):
        start, stop = max(begin - back, 0), min(end + ahead, latents)
        y = network(x[:, :, read * start : read * (stop - 1) + 1])
        # The first output stands for one position, those behind it for `write` each.
        yield y[:, :, write * (begin - start - 1) + 1 if begin else 0 : write * (end - start - 1) + 1]


def mean(moments: Tensor) -> Tensor:
    """The posterior's."""
    return DiagonalGaussian(moments).mode().float()


def row(trip: Trip, figures: Figures, one: Figures) -> dict[str, float | None]:
    """One clip's numbers that a mean over clips is taken of; `one` is measured at the way's edges on the run in one chunk."""
    frames = len(trip.frames)
    return {
        "psnr_db": figures.psnr_db,
        "loss_db": one.psnr_db - figures.psnr_db,
        "chunk_edge": figures.chunk_edge_ratio,
        "chunk_edge_over": over(figures.chunk_edge_ratio, one.chunk_edge_ratio),
        "chunk_edge_difference": figures.chunk_edge_difference_ratio,
        "chunk_edge_difference_over": over(figures.chunk_edge_difference_ratio, one.chunk_edge_difference_ratio),
        "flicker_over": figures.flicker / one.flicker,
        "encode_cost": trip.encoded / frames,
        "decode_cost": trip.decoded / frames,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--model", default="default")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--frames", type=int, default=65)
    parser.add_argument("--short-side", type=int, default=360)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    model = load_model(arguments.model, device, resolve_dtype(arguments.dtype, device))
    clips: list[str] = []
    rows: dict[Way, list[dict[str, float | None]]] = {way: [] for way in WAYS}
    for path in arguments.clips:
        source = read_clip(path, arguments.frames, reduced_size(path, arguments.short_side))
        source = source[: frame_count(latent_frame_count(len(source) + 1) - 1)]  # whole latent frames
        count, height, width, _ = source.shape
        clips.append(f"{path.name} {width}x{height}, {count} frames")
        with torch.inference_mode():
            one_chunk = round_trip(model, source, WAYS[0], one_chunk_tiling(WAYS[0].tiling, count))
            for way, found in rows.items():
                cut = cut_of(way.tiling, count, height, width)
                trip = round_trip(model, source, way, way.tiling)
                found.append(row(trip, figures_of(source, trip.frames, cut), figures_of(source, one_chunk.frames, cut)))
                print(json.dumps({"clip": clips[-1], "way": way.name, **found[-1]}), flush=True)
    answer = {
        "model": shown_name(arguments.model), "dtype": str(model.dtype).removeprefix("torch."), "device_name": device_name(device),
        "torch": torch.__version__, "commit": source_commit(), "clips": clips,
        "ways": [{**asdict(way), "interval": summary(found), "clips": found} for way, found in rows.items()],
    }  # fmt: skip
    arguments.out.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
