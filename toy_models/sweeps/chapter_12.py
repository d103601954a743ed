"""Sweeps of chapter 12: what the earlier records leave out of the comparison.

``image_weights``        weights that a method was not yet tried at
``image_control``        the control between the weights where it gains most
``image_unconditional``  what can be done for a model without classes
``image_strong``         SIMS beyond the weight that was its best, with and without classes
``tree_errors``          where the guides err that the record ``errors`` leaves out
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from guidance_edu.denoisers import Denoiser, Preconditioned
from guidance_edu.guidance import Guided
from guidance_edu.negatives.condition import without_condition
from guidance_edu.settings import device, seed_shift
from guidance_edu.training import Run
from toy_models.image_recipes import WIDTH, augmented, image_recipe_named, new_model, own_images
from toy_models.sweeps import book_seed, grid, sweep
from toy_models.sweeps.chapter_04 import SEEDS as TREE_SEEDS
from toy_models.sweeps.chapter_04 import errors_of, guide_named
from toy_models.sweeps.chapter_06 import _auxiliary
from toy_models.sweeps.image_guidance import (
    ALONE,
    MAIN,
    SEEDS,
    Row,
    by_clock,
    by_mask,
    by_smoothing,
    by_two,
    image_training,
    judged,
    louder,
    methods,
)
from toy_models.sweeps.images import SWEEP, cached

# method -> how it is built of a weight and of what is the same at all of its weights here
MORE: dict[str, tuple[Callable[..., Denoiser], dict[str, str | float]]] = {
    "slow clock": (by_clock, {"model": MAIN, "clock": "level", "size": -0.03}),
    "SAG": (by_mask, {"model": MAIN, "mask": "attention", "layer": "mid.8", "blur": 1.5}),
    "SEG": (by_smoothing, {"model": MAIN, "layers": "mid.8 dec.8.0", "sigma": "inf"}),
    "control": (louder, {}),
    "CFG and SIMS": (by_two, {"first": "cfg", "second": "sims", "v": 2.0}),
}


@sweep(
    "image_weights",
    seeds=SEEDS,
    settings=methods(
        {
            "slow clock": [1.25, 2.0, 3.0],
            "SAG": [1.5, 3.0],
            "SEG": [1.25],
            "control": [1.01, 1.03],
            "CFG and SIMS": [1.25, 2.0],
        }
    ),
)
def image_weights(method: str, w: float, n: int) -> Row:
    """Weights that methods of the main 64x64 model were not tried at, in their best setting."""
    build, setting = MORE[method]
    return judged(build(w=w, **setting), n)


@sweep("image_control", seeds=SEEDS, settings=grid(w=[1.0125, 1.015], n=[SWEEP]))
def image_control(w: float, n: int) -> Row:
    """The control at 64x64 in finer steps: the noise that the main model finds, multiplied by w."""
    return judged(louder(w), n)


@sweep(
    "image_unconditional",
    seeds=SEEDS,
    settings=methods(
        {
            "control": [1.01, 1.02, 1.03, 1.05],
            "sims": [1.5, 2.0, 3.0],
            "less trained": [1.25, 1.5, 2.0],
        }
    ),
)
def image_unconditional(method: str, w: float, n: int) -> Row:
    """Guidance of the 64x64 model without classes: by its own samples, by a weaker one, by none."""
    if method == "control":
        return judged(louder(w, ALONE), n)
    # The weaker one is as wide and saw fewer images, nine in ten of them with their label.
    negative = {
        "sims": taught_by_itself,
        "less trained": lambda: without_condition(cached("imagenet64-guide")),
    }[method]()
    return judged(Guided(cached(ALONE), negative, w), n)


@sweep(
    "image_strong",
    seeds=SEEDS,
    settings=methods({"sims": [4.0, 6.0], "sims without classes": [4.0, 6.0]}),
)
def image_strong(method: str, w: float, n: int) -> Row:
    """SIMS at 64x64 beyond w = 3, on the main model and on the one without classes."""
    if method == "sims":
        return image_training(method, w, n)
    return image_unconditional("sims", w, n)


@cache
def taught_by_itself() -> Preconditioned:
    """Return the 64x64 model without classes, trained on its own samples as ``imagenet64-sims`` is.

    Limits:  the same at every seed of the book, as are the shipped models.
    """
    recipe = replace(image_recipe_named("imagenet64-sims").run, drop=0.0)  # no label to be dropped
    model = new_model(image_recipe_named(ALONE))
    model.load_state_dict(cached(ALONE).state_dict())
    with TemporaryDirectory() as folder, book_seed(0):
        images = own_images(_WithoutLabels(cached(ALONE)), Path(folder))
        batches = augmented(images, labelled=False)
        run = Run(model, batches, recipe, folder, images.sha256(), cpu=device().type == "cpu")
        run.train()
        return run.average(WIDTH)


class _WithoutLabels:
    """A model that is given labels and was never told what they are."""

    def __init__(self, model: Preconditioned):
        self.model = model

    def __call__(self, x: Tensor, sigma: float | Tensor, condition: Tensor | None = None) -> Tensor:
        return self.model(x, sigma)


OWN = "own samples"  # the auxiliary model of chapter 06, trained for 1000 steps


@sweep(
    "tree_errors",
    seeds=TREE_SEEDS,
    settings=grid(
        guide=[
            "smaller",
            "less trained",
            "unconditional, well trained",
            "unconditional, weak",
            "unconditional, exact",
            "dropout 10 %",
            OWN,
        ],
        sigma=[0.005, 0.01, 0.03, 0.1],
    ),
)
def tree_errors(guide: str, sigma: float) -> Row:
    """Error ratio, cosine and best weight of more guides, where the record ``errors`` looks."""
    negative = guide_named(guide) if guide != OWN else _auxiliary("own", 1000, seed_shift()).cpu()
    return errors_of(negative, sigma)
