"""Which side and which map of the latent regularisation: one small model, equal steps, equal seeds.

    python benchmarks/regularisation.py --dev ../shared/clips/dev --out benchmarks/regularisation.json

Trains recipes/experiment-image.toml, then recipes/experiment.toml once for each variant, in runs/experiment/, and
measures every model on the middle of clips that none of them saw. Finished runs are not repeated.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.checkpoint import load_model, save_model
from cvvae_cli.clip_windows import WindowConfig, plan_clip, read_windows
from cvvae_cli.compatibility import CompatibilityMeter
from cvvae_cli.errors import UsageError, VideoError
from cvvae_cli.image_model import ImageModel, load_image_model
from cvvae_cli.training.loop import Trainer
from cvvae_cli.training.recipe import Recipe, load_recipe

FOLDER = Path("runs/experiment")
WINDOWS = WindowConfig(frames=17, short_side=256, crop=144, max_windows=3)
VARIANTS = {
    "none": ("none", "random"),
    "encoder side, random": ("encoder", "random"),
    "decoder side, random": ("decoder", "random"),
    "both sides, random": ("both", "random"),
    "decoder side, first": ("decoder", "first"),
    "decoder side, slice": ("decoder", "slice"),
    "decoder side, average": ("decoder", "average"),
}


def trained(recipe: Recipe, name: str) -> Autoencoder:
    """The averaged weights of a run, from its file where it is finished."""
    path = FOLDER / f"{name}.safetensors"
    if not path.exists():
        trainer = Trainer(recipe, FOLDER / name, "cpu", lambda line: print(f"{name}: {line}", flush=True))
        trainer.run()
        save_model(trainer.averaged_model(), path, trainer.provenance(), torch.float16)
    return load_model(str(path), device="cpu", dtype=torch.float32)


@torch.inference_mode()
def measure(model: Autoencoder, image: ImageModel, clips: list[Path]) -> dict[str, float]:
    """PSNR of video, pictures and compatibility, and flicker, means over clips."""
    meter, flicker = CompatibilityMeter(image, model), []
    for path in clips:
        errors = []
        for x in read_windows(plan_clip(path, WINDOWS), WINDOWS):
            meter.add(x, path.stem)
            y = model.decode(model.encode(x).chunk(2, dim=1)[0])
            errors.append((127.5 * (y - x).diff(dim=2)).square().mean().item())
        flicker.append(float(np.sqrt(np.mean(errors))))
    rows = meter.result().psnr
    return {
        "video_psnr_db": rows["average"].video_own.mean_db,
        "picture_psnr_db": rows["pictures"].video_own.mean_db,
        **{f"compat_{kind}_db": rows[kind].image_of_video.mean_db for kind in ("pictures", "first", "slice", "average", "random")},
        "image_own_pictures_db": rows["pictures"].image_own.mean_db,
        "flicker": float(np.mean(flicker)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dev", required=True, help="folder of clips that no run saw")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    clips = []
    for path in sorted(Path(arguments.dev).iterdir()):
        try:
            plan_clip(path, WINDOWS)
            clips.append(path)
        except (VideoError, UsageError) as error:
            print(f"left out: {error}")
    trained(load_recipe("recipes/experiment-image.toml"), "image")
    image = load_image_model(str(FOLDER / "image.safetensors"))
    base, results = load_recipe("recipes/experiment.toml"), {}
    for name, (side, kind) in VARIANTS.items():
        recipe = replace(base, regularisation=replace(base.regularisation, side=side, map=kind))
        results[name] = measure(trained(recipe, name.replace(", ", "-").replace(" ", "-")), image, clips)
        print(name, json.dumps({key: round(value, 2) for key, value in results[name].items()}), flush=True)
    described = {"steps": base.optim.steps, "seed": base.run.seed, "clips": [path.name for path in clips], "variants": results}
    Path(arguments.out).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
