"""Sweeps of chapter 11 at 64x64: the contrast that blurred queries turn up, and the 8x8 layers."""

from __future__ import annotations

import torch
from torch import Tensor

from guidance_edu.guidance import Guided
from guidance_edu.negatives.attention import (
    PerturbedAttention,
    identity_attention,
    smoothed_attention,
)
from toy_models.sweeps import sweep
from toy_models.sweeps.image_guidance import LAST, MAIN, SEEDS, Row, judged
from toy_models.sweeps.images import SWEEP, cached


def along(push: Tensor, estimate: Tensor) -> Tensor:
    """Return how much of a push is a mere change of contrast: c in push = c estimate + the rest.

    Shapes:  push, estimate [n, ...]; result [n, 1, ...], one number a sample.
    Source:  the projection of Sadat et al. 2025 (arXiv:2410.02416), sec. 3.
    """
    axes = tuple(range(1, push.dim()))
    product = (push * estimate).sum(axes, keepdim=True)
    return product / estimate.square().sum(axes, keepdim=True)


class Across:
    """A negative without its part along the positive: guidance by it leaves the contrast alone."""

    def __init__(self, negative: PerturbedAttention):
        self.model, self.negative = negative.model, negative

    def __call__(self, x: Tensor, sigma: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the negative."""
        return self.pair(x, sigma, condition)[1]

    def pair(
        self, x: Tensor, sigma: float | Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the positive, and the negative moved along it until they differ across it alone.

        Shapes:  as for a denoiser, twice.
        """
        positive, negative = self.negative.pair(x, sigma, condition)
        return positive, negative + along(positive - negative, positive) * positive


_ROWS = [("queries", 1.5), ("queries", 2.0), ("identity", 1.5)]


@sweep(
    "image_contrast",
    seeds=SEEDS,
    settings=[{"rule": rule, "w": w, "n": SWEEP} for rule, w in _ROWS],
)
def image_contrast(rule: str, w: float, n: int) -> Row:
    """SEG and PAG of the last 16x16 layer at 64x64 without the part of the push along the estimate.

    The rows with that part are in ``image_smoothing`` and ``image_attention``.
    """
    main = cached(MAIN)
    make = {"queries": smoothed_attention, "identity": identity_attention}[rule]
    with torch.no_grad():
        return judged(Guided(main, Across(make(main, [LAST])), w), n)


_MIDDLE = "mid.8 dec.8.0"


@sweep(
    "image_middle",
    seeds=SEEDS,
    settings=[
        *[{"layers": _MIDDLE, "w": w, "n": SWEEP} for w in (1.5, 2.0, 3.0)],
        {"layers": "dec.8.0", "w": 3.0, "n": SWEEP},
    ],
)
def image_middle(layers: str, w: float, n: int) -> Row:
    """SEG without end in the 8x8 layers of the middle of the 64x64 model, where papers put it."""
    main = cached(MAIN)
    return judged(Guided(main, smoothed_attention(main, layers.split()), w), n)
