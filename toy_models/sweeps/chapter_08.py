"""The control of chapter 08: finished pictures of the main 64x64 model, made smoother by a blur."""

from __future__ import annotations

from functools import cache

from torch import Tensor

from guidance_edu.negatives.input import blur_image
from guidance_edu.settings import seed_shift
from toy_models.image_measures import measure
from toy_models.image_recipes import balanced_labels
from toy_models.sweeps import grid, sweep
from toy_models.sweeps.image_guidance import MAIN, SEEDS, Row
from toy_models.sweeps.images import START, SWEEP, cached, drawn, numbers


@cache
def _finished(n: int, seed: int) -> Tensor:
    """Return unguided samples. ``seed`` is that of the book, under which they were drawn."""
    return drawn(cached(MAIN), n)


@sweep("image_grain", seeds=SEEDS, settings=grid(blur=[0.35, 0.4, 0.45], n=[SWEEP]))
def image_grain(blur: float, n: int) -> Row:
    """Unguided samples of the main 64x64 model, blurred when they are finished."""
    x = blur_image(_finished(n, seed_shift()), blur)
    return numbers(measure(x, balanced_labels(n), START + seed_shift()))
