"""Latents to a video file: a latent file, or what a diffusion model made. The computing is `codec`'s."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from time import perf_counter
from typing import Protocol

import numpy as np
import torch

from cvvae_cli.ahead import behind
from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.codec import Plan, Progress, no_progress
from cvvae_cli.config import Tiling
from cvvae_cli.container_tags import ContainerTags
from cvvae_cli.decode_damage import anchors_left_out, sidecar_of, tags_of, told_replaced
from cvvae_cli.decoded_frames import decoded_frames
from cvvae_cli.errors import UsageError
from cvvae_cli.geometry import TEMPORAL_COMPRESSION_RATIO as STEP
from cvvae_cli.geometry import chunk_stride, frame_count
from cvvae_cli.latent_video import LatentVideo, check_model
from cvvae_cli.media import keep_inputs
from cvvae_cli.memory_model import tiling_within
from cvvae_cli.output_errors import told_on_failure
from cvvae_cli.picture_writer import PICTURE_CODECS, PictureWriter, names_pictures
from cvvae_cli.run_identity import describe_run, settled_tiling
from cvvae_cli.stage_clock import StageClock
from cvvae_cli.standard_output import STANDARD_OUTPUT, StandardOutput
from cvvae_cli.stream_writer import STREAM_CODEC, StreamWriter
from cvvae_cli.video_container import Beside
from cvvae_cli.video_encoder import Encoding, Pictures
from cvvae_cli.video_writer import VideoWriter, default_codec

COMPARED = "compared"
"""Kind of the journal's lines [kind, frames, sums]; a line stands before the part that ends with these frames."""
SEGMENT_CHUNKS = 4
"""Chunks after which the video is closed to what comes, so that a stopped run can go on there."""
Writer = VideoWriter | PictureWriter | StreamWriter


class Against(Protocol):
    """What compares the frames of a decode with others and can go on in a later run, as `roundtrip.SourceComparison` does.

    Attributes:
        source: the file that it reads.
        settings: what else decides on its finding, JSON-ready.
        sums: all that a later run needs to go on behind the last frame, JSON-ready.
    """

    source: Path
    settings: dict

    @property
    def sums(self) -> dict: ...

    def add(self, decoded: np.ndarray) -> None:
        """Take the next frame."""

    def go_on(self, done: int, sums: dict) -> None:
        """Begin where an earlier one had `sums` behind so many frames; the last of these comes first, once more."""


@dataclass(frozen=True)
class DecodeOptions:
    """Attributes:
    start: seconds from the beginning of the whole decoded video.
    max_frames: at most so many frames; None decodes all.
    frame_rate: constant rate that replaces the timestamps (the sound is left out then); None keeps them.
    audio: write sound and subtitles where the latents carry them.
    codec, crf, preset, pix_fmt, encoder_options: as `VideoWriter` takes them. Where the pixel format has more than 8 bits, the
        network's output is rounded to 16 bits, not to 8.
    overwrite: an existing output may be replaced.
    keep_going: damaged chunks are replaced by what lies between their neighbours, and damaged sound is left out.
    depth: bits per component of the video, 8 or 10, where no pixel format is named.
    """

    start: float = 0.0
    max_frames: int | None = None
    frame_rate: Fraction | None = None
    audio: bool = True
    codec: str | None = None
    crf: float | None = None
    preset: str | None = None
    pix_fmt: str | None = None
    encoder_options: tuple[tuple[str, str], ...] = ()
    overwrite: bool = False
    keep_going: bool = False
    depth: int = 8

    def __post_init__(self) -> None:
        if self.depth not in (8, 10):
            raise UsageError(f"A depth of {self.depth} bits is not to be had; pass --depth 8 or --depth 10.")

    def encoding(self, codec: str) -> Encoding:
        """How frames are encoded, with this codec where none was asked for."""
        return Encoding(self.codec or codec, self.crf, self.preset, self.pix_fmt, self.encoder_options, self.depth)


@dataclass(frozen=True)
class DecodeReport:
    """Attributes:
    frames, width, height: of the video written.
    seconds: file to file, model loaded; the observer's time with it where the network waits for it.
    tiling: how the latents were cut in the end.
    stages: seconds of each stage; "write" and "observe" run beside the others.
    notes: what could not be done exactly, a sentence each.
    resumed_at: frames that an earlier, unfinished run had left.
    damage: those of the notes that tell what `keep_going` passed over.
    replaced_frames: first and last frame (of the whole decoded video) of each stretch that was damaged and is filled.
    """

    frames: int
    width: int
    height: int
    seconds: float
    tiling: Tiling
    stages: dict[str, float]
    notes: tuple[str, ...]
    resumed_at: int = 0
    damage: tuple[str, ...] = ()
    replaced_frames: tuple[tuple[int, int], ...] = ()

    @property
    def fps(self) -> float:
        return (self.frames - self.resumed_at) / self.seconds


def decode_file(
    latents: str | Path | LatentVideo,
    output: str | Path | None,
    *,
    model: Autoencoder,
    tiling: Tiling | None = None,
    options: DecodeOptions | None = None,
    progress: Progress = no_progress,
    observe: Callable[[np.ndarray], None] | None = None,
    against: Against | None = None,
    clock: StageClock | None = None,
    resumed: Callable[[int], None] | None = None,
) -> DecodeReport:
    """Decode latents to a video file.

    Args:
        latents: a latent file, or what `latent_video` opened.
        output: the video; the extension chooses the container, `frames/%04d.png` is numbered pictures and
            `-` a Matroska stream on the standard output. None decodes for `observe` alone.
        model: the one that the latents belong to.
        tiling: how to cut; None is how they were encoded, with smaller tiles where those do not fit the device.
        options: what to write and how.
        progress: called after every frame, in the thread that writes.
        observe: called with every frame, uint8 [H, W, 3] (uint16 where the output is deeper, or without an output where the
            source was), before the video codec, in the same thread. A run that is observed begins anew.
        against: takes every frame as `observe` does, and goes on with the run.
        clock: counts the stages; None for one that does not wait for the device.
        resumed: called with the number of frames that an earlier run of the same arguments had left when it was stopped.

    Raises:
        LatentFileError, UsageError: nothing is left behind.
        OutputError, DeviceError: the same call goes on behind the last whole segment or picture, as after any interruption.
        BrokenPipeError: the reader of the standard output is gone.
        VideoError, QualityError: out of `against`; nothing is left behind.
    """
    options, clock = options or DecodeOptions(), clock or StageClock()
    began = perf_counter()
    with ExitStack() as stack:
        if not isinstance(latents, LatentVideo):
            latents = stack.enter_context(LatentVideo.open(latents, model.config))
        check_model(latents, model)
        if output is not None:
            keep_inputs(output, latents.path)
        run = _Decoding(latents, model, tiling, options, progress, clock, against)
        if output is not None:
            run.open_writer(stack, output, describe=observe is None)
        plan = run.run(observe, resumed)
        notes, damage, replaced = *run.told(plan), latents.replaced_frames()
    size, stages = (run.stop - run.first, latents.width, latents.height), dict(clock.seconds)
    seconds = perf_counter() - began
    return DecodeReport(*size, seconds, plan.tiling, stages, notes, run.done, damage, tuple(replaced))


class _Decoding:
    """One run of `decode_file`: frames are pulled here, written and observed in a thread of their own."""

    def __init__(
        self,
        latents: LatentVideo,
        model: Autoencoder,
        tiling: Tiling | None,
        options: DecodeOptions,
        progress: Progress,
        clock: StageClock,
        against: Against | None,
    ) -> None:
        self.latents, self.model, self.tiling = latents, model, tiling
        self.options, self.progress, self.clock, self.against = options, progress, clock, against
        self.first, self.stop = latents.span(options.start, options.max_frames, options.frame_rate)
        self.times = latents.times(options.frame_rate)
        self.writer: Writer | None = None
        self._stream: StandardOutput | None = None
        self.done = 0  # frames of an earlier run
        self._notes: list[str] = []
        self._damage: list[str] = []
        if options.keep_going:
            latents.keep_going(self.first, self.stop)
        if options.audio and options.frame_rate is not None and latents.has_sidecar:
            self._notes.append("The sound is left out, because --fps changes the timing.")

    def open_writer(self, stack: ExitStack, output: str | Path, describe: bool) -> None:
        """Open the output, which may hold an earlier run's frames if the run is described."""
        latents, options = self.latents, self.options
        # Opened anew: the sound is read by the thread that writes, while this one reads latents.
        sound = stack.enter_context(LatentVideo.open(latents.path, self.model.config)) if latents.has_sidecar else latents
        segment_frames = _segment_frames(self.tiling or latents.tiling or Tiling())
        run = None
        if describe:
            shaping = {field: value for field, value in vars(options).items() if field != "overwrite"}
            parts: dict[str, object] = {"segment_frames": segment_frames, "span": [self.first, self.stop]}
            sources: list[str | Path] = [latents.path]
            if self.against is not None:
                parts["against"] = self.against.settings
                sources.append(self.against.source)
            run = describe_run(sources, self.model, self.tiling, shaping, parts)
        self.writer = self._opened(Path(output), sound, segment_frames, run)
        self.done = self.writer.frames
        if latents.bit_depth > 8 and not self.writer.deep:
            found = f"The source has {latents.bit_depth} bits for each colour, of which 8 are written"
            self._notes.append(f"{found}; --depth 10 keeps more.")

    def _opened(self, output: Path, sound: LatentVideo, segment_frames: int, run: dict | None) -> Writer:
        latents, options, times = self.latents, self.options, self.times
        pictures = Pictures(
            latents.width, latents.height, times.frame_rate, times.time_base, latents.sample_aspect_ratio, latents.colour
        )
        if names_pictures(output):
            if latents.has_sidecar and options.audio and options.frame_rate is None:
                self._notes.append("The sound is left out, because pictures hold none.")
            encoding = options.encoding(PICTURE_CODECS[output.suffix.lower()])
            return PictureWriter(output, pictures, encoding, options.overwrite, run)
        stop = times.end(self.stop) if self.stop < latents.num_frames else None
        retimed = options.frame_rate is not None  # which leaves no moment where it was
        sidecar = sidecar_of(sound, options.keep_going, self._damage) if options.audio and not retimed else None
        tags = tags_of(latents, options.keep_going, self._damage)
        if retimed:
            tags = ContainerTags(tags.metadata)
        beside = Beside(sidecar, tags, times.origin(self.first), stop)
        if output == STANDARD_OUTPUT:
            self._stream = StandardOutput()
            return StreamWriter(self._stream, pictures, options.encoding(STREAM_CODEC), beside)
        encoding = options.encoding(default_codec(output))
        return VideoWriter(output, pictures, encoding, beside, options.overwrite, segment_frames, run)

    def run(self, observe: Callable[[np.ndarray], None] | None, resumed: Callable[[int], None] | None) -> Plan:
        """Decode, write and observe; gives the plan as it was in the end."""
        with ExitStack() as stack:
            if self.writer is not None:
                stack.enter_context(self.writer)
            if self.done and resumed:
                resumed(self.done)
            plan = Plan(settled_tiling(self.writer.journal if self.writer else None, self._fitting_tiling))
            if self.tiling is None:
                self._notes += _cut_otherwise(self.latents.tiling, plan.tiling)
            self._notes += anchors_left_out(
                self.latents, plan.tiling, (self.first, self.stop), self.options.keep_going, self._damage
            )
            stack.enter_context(torch.inference_mode())

            begin = self.first + self.done
            shown = begin if self.against is None else self._compared_until(begin)

            def finish(item: tuple[int, np.ndarray]) -> None:
                index, frame = item
                for look in (self.against.add if self.against else None, observe):
                    if look is not None:
                        with self.clock.stage("observe"):
                            look(frame)
                if index >= begin:
                    self._write(index, frame)
                    self.progress(index + 1 - self.first, self.stop - self.first)

            # A chunk's frames: with fewer, the network would wait until most of each chunk is written.
            hand_over = stack.enter_context(behind(finish, plan.tiling.chunk, self._give_up))
            frames: Iterable[np.ndarray] = ()
            if shown < self.stop:
                frames = decoded_frames(self.latents, self.model, plan, shown, self.stop, self.clock, self.deep)
            for item in enumerate(frames, shown):
                with self.clock.stage("wait for writer"):
                    hand_over(item)
            with self.clock.stage("wait for writer"):
                stack.close()
        return plan

    def _give_up(self) -> None:
        # The thread that writes is waited for next, and who reads from it may have stopped for good.
        if self._stream is not None:
            self._stream.shut()

    @property
    def deep(self) -> bool:
        """Whether frames come with 16 bits."""
        return self.latents.bit_depth > 8 if self.writer is None else self.writer.deep

    def told(self, plan: Plan) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """All notes of a finished run, and those of them that tell of damage."""
        damage = [*self._damage, *told_replaced(self.latents.replaced_frames(), plan.tiling)]
        writer = self.writer
        dropped = writer.journal.notes if writer and writer.journal else ()
        return (*self._notes, *plan.notes, *dropped, *(writer.notes if writer else ()), *damage), tuple(damage)

    def _fitting_tiling(self) -> Tiling:
        size = (frame_count(self.latents.latent_frames), self.latents.height, self.latents.width)
        return self.tiling or tiling_within(self.model, self.latents.tiling, *size, self.deep)

    def _compared_until(self, begin: int) -> int:
        """Have the comparison go on; the first frame that it wants."""
        if not self.done:
            return begin
        assert self.against is not None and self.writer is not None and self.writer.journal is not None
        compared = {entry[1]: entry[2] for entry in self.writer.journal.entries if entry[0] == COMPARED}
        self.against.go_on(self.done, compared[self.done])
        return begin - 1

    def _write(self, index: int, frame: np.ndarray) -> None:
        if self.writer is None:
            return
        with self.clock.stage("write"):
            self._note_compared(index + 1 - self.first)
            self.writer.write(frame, int(self.times.pts[index]), int(self.times.durations[index]))

    def _note_compared(self, frames: int) -> None:
        """What was found so far into the journal, where a part ends: before the part itself, which is of no use without."""
        writer = self.writer
        if self.against is None or writer is None or writer.journal is None:
            return
        if frames % writer.part_frames == 0 or frames == self.stop - self.first:
            with told_on_failure(writer.path):
                writer.journal.add([COMPARED, frames, self.against.sums])


def _cut_otherwise(recorded: Tiling | None, tiling: Tiling) -> list[str]:
    """A word where the device's memory did not allow the recorded cut."""
    if recorded is None or (recorded.tile, recorded.chunk) == (tiling.tile, tiling.chunk):
        return []
    cuts = [f"tiles of {cut.tile} px and chunks of {cut.chunk} frames" for cut in (recorded, tiling)]
    return [f"The file records {cuts[0]}, for which memory does not suffice; {cuts[1]} were decoded."]


def _segment_frames(tiling: Tiling) -> int:
    return SEGMENT_CHUNKS * STEP * chunk_stride(tiling.chunk, tiling.chunk_overlap)
