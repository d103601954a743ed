"""The records of chapter 09: choices inside self-attention guidance that its paper does not vary.

``image_blur_rules``   the threshold of the mask, and the space in which the difference is taken
``image_other_masks``  who makes the mask: the attention of another sample, or chance
"""

from __future__ import annotations

from functools import partial

from torch import Tensor
from torch.nn import functional as F

from guidance_edu.guidance import Guided
from guidance_edu.negatives.input import (
    BlurredInput,
    attention_mask,
    blurred_input,
    random_mask,
)
from guidance_edu.settings import generator
from toy_models.imagenet64 import BOOK
from toy_models.sweeps import grid, sweep
from toy_models.sweeps.image_guidance import LAST, MAIN, MASKS, SEEDS, judged
from toy_models.sweeps.images import START, SWEEP, cached

MIDDLE = "mid.8"


def above(threshold: float, estimate: Tensor, received: Tensor) -> Tensor:
    """Mark what receives more than ``threshold`` times the mean attention.

    Shapes:  as :func:`guidance_edu.negatives.input.attention_mask`.
    """
    marked = (received > threshold)[:, None].to(estimate)
    return F.interpolate(marked, size=estimate.shape[-2:], mode="nearest")


class InCleanSamples:
    """The negative D(shown), as if two estimates at two inputs could be subtracted."""

    def __init__(self, blurred: BlurredInput):
        self.blurred, self.model = blurred, blurred.model

    def __call__(self, x: Tensor, sigma: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the estimate at the blurred input, unchanged."""
        return self.pair(x, sigma, condition)[1]

    def pair(
        self, x: Tensor, sigma: float | Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return positive and negative.

        Shapes:  as for a denoiser, twice.
        """
        positive, shown = self.blurred.shown(x, sigma, condition)
        return positive, self.model(shown, sigma, condition)


@sweep(
    "image_blur_rules",
    seeds=SEEDS[:1],
    settings=[
        *grid(threshold=[0.5, 1.5, 2.0], space=["noise"], w=[2.0], n=[SWEEP]),
        *grid(threshold=[1.0], space=["clean"], w=[2.0], n=[SWEEP]),
    ],
)
def image_blur_rules(threshold: float, space: str, w: float, n: int) -> dict[str, float]:
    """Self-attention guidance at 64x64: the threshold of its mask, and the space it works in."""
    model = cached(MAIN)
    mask = attention_mask if threshold == 1 else partial(above, threshold)
    negative = blurred_input(model, LAST, 1.5, mask=mask)
    if space == "clean":
        negative = InCleanSamples(negative)
    return judged(Guided(model, negative, w), n, spectrum=True)


def of_another(estimate: Tensor, received: Tensor) -> Tensor:
    """Mark what receives much attention in another sample of the same class.

    The samples come with the classes in turn, so the next of the class is one round further.

    Shapes:  as :func:`guidance_edu.negatives.input.attention_mask`.
    """
    return attention_mask(estimate, received.roll(len(BOOK), 0))


def steady(estimate: Tensor, received: Tensor) -> Tensor:
    """Mark random tokens, as many as attention would mark, but the same at every evaluation.

    Shapes:  as :func:`guidance_edu.negatives.input.attention_mask`.
    """
    return random_mask(generator(START + 2))(estimate, received)


@sweep(
    "image_other_masks",
    seeds=SEEDS[:2],
    settings=[
        *grid(mask=["another"], layer=[LAST, MIDDLE], n=[SWEEP]),
        *grid(mask=["random"], layer=[MIDDLE], n=[SWEEP]),
        *grid(mask=["steady"], layer=[LAST, MIDDLE], n=[SWEEP]),
    ],
)
def image_other_masks(mask: str, layer: str, n: int) -> dict[str, float]:
    """Self-attention guidance at 64x64, w = 2: masks by another sample's attention, or by lot."""
    model = cached(MAIN)
    chosen = {"another": lambda: of_another, "steady": lambda: steady} | MASKS
    return judged(
        Guided(model, blurred_input(model, layer, 1.5, mask=chosen[mask]()), 2.0), n, True
    )
