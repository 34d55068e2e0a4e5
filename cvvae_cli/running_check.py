"""The check of an encode while it runs: what was encoded is decoded and compared while its source frames are at hand.

After each chunk its sums go into the journal of the run, so that a later run goes on behind the last chunk that was compared.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, islice

import numpy as np
import torch
from torch import Tensor

from cvvae_cli.anchors import Anchors
from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.codec import Plan, cropped_frames, decode_frames, first_chunk_with
from cvvae_cli.geometry import TEMPORAL_COMPRESSION_RATIO as STEP
from cvvae_cli.geometry import chunk_stride
from cvvae_cli.latent_writer import LatentWriter
from cvvae_cli.metrics import Comparison, Quality
from cvvae_cli.stage_clock import StageClock

ENTRY = "compared"
"""Kind of the journal's lines, [kind, sums]. A line stands behind those of all latents that its frames need."""


class RunningCheck:
    """Compares source frames with what their latents decode to.

    Args:
        model: that encodes.
        plan: how the run cuts its video.
        writer: of the latents.
        anchors: that the decode begins its chunks with; None for none.
        clock: counts the stages of the decode.

    Attributes:
        first: the first source frame that `keep` must get. An earlier run has compared those before it, and this one too, which
            is compared again for how its error changes to the next one.

    Memory: the source frames that wait for their latents, a chunk and what is read ahead.
    """

    def __init__(self, model: Autoencoder, plan: Plan, writer: LatentWriter, anchors: Anchors | None, clock: StageClock) -> None:
        self._model, self._plan, self._writer, self._anchors, self._clock = model, plan, writer, anchors, clock
        entries = writer.journal.entries if writer.journal else []
        sums: dict | None = next((entry[1] for entry in reversed(entries) if entry[0] == ENTRY), None)
        self._comparison = Comparison(sums=sums)
        self.first = sums["frames"] - 1 if sums else 0
        self._waiting: deque[np.ndarray] = deque()

    def keep(self, rgb: np.ndarray) -> None:
        """The next source frame, uint8 or uint16 [H, W, 3]; may be called by another thread than `run`."""
        self._waiting.append(rgb)

    def run(self, latents: Iterable[Tensor], height: int, width: int, deep: bool) -> Quality:
        """Decode and compare until the latents end.

        Args:
            latents: those behind the latents that an earlier run had written, (1, z, n, h, w), as the file holds them, float32.
                The frames of what is given, and of what was written, must have been kept when it is.
            height, width: of the source frames, pixels.
            deep: they have 16 bits.

        Raises:
            OutputError: the disk fails.
        """
        tiling = self._plan.tiling
        begin = first_chunk_with(self.first, tiling)
        read_anchor = self._anchors.read if self._anchors else None
        pieces = self._pieces(begin, latents)
        decoded = decode_frames(self._model, pieces, self._plan, begin, self._clock, read_anchor, deep)
        frames = cropped_frames(decoded, height, width)
        step = STEP * chunk_stride(tiling.chunk, tiling.chunk_overlap)
        for index, frame in enumerate(islice(frames, self.first - (STEP * begin + 1 if begin else 0), None), self.first):
            if self._waiting:  # the last latent may stand for frames that the source has no more
                self._comparison.add(self._waiting.popleft(), frame)
                if index > self.first and index % step == 0:  # the last one of its chunk that no other chunk gives
                    self._writer.note([ENTRY, self._comparison.sums])
        return self._comparison.result(len(self._waiting))

    def _pieces(self, begin: int, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        """The latents from latent frame `begin` on: what an earlier run had written, and the new ones."""
        written, new = self._writer.latent_frames, iter(latents)
        # Not before the new ones have begun: they pull the frames of what is written, too.
        first = list(islice(new, 1))
        if begin < written:
            yield torch.from_numpy(self._writer.read(begin, written)).transpose(0, 1)[None]
        yield from chain(first, new)
