"""The guide test at 64x64: how much worse each negative denoises, and which weight would help.

It needs photographs that no model was trained on, and no known truth: the noise-free photograph x0
stands in for it. What it sees are the states that noise makes out of photographs; a sampler that
has strayed is elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from guidance_edu.denoisers import Denoiser, Preconditioned
from guidance_edu.negatives.attention import perturbed_attention, smoothed_attention
from guidance_edu.negatives.clock import perturbed_time, wrong_level
from guidance_edu.negatives.input import blurred_input
from guidance_edu.settings import device, generator
from toy_models.image_commands import DATA
from toy_models.image_reference import jackknife
from toy_models.imagenet64 import BOOK, load, to_range
from toy_models.sweeps import grid, sweep
from toy_models.sweeps.image_guidance import LAST, LAYERS, MAIN, MASKS, PAIRS, RULES, _rng
from toy_models.sweeps.images import cached

SIGMAS = [0.1, 0.3, 1.0, 3.0, 10.0]
PHOTOGRAPHS, PARTS, BATCH = 200, 10, 50
TRAINED = ("cfg", "autoguidance-early", "autoguidance-small", "sims")
TRAINED += ("cfg-separate", "icg", "icg-gaussian")  # of the model that never lost a label

Build = Callable[[Preconditioned], Denoiser]


def _ruled(layers: str, rule: str) -> Build:
    return lambda model: perturbed_attention(model, layers.split(), RULES[rule]())


def _smoothed(layers: str, sigma: float) -> Build:
    return lambda model: smoothed_attention(model, layers.split(), sigma)


def _masked(mask: str) -> Build:
    return lambda model: blurred_input(model, LAST, mask=MASKS[mask]())


# negative -> the positive model and how the negative is made of it
NEGATIVES: dict[str, tuple[str, Build]] = {
    **{name: PAIRS[name] for name in TRAINED},
    **{f"level {delta:+g}": (MAIN, partial(wrong_level, delta=delta)) for delta in (-0.1, 0.1)},
    **{
        f"clock noise {scale:g}": (MAIN, lambda model, s=scale: perturbed_time(model, s, _rng()))
        for scale in (0.1, 0.5)
    },
    **{f"input blurred, {mask}": (MAIN, _masked(mask)) for mask in ("attention", "whole")},
    **{f"identity {layer}": (MAIN, _ruled(layer, "identity")) for layer in LAYERS},
    "identity all": (MAIN, _ruled(" ".join(LAYERS), "identity")),
    **{f"{rule} {LAST}": (MAIN, _ruled(LAST, rule)) for rule in RULES if rule != "identity"},
    **{f"smoothed {layer}": (MAIN, _smoothed(layer, math.inf)) for layer in LAYERS},
    f"smoothed 1 {LAST}": (MAIN, _smoothed(LAST, 1.0)),
}


@sweep("guide_test", seeds=(0,), settings=grid(negative=list(NEGATIVES), sigma=SIGMAS), long=True)
def guide_test(negative: str, sigma: float) -> dict[str, float]:
    """How much each negative raises the denoising error of photographs, and which weight lowers it.

    ``error`` is the positive's root mean square error; ``rise`` how far the negative's mean square
    error exceeds the positive's, as a share of it; ``change`` the length of their difference over
    that of the positive's error. ``w`` is the weight of the smallest guided error, and ``gain`` the
    share of the mean square error that it takes away (also where it is below 1). ``_noise`` is a
    standard deviation.
    """
    name, build = NEGATIVES[negative]
    good, bad = _positive_errors(name, sigma), _errors(build(cached(name)), sigma)
    products = torch.stack([(u * v).mean(1) for u, v in ((good, good), (bad, bad), (good, bad))])
    row = _compared(products)
    left = [_compared(products[:, torch.arange(PHOTOGRAPHS) % PARTS != k]) for k in range(PARTS)]
    return row | {f"{key}_noise": jackknife([part[key] for part in left]) for key in ("rise", "w")}


def _compared(products: Tensor) -> dict[str, float]:
    """Compare two errors by their mean products: positive, negative, both. Shape [3, n]."""
    good, bad, both = products.mean(1).tolist()
    length = good + bad - 2 * both  # of the difference; 0 for a negative that changes nothing
    return {
        "error": math.sqrt(good),
        "rise": bad / good - 1,
        "change": math.sqrt(length / good),
        "w": 1 - (good - both) / length,
        "gain": (good - both) ** 2 / (length * good),
    }


@cache
def _positive_errors(name: str, sigma: float) -> Tensor:
    return _errors(cached(name), sigma)


@torch.no_grad()
def _errors(model: Denoiser, sigma: float) -> Tensor:
    """Return what a denoiser misses of the photographs. Shape [n, pixels], float64."""
    x0, labels = photographs()
    noise = torch.randn(x0.shape, generator=generator(4242))
    found = [
        model((x0[rows] + sigma * noise[rows]).to(device()), sigma, labels[rows].to(device())).cpu()
        for rows in torch.arange(PHOTOGRAPHS).split(BATCH)
    ]
    return (torch.cat(found) - x0).flatten(1).double()


@cache
def photographs() -> tuple[Tensor, Tensor]:
    """Return held-out photographs, as many of each class, and their labels."""
    images = load(DATA, "val", tuple(BOOK))
    each = PHOTOGRAPHS // len(BOOK)
    rows = torch.cat([(images.labels == k).nonzero()[:each, 0] for k in range(len(BOOK))])
    return to_range(images.pixels[rows]), images.labels[rows]
