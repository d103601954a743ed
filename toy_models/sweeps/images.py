"""Sweeps over the 64x64 models: how good each is, and how near its samples lie to photographs."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache

import torch
from torch import Tensor

from guidance_edu.denoisers import Denoiser, Preconditioned
from guidance_edu.settings import generator, seed_shift
from toy_models.classifier import load_classifier
from toy_models.image_commands import DATA
from toy_models.image_measures import Measures, measure
from toy_models.image_recipes import balanced_labels, sample_images
from toy_models.image_reference import load_reference
from toy_models.imagenet64 import BOOK
from toy_models.imagenet64 import load as load_images
from toy_models.memorisation import memorisation
from toy_models.recipes import load
from toy_models.sweeps import grid, sweep

MODELS = (
    "imagenet64-main",
    "imagenet64-nodrop",
    "imagenet64-early",
    "imagenet64-guide",
    "imagenet64-sims",
    "imagenet64-unconditional",
)
TABLE, SWEEP = 1000, 300  # samples; an FD depends on their number, so the two are never mixed
START = 7000  # seed of the starting noise: the same for every model


@cache
def cached(name: str) -> Preconditioned:
    """Return a shipped model, read once a process."""
    return load(name)


def measured(denoiser: Denoiser, n: int) -> Measures:
    """Draw n samples from the common starting noise, 8 Heun steps, and measure them.

    A model without classes is measured as if it had been asked for them: its accuracy is chance.
    """
    return measure(drawn(denoiser, n), balanced_labels(n), START + seed_shift())


def drawn(denoiser: Denoiser, n: int) -> Tensor:
    """Return n samples from the common starting noise, of all classes in turn where there are any.

    Shapes:  result [n, 3, 64, 64], not clipped.
    """
    return sample_images(denoiser, _asked(denoiser, balanced_labels(n)), generator(START), n)


def _asked(denoiser: Denoiser, labels: Tensor) -> Tensor | None:
    network = getattr(getattr(denoiser, "positive", denoiser), "network", None)
    return None if network is not None and network.label is None else labels


def numbers(measures: Measures) -> dict[str, float]:
    """Return a row of a record: what was measured, and the parts that paired comparisons need."""
    row = asdict(measures)
    parts = row.pop("without")
    kept = {key: float(value) for key, value in row.items() if key not in {"n", "seed"}}
    return kept | {f"without_{k}": float(part) for k, part in enumerate(parts)}


@sweep("image_models", seeds=(0,), settings=grid(model=MODELS, n=[TABLE]))
def image_models(model: str, n: int) -> dict[str, float]:
    """How good each 64x64 model is without guidance, on 1000 samples."""
    return numbers(measured(cached(model), n))


@sweep("image_models_small", seeds=(0, 1000, 2000), settings=grid(model=MODELS, n=[SWEEP]))
def image_models_small(model: str, n: int) -> dict[str, float]:
    """The same on 300 samples, at three seeds."""
    return image_models(model, n)


@sweep("image_copies", seeds=(0,), settings=grid(space=["pixels", "features"]), long=True)
def image_copies(space: str) -> dict[str, float]:
    """How near samples of the main 64x64 model lie to training images; needs the photographs."""
    training, validation = (load_images(DATA, split, tuple(BOOK)) for split in ("train", "val"))
    x = sample_images(cached("imagenet64-main"), balanced_labels(SWEEP), generator(START))
    eyes = () if space == "pixels" else (load_classifier(), load_reference())
    found = memorisation(x, training, validation, *eyes)
    row = {"ratio": found.ratio, "copies": found.copies}
    for name, nearest in (("samples", found.samples), ("photographs", found.validation)):
        cuts = nearest.distance.double().quantile(torch.linspace(0, 1, 21, dtype=torch.float64))
        row |= {f"{name}_{k}": float(cut) for k, cut in enumerate(cuts)}
    return row


def forty(denoiser: Denoiser, seed: int = 1) -> Tensor:
    """Return the first forty samples of one seed: four of each class, 16 Heun steps, not chosen.

    Shapes:  result [40, 3, 64, 64].
    """
    labels = _asked(denoiser, balanced_labels(40))
    return sample_images(denoiser, labels, generator(seed), 40, steps=16)
