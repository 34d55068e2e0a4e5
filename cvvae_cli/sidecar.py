"""Sound and subtitles carried past the network: packets of the source, bit for bit, in a Matroska file in memory.

Matroska because it holds nearly every codec and every player opens it. It counts milliseconds, so where that
loses precision the exact timestamps travel in a tag, run-length coded. Pictures and colour are unknown here.
"""

import io
import json
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain, groupby, pairwise, repeat
from math import ceil
from pathlib import Path

import av
from av.container import OutputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Discard, Disposition, Stream

from cvvae_cli.errors import VideoError
from cvvae_cli.media import codec_name, open_input, timeline_start

_TIMES_TAG, _SHIFT_TAG, _NOTES_TAG = "CVVAE_TIMES", "CVVAE_SHIFT", "CVVAE_NOTES"
_MAX_RUNS = 8192
"""Longest table of exact times; beyond it (hours of Vorbis out of an MP4) milliseconds must do."""

_MILLISECOND = Fraction(1, 1000)


def read_sidecar(path: str | Path, start: float | Fraction = 0.0, stop: float | Fraction | None = None) -> bytes | None:
    """Copies the audio and subtitle streams of a video into a Matroska file in memory.

    Args:
        path: the video.
        start: packets before it are left out, seconds from the beginning of the video (what a player shows as 0:00).
        stop: packets from here on are left out, seconds; None takes all.

    Returns:
        The Matroska file, or None where there is no sound and no subtitle in that span. Its packets keep the
        timestamps of the source's own timeline; `SidecarCopy` gives them back exactly.

    Raises:
        VideoError: the file cannot be read.

    Memory: about twice the size of the packets.
    """
    path = Path(path)
    with open_input(path) as container:
        zero = timeline_start(container)
        first = zero + Fraction(start) if start > 0 else None
        last = zero + Fraction(stop) if stop is not None else None
        holds = _codecs_of("matroska")
        chosen, notes = [], []
        for stream in container.streams:
            if stream.type in ("audio", "subtitle") and stream.codec_context is not None and _held(stream, holds):
                chosen.append(stream)
                continue
            stream.discard = Discard.all
            if stream.type in ("audio", "subtitle"):
                notes.append(f"The {stream.type} stream {stream.index} ({codec_name(stream)}) could not be stored.")
        packets = _collect(container, chosen, first, last) if chosen else {}
        kept = [stream for stream in chosen if packets[stream.index]]
        return _write_matroska(kept, packets, notes) if kept else None


def _codecs_of(format_name: str) -> set[str]:
    with av.open(io.BytesIO(), "w", format=format_name) as probe:
        return probe.supported_codecs


def _held(stream: Stream, holds: set[str]) -> bool:
    """Whether a container holds a stream's codec; its list mixes names of codecs and of implementations."""
    codec = stream.codec_context.codec
    return codec.canonical_name in holds or codec.name in holds


def _collect(
    container: av.container.InputContainer, streams: list[Stream], first: Fraction | None, last: Fraction | None
) -> dict[int, list[Packet]]:
    """The packets with first <= time < last per stream, their decoding times made strictly increasing."""
    packets: dict[int, list[Packet]] = {stream.index: [] for stream in streams}
    if first is not None:
        try:
            container.seek(int(first / streams[0].time_base), stream=streams[0])
        except FFmpegError:
            pass  # what cannot seek is read from its beginning
    finished: set[int] = set()
    demuxed = container.demux(streams)
    while len(finished) < len(streams):
        try:
            packet = next(demuxed, None)
        except FFmpegError:
            break  # the file is cut off: what came before it is worth keeping
        if packet is None:
            break
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
        earlier = packets[index]
        if earlier and packet.dts <= earlier[-1].dts:
            packet.dts = earlier[-1].dts + 1
            packet.pts = max(packet.pts, packet.dts)
        earlier.append(packet)
    return packets


def _write_matroska(streams: list[Stream], packets: dict[int, list[Packet]], notes: list[str]) -> bytes:
    begin = min(packet.pts * packet.time_base for stream in streams for packet in packets[stream.index])
    shift = max(Fraction(0), ceil(-begin / _MILLISECOND) * _MILLISECOND)  # Matroska has no time before zero
    target = io.BytesIO()
    # bitexact: else every file gets random identifiers, and encoding twice would give two files
    with av.open(target, "w", format="matroska", container_options={"fflags": "+bitexact"}) as output:
        output.metadata[_SHIFT_TAG] = str(shift)
        if notes:
            output.metadata[_NOTES_TAG] = json.dumps(notes)
        copies = {}
        for stream in streams:
            copy = copies[stream.index] = output.add_stream_from_template(stream)
            describe(copy, stream)
            table = _encode_times(packets[stream.index], shift > 0)
            if table:
                copy.metadata[_TIMES_TAG] = table
        ordered = sorted(chain.from_iterable(packets.values()), key=lambda packet: packet.dts * packet.time_base)
        for packet in ordered:
            offset = round(shift / packet.time_base)
            packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
            packet.stream = copies[packet.stream_index]
            output.mux(packet)
    return target.getvalue()


def describe(copy: Stream, stream: Stream) -> None:
    """Gives a copied stream the language, title and disposition of its original."""
    copy.disposition = Disposition(stream.disposition)
    copy.metadata.update({key: stream.metadata[key] for key in ("language", "title") if key in stream.metadata})


def _runs(values: Iterable[int]) -> list[str]:
    return [f"{value}*{sum(1 for _ in group)}" for value, group in groupby(values)]


def _encode_times(packets: list[Packet], shifted: bool) -> str:
    """Exact times as "time_base first_pts steps durations"; empty where Matroska's own are exact or it is too long."""
    time_base = packets[0].time_base
    if not shifted and (time_base / _MILLISECOND).denominator == 1:
        return ""
    pts = [packet.pts for packet in packets]
    steps = _runs(b - a for a, b in pairwise(pts))
    durations = _runs(packet.duration or 0 for packet in packets)
    if len(steps) + len(durations) > _MAX_RUNS:
        return ""
    return f"{Fraction(time_base)} {pts[0]} {','.join(steps) or '-'} {','.join(durations)}"


def _decode_times(table: str) -> tuple[Fraction, Iterator[tuple[int, int]]]:
    """The time base, and the (pts, duration) of each packet, of a table of `_encode_times`."""

    def expand(runs: str) -> Iterator[int]:
        pairs = (run.split("*") for run in runs.split(",") if run != "-")
        return chain.from_iterable(repeat(int(value), int(count)) for value, count in pairs)

    time_base, first, steps, durations = table.split(" ")

    def times() -> Iterator[tuple[int, int]]:
        pts = int(first)
        for step, duration in zip(chain(expand(steps), [0]), expand(durations), strict=False):
            yield pts, duration
            pts += step

    return Fraction(time_base), times()


class SidecarCopy:
    """Writes a sidecar's streams into an output file, beside the video and in step with it.

    Attributes:
        notes: one sentence for each thing that was not copied bit for bit.
    """

    def __init__(self, sidecar: bytes, output: OutputContainer, origin: Fraction, stop: Fraction | None = None) -> None:
        """Adds the streams to the output; call it before the first packet is muxed.

        Args:
            sidecar: what `read_sidecar` returned.
            output: the container that is being written.
            origin: the moment of the source that is 0 in the output, seconds; where it is not 0 itself, packets
                before it are left out.
            stop: packets from this moment of the source on are left out; None takes all.

        Raises:
            VideoError: the sidecar is damaged.
        """
        self._output, self._origin, self._stop = output, origin, stop
        try:
            self._input = av.open(io.BytesIO(sidecar))
            self._shift = Fraction(self._input.metadata.get(_SHIFT_TAG, "0"))
            self.notes: list[str] = json.loads(self._input.metadata.get(_NOTES_TAG, "[]"))
        except (FFmpegError, ValueError):
            raise VideoError("The sound stored with the latents is damaged; decode with --no-audio.") from None
        self._targets: dict[int, Stream] = {}
        self._encoded: set[int] = set()
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
            self._times[stream.index] = _decode_times(table)

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
            self._output.mux(target.encode(frame))

    def close(self) -> None:
        """Lets go of the sidecar without writing the rest."""
        self._packets = iter(())
        self._input.close()
