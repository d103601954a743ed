"""The records of chapter 05 at 64x64: lengths of the weight average, rebuilt from stored snapshots.

The snapshots are not part of the repository: ``python -m toy_models train imagenet64-main`` leaves
them in ``_runs``. The losses also need photographs.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from guidance_edu.checkpoints import read_safetensors
from guidance_edu.denoisers import Preconditioned
from guidance_edu.ema import Snapshot, exponent, misfit, reconstruct, set_weights
from guidance_edu.guidance import Guided
from guidance_edu.settings import device
from guidance_edu.training import SNAPSHOTS, STATE, validation_losses
from toy_models.image_recipes import image_recipe_named, new_model
from toy_models.sweeps import grid, sweep
from toy_models.sweeps.image_guidance import MAIN, judged
from toy_models.sweeps.image_guide_test import photographs
from toy_models.sweeps.images import SWEEP

RUN = Path("_runs") / MAIN
EIGHTH, QUARTER, HALF, WHOLE = 75_008, 150_016, 300_000, 600_000  # images seen
LENGTHS = [0.02, 0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.25]
MAINS, GUIDES = [0.03, 0.08, 0.2], [0.05, 0.1, 0.15]


@sweep(
    "image_lengths",
    seeds=(0,),
    settings=[
        *grid(images=[QUARTER, HALF, WHOLE], length=LENGTHS),
        {"images": WHOLE, "length": 0.0},
    ],
    long=True,
)
def image_lengths(images: int, length: float) -> dict[str, float]:
    """Loss of the main 64x64 model on photographs, by the length of its average; needs its run.

    Length 0 stands for the last weights. ``misfit`` is that of the rebuilt profile.
    """
    model = rebuilt(length, images) if length else last_weights()
    losses = validation_losses(model, *photographs())
    stored = snapshots()
    ends = torch.tensor([float(s.updates) for s in stored])
    kinds = torch.tensor([s.gamma for s in stored], dtype=torch.float64)
    end = images / image_recipe_named(MAIN).run.batch
    missed = misfit(ends, kinds, end, exponent(length)) if length else 0.0
    mean = sum(losses.values()) / len(losses)
    return {"misfit": missed, "mean": mean} | {f"loss_{k}": v for k, v in losses.items()}


@sweep(
    "image_two_lengths",
    seeds=(0,),
    settings=[
        *grid(main=MAINS, guide=[0.0], w=[1.0], n=[SWEEP]),
        *grid(main=MAINS, guide=GUIDES, w=[1.5], n=[SWEEP]),
    ],
    long=True,
)
def image_two_lengths(main: float, guide: float, w: float, n: int) -> dict[str, float]:
    """Autoguidance at 64x64 by the same run at an eighth, by both lengths; needs the run."""
    model = rebuilt(main, WHOLE)
    return judged(model if w == 1 else Guided(model, rebuilt(guide, EIGHTH), w), n)


@cache
def rebuilt(length: float, images: int) -> Preconditioned:
    """Return the main model with an average of its weights, rebuilt from the run's snapshots.

    Units:   images is how many the run had seen.
    Errors:  FileNotFoundError where the run was not made here; those of
             :func:`guidance_edu.ema.reconstruct`.
    """
    recipe = image_recipe_named(MAIN)
    model = new_model(recipe)
    set_weights(model, reconstruct(snapshots(), length, images // recipe.run.batch))
    return model.eval().requires_grad_(False).to(device())


def last_weights() -> Preconditioned:
    """Return the main model with the weights at which its run ended.

    Errors:  FileNotFoundError where the run was not made here.
    """
    model = new_model(image_recipe_named(MAIN))
    stored = read_safetensors(_found(RUN / STATE))
    model.load_state_dict({name: stored[f"model.{name}"] for name in model.state_dict()})
    return model.eval().requires_grad_(False).to(device())


@cache
def snapshots(run: Path = RUN) -> list[Snapshot]:
    """Return every average that the run stored, of both tracks.

    Errors:  FileNotFoundError where the run was not made here.
    """
    recipe = image_recipe_named(MAIN)
    names = [name for name, _ in new_model(recipe).named_parameters()]
    result = []
    for path in sorted(_found(run / SNAPSHOTS).glob("*.safetensors")):
        images, width = path.stem.split("_")
        stored = read_safetensors(path)
        weights = [stored[name] for name in names]
        result.append(Snapshot(int(images) // recipe.run.batch, exponent(float(width)), weights))
    return result


def _found(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is not here: the snapshots of a run are too large to be shipped;"
            f" 'python -m toy_models train {MAIN}' makes them again"
        )
    return path
