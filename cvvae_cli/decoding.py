"""Latents to a video file: a latent file, or what a diffusion model made. The computing is `codec`'s."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from cvvae_cli.ahead import behind
from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.codec import Plan, Progress, cropped_frames, decode_frames, first_chunk_with, no_progress
from cvvae_cli.config import Tiling
from cvvae_cli.geometry import TEMPORAL_COMPRESSION_RATIO as STEP
from cvvae_cli.latent_video import LatentVideo, Times, check_model
from cvvae_cli.media import keep_inputs
from cvvae_cli.memory_model import tiling_within
from cvvae_cli.stage_clock import StageClock
from cvvae_cli.video_io import VideoWriter

LATENTS_PER_READ = 8


@dataclass(frozen=True)
class DecodeOptions:
    """Attributes:
    start: seconds from the beginning of the whole decoded video.
    max_frames: at most so many frames; None decodes all.
    frame_rate: constant rate that replaces the timestamps (the sound is left out then); None keeps them.
    audio: write sound and subtitles where the latents carry them.
    codec, crf, preset, pix_fmt, encoder_options: as `VideoWriter` takes them.
    overwrite: an existing output may be replaced.
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


@dataclass(frozen=True)
class DecodeReport:
    """Attributes:
    frames, width, height: of the video written.
    seconds: file to file, model loaded; the observer's time with it where the network waits for it.
    tiling: how the latents were cut in the end.
    stages: seconds of each stage; "write" and "observe" run beside the others.
    notes: what could not be done exactly, a sentence each.
    """

    frames: int
    width: int
    height: int
    seconds: float
    tiling: Tiling
    stages: dict[str, float]
    notes: tuple[str, ...]

    @property
    def fps(self) -> float:
        return self.frames / self.seconds


def decode_file(
    latents: str | Path | LatentVideo,
    output: str | Path | None,
    *,
    model: Autoencoder,
    tiling: Tiling | None = None,
    options: DecodeOptions | None = None,
    progress: Progress = no_progress,
    observe: Callable[[np.ndarray], None] | None = None,
    clock: StageClock | None = None,
) -> DecodeReport:
    """Decode latents to a video file.

    Args:
        latents: a latent file, or what `latent_video` opened.
        output: the video; the extension chooses the container. None decodes for `observe` alone.
        model: the one that the latents belong to.
        tiling: how to cut; None is how they were encoded, with smaller tiles where those do not fit the device.
        options: what to write and how.
        progress: called after every frame, in the thread that writes.
        observe: called with every frame, uint8 [H, W, 3], before the video codec, in the same thread.
        clock: counts the stages; None for one that does not wait for the device.

    Raises:
        LatentFileError, OutputError, DeviceError, UsageError: nothing is left behind.
    """
    options, clock = options or DecodeOptions(), clock or StageClock()
    began = perf_counter()
    if not isinstance(latents, LatentVideo):
        with LatentVideo.open(latents, model.config) as opened:
            return decode_file(
                opened, output, model=model, tiling=tiling, options=options, progress=progress, observe=observe, clock=clock
            )
    check_model(latents, model)
    if output is not None:
        keep_inputs(output, latents.path)
    first, stop = latents.span(options.start, options.max_frames, options.frame_rate)
    times, notes = latents.times(options.frame_rate), []
    if options.audio and options.frame_rate is not None and latents.has_sidecar:
        notes.append("The sound is left out, because --fps changes the timing.")
    with ExitStack() as stack:
        writer = None
        if output is not None:
            # Opened anew: the sound is read by the thread that writes, while this one reads latents.
            sound = stack.enter_context(LatentVideo.open(latents.path, model.config)) if latents.has_sidecar else latents
            writer = stack.enter_context(_video_writer(sound, output, times, (first, stop), options))

        def finish(item: tuple[int, np.ndarray]) -> None:
            index, frame = item
            if writer:
                with clock.stage("write"):
                    writer.write(frame, int(times.pts[index]), int(times.durations[index]))
            if observe:
                with clock.stage("observe"):
                    observe(frame)
            progress(index + 1 - first, stop - first)

        plan = Plan(tiling or tiling_within(model, latents.tiling, latents.height, latents.width))
        stack.enter_context(torch.inference_mode())
        # A chunk's frames: with fewer, the network would wait until most of each chunk is written.
        hand_over = stack.enter_context(behind(finish, plan.tiling.chunk))
        for item in enumerate(decoded_frames(latents, model, plan, first, stop, clock), first):
            with clock.stage("wait for writer"):
                hand_over(item)
        with clock.stage("wait for writer"):
            stack.close()
    notes += [*plan.notes, *(writer.notes if writer else ())]
    seconds = perf_counter() - began
    return DecodeReport(stop - first, latents.width, latents.height, seconds, plan.tiling, dict(clock.seconds), tuple(notes))


def _video_writer(
    latents: LatentVideo, output: str | Path, times: Times, span: tuple[int, int], options: DecodeOptions
) -> VideoWriter:
    first, stop = span
    return VideoWriter(
        output,
        latents.width,
        latents.height,
        times.frame_rate,
        times.time_base,
        colour=latents.colour,
        sample_aspect_ratio=latents.sample_aspect_ratio,
        codec=options.codec,
        crf=options.crf,
        preset=options.preset,
        pix_fmt=options.pix_fmt,
        encoder_options=dict(options.encoder_options),
        sidecar=latents.sidecar() if options.audio and options.frame_rate is None else None,
        time_origin=times.origin(first),
        sound_stop=times.end(stop) if stop < latents.num_frames else None,
        overwrite=options.overwrite,
    )


def decoded_frames(
    latents: LatentVideo, model: Autoencoder, plan: Plan, first: int, stop: int, clock: StageClock | None = None
) -> Iterator[np.ndarray]:
    """Frames `first` to `stop` as uint8 [H, W, 3], as a full decode gives them, reading only the chunks they need.

    The caller holds torch's inference mode.
    """
    clock = clock or StageClock()
    begin = first_chunk_with(first, plan.tiling)

    def pieces() -> Iterator[Tensor]:
        for start in range(begin, latents.latent_frames, LATENTS_PER_READ):
            with clock.stage("read"):
                values = latents.read(start, min(start + LATENTS_PER_READ, latents.latent_frames))
            yield torch.from_numpy(values).transpose(0, 1)[None]

    frames = cropped_frames(decode_frames(model, pieces(), plan, begin, clock), latents.height, latents.width)
    skipped = first - (STEP * begin + 1 if begin else 0)
    return itertools.islice(frames, skipped, skipped + stop - first)
