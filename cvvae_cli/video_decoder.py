"""One video stream of a file as decoded frames, in the order they are shown, from any moment on.

Goes on behind damage as players do, and counts it. Colour, size and the times that frames get are unknown here.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame

from cvvae_cli.deinterlacing import deinterlaced
from cvvae_cli.errors import VideoError
from cvvae_cli.media import named, open_input, read_error, video_stream
from cvvae_cli.reading import Reading


class VideoDecoder:
    """Decodes one stream. Close it when done.

    Attributes:
        path: the file.
        container, stream: open for reading.
        broken_packets: pieces that could not be decoded so far.
        shown_packets: packets read so far whose pictures are meant to be shown (edit lists hide some).
        interlaced_frames: frames so far that are marked as interlaced.
        broke_off: the file could not be read to its end.
    """

    def __init__(self, path: Path, reading: Reading) -> None:
        """Opens the file.

        Raises:
            VideoError: it cannot be read or has no video.
            UsageError: it has no such stream.
        """
        self.path, self._reading = path, reading
        self.broken_packets = self.shown_packets = self.interlaced_frames = 0
        self.broke_off = False
        self._open()

    def _open(self) -> None:
        self.container = open_input(self.path, self._reading.frame_rate)
        try:
            self.stream = video_stream(self.container, self.path, self._reading.stream)
        except BaseException:
            self.container.close()
            raise
        if self._reading.strict:
            self.stream.codec_context.options = {"err_detect": "explode"}  # else half a JPEG passes for a picture
        # FRAME threading, and AUTO with it, hangs at exit once a damaged file has made it raise
        self.stream.thread_type = "SLICE"

    def frames(self) -> Iterator[VideoFrame]:
        """All frames from where the file stands on.

        Raises:
            VideoError: the file cannot be read on, or is damaged where damage is not allowed.
        """
        return deinterlaced(self._decoded()) if self._reading.deinterlace else self._decoded()

    def frames_from(self, tick: int) -> Iterator[VideoFrame]:
        """Frames from a keyframe at or before a moment on, or from the very first.

        Args:
            tick: the moment, in ticks of the stream's time base.

        Raises:
            VideoError: as `frames`.
        """
        try:
            self.container.seek(tick, stream=self.stream)
            frames = self.frames()
            landed = next(frames, None)
        except FFmpegError:
            landed = None
        if landed is not None and landed.pts is not None and landed.pts <= tick:
            return chain([landed], frames)
        # no index, or a wrong one: reading from the beginning is slow and right
        self.close()
        self._open()
        return self.frames()

    def _decoded(self) -> Iterator[VideoFrame]:
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except FFmpegError as error:
                if isinstance(error, OSError):
                    raise read_error(self.path, error) from None
                self._note_damage()
                self.broke_off = True
                break
            self.broke_off |= packet.is_corrupt  # half a packet stands at the end of a file that was cut off
            self.shown_packets += packet.size > 0 and not packet.is_discard
            yield from self._decode(packet)
        yield from self._decode(None)  # the rest of a file that cannot be read on

    def _decode(self, packet: Packet | None) -> list[VideoFrame]:
        try:
            frames = self.stream.decode(packet)
        except FFmpegError:
            self._note_damage(packet)
            return []
        self.interlaced_frames += sum(frame.interlaced_frame for frame in frames)
        return frames

    def _note_damage(self, packet: Packet | None = None) -> None:
        self.broken_packets += 1
        if self._reading.strict:
            at = f" at {float(packet.pts * packet.time_base):.3f} s" if packet is not None and packet.pts is not None else ""
            raise VideoError(f"{named(self.path)} has a damaged packet{at}; leave out --strict to go on behind it.")

    def close(self) -> None:
        """Closes the file; its decoder and threads are gone at once."""
        self.container.close()
