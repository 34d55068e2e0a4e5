"""What a run tells: lines of progress, `log.jsonl`, TensorBoard scalars and strips of pictures. It knows no model."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

STRIP_FRAMES = 5


class Journal:
    """The records of one run, in its folder.

    Args:
        folder: of the run; `log.jsonl` and TensorBoard's files go there.
        first, steps: the steps done before, and those of the whole run; what was recorded behind `first` by a sitting that
            ended without a checkpoint is forgotten.
        report: called with a line of progress.
    """

    def __init__(self, folder: Path, first: int, steps: int, report: Callable[[str], None]) -> None:
        self.steps, self.report = steps, report
        self._began, self._first, self._images = time.monotonic(), first, 0
        path = folder / "log.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= first]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._lines = open(path, "a", encoding="utf-8")
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first + 1)
        except ImportError:
            self._board = None
            report('No TensorBoard files are written; pip install "cvvae[train]" for them.')

    @property
    def shows_pictures(self) -> bool:
        """Whether `strip` has somewhere to draw."""
        return self._board is not None

    def count(self, images: int) -> None:
        """Frames that a step has seen."""
        self._images += images

    def scalars(self, step: int, terms: dict[str, float], stream: str) -> None:
        """Record the terms of one step."""
        self._lines.write(json.dumps({"step": step, "stream": stream, **terms}) + "\n")
        self._lines.flush()
        for name, value in terms.items() if self._board else ():
            self._board.add_scalar(f"{stream}/{name}", value, step)
        seconds = time.monotonic() - self._began
        left = (self.steps - step) * seconds / max(1, step - self._first) / 60
        values = " ".join(f"{name} {value:.4g}" for name, value in terms.items())
        self.report(f"step {step}/{self.steps} {stream} {values} | {self._images / seconds:.3g} images/s, {left:.0f} min left")

    def strip(self, step: int, x: Tensor, y: Tensor, stream: str) -> None:
        """Record some frames of the first window above their reconstruction; x and y (B, 3, T, H, W) in [-1, 1]."""
        if self._board is None:
            return
        chosen = torch.linspace(0, x.shape[2] - 1, min(STRIP_FRAMES, x.shape[2])).round().long()
        rows = [torch.cat(list(v[0, :, chosen.to(v.device)].float().unbind(1)), dim=2) for v in (x, y)]
        picture = (torch.cat(rows, dim=1).clamp(-1, 1) + 1) / 2
        self._board.add_image(f"{stream}/source_above_reconstruction", picture.cpu(), step)

    def close(self) -> None:
        """Write out what is buffered."""
        self._lines.close()
        if self._board:
            self._board.close()
