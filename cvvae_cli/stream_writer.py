"""Frames, with sound, to a Matroska stream that is passed on as it is made: for a pipe, where nothing can be written later.

It does not know where frames come from or who reads the stream. A run that is stopped cannot go on.
"""

from pathlib import Path
from types import TracebackType

import numpy as np
from av.packet import Packet

from cvvae_cli.errors import OutputError
from cvvae_cli.output_errors import told_on_failure
from cvvae_cli.run_journal import RunJournal
from cvvae_cli.standard_output import StandardOutput
from cvvae_cli.video_container import EXACT, Beside, VideoContainer
from cvvae_cli.video_encoder import Encoding, Pictures, VideoEncoder

STREAM_CODEC = "libx264"
"""FFmpeg's encoder, unless another is asked for."""

_NAME = Path("The standard output")

_OPTIONS = EXACT | {
    "flush_packets": "1",
    # Microseconds that pictures may wait for a subtitle that is to come: FFmpeg's 10 s would be felt.
    "max_interleave_delta": "1000000",
}


class StreamWriter:
    """Encodes frames into a stream on the standard output. A context manager, as `VideoWriter` is.

    Attributes:
        notes: one sentence for everything that could not be done exactly.
        frames: written so far.
        deep: more than 8 bits per component are written.
        journal: none.
    """

    def __init__(self, output: StandardOutput, pictures: Pictures, encoding: Encoding, beside: Beside) -> None:
        """Opens the encoder; the first bytes come with the first encoded frame.

        Args:
            output: what takes the bytes.
            pictures: what is encoded.
            encoding: how.
            beside: sound, titles and when the stream begins.

        Raises:
            UsageError: codec, pixel format or option unknown, or not to be combined.
            VideoError: the sidecar is damaged.
        """
        self.frames = 0
        self.journal: RunJournal | None = None
        self._output, self._closed = output, False
        self._offset = round(beside.origin / pictures.time_base)
        self._durations: dict[int, int] = {}
        self._container = VideoContainer(output, "Matroska", encoding.codec, pictures, _OPTIONS, "matroska")
        try:
            self._encoder = VideoEncoder(pictures, encoding, 0, self._container.stream.codec_context)
            self._container.add(beside)
        except BaseException:
            self.abort()
            raise
        self.notes, self.deep = list(self._container.notes), self._encoder.deep

    def write(self, rgb: np.ndarray, pts: int, duration: int) -> None:
        """Encodes one frame, and passes on what is ready.

        Args:
            rgb: uint8 or uint16 [height, width, 3].
            pts: when it is shown, in ticks, later than the frame before.
            duration: how long it is shown, ticks; it matters for the last frame.

        Raises:
            BrokenPipeError: the reader is gone.
            OutputError: the bytes cannot be written.
        """
        shown = pts - self._offset
        self._durations[shown] = duration
        self._pass_on(self._encoder.encode(rgb, shown, duration))
        self.frames += 1

    def _pass_on(self, packets: list[Packet]) -> None:
        with told_on_failure(_NAME):
            for packet in packets:
                packet.duration = self._durations.pop(packet.pts, packet.duration or 0)
                self._container.mux(packet)

    def close(self) -> None:
        """Passes on the rest, and ends the stream.

        Raises:
            BrokenPipeError: the reader is gone.
            OutputError: no frame was written, or the bytes cannot be.
        """
        if self._closed:
            return
        if not self.frames:
            self.abort()
            raise OutputError("Nothing went to the standard output: there was no frame to write.")
        try:
            self._pass_on(self._encoder.end_segment())
            with told_on_failure(_NAME):
                self._container.close()
        except BaseException:
            self.abort()
            raise
        self._closed = True

    def abort(self) -> None:
        """Passes nothing on any more."""
        self._output.shut()
        if not self._closed:
            self._container.abandon()
        self._closed = True

    def __enter__(self) -> "StreamWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self.abort()
