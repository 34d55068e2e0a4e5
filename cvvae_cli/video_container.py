"""A container that is being written: one video stream and, in step with it, sound, subtitles, titles and chapters.

Where packets come from and where the bytes go is unknown here.
"""

import contextlib
from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO, Protocol

import av
from av.codec import Codec
from av.error import FFmpegError
from av.packet import Packet
from av.video.stream import VideoStream

from cvvae_cli.container_tags import ContainerTags, write_tags
from cvvae_cli.errors import UsageError
from cvvae_cli.sidecar import SidecarCopy
from cvvae_cli.video_encoder import CODECS_WITH_ASPECT, Pictures


EXACT = {"avoid_negative_ts": "disabled", "fflags": "+bitexact"}
"""Options of a container that keep times as they are, and random identifiers (Matroska's) out: the same run, the same file."""


class Sink(Protocol):
    """Takes bytes in order, all of them or an error."""

    def write(self, data: bytes) -> int:
        """Take them, and say how many they were."""


@dataclass(frozen=True)
class Beside:
    """What a video holds beside its pictures.

    Attributes:
        sidecar: sound and subtitles from `write_sidecar`, a file that stays open until the container is closed.
        tags: titles and chapters.
        origin: moment of the source, in seconds, that becomes 0 in the file; video and sound alike.
        stop: moment of the source, in seconds, from which on sound and chapters are left out; None takes all.
    """

    sidecar: BinaryIO | None = None
    tags: ContainerTags | None = None
    origin: Fraction = Fraction(0)
    stop: Fraction | None = None


class VideoContainer:
    """Opens with its video stream alone; the header is written with the first packet.

    Attributes:
        stream: the video's; its `codec_context` must be open before the first packet.
        notes: one sentence for everything that could not be done exactly.
    """

    def __init__(
        self,
        target: str | Sink,
        kind: str,
        codec: str,
        pictures: Pictures,
        options: dict[str, str],
        container_format: str | None = None,
    ) -> None:
        """Adds the video stream.

        Args:
            target: a path as FFmpeg takes it, or what takes the bytes.
            kind: the container's name in a sentence.
            codec: FFmpeg's encoder.
            pictures: what is encoded.
            options: of the container.
            container_format: FFmpeg's name of it; None goes by the path's extension.

        Raises:
            UsageError: there is no such encoder, or the container does not hold what it makes.
            OSError: the target cannot be opened.
        """
        self.notes: list[str] = []
        self._sidecar: SidecarCopy | None = None
        self._container = av.open(target, "w", format=container_format, container_options=options)
        try:
            self.stream = self._add_stream(kind, codec, pictures)
        except BaseException:
            self.abandon()
            raise
        matroska = self._container.format.name in ("matroska", "webm")
        if pictures.sample_aspect_ratio != 1 and matroska and codec not in CODECS_WITH_ASPECT:
            # PyAV cannot reach the Matroska header's display size
            self.notes.append(f"The pixel aspect {pictures.sample_aspect_ratio} is lost, since {codec} stores none.")

    def _add_stream(self, kind: str, codec: str, pictures: Pictures) -> VideoStream:
        try:
            made = Codec(codec, "w").type
        except ValueError:
            raise UsageError(f"There is no encoder {codec!r}; use libx264, libx265, libsvtav1 or ffv1.") from None
        if made != "video":
            raise UsageError(f"{codec!r} does not encode video; use libx264, libx265, libsvtav1 or ffv1.")
        try:
            rate = Fraction(pictures.frame_rate).limit_denominator(1_000_000)
            stream = self._container.add_stream(codec, rate=rate)
        except ValueError:
            raise UsageError(f"A {kind} file cannot hold {codec}; choose another codec or container.") from None
        stream.time_base = pictures.time_base
        return stream

    def add(self, beside: Beside) -> None:
        """Adds sound, subtitles, titles and chapters; call it before the first packet.

        Raises:
            VideoError: the sidecar is damaged.
        """
        if beside.sidecar is not None:
            self._sidecar = SidecarCopy(beside.sidecar, self._container, beside.origin, beside.stop)
            self.notes += self._sidecar.notes
        if beside.tags:
            write_tags(beside.tags, self._container, beside.origin, beside.stop)

    def mux(self, packet: Packet) -> None:
        """Writes a packet of the video and, before it, the sound that is due.

        Args:
            packet: with its times in ticks of the stream's `time_base`, `dts` rising.

        Raises:
            FFmpegError, OSError: the target does not take it.
        """
        packet.stream = self.stream
        if self._sidecar is not None:
            self._sidecar.advance(packet.dts * packet.time_base)
        self._container.mux(packet)

    def close(self) -> None:
        """Writes the rest of the sound and the container's end.

        Raises:
            FFmpegError, OSError: the target does not take it.
        """
        if self._sidecar is not None:
            self._sidecar.advance(None)
        self._container.close()

    def abandon(self) -> None:
        """Lets go of everything; of no effect on a container that was closed."""
        if self._sidecar is not None:
            self._sidecar.close()
        with contextlib.suppress(FFmpegError, OSError):  # what is being thrown away need not be finished
            self._container.close()
