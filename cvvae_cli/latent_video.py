"""Latents together with the video that they stand for: its size, times, colour and sound.

Opens latent files of ours and plain tensors that another program saved, and makes both look alike to the
decoder. This module computes nothing.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from cvvae_cli.anchors import Anchors
from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.checked_values import fraction_of, number_of, text_of, whole_of
from cvvae_cli.config import ModelConfig, Tiling, tiling_from_dict
from cvvae_cli.container_tags import ContainerTags
from cvvae_cli.errors import LatentFileError, UsageError
from cvvae_cli.geometry import SPATIAL_COMPRESSION_RATIO as CELL
from cvvae_cli.geometry import cell_count, frame_count, latent_frame_count
from cvvae_cli.latent_file import LatentReader, is_latent_file
from cvvae_cli.mended_latents import MendedLatents
from cvvae_cli.plain_latents import read_plain_latents, to_tzhw
from cvvae_cli.tiling import chunk_count
from cvvae_cli.video_info import LONGEST_SIDE
from cvvae_cli.reading import PLAIN, Reading
from cvvae_cli.video_io import Colour, VideoInfo

FARTHEST = 2**60
"""Ticks from 0 that a frame may be away: sums and differences of a few such still fit 64 bits."""
MOST_ASPECT = 2**13
LARGEST_DENOMINATOR = 2**18
"""Of a pixel aspect that is computed, so that FFmpeg's 32 bits hold it; it is off by less than one part in 10**10 then."""
PLAIN_FRAME_RATE = Fraction(24)
"""Frames per second of a plain tensor where nobody says."""


@dataclass(frozen=True)
class Times:
    """When each frame is shown.

    Attributes:
        pts, durations: int64 [F] in ticks.
        time_base: seconds per tick.
        frame_rate: average frames per second.
        zero: the moment in seconds that becomes 0 in a video that begins with the first frame.
    """

    pts: np.ndarray
    durations: np.ndarray
    time_base: Fraction
    frame_rate: Fraction
    zero: Fraction = Fraction(0)

    def origin(self, first: int) -> Fraction:
        """The moment in seconds that becomes 0 in a video that begins with frame `first`."""
        return self.pts[first].item() * self.time_base if first else self.zero

    def end(self, stop: int) -> Fraction:
        """The moment in seconds at which the frame before `stop` is shown no more."""
        return (self.pts[stop - 1] + self.durations[stop - 1]).item() * self.time_base


class LatentVideo:
    """What the decoder needs to know. Open it with `open`; use it as a context manager.

    Attributes:
        path: the file.
        latent_frames: t.
        num_frames, width, height: of the video, which may be less than the latents hold.
        colour, sample_aspect_ratio, bit_depth: of the source; a depth of 8 for plain tensors.
        tiling: how it was encoded, None for plain tensors.
        start: seconds of the source that its frames leave out before the first.
        to_end: its frames reach the source's last.
        model: the file's record of its model, None for plain tensors.
        has_sidecar: sound or subtitles are there.
        reading: how the source was read.
        has_anchors: chunks have first latents of their own.
    """

    def __init__(
        self, path: str | Path, shape: tuple[int, ...], read: Callable[[int, int], np.ndarray], reader: LatentReader | None = None
    ) -> None:
        self.path = path
        self.latent_frames = shape[0]
        self.read = read
        self._reader = reader
        self._mended: MendedLatents | None = None
        self.num_frames, self.height, self.width = frame_count(shape[0]), shape[2] * CELL, shape[3] * CELL
        self.colour = Colour()
        self.sample_aspect_ratio, self.bit_depth = Fraction(1), 8
        self.tiling: Tiling | None = None
        self.start, self.to_end = 0.0, False
        self.model: dict | None = None
        self.has_sidecar = self.has_anchors = False
        self.reading = PLAIN
        if reader is None:
            self._times = self.times(PLAIN_FRAME_RATE)
        else:
            self._describe(reader)

    @classmethod
    def open(cls, path: str | Path, config: ModelConfig, layout: str | None = None, scaled: bool = False) -> "LatentVideo":
        """Open a latent file, or a tensor saved as .safetensors, .npy or .pt.

        Args:
            path: the file.
            config: of the model that shall decode it; tells z, scale and shift.
            layout: order of a plain tensor's axes, None to tell by z.
            scaled: the values are a diffusion model's, (z - shift) * scale, and are scaled back.

        Raises:
            LatentFileError: unreadable, damaged, or of other channels than the model's.
            UsageError: `layout` or `scaled` given for a latent file, or a layout that cannot be told.
        """
        if is_latent_file(path):
            if layout or scaled:
                raise UsageError(f"{path} says itself how it is laid out and scaled; drop --layout and --scaled.")
            reader = LatentReader(path)
            try:
                opened = cls(path, reader.shape, reader.read, reader)
                if reader.shape[1] != config.latent_channels:
                    made = _named(opened.model)
                    raise LatentFileError(
                        f"{path} holds latents of {made} with z = {reader.shape[1]}, and the model given has "
                        f"z = {config.latent_channels}; pass the first with --model."
                    )
                return opened
            except BaseException:
                reader.close()
                raise
        plain = read_plain_latents(path)
        values = to_tzhw(plain.values, config.latent_channels, layout)
        if scaled and plain.multiplied_by != 1:
            raise UsageError(f"{path} is marked by ComfyUI as scaled and has been scaled back; drop --scaled.")
        if scaled:
            values = values / np.float32(config.scaling_factor) + np.float32(config.shift_factor)
        return cls(path, values.shape, lambda start, stop: np.ascontiguousarray(values[start:stop]))

    def _describe(self, reader: LatentReader) -> None:
        try:
            video, encoding = json.loads(reader.metadata["video"]), json.loads(reader.metadata["encoding"])
            self.model = _record(json.loads(reader.metadata["model"]))
            info = VideoInfo.from_dict(video["source"])
            self.num_frames = whole_of(video["num_frames"], 1, frame_count(reader.shape[0]))
            self.width, self.height = (whole_of(video[key], 1, LONGEST_SIDE) for key in ("width", "height"))
            self.tiling = tiling_from_dict(encoding["tiling"])
            times, zero = (reader.tensor("pts"), reader.tensor("durations")), fraction_of(video["origin"])
            self.start, self.to_end = number_of(video["start"]), bool(video["to_end"])
            self.reading = Reading.from_dict(video["reading"]) if "reading" in video else PLAIN
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            message = f"{reader.path} lacks a description that decoding needs ({error}); encode the video again."
            raise LatentFileError(message) from error
        expected = (latent_frame_count(self.num_frames), cell_count(self.height), cell_count(self.width))
        timed = all(values.dtype == np.int64 and values.shape == (self.num_frames,) for values in times)
        if (reader.shape[0], *reader.shape[2:]) != expected or not timed:
            raise LatentFileError(f"{reader.path} describes another video than its latents hold; encode the video again.")
        aspect = info.sample_aspect_ratio
        if (self.width, self.height) != (info.width, info.height):
            aspect *= Fraction(info.width * self.height, info.height * self.width)
            aspect = aspect.limit_denominator(LARGEST_DENOMINATOR)
        if not 1 / MOST_ASPECT <= aspect <= MOST_ASPECT or not _believable(*times, zero / info.time_base):
            raise LatentFileError(f"{reader.path} has times or a pixel aspect that no video has; encode the video again.")
        self.colour, self.sample_aspect_ratio, self.bit_depth = info.colour, aspect, info.bit_depth
        self._times = Times(*times, info.time_base, info.frame_rate, zero)
        self.has_sidecar, self.has_anchors = "sidecar" in reader.tensor_names, "anchors" in reader.tensor_names

    def times(self, frame_rate: Fraction | None = None) -> Times:
        """The stored times, or those of a constant rate."""
        if frame_rate is None:
            return self._times
        steps = np.arange(self.num_frames, dtype=np.int64)
        return Times(steps, np.ones_like(steps), 1 / frame_rate, frame_rate)

    def span(self, start: float, max_frames: int | None, frame_rate: Fraction | None = None) -> tuple[int, int]:
        """First frame not before `start` seconds of the whole decoded video, and one past the last that is wanted.

        Raises:
            UsageError: nothing is left.
        """
        times = self.times(frame_rate)
        seconds = times.pts * float(times.time_base) - float(times.zero)
        first = int(np.searchsorted(seconds, start - 5e-4)) if start else 0
        if first >= self.num_frames:
            raise UsageError(f"The start {start:g} s lies behind the last frame at {seconds[-1]:.3f} s; pass a smaller --start.")
        return first, self.num_frames if max_frames is None else min(self.num_frames, first + max_frames)

    def keep_going(self, first: int, stop: int) -> None:
        """Replace damaged chunks from now on (see `MendedLatents`), and look for them where frames `first` to `stop` are.

        Raises:
            LatentFileError: no chunk is sound, or the damage is not in the chunks.
        """
        if self._reader is not None:
            self._mended = MendedLatents(self._reader)
            self.read = self._mended.read
            self._mended.look_over(latent_frame_count(first + 1) - 1, latent_frame_count(stop))

    def replaced_frames(self) -> list[tuple[int, int]]:
        """First and last frame of each stretch of the video whose latents were damaged, as far as they were looked for."""
        spans = self._mended.replaced if self._mended else []
        return [(max(0, frame_count(start)), min(self.num_frames, frame_count(stop)) - 1) for start, stop in spans]

    def sidecar(self) -> BinaryIO | None:
        """Sound and subtitles as a Matroska file, of use until this is closed; None where there are none.

        Raises:
            LatentFileError: they are damaged.
        """
        return self._reader.open_tensor("sidecar") if self._reader is not None and self.has_sidecar else None

    def tags(self) -> ContainerTags:
        """Titles and chapters of the source, none where the file holds none.

        Raises:
            LatentFileError: they are damaged.
        """
        if self._reader is None or "tags" not in self._reader.tensor_names:
            return ContainerTags()
        return ContainerTags.from_bytes(self._reader.tensor("tags").tobytes())

    def anchors_fit(self, tiling: Tiling) -> bool:
        """Whether there are anchors, and `tiling` cuts the chunks that they were made for."""
        own = self.tiling
        return self.has_anchors and own is not None and (own.chunk, own.chunk_overlap) == (tiling.chunk, tiling.chunk_overlap)

    def anchors(self) -> Anchors:
        """The anchors of a file that has them, of use until this is closed; after `keep_going`, damaged ones are left out.

        Reading one raises `LatentFileError` where it is damaged.

        Raises:
            LatentFileError: they are not those of the file's chunks.
        """
        assert self._reader is not None and self.tiling is not None
        found = self._reader.num_anchors
        if found != chunk_count(self.latent_frames, self.tiling) - 1:
            raise LatentFileError(f"{self.path} holds {found} anchors, not one for each chunk; encode the video again.")
        return Anchors(self.tiling, self._read_anchor)

    def _read_anchor(self, number: int) -> np.ndarray | None:
        assert self._reader is not None
        anchor = self._reader.read_anchor(number)
        if anchor is None and self._mended is None:
            raise LatentFileError(
                f"{self.path} is damaged: anchor {number} does not match its checksum; encode the video again, "
                "or decode with --keep-going."
            )
        return anchor

    def close(self) -> None:
        """Close the file."""
        if self._reader is not None:
            self._reader.close()

    def __enter__(self) -> "LatentVideo":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _record(model: dict) -> dict[str, str | None]:
    """Name and fingerprint out of a file's record of its model."""
    return {key: None if model[key] is None else text_of(model[key]) for key in ("name", "sha256")}


def _believable(pts: np.ndarray, durations: np.ndarray, zero: Fraction) -> bool:
    """Whether times rise from frame to frame, and they and the origin (in ticks) stay within what FFmpeg counts with."""
    rising = (pts[1:] > pts[:-1]).all() and (durations >= 0).all()
    near = max(pts.max(), durations.max()) < FARTHEST and pts.min() > -FARTHEST and abs(zero) < FARTHEST
    return bool(rising and near)


def check_model(latents: LatentVideo, model: Autoencoder) -> None:
    """Refuse to decode with another model than the file names.

    Raises:
        LatentFileError: the weights differ.
    """
    if latents.model is None or model.identity is None or latents.model["sha256"] in (None, model.identity.sha256):
        return
    made, given = _named(latents.model), _named(vars(model.identity))
    raise LatentFileError(f"{latents.path} holds latents of {made}, and the model given is {given}; pass the first with --model.")


def _named(record: dict | None) -> str:
    """A model's record for people: its name and the beginning of its fingerprint."""
    if record is None or record["name"] is None:
        return "an unnamed model"
    return f"{record['name']} (weights {str(record['sha256'])[:12]})"


def recorded_model(path: str | Path) -> tuple[str | None, str | None]:
    """Name and hub revision of the model that a latent file was made with; None where there is none."""
    if not is_latent_file(path):
        return None, None
    with LatentReader(path) as reader:
        try:
            model = json.loads(reader.metadata["model"])
            return (_record(model)["name"], None if model["revision"] is None else text_of(model["revision"]))
        except (KeyError, TypeError, ValueError, RecursionError):
            return None, None
