"""The folder of a run: its checkpoint on disk, and whether a checkpoint belongs to the run that finds it.

It knows names and values, no model and no optimiser.
"""

import json
import pickle
from pathlib import Path

import torch

from cvvae_cli.errors import ModelError, OutputError, UsageError
from cvvae_cli.training.recipe import Recipe, recipe_from_dict, recipe_to_dict
from cvvae_cli.whole_file import written_whole

MAY_CHANGE = {
    "optim": {"steps"},
    "run": {"checkpoint_every", "log_every", "pictures_every", "workers", "recompute", "export_rank"},
    "streams": {"cache"},
}
"""What may change between the sittings of a run; `steps` only before the cosine begins."""


class RunFolder:
    """Reads and writes `checkpoint.pt`.

    Args:
        path: of the folder; made where it is missing.

    Raises:
        OutputError: it cannot be made.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoint = self.path / "checkpoint.pt"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"Run folder {path} cannot be made: {error.strerror}; pass another --run-dir.") from error

    def load(self) -> dict | None:
        """The state of the last checkpoint on the CPU, None where there is none.

        Raises:
            ModelError: it is damaged.
        """
        if not self.checkpoint.exists():
            return None
        try:
            return torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
            raise ModelError(f"{self.checkpoint} is damaged; remove it to begin anew, or name a new --run-dir.") from error

    def save(self, state: dict) -> None:
        """Put a state in the place of the last one.

        Raises:
            OutputError: it cannot be written; the last one stays.
        """
        try:
            with written_whole(self.checkpoint) as part:
                torch.save(state, part)
        except (OSError, RuntimeError) as error:  # torch says RuntimeError where the disk is full
            advice = "free some space and run the command again"
            raise OutputError(f"{self.checkpoint} cannot be written ({error}); {advice}.") from error

    def check(self, state: dict, recipe: Recipe, seen: dict[str, str]) -> None:
        """Refuse a state of another run.

        Args:
            state: from `load`.
            recipe: the run at hand.
            seen: fingerprints of its data and its frozen model, as `state` has them.

        Raises:
            UsageError: something differs that may not; it is named.
        """
        # Read as a recipe, so that what a newer version added has its default.
        began = recipe_from_dict(json.loads(state["recipe"]))
        saved, now = (json.loads(json.dumps(recipe_to_dict(one))) for one in (began, recipe))
        before, after = saved["optim"]["steps"], recipe.optim.steps
        begin = max(recipe.optim.hold, recipe.optim.warmup)
        if before != after and (state["step"] > begin or after < state["step"]):
            raise UsageError(
                f"Recipe optim.steps cannot change from {before} to {after} at step {state['step']}, as the cosine began at "
                f"{begin}; restore it or name a new --run-dir."
            )
        different = [f"{name} ({a} and {b})" for name, a, b in _differences(saved, now)]
        different += [name for name, value in seen.items() if state.get(name, value) != value]
        if different:
            found = ", ".join(different)
            raise UsageError(f"Run folder {self.path} holds another run: {found} differ; name a new --run-dir or restore them.")


def _differences(saved: dict, now: dict) -> list[tuple[str, object, object]]:
    """Name and both values of what differs between two recipes and may not."""
    found = []
    for name in sorted(saved.keys() | now.keys()):
        one, two = saved.get(name), now.get(name)
        tables = [(name, one, two)] if isinstance(one, dict) and isinstance(two, dict) else []
        if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
            tables = [(f"{name}[{i}]", a, b) for i, (a, b) in enumerate(zip(one, two))]
        if not tables and one != two:
            found.append((name, one, two))
        for place, a, b in tables:
            keys = sorted((a.keys() | b.keys()) - MAY_CHANGE.get(name, set()))
            found += [(f"{place}.{key}", a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)]
    return found
