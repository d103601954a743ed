"""Models drawn by a seed, each with a fault of its own: material for choosing a guidance method.

The models are exact denoisers of a wrong density, so that the truth, the fault and the best
remedy are known to whoever grades, and can be measured by whoever chooses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from guidance_edu.denoisers import Denoiser
from guidance_edu.negatives import random_condition, without_condition, wrong_level
from toy_models.gaussian_mixture import ClassMixture, GaussianMixture

FAULTS = ("training", "condition", "clock", "none")


@dataclass(frozen=True)
class Practice:
    """A model, what could be subtracted from it, and the world that both should show.

    ``negatives`` maps names to denoisers. ``fault`` and ``world`` are for the one who grades.

    Shapes:  samples [n, 2]; labels [n] long, below ``classes``.
    """

    model: Denoiser
    negatives: dict[str, Denoiser]
    classes: int
    world: ClassMixture
    fault: str

    def draw(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw clean samples and their labels. Shapes: [n, 2] and [n]."""
        labels = torch.randint(self.classes, (n,), generator=rng)
        clean = torch.empty(n, 2, dtype=torch.float64)
        for label, mixture in enumerate(self.world.classes):
            rows = labels == label
            if bool(rows.any()):
                clean[rows] = mixture.sample(int(rows.sum()), rng)
        return clean, labels


def practice(seed: int, fault: str | None = None) -> Practice:
    """Draw a world, and a model of it with one fault; with another seed, another case.

        training   it has learnt too wide modes, as a network does that saw too little
        condition  it half ignores its class
        clock      it takes every noise level for another one
        none       it is exact, and every guidance harms

    Limits:  the same seed gives the same case; ``fault`` None lets the seed choose.
    Errors:  ValueError for an unknown fault.
    """
    if fault is not None and fault not in FAULTS:
        raise ValueError(f"unknown fault {fault!r}; expected one of {', '.join(FAULTS)}")
    rng = torch.Generator().manual_seed(seed)
    # One number is drawn in any case, so that the world is the same for every fault of a seed.
    drawn = FAULTS[int(torch.randint(len(FAULTS), (), generator=rng))]
    fault = fault or drawn
    classes = int(torch.randint(3, 6, (), generator=rng))
    means = _apart(2 * classes, rng).view(classes, 2, 2)
    spreads = 0.1 + 0.08 * torch.rand(classes, 2, generator=rng, dtype=torch.float64)
    size = float(torch.rand((), generator=rng))
    model = _faulty(means, spreads, fault, size)
    negatives = {
        "earlier checkpoint": _faulty(means, spreads, fault, size, early=True),
        "damaged copy": _damaged(model, rng),
        "no condition": without_condition(model),
        "random class": random_condition(model, classes, torch.Generator().manual_seed(seed)),
        "fast clock": wrong_level(model, 0.3),
        "slow clock": wrong_level(model, -0.3),
    }
    return Practice(model, negatives, classes, _world(means, spreads), fault)


def _apart(number: int, rng: torch.Generator) -> Tensor:
    """Draw places in a disc of radius 1.5 of which no two are close. Shapes: result [number, 2]."""
    places: list[Tensor] = []
    while len(places) < number:
        place = 3 * torch.rand(2, generator=rng, dtype=torch.float64) - 1.5
        if place.norm() < 1.5 and all((place - other).norm() > 0.55 for other in places):
            places.append(place)
    return torch.stack(places)


def _world(means: Tensor, spreads: Tensor, blur: float = 0.0, leak: float = 0.0) -> ClassMixture:
    """Return a world in which every class has a share ``leak`` of all modes alike."""
    eye = torch.eye(2, dtype=torch.float64)
    covariances = (spreads**2 + blur**2)[..., None, None] * eye
    modes = spreads.numel()
    every, wide = means.flatten(0, 1), covariances.flatten(0, 1)
    owner = torch.arange(modes) // means.shape[1]
    shares = [leak / modes + (1 - leak) / means.shape[1] * (owner == c) for c in range(len(means))]
    kept = [share > 0 for share in shares]
    return ClassMixture(
        [GaussianMixture(s[k], every[k], wide[k]) for s, k in zip(shares, kept, strict=True)]
    )


def _faulty(means: Tensor, spreads: Tensor, fault: str, size: float, early: bool = False):
    """Return the model; ``early`` gives what it was after less training."""
    blur, leak = (0.15, 0.0) if early else (0.0, 0.0)
    if fault == "training":
        blur = (0.12 + 0.06 * size) * (1.8 if early else 1.0)
    if fault == "condition":
        leak = 0.35 + 0.15 * size
        leak = 0.5 * (1 + leak) if early else leak
    model = _world(means, spreads, blur, leak)
    if fault == "clock":
        return wrong_level(model, 0.2 + 0.15 * size)
    return model


def _damaged(model: Denoiser, rng: torch.Generator) -> Denoiser:
    """Return the model with an error that is smooth, and unrelated to the model's own."""
    turns = torch.randn(2, 2, generator=rng, dtype=torch.float64)

    def damaged(x: Tensor, sigma: float | Tensor, condition: Tensor | None = None) -> Tensor:
        level = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, *[1] * (x.dim() - 1))
        wave = torch.sin(4 * x @ turns + math.pi / 3)
        return model(x, sigma, condition) + 0.3 * level / (1 + level) * wave

    return damaged
