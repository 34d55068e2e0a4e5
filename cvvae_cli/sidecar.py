"""Sound and subtitles carried past the network: packets of the source, bit for bit, in a Matroska file.

Matroska because it holds nearly every codec and every player opens it. It counts milliseconds, so where that
loses precision the exact timestamps travel in a tag. Packets pass one by one, so memory does not depend on
their number. Pictures and colour are unknown here.
"""

import io
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import BinaryIO

import av
from av.audio.frame import AudioFrame
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Discard, Disposition, Stream

from cvvae_cli.checked_values import fraction_of, text_of
from cvvae_cli.errors import VideoError
from cvvae_cli.media import codec_name, open_input, timeline_start
from cvvae_cli.packet_times import PacketTimes, parse_times

_TIMES_TAG, _SHIFT_TAG, _NOTES_TAG = "CVVAE_TIMES", "CVVAE_SHIFT", "CVVAE_NOTES"

_MILLISECOND = Fraction(1, 1000)


def write_sidecar(
    path: str | Path, target: BinaryIO, start: float | Fraction = 0.0, stop: float | Fraction | None = None
) -> bool:
    """Copies the audio and subtitle streams of a video into a Matroska file.

    Args:
        path: the video.
        target: an empty file, open for writing, that can seek; it stays open.
        start: packets before it are left out, seconds from the beginning of the video (what a player shows as 0:00).
        stop: packets from here on are left out, seconds; None takes all.

    Returns:
        Whether anything was written: False where there is no sound and no subtitle in that span. The packets keep
        the timestamps of the source's own timeline; `SidecarCopy` gives them back exactly.

    Raises:
        VideoError: the video cannot be read.
        OSError: the target cannot be written.

    Memory: one packet, what the muxer holds to put the streams in order (10 s at most), and the runs of
        `PacketTimes`. The video is read twice, since the exact times stand before the first packet.
    """
    path = Path(path)
    times: dict[int, PacketTimes] = {}
    with open_input(path) as container:
        streams, _ = _storable_streams(container)
        for packet in _packets(container, streams, start, stop):
            if packet.stream_index not in times:
                times[packet.stream_index] = PacketTimes(packet.time_base)
            times[packet.stream_index].add(packet.pts, packet.duration or 0)
    if not times:
        return False
    with open_input(path) as container:
        streams, notes = _storable_streams(container)
        packets = _packets(container, streams, start, stop)
        _write_matroska(target, [stream for stream in streams if stream.index in times], packets, times, notes)
    return True


def _storable_streams(container: InputContainer) -> tuple[list[Stream], list[str]]:
    """The streams to copy, with all others switched off, and a sentence for each that Matroska cannot hold."""
    holds = _codecs_of("matroska")
    chosen, notes = [], []
    for stream in container.streams:
        if stream.type in ("audio", "subtitle") and stream.codec_context is not None and _held(stream, holds):
            chosen.append(stream)
            continue
        stream.discard = Discard.all
        if stream.type in ("audio", "subtitle"):
            notes.append(f"The {stream.type} stream {stream.index} ({codec_name(stream)}) could not be stored.")
    return chosen, notes


def _codecs_of(format_name: str) -> set[str]:
    with av.open(io.BytesIO(), "w", format=format_name) as probe:
        return probe.supported_codecs


def _held(stream: Stream, holds: set[str]) -> bool:
    """Whether a container holds a stream's codec; its list mixes names of codecs and of implementations."""
    codec = stream.codec_context.codec
    return codec.canonical_name in holds or codec.name in holds


def _packets(
    container: InputContainer, streams: list[Stream], start: float | Fraction, stop: float | Fraction | None
) -> Iterator[Packet]:
    """The packets with start <= time < stop, decoding times made strictly increasing within each stream."""
    zero = timeline_start(container)
    first = zero + Fraction(start) if start > 0 else None
    last = zero + Fraction(stop) if stop is not None else None
    if first is not None and streams:
        with suppress(FFmpegError):  # what cannot seek is read from its beginning
            container.seek(int(first / streams[0].time_base), stream=streams[0])
    finished: set[int] = set()
    latest: dict[int, int] = {}
    demuxed = container.demux(streams)
    while len(finished) < len(streams):
        try:
            packet = next(demuxed, None)
        except FFmpegError:
            return  # the file is cut off: what came before it is worth keeping
        if packet is None:
            return
        index = packet.stream_index
        if packet.dts is None or packet.size == 0:
            continue
        packet.pts = packet.dts if packet.pts is None else packet.pts
        time = packet.pts * packet.time_base
        if first is not None and time < first:
            continue
        if last is not None and time >= last:
            finished.add(index)  # sound is stored in order; a stray late packet must not end the other streams
            continue
        if packet.dts <= latest.get(index, packet.dts - 1):
            packet.dts = latest[index] + 1
            packet.pts = max(packet.pts, packet.dts)
        latest[index] = packet.dts
        yield packet


def _write_matroska(
    target: BinaryIO, streams: list[Stream], packets: Iterable[Packet], times: dict[int, PacketTimes], notes: list[str]
) -> None:
    begin = min(table.earliest for table in times.values())
    shift = max(Fraction(0), ceil(-begin / _MILLISECOND) * _MILLISECOND)  # Matroska has no time before zero
    # bitexact: else every file gets random identifiers, and encoding twice would give two files
    output = av.open(target, "w", format="matroska", container_options={"fflags": "+bitexact"})
    try:
        output.metadata[_SHIFT_TAG] = str(shift)
        if notes:
            output.metadata[_NOTES_TAG] = json.dumps(notes)
        copies = {}
        for stream in streams:
            copy = copies[stream.index] = output.add_stream_from_template(stream)
            describe(copy, stream)
            inexact = shift > 0 or (times[stream.index].time_base / _MILLISECOND).denominator != 1
            if inexact and (table := times[stream.index].to_text()):
                copy.metadata[_TIMES_TAG] = table
        for packet in packets:
            if packet.stream_index not in copies:
                continue  # a recording that has grown since its times were taken
            offset = round(shift / packet.time_base)
            packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
            packet.stream = copies[packet.stream_index]
            output.mux(packet)
        output.close()
    except BaseException:
        with suppress(FFmpegError):  # it fails too where the target does, and would hide the target's own error
            output.close()
        raise


def describe(copy: Stream, stream: Stream) -> None:
    """Gives a copied stream the language, title and disposition of its original."""
    copy.disposition = Disposition(stream.disposition)
    copy.metadata.update({key: stream.metadata[key] for key in ("language", "title") if key in stream.metadata})


class SidecarCopy:
    """Writes a sidecar's streams into an output file, beside the video and in step with it.

    Attributes:
        notes: one sentence for each thing that was not copied bit for bit.
    """

    def __init__(self, sidecar: BinaryIO, output: OutputContainer, origin: Fraction, stop: Fraction | None = None) -> None:
        """Adds the streams to the output; call it before the first packet is muxed.

        Args:
            sidecar: what `write_sidecar` wrote, open for reading; it must stay open until `close` or the last `advance`.
            output: the container that is being written.
            origin: the moment of the source that is 0 in the output, seconds; where it is not 0 itself, packets
                before it are left out.
            stop: packets from this moment of the source on are left out; None takes all.

        Raises:
            VideoError: the sidecar is damaged.
        """
        self._output, self._origin, self._stop = output, origin, stop
        try:
            sidecar.seek(0)
            # Named, because FFmpeg would believe bytes that say they are a list of other files.
            self._input = av.open(sidecar, format="matroska")
            self._shift = fraction_of(self._input.metadata.get(_SHIFT_TAG, "0"))
            self.notes = [text_of(note) for note in json.loads(self._input.metadata.get(_NOTES_TAG, "[]"))]
        except (FFmpegError, ValueError, TypeError, RecursionError):
            raise VideoError("The sound stored with the latents is damaged; decode with --no-audio.") from None
        self._targets: dict[int, Stream] = {}
        self._encoded: set[int] = set()
        self._sound_ends: dict[int, Fraction] = {}
        self._times: dict[int, tuple[Fraction, Iterator[tuple[int, int]]]] = {}
        holds = output.supported_codecs
        for stream in self._input.streams:
            if stream.codec_context is not None:
                self._add(stream, holds)
        self._packets = self._timed() if self._targets else iter(())
        self._waiting: Packet | None = None

    def _add(self, stream: Stream, holds: set[str]) -> None:
        name, kind = codec_name(stream), self._output.format.name
        if _held(stream, holds):
            copy = self._output.add_stream_from_template(stream)
        elif stream.type == "audio" and (encoder := "libopus" if kind == "webm" else "aac") in holds:
            copy = self._output.add_stream(encoder, rate=48000 if encoder == "libopus" else stream.codec_context.rate)
            copy.codec_context.layout = stream.codec_context.layout
            copy.codec_context.bit_rate = 64_000 * max(1, stream.codec_context.layout.nb_channels)
            self._encoded.add(stream.index)
            self.notes.append(f"The sound ({name}) was encoded anew as {encoder}, since {kind} cannot hold {name}.")
        else:
            self.notes.append(f"The {stream.type} stream ({name}) was left out, since {kind} cannot hold it.")
            return
        describe(copy, stream)
        self._targets[stream.index] = copy
        if table := stream.metadata.get(_TIMES_TAG):
            self._times[stream.index] = parse_times(table)

    def _timed(self) -> Iterator[Packet]:
        """The packets to write, with the source's exact times less the origin."""
        wanted = [stream for stream in self._input.streams if stream.index in self._targets]
        end = None if self._stop is None else self._stop - self._origin
        for packet in self._input.demux(wanted):
            if packet.dts is None or packet.size == 0:
                continue
            time_base, times = self._times.get(packet.stream_index, (packet.time_base, iter(())))
            exact = next(times, None)
            if exact is not None:
                packet.time_base = time_base
                packet.pts, packet.duration = exact
                offset = round(self._origin / time_base)
            else:
                offset = round((self._origin + self._shift) / packet.time_base)
            packet.pts -= offset
            packet.dts = packet.pts
            if not (self._origin and packet.pts < 0) and (end is None or packet.pts * packet.time_base < end):
                yield packet

    def advance(self, seconds: Fraction | None) -> None:
        """Writes what is due before a moment of the output.

        Args:
            seconds: of the output's time; None writes all the rest.
        """
        while True:
            packet = self._waiting or next(self._packets, None)
            self._waiting = None
            if packet is None:
                break
            if seconds is not None and packet.dts * packet.time_base >= seconds:
                self._waiting = packet
                return
            self._mux(packet)
        if seconds is None:
            for index in self._encoded:
                self._output.mux(self._targets[index].encode(None))
            self._input.close()

    def _mux(self, packet: Packet) -> None:
        target = self._targets[packet.stream_index]
        if packet.stream_index not in self._encoded:
            packet.stream = target
            self._output.mux(packet)
            return
        try:
            frames = packet.decode()
        except FFmpegError:
            return  # a broken piece of sound is a short silence, as in any player
        for frame in frames:
            self._put_behind_last(packet.stream_index, frame)
            self._output.mux(target.encode(frame))

    def _put_behind_last(self, index: int, frame: AudioFrame) -> None:
        """Moves a frame that would begin in the middle of the last one to its end: no encoder takes such times."""
        length, last = Fraction(frame.samples, frame.sample_rate), self._sound_ends.get(index)
        begin = last if frame.pts is None else frame.pts * frame.time_base
        if last is not None and begin < last - length / 2:
            begin, frame.time_base = last, Fraction(1, frame.sample_rate)
            frame.pts = round(begin / frame.time_base)
        self._sound_ends[index] = (begin or Fraction(0)) + length

    def close(self) -> None:
        """Lets go of the sidecar without writing the rest."""
        self._packets = iter(())
        self._input.close()
