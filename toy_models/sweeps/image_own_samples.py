"""Controls of chapter 06 at 64x64: an auxiliary model of photographs, and blur without a guide.

The first needs photographs. Everything but what is learned from is as for ``imagenet64-sims``: the
start, the number of images, the steps, their rate, the noise.
"""

from __future__ import annotations

from functools import cache
from tempfile import TemporaryDirectory

import torch

from guidance_edu.denoisers import Preconditioned
from guidance_edu.guidance import Guided
from guidance_edu.negatives.input import blur_image
from guidance_edu.settings import device, seed_shift
from guidance_edu.training import Run
from toy_models.image_commands import DATA
from toy_models.image_measures import measure, speckle
from toy_models.image_recipes import (
    OWN_SAMPLES,
    WIDTH,
    augmented,
    balanced_labels,
    image_recipe_named,
    new_model,
)
from toy_models.imagenet64 import BOOK, Images, load, to_range
from toy_models.sweeps import grid, sweep
from toy_models.sweeps.image_guidance import MAIN, judged
from toy_models.sweeps.images import START, SWEEP, cached, drawn, numbers


@sweep("image_real_data", seeds=(0, 1000), settings=grid(w=[2.0, 3.0], n=[SWEEP]), long=True)
def image_real_data(w: float, n: int) -> dict[str, float]:
    """The main 64x64 model guided by a copy trained further on photographs, not on own samples."""
    return judged(Guided(cached(MAIN), trained_on_photographs(), w), n)


@cache
def trained_on_photographs() -> Preconditioned:
    """Return what ``imagenet64-sims`` would be if its own samples had been photographs.

    Errors:  FileNotFoundError where no photographs are packed.
    """
    photographs = load(DATA, "train", tuple(BOOK))
    each = OWN_SAMPLES // len(BOOK)
    rows = torch.cat([(photographs.labels == k).nonzero()[:each, 0] for k in range(len(BOOK))])
    files = tuple(photographs.files[row] for row in rows.tolist())
    chosen = Images(photographs.pixels[rows], photographs.labels[rows], files)
    recipe = image_recipe_named("imagenet64-sims")
    model = new_model(recipe)
    model.load_state_dict(cached(MAIN).state_dict())
    with TemporaryDirectory() as folder:
        run = Run(
            model,
            augmented(chosen),
            recipe.run,
            folder,
            chosen.sha256(),
            cpu=device().type == "cpu",
        )
        run.train()
        return run.average(WIDTH)


@sweep("image_low_pass", seeds=(0, 1000), settings=grid(blur=[0.3, 0.4, 0.5, 0.6], n=[SWEEP]))
def image_low_pass(blur: float, n: int) -> dict[str, float]:
    """Unguided samples of the main 64x64 model, blurred by some pixels: what smoothing alone does.

    No guidance at all: a gain that this reaches too is no merit of a guide.
    """
    x = blur_image(_unguided(n, seed_shift()), blur)
    return numbers(measure(x, balanced_labels(n), START + seed_shift()))


@cache
def _unguided(n: int, shifted_seed: int) -> torch.Tensor:
    return drawn(cached(MAIN), n)


@sweep("photograph_speckle", seeds=(0,), settings=grid(split=["train", "val"]), long=True)
def photograph_speckle(split: str) -> dict[str, float]:
    """Difference of neighbouring pixels in photographs of the ten classes; needs them."""
    return {"speckle": speckle(to_range(load(DATA, split, tuple(BOOK)).pixels))}
