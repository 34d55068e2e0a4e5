"""Reading video files frame by frame as upright RGB of 8 or 16 bits, and the one door to all video files that are read.

`probe` and `VideoReader` live here; `write_sidecar` is passed on, so that callers need one
import. Frames stream: a few are in memory at a time, whatever the length. The network, latents and quality
are unknown here.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from types import TracebackType

import numpy as np
from av.error import FFmpegError
from av.video.frame import VideoFrame

from cvvae_cli.colour import Colour, FrameToRgb
from cvvae_cli.errors import UsageError, VideoError
from cvvae_cli.frame_clock import FrameClock
from cvvae_cli.media import named, timeline_start
from cvvae_cli.reading import PLAIN, Reading
from cvvae_cli.reading_notes import Counts, count_notes, source_notes
from cvvae_cli.sidecar import write_sidecar
from cvvae_cli.video_decoder import VideoDecoder
from cvvae_cli.video_info import VideoInfo, describe_video, orientation_of

__all__ = ["Colour", "Frame", "Reading", "VideoInfo", "VideoReader", "probe", "write_sidecar"]

_SAME_MOMENT = Fraction(1, 2000)
"""Half a tick of the coarsest common time base: `--start 0.333` means the frame at one third."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One decoded frame.

    Attributes:
        rgb: uint8 [H, W, 3], white 255, or uint16, white 65535 (see `VideoReader.deep`); upright, contiguous.
        pts: when it is shown, in ticks of the source's time base; strictly rising from frame to frame.
        duration: until the next frame, ticks, 1 or more.
    """

    rgb: np.ndarray
    pts: int
    duration: int


def probe(path: str | Path, reading: Reading = PLAIN) -> VideoInfo:
    """Describes a video; one frame is decoded, since only frames tell rotation and true colour.

    Raises:
        VideoError: it cannot be read or has no frame.
    """
    with VideoReader(path, reading=reading) as reader:
        return reader.info


class VideoReader:
    """Iterates once over the frames of a video file, or of a span of it.

    Attributes:
        info: what the source is (untouched by `size`).
        width, height: of the frames that come out, pixels.
        deep: the frames are uint16.
        changed_frames: frames stored in another size than the first, scaled to it.
        repaired_times: frames whose timestamp was missing or did not rise.
    """

    def __init__(
        self,
        path: str | Path,
        start: float = 0.0,
        duration: float | None = None,
        max_frames: int | None = None,
        size: tuple[int, int] | None = None,
        reading: Reading = PLAIN,
        deep: bool = False,
    ) -> None:
        """Opens the file and decodes its first frame.

        Args:
            path: a video, a picture, which is a video of one frame, or numbered pictures (`frames/%04d.png`).
            start: seconds from the beginning, 0 or more; the first frame is the first one not before it.
            duration: seconds from `start`, above 0; None reads to the end.
            max_frames: at most so many frames, 1 or more.
            size: (width, height) to resize upright frames to, pixels.
            reading: which stream, and how.
            deep: give 16 bits where the source has more than 8; else all sources give 8.

        Raises:
            VideoError: the file cannot be read or has no frame.
            UsageError: an argument is out of range.
        """
        _check_span(start, duration, max_frames, size)
        self.path, self.reading = Path(path), reading
        self.changed_frames = self.repaired_times = self._given = 0
        self._max_frames, self._untimed = max_frames, False
        self._decoder = VideoDecoder(self.path, reading)
        try:
            frames = self._decoder.frames()
            first = next(frames, None)
            if first is None:
                raise VideoError(f"{named(self.path)} has no frame that can be decoded; copy it again or convert it with ffmpeg.")
            self._stored_size = (first.width, first.height)
            container = self._decoder.container
            orientation, rotation = orientation_of(container, first, self.path)
            self.info = describe_video(container, self._decoder.stream, first, orientation, rotation, self.path)
            self.width, self.height = size or (self.info.width, self.info.height)
            self.deep = deep and self.info.bit_depth > 8
            self._to_rgb = FrameToRgb(self.info.colour, orientation, self.width, self.height, self.deep)
            self._step = max(1, round(1 / (self.info.frame_rate * self.info.time_base)))
            self._begin, self._end = self._span(first, start, duration)
            self._source_notes = source_notes(self.path, reading, container, self.info, first)
            self._frames: Iterator[VideoFrame] = chain([first], frames)
            if self._begin is not None and first.pts is not None and first.pts < self._begin:
                frames.close()
                self._frames = self._decoder.frames_from(self._begin)
            self._timed: Iterator[tuple[VideoFrame, int, int]] = self._timed_frames()
        except BaseException:
            self.close()
            raise

    def _span(self, first: VideoFrame, start: float, duration: float | None) -> tuple[int | None, int | None]:
        """First tick that is wanted and first that is no more, None where nothing limits."""
        tick = self.info.time_base
        zero = timeline_start(self._decoder.container)
        if self._decoder.container.start_time is None and first.pts is not None:
            zero = first.pts * tick
        begin = math.ceil((zero + Fraction(start) - _SAME_MOMENT) / tick) if start else None
        if duration is None:
            return begin, None
        return begin, math.ceil((zero + Fraction(start) + Fraction(duration) - _SAME_MOMENT) / tick)

    def __iter__(self) -> Iterator[Frame]:
        """Yields the frames, from the first that was neither given nor skipped.

        Raises:
            VideoError: the span holds no frame, or reading fails.
        """
        for decoded, pts, duration in self._timed:
            yield Frame(self._pixels(decoded), pts, duration)

    def skip(self, count: int) -> Iterator[tuple[int, int]]:
        """Passes over the next `count` frames, fewer where the video ends, and yields `pts` and `duration` of each.

        They are decoded, as the ones behind them need them, but not converted.

        Raises:
            VideoError: as in reading them.
        """
        for _, pts, duration in islice(self._timed, count):
            yield pts, duration

    def _timed_frames(self) -> Iterator[tuple[VideoFrame, int, int]]:
        clock = FrameClock(self._step, math.ceil(1 / self.info.time_base))
        waiting: tuple[VideoFrame, int] | None = None
        for decoded in self._frames:
            pts = clock.place(decoded.pts, decoded.dts)
            self._note_repair(clock)
            if self._begin is not None and pts < self._begin:
                continue
            if waiting is not None:
                yield self._counted(*waiting, pts - waiting[1])
                waiting = None
            if self._given == self._max_frames or (self._end is not None and pts >= self._end):
                return
            waiting = decoded, pts
        if waiting is not None:
            # the last frame has no next one: its own duration counts, unless it is a container's filler
            own = waiting[0].duration or 0
            yield self._counted(*waiting, own if own * 4 >= self._step else self._step)
        elif not self._given:
            length = f"{self.info.duration_seconds:.3f} s" if self.info.duration_seconds else "shorter"
            raise VideoError(
                f"{named(self.path)} has no frame in the span that was asked for (it is {length}); use a smaller --start."
            )
        if self.reading.strict and self._begin is None and self.lost_frames:
            raise VideoError(f"{named(self.path)} lost {self.lost_frames} of its frames; leave out --strict to do without them.")

    def _note_repair(self, clock: FrameClock) -> None:
        self._untimed = clock.untimed
        if clock.repaired > self.repaired_times and self.reading.strict and not clock.untimed:
            found = f"{named(self.path)} has a missing or falling timestamp near frame {self._given}"
            raise VideoError(f"{found}; leave out --strict to repair it.")
        self.repaired_times = clock.repaired

    def _counted(self, decoded: VideoFrame, pts: int, duration: int) -> tuple[VideoFrame, int, int]:
        self._given += 1
        if (decoded.width, decoded.height) != self._stored_size:
            self.changed_frames += 1
        return decoded, pts, duration

    def _pixels(self, decoded: VideoFrame) -> np.ndarray:
        try:
            return self._to_rgb(decoded)
        except FFmpegError:
            raise VideoError(
                f"{named(self.path)} stores pixels as {decoded.format.name}, which cannot be converted; convert it with ffmpeg."
            ) from None

    @property
    def broken_packets(self) -> int:
        """Pieces that could not be decoded so far; reading goes on behind them as players do."""
        return self._decoder.broken_packets

    @property
    def lost_frames(self) -> int:
        """Frames that should have come and did not; of use once a video was read from its first frame to its last."""
        stated = self.info.num_frames
        if self._decoder.container.format.name.startswith("mov") and not self._decoder.broke_off:
            stated = self._decoder.shown_packets  # the container's count includes what edit lists hide
        return max(0, (stated or 0) - self._given)

    def notes(self, to_end: bool) -> tuple[str, ...]:
        """What could not be read exactly, or was decided for the user, a sentence each.

        Args:
            to_end: the frames were read to the source's last.
        """
        lost = self.lost_frames if to_end and self._begin is None else 0
        combed = self._decoder.interlaced_frames > 0 and not self.reading.deinterlace
        repaired = 0 if self._untimed else self.repaired_times
        untimed = [f"The file holds no timestamps; {float(self.info.frame_rate):g} frames per second were assumed."]
        counts = Counts(self.broken_packets, self.changed_frames, repaired, lost)
        return (*count_notes(counts, self._given, combed), *untimed[: self._untimed], *self._source_notes)

    def close(self) -> None:
        """Closes the file; its decoder and threads are gone at once."""
        self._frames = self._timed = iter(())
        self._decoder.close()

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _check_span(start: float, duration: float | None, max_frames: int | None, size: tuple[int, int] | None) -> None:
    if not (start >= 0 and math.isfinite(start)):
        raise UsageError(f"The start must be 0 s or more; got {start}.")
    if duration is not None and not (duration > 0 and math.isfinite(duration)):
        raise UsageError(f"The duration must be more than 0 s; got {duration}.")
    if max_frames is not None and max_frames < 1:
        raise UsageError(f"The number of frames must be 1 or more; got {max_frames}.")
    if size is not None and min(size) < 1:
        raise UsageError(f"The size must be 1x1 or more; got {size[0]}x{size[1]}.")
