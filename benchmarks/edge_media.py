"""Odd real media through `cvvae encode` and `cvvae decode`, compared by a reader of its own.

    python benchmarks/edge_media.py FOLDER_OR_FILE [...] --out benchmarks/edge_media.json

What is compared: frame count, timestamps, packets of sound and subtitles, colour tags, pixel aspect, depth, and that the
first picture is upright. The reader below is PyAV alone and shares no line with the package; FFmpeg's filters turn its pictures.
MP4 and MOV files come back as .mp4, all others as .mkv. Long clips are cut with --frames and large ones made smaller, so that
all take minutes. Sources of more than 8 bits are decoded with --depth 10, but to .webm, whose encoder at hand has 8.
"""

import argparse
import contextlib
import hashlib
import io
import json
import signal
import struct
import sys
import tempfile
import traceback
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from av.filter import Graph
from av.stream import Disposition

from cvvae_cli.__main__ import main as cvvae

SIDE_SHOW = Disposition.attached_pic | Disposition.timed_thumbnails
THUMB = 32
"""Edge of the small pictures that are compared, pixels."""

SAID = {"sound codec": ("anew", "left out"), "aspect": ("pixel aspect",), "depth": ("bits for each colour",)}
"""Words of the notes that own up to a difference."""

MP4_FAMILY = {".mp4", ".mov", ".m4v"}
MILLISECOND = Fraction(1, 1000)


@dataclass
class Seen:
    """What the independent reader found in a file.

    Attributes:
        times: of the frames, seconds; None where a frame has none.
        decoding_times: of their packets, likewise.
        after: when the last frame within the limit ends, None where the file ends before it.
        tick: of the video stream, seconds.
        tags: primaries, transfer, matrix, range.
        bits: of each component as stored.
        size: width and height, upright.
        aspect: of an upright pixel.
        thumb: first picture, upright, float [THUMB, THUMB, 3].
        faults: packets that could not be decoded.
        packets: by stream number, (time in seconds, tick, hash) of each packet of sound and subtitles.
        codecs: by stream number, the codec's name.
    """

    times: list[Fraction | None] = field(default_factory=list)
    decoding_times: list[Fraction | None] = field(default_factory=list)
    after: Fraction | None = None
    tick: Fraction = Fraction(1)
    tags: tuple[int, int, int, int] = (2, 2, 2, 0)
    bits: int = 8
    size: tuple[int, int] = (0, 0)
    aspect: Fraction = Fraction(1)
    thumb: np.ndarray | None = None
    faults: int = 0
    packets: dict[int, list[tuple[Fraction, Fraction, str]]] = field(default_factory=dict)
    codecs: dict[int, str] = field(default_factory=dict)


def look(path: Path, limit: int) -> Seen:
    seen = Seen()
    with av.open(f"file:{path}", metadata_errors="replace") as container:
        stream = next(s for s in container.streams.video if not s.disposition & SIDE_SHOW and s.codec_context is not None)
        stream.thread_type = "SLICE"
        seen.tick = Fraction(stream.time_base)
        for frame in frames_of(container, stream, seen):
            time = None if frame.pts is None else frame.pts * Fraction(frame.time_base)
            if len(seen.times) == limit:
                seen.after = time
                break
            if not seen.times:
                look_at_first(seen, path, stream, frame)
            seen.times.append(time)
            seen.decoding_times.append(None if frame.dts is None else frame.dts * Fraction(frame.time_base))
            if len(seen.times) == limit and time is not None:
                seen.after = time + frame.duration * Fraction(frame.time_base)
    with av.open(f"file:{path}", metadata_errors="replace") as container:
        carried = [s for s in container.streams if s.type in ("audio", "subtitle") and s.codec_context is not None]
        seen.packets = {s.index: [] for s in carried}
        seen.codecs = {s.index: s.codec_context.codec.canonical_name for s in carried}
        with contextlib.suppress(av.error.FFmpegError):
            for packet in container.demux(carried) if carried else ():
                if packet.dts is not None and packet.size:
                    tick, pts = Fraction(packet.time_base), packet.dts if packet.pts is None else packet.pts
                    seen.packets[packet.stream_index].append((pts * tick, tick, hashlib.sha1(payload(packet)).hexdigest()))
    return seen


def payload(packet) -> bytes:
    """The bytes of a packet, without the header that AAC has in transport streams alone (ADTS, 7 bytes, 9 with a checksum)."""
    data = bytes(packet)
    if packet.stream.codec_context.name == "aac" and len(data) > 7 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0:
        return data[7 if data[1] & 1 else 9 :]
    return data


def frames_of(container, stream, seen):
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            seen.faults += 1
            packet = None
        try:
            yield from stream.decode(packet)
        except av.error.FFmpegError:
            seen.faults += 1
        except av.error.EOFError:
            return
        if packet is None or packet.size == 0 and packet.dts is None:
            return


def look_at_first(seen: Seen, path: Path, stream, frame) -> None:
    context = stream.codec_context
    full = frame.format.name.startswith("yuvj")
    stated = (frame.color_primaries, frame.color_trc, frame.colorspace)
    headers = (context.color_primaries, context.color_trc, context.colorspace)
    named = (int(header if value == 2 else value) for value, header in zip(stated, headers, strict=True))
    seen.tags = (*named, 2 if full else int(frame.color_range or context.color_range))
    seen.bits = max(component.bits for component in frame.format.components)
    steps, turned = upright_filters(path, frame)
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    seen.aspect = 1 / aspect if turned else aspect
    seen.size = (frame.height, frame.width) if turned else (frame.width, frame.height)
    seen.thumb = thumbnail(frame, steps)


def upright_filters(path: Path, frame) -> tuple[list[tuple[str, str]], bool]:
    """The filters that ffmpeg's own program inserts for a display matrix, or for a JPEG's EXIF orientation."""
    if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"):
        by_exif = {
            2: ["hflip"],
            3: ["hflip", "vflip"],
            4: ["vflip"],
            5: ["cclock_flip"],
            6: ["clock"],
            7: ["clock_flip"],
            8: ["cclock"],
        }
        names = by_exif.get(exif_orientation(path.read_bytes()), [])
    else:
        names = by_matrix(frame)
    return [(n, "") if n in ("hflip", "vflip") else ("transpose", f"dir={n}") for n in names], any("clock" in n for n in names)


def by_matrix(frame) -> list[str]:
    try:
        m = np.frombuffer(bytes(frame.side_data["DISPLAYMATRIX"]), np.int32)
    except (KeyError, ValueError):
        return []
    theta = -frame.rotation % 360  # clockwise, as ffmpeg counts here
    if abs(theta - 90) < 1:
        return ["cclock_flip" if m[3] > 0 else "clock"]
    if abs(theta - 270) < 1:
        return ["clock_flip" if m[3] < 0 else "cclock"]
    if abs(theta - 180) < 1:
        return ["hflip"] * int(m[0] < 0) + ["vflip"] * int(m[4] < 0)
    return ["vflip"] if m[4] < 0 else []


def exif_orientation(data: bytes) -> int:
    start = data[: 1 << 18].find(b"Exif\0\0")
    if start < 0:
        return 1
    tiff = data[start + 6 :]
    order = "<" if tiff[:2] == b"II" else ">"
    directory = struct.unpack_from(order + "I", tiff, 4)[0]
    for i in range(struct.unpack_from(order + "H", tiff, directory)[0]):
        tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, directory + 2 + 12 * i)
        if tag == 0x0112:
            return value
    return 1


def thumbnail(frame, steps: list[tuple[str, str]]) -> np.ndarray:
    graph = Graph()
    nodes = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25))]
    nodes += [graph.add(name, arguments) for name, arguments in steps]
    nodes += [graph.add("scale", f"{THUMB}:{THUMB}:flags=area"), graph.add("format", "rgb24"), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()
    graph.push(frame)
    return graph.pull().to_ndarray().astype(np.float64)


def command(*words: str) -> tuple[int, str, str]:
    """Runs `cvvae` in this process; its exit status, stdout and stderr."""
    out, err, kept = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["cvvae", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cvvae()
        status = 0
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except Exception:
        status = 1
        err.write(traceback.format_exc())
    finally:
        sys.argv = kept
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return status, out.getvalue(), err.getvalue().strip()


def row_of(path: Path, folder: Path, limit: int, longest: int, container: str | None) -> dict:
    latent = folder / "x.latent"
    back = folder / f"back{container or ('.mp4' if path.suffix.lower() in MP4_FAMILY else '.mkv')}"
    row: dict = {"file": path.name, "to": back.suffix}
    try:
        source = look(path, limit)
    except (av.error.FFmpegError, StopIteration) as error:
        source = None
        row["own reader"] = type(error).__name__
    words = ["--frames", str(limit), "--device", "cpu", "--json", "-q", "-y"]
    if source is not None and max(source.size) > longest:
        shrunk = Fraction(longest, max(source.size))
        words += ["--size", "x".join(str(max(2, round(edge * shrunk / 2) * 2)) for edge in source.size)]
    status, answer, said = command("encode", *words, "--", str(path), str(latent))
    if status == 0:
        row["notes"] = json.loads(answer)["notes"]
        fast = ["--encoder-opt", "cpu-used=8"] if back.suffix == ".webm" else ["--preset", "ultrafast"]
        deep = ["--depth", "10"] if source is not None and source.bits > 8 and back.suffix != ".webm" else []
        options = ["--device", "cpu", *fast, *deep, "--json", "-q", "-y"]
        status, answer, said = command("decode", *options, "--", str(latent), str(back))
    if status:
        one_sentence = said.startswith("cvvae: ") and "\n" not in said and said.endswith((".", "?"))
        row |= {
            "status": status,
            "said": said.replace(str(path), path.name),
            "verdict": "refused" if one_sentence and status > 1 else "TRACEBACK",
        }
        return row
    row["notes"] += json.loads(answer)["notes"]
    copy = look(back, 10**9)
    if source is None:
        row |= {"verdict": "read, where the own reader cannot"}
        return row
    row |= compared(source, copy, path, row["notes"])
    return row


def compared(source: Seen, copy: Seen, path: Path, notes: list[str]) -> dict:
    wrong: list[str] = []
    row: dict = {"frames": [len(source.times), len(copy.times)], "tags": [source.tags, copy.tags], "status": 0}
    if len(source.times) != len(copy.times):
        wrong.append("frame count")
    tick = max(source.tick, copy.tick)
    stated = best_effort(source.times, source.decoding_times)
    times = stated if rising(stated) else None
    shift = None
    if times is not None and len(times) == len(copy.times):
        shifts = [a - b for a, b in zip(times, copy.times, strict=True)]
        shift = min(shifts, key=abs)
        row["time_error_ticks"] = float((max(shifts) - min(shifts)) / tick)
        row["moved_by_s"] = float(shift)
        if max(shifts) - min(shifts) > tick:
            wrong.append("times")
    else:
        row["time_error_ticks"] = None if times is not None else "no times" if None in stated else "unordered"
    wrong += compare_sound(row, source, copy, shift)
    wrong += compare_looks(row, source, copy)
    unsaid = [kind for kind in wrong if not any(word in note for note in notes for word in SAID.get(kind, ()))]
    row["said"] = [kind for kind in wrong if kind not in unsaid]
    return row | {"verdict": "ok" if not wrong else "ok but for what was said" if not unsaid else "DIFFERS: " + ", ".join(unsaid)}


def best_effort(times: list[Fraction | None], decoding: list[Fraction | None]) -> list[Fraction | None]:
    """FFmpeg's rule for a frame's time: of presentation and decoding times those that failed to rise less often."""
    chosen, faults, last = [], [0, 0], [None, None]
    for pair in zip(times, decoding, strict=True):
        for i in (0, 1):
            faults[i] += pair[i] is not None and last[i] is not None and pair[i] <= last[i]
            last[i] = last[i] if pair[i] is None else pair[i]
        chosen.append(pair[1] if pair[0] is None or (pair[1] is not None and faults[0] > faults[1]) else pair[0])
    return chosen


def rising(times: list[Fraction | None]) -> bool:
    return None not in times and all(a < b for a, b in pairwise(times))


def compare_sound(row: dict, source: Seen, copy: Seen, shift: Fraction | None) -> list[str]:
    """Bytes of every packet, and that sound and pictures moved together."""
    wrong, told = [], []
    for number, (index, packets) in enumerate(source.packets.items()):
        if not packets:
            continue
        ours = list(copy.packets)[number : number + 1]
        got = copy.packets[ours[0]] if ours else []
        # of a part, all that begins before its last frame and nothing long after it
        least = len(packets) if source.after is None else sum(p[0] < source.times[-1] for p in packets)
        most = len(packets) if source.after is None else sum(p[0] < source.after + Fraction(1, 10) for p in packets)
        wanted = packets[: len(got)]
        same = least <= len(got) <= most and [p[2] for p in wanted] == [p[2] for p in got]
        told.append(f"{source.codecs[index]} {len(got)} of {len(packets)} {'equal' if same else 'differ'}")
        if not same:
            wrong.append("sound codec" if not ours or copy.codecs[ours[0]] != source.codecs[index] else "sound")
        elif shift is not None and got:
            # FFmpeg reads Matroska's times before 0 as missing, and guesses them from durations
            kept = [(a, b) for a, b in zip(wanted, got, strict=True) if b[0] >= 0 or copy.tick != MILLISECOND]
            errors = [abs(a[0] - b[0] - shift) / max(a[1], b[1], source.tick, copy.tick) for a, b in kept]
            if max(errors, default=0) > 1:
                wrong.append(f"sound moved by {float(max(errors)):.1f} ticks")
    row["sound"] = told
    return wrong


def compare_looks(row: dict, source: Seen, copy: Seen) -> list[str]:
    wrong = []
    primaries, transfer, matrix, limits = source.tags
    spoken = {1, 4, 5, 6, 7, 9, 10}
    by_size = 1 if source.size[0] >= 1280 or source.size[1] >= 720 or matrix == 0 else 6
    small = 1 if copy.size[0] >= 1280 or copy.size[1] >= 720 or matrix == 0 else 6
    expected = (
        primaries,
        transfer,
        {matrix} if matrix in spoken else {by_size, small},
        {2 if limits == 2 and matrix != 0 else 1},
    )
    if copy.tags[:2] != expected[:2]:
        wrong.append("primaries or transfer")
    if copy.tags[2] not in expected[2]:
        wrong.append("matrix")
    if copy.tags[3] not in expected[3]:
        wrong.append("range")
    row["bits"] = [source.bits, copy.bits]
    if copy.bits < min(source.bits, 10):
        wrong.append("depth")
    stretched = source.aspect * Fraction(source.size[0] * copy.size[1], source.size[1] * copy.size[0])
    row["aspect"] = [str(source.aspect), str(copy.aspect)]
    if abs(copy.aspect / stretched - 1) > 2e-3:
        wrong.append("aspect")
    ways = [np.rot90(flipped, turn) for flipped in (source.thumb, source.thumb[:, ::-1]) for turn in range(4)]
    errors = [float(np.mean((way - copy.thumb) ** 2)) for way in ways]
    row["thumb_psnr_db"] = round(10 * np.log10(255**2 / max(errors[0], 1e-3)), 1)
    if errors[0] > min(errors) + 1:
        wrong.append("orientation")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--longest", type=int, default=480, help="larger pictures are made smaller to this edge, pixels")
    parser.add_argument("--container", help="the copies' extension, for all files")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    files = [f for p in arguments.paths for f in (sorted(f for f in p.rglob("*") if f.is_file()) if p.is_dir() else [p])]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for path in files:
            if path.suffix == ".md":
                continue
            try:
                rows.append(row_of(path, Path(folder), arguments.frames, arguments.longest, arguments.container))
            except Exception:
                rows.append({"file": path.name, "verdict": "SCRIPT FAILED", "said": traceback.format_exc()})
            print_row(rows[-1])
            if arguments.out:
                arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    verdicts = [row["verdict"].split(":")[0] for row in rows]
    print({verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))})


def print_row(row: dict) -> None:
    frames = "{} -> {}".format(*row["frames"]) if "frames" in row else ""
    print(
        f"{row['file']:38.38} {row.get('to', ''):5} {frames:12} {row.get('time_error_ticks', '')!s:9.9} "
        f"{'; '.join(row.get('sound', [])):30} {row.get('thumb_psnr_db', '')!s:6} {row['verdict']} {row.get('said') or ''} "
        f"{' '.join(row.get('notes', []))}",
        flush=True,
    )


if __name__ == "__main__":
    main()
