"""Reading video files frame by frame as upright 8-bit RGB, and the one door to all video files.

`probe` and `VideoReader` live here; `VideoWriter` and `write_sidecar` are passed on, so that callers need one
import. Frames stream: a few are in memory at a time, whatever the length. The network, latents and quality
are unknown here.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import numpy as np
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame

from cvvae_cli.colour import Colour, FrameToRgb
from cvvae_cli.errors import UsageError, VideoError
from cvvae_cli.media import open_input, read_error, timeline_start, video_stream
from cvvae_cli.sidecar import write_sidecar
from cvvae_cli.video_info import VideoInfo, describe_video, orientation_of
from cvvae_cli.video_writer import VideoWriter

__all__ = ["Colour", "Frame", "VideoInfo", "VideoReader", "VideoWriter", "probe", "write_sidecar"]

_SAME_MOMENT = Fraction(1, 2000)
"""Half a tick of the coarsest common time base: `--start 0.333` means the frame at one third."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One decoded frame.

    Attributes:
        rgb: uint8 [H, W, 3], upright, contiguous.
        pts: when it is shown, in ticks of the source's time base; strictly rising from frame to frame.
        duration: until the next frame, ticks, 1 or more.
    """

    rgb: np.ndarray
    pts: int
    duration: int


def probe(path: str | Path) -> VideoInfo:
    """Describes a video; one frame is decoded, since only frames tell rotation and true colour.

    Raises:
        VideoError: it cannot be read or has no frame.
    """
    with VideoReader(path) as reader:
        return reader.info


class VideoReader:
    """Iterates once over the frames of a video file, or of a span of it.

    Attributes:
        info: what the source is (untouched by `size`).
        width, height: of the frames that come out, pixels.
        broken_packets: pieces that could not be decoded so far; reading goes on behind them as players do.
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
    ) -> None:
        """Opens the file and decodes its first frame.

        Args:
            path: a video, or a picture, which is a video of one frame.
            start: seconds from the beginning, 0 or more; the first frame is the first one not before it.
            duration: seconds from `start`, above 0; None reads to the end.
            max_frames: at most so many frames, 1 or more.
            size: (width, height) to resize upright frames to, pixels.

        Raises:
            VideoError: the file cannot be read or has no frame.
            UsageError: an argument is out of range.
        """
        _check_span(start, duration, max_frames, size)
        self.path = Path(path)
        self.broken_packets = self.changed_frames = self.repaired_times = 0
        self._max_frames = max_frames
        self._open()
        try:
            self._decoded = self._decode()
            first = next(self._decoded, None)
            if first is None:
                raise VideoError(f"{self.path} has no frame that can be decoded; copy it again or convert it with ffmpeg.")
            self._stored_size = (first.width, first.height)
            orientation, rotation = orientation_of(self._container, first)
            self.info = describe_video(self._container, self._stream, first, orientation, rotation, self.path)
            self.width, self.height = size or (self.info.width, self.info.height)
            self._to_rgb = FrameToRgb(self.info.colour, orientation, self.width, self.height)
            self._step = max(1, round(1 / (self.info.frame_rate * self.info.time_base)))
            self._begin, self._end = self._span(first, start, duration)
            self._next_frames = self._from_begin(first)
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self._container = open_input(self.path)
        try:
            self._stream = video_stream(self._container, self.path)
        except VideoError:
            self._container.close()
            raise
        # FRAME threading, and AUTO with it, hangs at exit once a damaged file has made it raise
        self._stream.thread_type = "SLICE"

    def _decode(self) -> Iterator[VideoFrame]:
        """All frames that can be decoded, in the order they are shown."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except FFmpegError as error:
                if isinstance(error, OSError):
                    raise read_error(self.path, error) from None
                self.broken_packets += 1
                break
            yield from self._decode_packet(packet)
        yield from self._decode_packet(None)  # the rest of a file that cannot be read on

    def _decode_packet(self, packet: Packet | None) -> list[VideoFrame]:
        try:
            return self._stream.decode(packet)
        except FFmpegError:
            self.broken_packets += 1
            return []

    def _span(self, first: VideoFrame, start: float, duration: float | None) -> tuple[int | None, int | None]:
        """First tick that is wanted and first that is no more, None where nothing limits."""
        tick = self.info.time_base
        zero = timeline_start(self._container)
        if self._container.start_time is None and first.pts is not None:
            zero = first.pts * tick
        begin = math.ceil((zero + Fraction(start) - _SAME_MOMENT) / tick) if start else None
        if duration is None:
            return begin, None
        return begin, math.ceil((zero + Fraction(start) + Fraction(duration) - _SAME_MOMENT) / tick)

    def _from_begin(self, first: VideoFrame) -> Iterator[VideoFrame]:
        """Frames from a keyframe at or before the wanted moment on, or from the very first."""
        if self._begin is None or first.pts is None or first.pts >= self._begin:
            yield first
        else:
            self._decoded.close()
            try:
                self._container.seek(self._begin, stream=self._stream)
                self._decoded = self._decode()
                landed = next(self._decoded, None)
            except FFmpegError:
                landed = None
            if landed is not None and landed.pts is not None and landed.pts <= self._begin:
                yield landed
            else:  # no index, or a wrong one: reading from the beginning is slow and right
                self._close_file()
                self._open()
                self._decoded = self._decode()
        yield from self._decoded

    def __iter__(self) -> Iterator[Frame]:
        """Yields the frames.

        Raises:
            VideoError: the span holds no frame, or reading fails.
        """
        clock = _Clock(self._step, math.ceil(1 / self.info.time_base))
        waiting: tuple[VideoFrame, int] | None = None
        given = 0
        for decoded in self._next_frames:
            pts = clock.place(decoded.pts, decoded.dts)
            self.repaired_times = clock.repaired
            if self._begin is not None and pts < self._begin:
                continue
            if waiting is not None:
                yield self._frame(*waiting, pts - waiting[1])
                waiting, given = None, given + 1
            if given == self._max_frames or (self._end is not None and pts >= self._end):
                return
            waiting = decoded, pts
        if waiting is not None:
            # the last frame has no next one: its own duration counts, unless it is a container's filler
            own = waiting[0].duration or 0
            yield self._frame(*waiting, own if own * 4 >= self._step else self._step)
        elif not given:
            length = f"{self.info.duration_seconds:.3f} s" if self.info.duration_seconds else "shorter"
            raise VideoError(f"{self.path} has no frame in the span that was asked for (it is {length}); use a smaller --start.")

    def _frame(self, decoded: VideoFrame, pts: int, duration: int) -> Frame:
        if (decoded.width, decoded.height) != self._stored_size:
            self.changed_frames += 1
        try:
            return Frame(self._to_rgb(decoded), pts, duration)
        except FFmpegError:
            raise VideoError(
                f"{self.path} stores pixels as {decoded.format.name}, which cannot be converted; convert it with ffmpeg."
            ) from None

    def close(self) -> None:
        """Closes the file; its decoder and threads are gone at once."""
        if hasattr(self, "_next_frames"):
            self._next_frames.close()  # an unfinished generator holds the reader, and so the decoder, in a cycle
        self._close_file()

    def _close_file(self) -> None:
        if hasattr(self, "_decoded"):
            self._decoded.close()
        self._container.close()

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Clock:
    """Gives frames rising times whatever their stream says.

    Missing times are filled in; where a stream starts its count anew (broadcasts do) counting goes on; where
    presentation times go to and fro (B-frames in AVI) decoding times are used, by FFmpeg's own rule: whichever
    of the two has failed to rise less often.
    """

    def __init__(self, step: int, second: int) -> None:
        """
        Args:
            step: ticks between frames.
            second: ticks in a second.
        """
        self._step, self._second = step, second
        self._last: int | None = None
        self._last_pts = self._last_dts = self._offset = 0
        self._pts_faults = self._dts_faults = 0
        self.repaired = 0

    def place(self, pts: int | None, dts: int | None) -> int:
        """The time of the next frame, ticks.

        Args:
            pts: the frame's presentation time, or None.
            dts: the time at which its packet was due for decoding, or None.
        """
        stated = self._choose(pts, dts)
        if self._last is None:
            time = pts if pts is not None else 0
            self.repaired += pts is None
        elif stated is not None and stated + self._offset > self._last:
            time = stated + self._offset
            self.repaired += stated != pts
        else:
            time = self._last + 1
            if stated is None:
                time = self._last + self._step
            elif self._last - (stated + self._offset) > self._second:
                time = self._last + self._step
                self._offset = time - stated
            self.repaired += 1
        self._last = time
        return time

    def _choose(self, pts: int | None, dts: int | None) -> int | None:
        if self._last is not None:
            self._pts_faults += pts is not None and pts <= self._last_pts
            self._dts_faults += dts is not None and dts <= self._last_dts
        self._last_pts = self._last_pts if pts is None else pts
        self._last_dts = self._last_dts if dts is None else dts
        return dts if pts is None or (dts is not None and self._pts_faults > self._dts_faults) else pts


def _check_span(start: float, duration: float | None, max_frames: int | None, size: tuple[int, int] | None) -> None:
    if not (start >= 0 and math.isfinite(start)):
        raise UsageError(f"The start must be 0 s or more; got {start}.")
    if duration is not None and not (duration > 0 and math.isfinite(duration)):
        raise UsageError(f"The duration must be more than 0 s; got {duration}.")
    if max_frames is not None and max_frames < 1:
        raise UsageError(f"The number of frames must be 1 or more; got {max_frames}.")
    if size is not None and min(size) < 1:
        raise UsageError(f"The size must be 1x1 or more; got {size[0]}x{size[1]}.")
