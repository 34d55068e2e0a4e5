"""What a reader could not do exactly, or decided for the user, in sentences. Reads nothing but headers and one frame."""

from dataclasses import dataclass
from pathlib import Path

from av.container import InputContainer
from av.video.frame import VideoFrame

from cvvae_cli.colour import BT709, UNSPECIFIED
from cvvae_cli.errors import VideoError
from cvvae_cli.media import video_streams
from cvvae_cli.picture_sequence import DEFAULT_RATE, find_sequence, is_sequence
from cvvae_cli.reading import Reading
from cvvae_cli.video_info import VideoInfo

KEPT_BITS = 16
"""Of each colour: encoding reads RGB of 8 or 16 bits."""

OPAQUE = 255
"""Alpha of a pixel that hides what is behind it wholly."""


@dataclass(frozen=True)
class Counts:
    """Attributes:
    broken: packets that could not be decoded.
    changed: frames of another size than the first.
    repaired: timestamps that were missing or did not rise.
    lost: frames that should have come and did not.
    """

    broken: int
    changed: int
    repaired: int
    lost: int


def count_notes(counts: Counts, given: int, combed: bool) -> list[str]:
    """Sentences about what happened while frames were read.

    Args:
        counts: of what.
        given: frames that were read.
        combed: interlaced frames were left as they are.
    """
    told = (
        (counts.broken, "damaged packet was", "damaged packets were", "passed over"),
        (counts.changed, "frame of another size was", "frames of another size were", "scaled to the first frame's"),
        (counts.repaired, "missing or falling timestamp was", "missing or falling timestamps were", "repaired"),
    )
    notes = [f"{count} {one if count == 1 else many} {done}." for count, one, many, done in told if count]
    if counts.lost:
        notes.append(f"The container counts {given + counts.lost} frames, of which {given} could be read.")
    if combed:
        notes.append(
            "Interlaced frames were read as they are, both fields woven together; --deinterlace makes whole pictures of them."
        )
    return notes


def source_notes(path: Path, reading: Reading, container: InputContainer, info: VideoInfo, first: VideoFrame) -> list[str]:
    """Sentences about what a source is, which its headers and first frame tell.

    Raises:
        VideoError: pictures behind a missing number would be left out where nothing may be lost.
    """
    notes = []
    if is_sequence(path):
        notes += _sequence_notes(path, reading)
    others = [stream.index for stream in video_streams(container)]
    if len(others) > 1 and reading.stream is None:
        numbers = f"{', '.join(map(str, others[:-1]))} and {others[-1]}"
        notes.append(f"The file has the video streams {numbers}; {others[0]} was read, --stream N reads another.")
    if _transparent(container, first):
        notes.append("The transparency (alpha) was left out.")
    if info.bit_depth > KEPT_BITS:
        notes.append(f"The source has {info.bit_depth} bits for each colour, of which {KEPT_BITS} are read.")
    if info.colour.matrix == UNSPECIFIED and _in_colour(first):
        assumed = "BT.709" if info.colour.assumed_matrix(first.height, first.width) == BT709 else "BT.601"
        notes.append(f"The source does not state its colour matrix; {assumed} was assumed, as players do for its size.")
    return notes


def _sequence_notes(path: Path, reading: Reading) -> list[str]:
    sequence, notes = find_sequence(path), []
    if reading.frame_rate is None:
        notes.append(f"{DEFAULT_RATE} pictures per second were assumed; --fps RATE says another rate.")
    if sequence.left_out:
        found = f"Picture {sequence.missing} of {path} is missing, and {sequence.left_out} behind it"
        if reading.strict:
            raise VideoError(f"{found} would be left out; number them without gaps or leave out --strict.")
        notes.append(f"{found} were left out.")
    return notes


def _transparent(container: InputContainer, first: VideoFrame) -> bool:
    """Whether a video has alpha that is not opaque everywhere in its first frame, or has it beside its pictures (VP8, VP9)."""
    if any(stream.metadata.get("alpha_mode") == "1" for stream in container.streams.video):
        return True
    if not first.format.has_palette and not any(component.is_alpha for component in first.format.components):
        return False
    return bool(first.reformat(format="rgba").to_ndarray()[..., 3].min() < OPAQUE)


def _in_colour(frame: VideoFrame) -> bool:
    return not frame.format.is_rgb and not frame.format.has_palette and len(frame.format.components) >= 3
