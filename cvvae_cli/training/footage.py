"""Frames of a stream's files at the sizes that windows are cut from, decoded for each window or once into a cache.

A `Clip` offers every size as stretches, runs of frames without a gap, behind one method: `FileStretch` seeks in the
file and decodes, `ArrayStretch` maps an array of the cache. `prepare` finds out which files can be used, so that a
run does not meet the others. How windows are drawn is unknown here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from cvvae_cli.errors import OutputError, UsageError, VideoError
from cvvae_cli.training.sources import MediaFile, list_files
from cvvae_cli.training.streams import STRETCHES, StreamConfig
from cvvae_cli.video_io import VideoReader
from cvvae_cli.whole_file import written_whole

_LONGER = 1.1
"""A clip that is longer than the cache keeps by less than this factor is cached from its beginning, in one stretch."""

_SPARE_FRAMES = 2
"""Lengths that containers state are off by a frame or two; stretches do not reach for the last ones."""


@dataclass(frozen=True)
class FileStretch:
    """All frames of a file at one size; every read opens the file.

    Attributes:
        file: where the frames are.
        frames: how many, as far as the container says.
        frame_rate: frames per second.
        size: (width, height) that frames are resized to, px.
    """

    file: MediaFile
    frames: int
    frame_rate: float
    size: tuple[int, int]

    def places(self, span: int) -> int:
        """How many first frames a run of `span` frames has to choose from."""
        return max(1, self.frames - span + 1 - _SPARE_FRAMES)

    def read(self, times: range, rows: slice, columns: slice) -> np.ndarray:
        """Cuts a window.

        Where the file ends earlier than its container says, the window is taken from the beginning; where that is
        too short as well, the last frame is repeated.

        Args:
            times: frame numbers, rising.
            rows: of the frame, px.
            columns: of the frame, px.

        Returns:
            uint8 [frames, height, width, 3].

        Raises:
            VideoError: the file can no longer be read.
        """
        with self.file.opened() as path:
            try:
                pictures = self._cut(path, times, rows, columns)
            except VideoError:
                pictures = []
            if len(pictures) < len(times):
                pictures = self._cut(path, range(0, times.stop - times.start, times.step), rows, columns)
        return np.stack(pictures + pictures[-1:] * (len(times) - len(pictures)))

    def decode(self, start: int, frames: int) -> np.ndarray:
        """Whole frames from `start` on, as many of `frames` as there are: uint8 [n, height, width, 3].

        Raises:
            VideoError: there is none.
        """
        with self.file.opened() as path:
            return np.stack(self._cut(path, range(start, start + frames), slice(None), slice(None)))

    def _cut(self, path: Path, times: range, rows: slice, columns: slice) -> list[np.ndarray]:
        start, span = times.start / self.frame_rate, times.stop - times.start
        with VideoReader(path, start=start, max_frames=span, size=self.size) as reader:
            return [frame.rgb[rows, columns].copy() for frame in islice(reader, 0, None, times.step)]


@dataclass(frozen=True)
class ArrayStretch:
    """A run of decoded frames in the cache.

    Attributes:
        path: a .npy file, uint8 [frames, height, width, 3].
        frames: how many.
        size: (width, height), px.

    Memory: mapped, so only the pages of a window are read.
    """

    path: Path
    frames: int
    size: tuple[int, int]

    def places(self, span: int) -> int:
        """How many first frames a run of `span` frames has to choose from."""
        return self.frames - span + 1

    def read(self, times: range, rows: slice, columns: slice) -> np.ndarray:
        """Cuts a window: uint8 [frames, height, width, 3]; arguments as for `FileStretch.read`."""
        frames = np.load(self.path, mmap_mode="r")
        return np.array(frames[times.start : times.stop : times.step, rows, columns])


Stretch = FileStretch | ArrayStretch


@dataclass(frozen=True)
class Clip:
    """One source file that can be used.

    Attributes:
        digest: of the file's content, see `MediaFile.digest`.
        sizes: for each size that it is offered in, its stretches.
    """

    digest: str
    sizes: tuple[tuple[Stretch, ...], ...]


@dataclass(frozen=True)
class _Facts:
    """Attributes:
    width, height: px, upright.
    frames: how many there are, as far as the container says.
    frame_rate: frames per second.
    """

    width: int
    height: int
    frames: int
    frame_rate: float


def prepare(config: StreamConfig, report: Callable[[str], None]) -> list[Clip]:
    """Looks into every file of a stream, and decodes it into the cache if there is one and it is not there yet.

    Args:
        config: the stream.
        report: called with one sentence for each file that is left out and each array that is made.

    Returns:
        The usable files in the order of the sources. Without a cache one frame of each file was decoded; its middle
        and end are believed to be sound.

    Raises:
        UsageError: a source is wrong, or no file can be used.
        OutputError: the cache cannot be written.
    """
    clips = []
    for file in list_files(config.sources, config.kind):
        try:
            facts = _look(file, config)
            clips.append(_cached(config, file, facts, report) if config.cache else _direct(config, file, facts))
        except VideoError as error:
            report(f"Skipped: {error}")
    if not clips:
        raise UsageError(
            f"No file of {', '.join(config.sources)} has {config.frames_read} frames of {config.crop} px or more; "
            "lower frames or crop in [[streams]], or name other sources."
        )
    return clips


def _look(file: MediaFile, config: StreamConfig) -> _Facts:
    """Measures a file.

    Raises:
        VideoError: it cannot be read, or is too short or too small for a window.
    """
    with file.opened() as path, VideoReader(path, max_frames=config.frames_per_clip) as reader:
        info, rate = reader.info, float(reader.info.frame_rate)
        stated = [info.num_frames, round((info.duration_seconds or 0) * rate)]
        known = [1] if file.is_picture else [number for number in stated if number]
        frames = min(known) if known else sum(1 for _ in reader)
    if frames < config.frames_read:
        raise VideoError(f"{file.name} has {frames} frames and windows take {config.frames_read}; remove it or lower frames.")
    if min(info.width, info.height) < config.crop:
        size = f"{info.width}x{info.height}"
        raise VideoError(f"{file.name} is {size} px and windows take {config.crop}; remove it or lower crop.")
    return _Facts(info.width, info.height, frames, rate)


def _sizes(config: StreamConfig, facts: _Facts) -> list[tuple[int, int]]:
    """(width, height) of every size that a file is offered in, small to large: even, or the file's own."""
    own = min(facts.width, facts.height)
    sides = config.short_sides or ((own, own * 3 // 4, own // 2) if config.kind == "motion" else (own,))
    sizes = []
    for side in sorted({min(side, own) for side in sides}):
        scale = side / own
        size = tuple(length if side == own else round(length * scale / 2) * 2 for length in (facts.width, facts.height))
        if min(size) >= config.crop:
            sizes.append(size)
    return sizes


def _direct(config: StreamConfig, file: MediaFile, facts: _Facts) -> Clip:
    stretches = [FileStretch(file, facts.frames, facts.frame_rate, size) for size in _sizes(config, facts)]
    return Clip(file.digest(), tuple((stretch,) for stretch in stretches))


def _cached(config: StreamConfig, file: MediaFile, facts: _Facts, report: Callable[[str], None]) -> Clip:
    """Decodes what the cache lacks.

    Raises:
        VideoError: the file breaks off before it has given a window.
    """
    starts, length = [0], min(facts.frames, config.frames_per_clip)
    if facts.frames > config.frames_per_clip * _LONGER:
        length = config.frames_per_clip // STRETCHES
        last = facts.frames - length - _SPARE_FRAMES
        starts = [last * i // (STRETCHES - 1) for i in range(STRETCHES)]
    digest, sizes = file.digest(), []
    for size in _sizes(config, facts):
        whole = FileStretch(file, facts.frames, facts.frame_rate, size)
        stretches = []
        for start in starts:
            name = f"{Path(file.name).stem[:80]}.{digest}.{size[0]}x{size[1]}.{start}+{length}.npy"
            path = Path(config.cache) / name
            if not path.exists():
                _save(path, whole.decode(start, length))
                report(f"Decoded {name}.")
            frames = len(np.load(path, mmap_mode="r"))
            if frames < config.frames_read:
                raise VideoError(f"{file.name} ends {frames} frames after frame {start}; remove it or copy it again.")
            stretches.append(ArrayStretch(path, frames, size))
        sizes.append(tuple(stretches))
    return Clip(digest, tuple(sizes))


def _save(path: Path, frames: np.ndarray) -> None:
    """Writes an array that is never seen half; several processes may do so at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as part, part.open("wb") as file:
            np.save(file, frames)
    except OSError as error:
        raise OutputError(f"Cache {path} cannot be written ({error.strerror}); free space or set another cache.") from None
