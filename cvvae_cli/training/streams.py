"""One stream of training windows as a recipe states it: what it reads and how it cuts it. No torch and no files here."""

import math
from dataclasses import dataclass

from cvvae_cli.errors import UsageError

KINDS = ("video", "image", "motion")
AUGMENTATIONS = ("flip", "reverse", "dim")
STRETCHES = 3
"""A long clip is cached in so many stretches, spread over it."""


@dataclass(frozen=True)
class StreamConfig:
    """One `[[streams]]` table of a recipe.

    Attributes:
        kind: "video" (windows of clips), "image" (pictures, or single frames of clips) or "motion" (pictures under
            a simulated pan and zoom).
        sources: folders (searched to the bottom), single files, `.txt` lists (one path per line, relative to the list) and
            WebDataset shards (`.tar`, ranges as in `shard-{000..012}.tar`).
        batch: windows per step over all devices.
        crop: height and width of a window in px, a multiple of 8.
        frames: frames per window; 1 for "image", 5, 9, 13 and so on for the others.
        share: share of the steps that take this stream, relative to the other streams' shares.
        short_sides: short sides in px that a source is resized to before it is cut, one drawn per window; a source is
            never enlarged. Empty: its own size, for "motion" also 3/4 and 1/2 of it.
        max_stride: largest step between the frames of a window, in frames of the clip; 1 .. max_stride are drawn with
            weight 1 / stride. Of no effect for pictures.
        frames_per_clip: frames that the cache keeps of a clip, and that are counted of one which does not state its
            length; at least three times `frames`.
        cache: folder where every source is kept decoded (uint8 arrays, height x width x 3 bytes a frame and size);
            empty: every window is decoded when it is drawn.
        augment: any of "flip" (left and right, half of the windows), "reverse" (the order of frames, half of them)
            and "dim" (0.2 to 1 times as bright, 15 % of them).
        max_pan: fastest pan of "motion", px per frame.
        max_zoom: fastest zoom of "motion", relative change per frame, below 1.
    """

    kind: str
    sources: tuple[str, ...]
    batch: int
    crop: int
    frames: int = 1
    share: float = 1.0
    short_sides: tuple[int, ...] = ()
    max_stride: int = 1
    frames_per_clip: int = 192
    cache: str = ""
    augment: tuple[str, ...] = ()
    max_pan: float = 5.0
    max_zoom: float = 0.015

    @property
    def frames_read(self) -> int:
        """Frames that a window takes of its source; a moving picture takes one."""
        return 1 if self.kind == "motion" else self.frames

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"Stream kind {self.kind!r} is unknown; use {', '.join(KINDS)}.")
        if not self.sources:
            raise UsageError("A stream needs sources; name folders, files, .txt lists or .tar shards in its sources.")
        for key, least in (("batch", 1), ("max_stride", 1), ("max_pan", 0)):
            value = getattr(self, key)
            if not (value >= least and math.isfinite(value)):
                raise UsageError(f"Stream {key} {value} must be {least} or more; set it in [[streams]].")
        if not (self.share > 0 and math.isfinite(self.share)):
            raise UsageError(f"Stream share {self.share} must be above 0; remove a stream that is not to be used.")
        if not 0 <= self.max_zoom < 1:
            raise UsageError(f"Stream max_zoom {self.max_zoom} must be from 0 to below 1 (relative change per frame).")
        if self.crop < 8 or self.crop % 8:
            raise UsageError(f"Stream crop {self.crop} must be a multiple of 8 px; use {max(8, self.crop // 8 * 8)}.")
        self._check_frames()
        small = [side for side in self.short_sides if side < self.crop]
        if small:
            raise UsageError(f"Stream short side {small[0]} must be at least the crop, {self.crop} px; raise it or lower crop.")
        for position, name in enumerate(self.augment):
            if name not in AUGMENTATIONS or name in self.augment[:position]:
                raise UsageError(f"Stream augment {name!r} is unknown or named twice; use {', '.join(AUGMENTATIONS)}, each once.")

    def _check_frames(self) -> None:
        if self.kind == "image" and self.frames != 1:
            raise UsageError(f"Stream frames {self.frames} must be 1 for kind image; use kind video or motion for more.")
        if self.kind != "image" and (self.frames < 5 or self.frames % 4 != 1):
            raise UsageError(f"Stream frames {self.frames} must be 1 + 4k, 5 or more, for {self.kind}; use kind image for 1.")
        least = STRETCHES * self.frames_read
        if self.frames_per_clip < least:
            raise UsageError(
                f"Stream frames_per_clip {self.frames_per_clip} must be at least {STRETCHES} times the {self.frames_read} frames "
                f"of a window; use {least} or more."
            )
