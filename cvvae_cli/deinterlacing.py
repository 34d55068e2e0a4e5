"""Whole pictures out of interlaced ones, by FFmpeg's filter bwdif, one for one. Files and latents are unknown here."""

from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction

from av.filter import Graph
from av.video.frame import VideoFrame


def deinterlaced(frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
    """Deinterlaces the frames that are marked as interlaced and passes the others on.

    Args:
        frames: decoded frames in the order they are shown.

    Yields:
        As many frames, with the times and colour tags of the given ones.

    Memory: three frames, since a picture's neighbours in time are looked at.
    """
    filtering: _Bwdif | None = None
    for frame in frames:
        if filtering is not None and not filtering.fits(frame):
            yield from filtering.rest()
            filtering = None
        if filtering is None:
            filtering = _Bwdif(frame)
        yield from filtering.put(frame)
    if filtering is not None:
        yield from filtering.rest()


class _Bwdif:
    """One filter for frames of one size and format."""

    def __init__(self, first: VideoFrame) -> None:
        self._kind = _kind(first)
        self._originals: deque[VideoFrame] = deque()
        self._graph = Graph()
        # the filter counts in half ticks; times are taken from the frames given, so any time base will do
        source = self._graph.add_buffer(width=first.width, height=first.height, format=first.format, time_base=Fraction(1, 25))
        bwdif = self._graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
        same_format = self._graph.add("format", f"pix_fmts={first.format.name}")
        self._graph.link_nodes(source, bwdif, same_format, self._graph.add("buffersink")).configure()

    def fits(self, frame: VideoFrame) -> bool:
        """Whether a frame is of the size and format that the filter was made for."""
        return _kind(frame) == self._kind

    def put(self, frame: VideoFrame) -> Iterator[VideoFrame]:
        """Takes a frame and gives those that are ready."""
        self._originals.append(frame)
        self._graph.push(frame)
        yield from self._ready()

    def rest(self) -> Iterator[VideoFrame]:
        """The frames that waited for a successor."""
        self._graph.push(None)
        yield from self._ready()

    def _ready(self) -> Iterator[VideoFrame]:
        while True:
            try:
                frame = self._graph.pull()
            except (BlockingIOError, EOFError):
                return
            original = self._originals.popleft()
            frame.time_base, frame.pts = original.time_base, original.pts
            frame.dts, frame.duration = original.dts, original.duration
            frame.colorspace, frame.color_range = original.colorspace, original.color_range
            yield frame


def _kind(frame: VideoFrame) -> tuple[int, int, str]:
    return frame.width, frame.height, frame.format.name
