"""A video file to a latent file.

What a latent file says about its video, its model and its making is written here (the JSON strings of its header)
and read by `latent_video`; the bytes are `latent_writer`'s, the computing is `codec`'s.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from time import perf_counter
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from cvvae_cli.ahead import ahead
from cvvae_cli.anchors import Anchors
from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.codec import (
    Plan,
    Progress,
    draw_anchor,
    draw_latents,
    encode_frames,
    first_chunk_with,
    no_progress,
    pad_to_cells,
)
from cvvae_cli.config import Tiling, config_to_dict
from cvvae_cli.container_tags import read_tags
from cvvae_cli.errors import QualityError, UsageError
from cvvae_cli.geometry import TEMPORAL_COMPRESSION_RATIO as STEP
from cvvae_cli.geometry import cell_count, frame_count
from cvvae_cli.latent_writer import LatentWriter
from cvvae_cli.media import keep_inputs, open_input, timeline_start
from cvvae_cli.memory_model import fitting_tiling
from cvvae_cli.metrics import Quality
from cvvae_cli.model_names import shown_name
from cvvae_cli.reading import PLAIN, Reading
from cvvae_cli.run_identity import describe_run, settled_tiling
from cvvae_cli.running_check import RunningCheck
from cvvae_cli.stage_clock import StageClock
from cvvae_cli.video_io import VideoReader, write_sidecar

LONGEST_DELAY = Fraction(1)
"""Seconds that a file may begin late (sound before pictures) and come back so; beyond it, its first moment is a
broadcast's or recorder's clock, and the copy begins at 0."""
TORCH_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class EncodeOptions:
    """Attributes:
    start: seconds from the beginning.
    duration: seconds; None reads to the end.
    max_frames: at most so many frames; None reads all.
    size: (width, height) to resize to before encoding; None keeps the source's.
    seed: draw the posterior with this seed; None stores its mean.
    latent_dtype: "float16", "bfloat16" or "float32".
    audio: carry sound and subtitles along.
    check: decode each chunk while its source is at hand and store the quality.
    min_psnr_db: with `check`, refuse below this mean PSNR.
    overwrite: an existing output may be replaced.
    reading: which video stream is read, and how.
    anchors: keep, for each chunk but the first, the latent of its first frame alone, and decode the chunk with it.
    """

    start: float = 0.0
    duration: float | None = None
    max_frames: int | None = None
    size: tuple[int, int] | None = None
    seed: int | None = None
    latent_dtype: str = "float16"
    audio: bool = True
    check: bool = False
    min_psnr_db: float | None = None
    overwrite: bool = False
    reading: Reading = PLAIN
    anchors: bool = False

    def __post_init__(self) -> None:
        if self.min_psnr_db is not None and not self.check:
            raise UsageError(f"A least PSNR of {self.min_psnr_db:g} dB needs the check; pass --check.")


@dataclass(frozen=True)
class EncodeReport:
    """Attributes:
    frames, width, height: of the video as encoded.
    latent_bytes: of latents and anchors.
    bits_per_pixel: 8 latent_bytes / (width height frames).
    seconds: file to file, model loaded.
    tiling: how the video was cut in the end.
    stages: seconds of each stage; "read" runs beside the others.
    quality: where it was checked.
    notes: what could not be done exactly, a sentence each.
    resumed_at: frames that an earlier, unfinished run had left.
    """

    frames: int
    width: int
    height: int
    latent_bytes: int
    bits_per_pixel: float
    seconds: float
    tiling: Tiling
    stages: dict[str, float]
    quality: Quality | None
    notes: tuple[str, ...]
    resumed_at: int = 0

    @property
    def fps(self) -> float:
        return (self.frames - self.resumed_at) / self.seconds


def encode_file(
    source: str | Path,
    output: str | Path,
    *,
    model: Autoencoder,
    tiling: Tiling | None = None,
    options: EncodeOptions | None = None,
    progress: Progress = no_progress,
    clock: StageClock | None = None,
    resumed: Callable[[int], None] | None = None,
) -> EncodeReport:
    """Encode a video file to a latent file.

    Args:
        source: a video or a picture.
        output: the latent file; any extension.
        model: from `load_model`.
        tiling: how to cut; None measures what fits the device's memory.
        options: what to read and how to store it.
        progress: called after every chunk.
        clock: counts the stages; None for one that does not wait for the device.
        resumed: called with the number of frames that an earlier run of the same arguments had left when it was stopped.

    Raises:
        VideoError, LatentFileError, UsageError: nothing is left behind.
        OutputError, DeviceError: the same call goes on behind the last chunk, as after any interruption.
        QualityError: the check fell below `min_psnr_db`.

    Memory: a chunk of frames, another one read ahead, and two timestamps per frame.
    """
    options, clock = options or EncodeOptions(), clock or StageClock()
    keep_inputs(output, source)
    began = perf_counter()
    span = (options.start, options.duration, options.max_frames)
    with VideoReader(source, *span, options.size, options.reading, deep=True) as reader:
        height, width = reader.height, reader.width
        shape = (model.latent_channels, cell_count(height), cell_count(width))
        shaping = {field: value for field, value in vars(options).items() if field != "overwrite"}
        described = describe_run([source], model, tiling, shaping, {})
        with LatentWriter(output, *shape, options.latent_dtype, options.overwrite, described) as writer, torch.inference_mode():
            plan = Plan(settled_tiling(writer.journal, lambda: tiling or fitting_tiling(model, height, width, reader.deep)))
            expected = _expected_frames(reader, options)
            resumed_at = min(frame_count(writer.latent_frames), expected or sys.maxsize) if writer.latent_frames else 0
            if resumed_at and resumed:
                resumed(resumed_at)
            anchors = Anchors(plan.tiling, writer.read_anchor) if options.anchors else None
            run = _Encoding(reader, writer, model, plan, options, progress, clock, anchors)
            quality = run.run()
            tensors: dict[str, np.ndarray | BinaryIO] = {
                "pts": np.array(run.pts, np.int64),
                "durations": np.array(run.durations, np.int64),
            }
            if run.tags:
                tensors["tags"] = np.frombuffer(run.tags.to_bytes(), np.uint8)
            latent_bytes = writer.latent_bytes
            with writer.scratch_file() as sound:
                if options.audio and write_sidecar(source, sound, *run.sound_span()):
                    tensors["sidecar"] = sound
                writer.close(_metadata(run, quality), tensors)
        frames = len(run.pts)
        bits = 8 * latent_bytes / (width * height * frames)
        seconds = perf_counter() - began
        notes = (*reader.notes(run.to_end), *plan.notes, *(writer.journal.notes if writer.journal else ()))
        size, stages = (frames, width, height), dict(clock.seconds)
        return EncodeReport(*size, latent_bytes, bits, seconds, plan.tiling, stages, quality, notes, resumed_at)


class _Encoding:
    """One run of `encode_file`: pulls latents, which pull frames; with a check, decoded frames pull both."""

    def __init__(
        self,
        reader: VideoReader,
        writer: LatentWriter,
        model: Autoencoder,
        plan: Plan,
        options: EncodeOptions,
        progress: Progress,
        clock: StageClock,
        anchors: Anchors | None,
    ) -> None:
        self.reader, self.writer, self.model, self.anchors = reader, writer, model, anchors
        self.plan, self.options, self.progress, self.clock = plan, options, progress, clock
        with open_input(reader.path) as container:
            self._timeline_start, self.tags = timeline_start(container), read_tags(container)
        self.pts: list[int] = []
        self.durations: list[int] = []
        self.check = RunningCheck(model, plan, writer, anchors, clock) if options.check else None
        # Latent frames of an earlier run, and where the chunk begins that gives the next one.
        self._done = writer.latent_frames
        self._begin = first_chunk_with(frame_count(self._done), plan.tiling) if self._done else 0

    def run(self) -> Quality | None:
        with self.clock.stage("read"):
            self._pass_over()
        # A chunk's frames: with fewer, the network would wait for the rest of each chunk.
        with ahead(self.clock.timed("read", self._frames()), self.plan.tiling.chunk) as frames:
            waited = self.clock.timed("wait for frames", frames)
            keep_anchor = self._keep_anchor if self.anchors else None
            moments = encode_frames(self.model, waited, self.plan, self._begin, self.clock, keep_anchor)
            unseen = _without_first(moments, self._done - (self._begin + 1 if self._begin else 0))
            latents = self._stored(draw_latents(unseen, self.options.seed, self._done))
            if self.check:
                return self._accepted(self.check.run(latents, self.reader.height, self.reader.width, self.reader.deep))
            for _ in latents:
                pass
            return None

    def _accepted(self, quality: Quality) -> Quality:
        floor = self.options.min_psnr_db
        if floor is not None and quality.psnr_db < floor:
            found = f"{quality.psnr_db:.2f} dB"
            raise QualityError(f"The round trip has {found}, below the {floor:g} dB asked for; nothing was written.")
        return quality

    @property
    def to_end(self) -> bool:
        """Whether the frames are known to reach the source's last."""
        limit = self.options.max_frames
        return self.options.duration is None and (limit is None or len(self.pts) < limit)

    @property
    def origin(self) -> Fraction:
        """The moment of the container's clock, in seconds, that is 0 in a video made of the latents."""
        if self.options.start:
            return self.pts[0] * self.reader.info.time_base
        return self._timeline_start if self._timeline_start >= LONGEST_DELAY else Fraction(0)

    def sound_span(self) -> tuple[Fraction, Fraction | None]:
        """The part of the sound that belongs to the frames, as `write_sidecar` counts: seconds from the timeline's start."""
        tick, zero = self.reader.info.time_base, self._timeline_start
        start = self.pts[0] * tick - zero if self.options.start else Fraction(0)
        return start, None if self.to_end else (self.pts[-1] + self.durations[-1]) * tick - zero

    def _pass_over(self) -> None:
        """Count the frames that an earlier run was done with. Not in the thread that reads: an interrupt need not wait for it."""
        begin = self._begin * STEP
        for pts, duration in self.reader.skip(min(begin, self.check.first) if self.check else begin):
            self.pts.append(pts)
            self.durations.append(duration)

    def _frames(self) -> Iterator[Tensor]:
        begin = self._begin * STEP
        for index, frame in enumerate(self.reader, len(self.pts)):
            self.pts.append(frame.pts)
            self.durations.append(frame.duration)
            if self.check and index >= self.check.first:
                self.check.keep(frame.rgb)
            if index >= begin:
                yield pad_to_cells(torch.from_numpy(frame.rgb).permute(2, 0, 1)[None, :, None])

    def _keep_anchor(self, start: int, moments: Tensor) -> None:
        assert self.anchors is not None
        with self.clock.stage("write"):
            # One that is there already was kept by an earlier run, and is the same.
            if self.anchors.number(start) == self.writer.num_anchors:
                anchor = draw_anchor(moments, self.options.seed, start)
                self.writer.append_anchor(anchor[0, :, 0].cpu().numpy())

    def _stored(self, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        dtype = TORCH_DTYPES[self.options.latent_dtype]
        total = _expected_frames(self.reader, self.options)
        for piece in latents:
            with self.clock.stage("write"):
                piece = piece.cpu()
                self.writer.append(piece[0].transpose(0, 1).contiguous().numpy())
            self.progress(min(len(self.pts), frame_count(self.writer.latent_frames)), total)
            yield piece.to(dtype).float()


def _expected_frames(reader: VideoReader, options: EncodeOptions) -> int | None:
    """How many frames there will be, as far as the container knows them; None where nobody does."""
    whole = reader.info.num_frames if options.duration is None and not options.start else None
    return min((count for count in (whole, options.max_frames) if count is not None), default=None)


def _without_first(pieces: Iterable[Tensor], count: int) -> Iterator[Tensor]:
    """Leave out the first `count` frames of consecutive (B, C, n, h, w)."""
    for piece in pieces:
        kept = piece[:, :, count:]
        count = max(0, count - piece.shape[2])
        if kept.shape[2]:
            yield kept


def _metadata(run: _Encoding, quality: Quality | None) -> dict[str, str]:
    """The header's strings; nothing of the machine or the moment, so that encoding twice gives the same bytes."""
    reader, model, seed = run.reader, run.model, run.options.seed
    identity = model.identity
    described = {
        "name": shown_name(identity.name) if identity else None,
        "sha256": identity.sha256 if identity else None,
        "revision": identity.revision if identity else None,
        "config": config_to_dict(model.config),
    }
    video = {
        "width": reader.width, "height": reader.height, "num_frames": len(run.pts),
        "start": run.options.start, "to_end": run.to_end, "origin": str(run.origin), "source": reader.info.to_dict(),
        "reading": reader.reading.to_dict(),
    }  # fmt: skip
    encoding = {
        "tiling": asdict(run.plan.tiling), "latents": "mean" if seed is None else "sample", "seed": seed,
        "compute_dtype": str(model.dtype).removeprefix("torch."),
    }  # fmt: skip
    metadata = {"model": described, "video": video, "encoding": encoding} | ({"quality": quality.to_dict()} if quality else {})
    return {key: json.dumps(value) for key, value in metadata.items()}
