"""Sweeps of guidance at 64x64: every method of the book on the shipped models, 300 samples a row.

All rows of one seed start from the same noise, so any two of them are compared in pairs
(:func:`paired`, :func:`paired_mean`), across records too. Weights and settings are chosen on the
first seed and judged on the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from guidance_edu.attention import Attend
from guidance_edu.denoisers import Denoiser, Preconditioned
from guidance_edu.guidance import Guided
from guidance_edu.negatives.attention import (
    average_values,
    blurred_weights,
    dropped_weights,
    identity_attention,
    keep_values,
    no_values,
    noisy_weights,
    perturbed_attention,
    smoothed_attention,
)
from guidance_edu.negatives.clock import perturbed_time, wrong_level
from guidance_edu.negatives.condition import (
    gaussian_condition,
    random_condition,
    without_condition,
)
from guidance_edu.negatives.input import (
    Mask,
    attention_mask,
    blurred_input,
    frequency_mask,
    random_mask,
    square_mask,
    whole_mask,
)
from guidance_edu.settings import generator, seed_shift
from toy_models.image_commands import DATA
from toy_models.image_measures import Measures, compare, measure, speckle
from toy_models.image_recipes import balanced_labels
from toy_models.imagenet64 import BOOK, to_range
from toy_models.imagenet64 import load as load_images
from toy_models.sweeps import grid, sweep
from toy_models.sweeps.images import START, SWEEP, cached, drawn, numbers

SEEDS = (0, 1000, 2000)
TUNING, JUDGING = SEEDS[:1], SEEDS[1:]
MAIN, NODROP, ALONE = "imagenet64-main", "imagenet64-nodrop", "imagenet64-unconditional"
LAYERS = ("enc.16.0", "enc.8.0", "mid.8", "dec.8.0", "dec.16.0")
LAST = LAYERS[-1]
FIRST = 50  # samples that a chapter draws again: one batch, so that every draw repeats
BANDS = 8  # rings of the radial power spectrum

Row = dict[str, float]


def _rng() -> torch.Generator:
    """Return the generator of a negative that draws."""
    return generator(START + 1)


# method -> the positive model and its negative
PAIRS: dict[str, tuple[str, Callable[[Preconditioned], Denoiser]]] = {
    "cfg": (MAIN, without_condition),
    "autoguidance-early": (MAIN, lambda main: cached("imagenet64-early")),
    "autoguidance-small": (MAIN, lambda main: cached("imagenet64-guide")),
    "sims": (MAIN, lambda main: cached("imagenet64-sims")),
    "cfg-separate": (NODROP, lambda model: without_condition(cached(ALONE))),
    "icg": (NODROP, lambda model: random_condition(model, len(BOOK), _rng())),
    "icg-gaussian": (
        NODROP,
        lambda model: gaussian_condition(model, _rng(), embedding="network.label"),
    ),
    "tsg": (MAIN, lambda main: perturbed_time(main, 0.1, _rng())),
    "sag": (MAIN, lambda main: blurred_input(main, LAST)),
    "pag": (MAIN, lambda main: identity_attention(main, [LAST])),
    "seg": (MAIN, lambda main: smoothed_attention(main, [LAST], 1.0)),
}

RULES: dict[str, Callable[[], Attend]] = {
    "identity": lambda: keep_values,
    "zero": lambda: no_values,
    "uniform": lambda: average_values,
    "random mask": lambda: dropped_weights(0.5, _rng()),
    "noise": lambda: noisy_weights(0.02, _rng()),
    "blurred map": lambda: blurred_weights(1.0),
}

MASKS: dict[str, Callable[[], Mask]] = {
    "attention": lambda: attention_mask,
    "whole": lambda: whole_mask,
    "square": lambda: square_mask,
    "random": lambda: random_mask(_rng()),
    "frequency": frequency_mask,
}


def guided(method: str, w: float) -> Denoiser:
    """Return a shipped 64x64 model guided by a method of the book at its usual setting.

    Errors:  KeyError for an unknown method; the message lists all.
    """
    if method not in PAIRS:
        raise KeyError(f"unknown method {method!r}; expected one of: {', '.join(PAIRS)}")
    positive, negative = PAIRS[method]
    return Guided(cached(positive), negative(cached(positive)), w)


def judged(denoiser: Denoiser, n: int, spectrum: bool = False) -> Row:
    """Draw n samples and return what is measured on them, as a row.

    ``first_size`` (root mean square) and ``first_speckle`` belong to the first 50 samples alone:
    with n = 50 nothing else is measured, which is how a chapter checks a row in seconds.
    """
    x = drawn(denoiser, n)
    first = x[:FIRST]
    row = {"first_size": float(first.square().mean().sqrt()), "first_speckle": speckle(first)}
    if n > FIRST:
        row = numbers(measure(x, balanced_labels(n), START + seed_shift())) | row
    return row | (_powers(x) if spectrum else {})


def _powers(x: Tensor) -> Row:
    return {f"power_{k}": float(value) for k, value in enumerate(radial_power(x))}


def paired(row: dict, other: dict) -> tuple[float, float]:
    """Return the difference of two rows' FD (first minus second) and its noise.

    Errors:  ValueError for rows of another number of samples or another seed.
    """
    difference = compare(_restored(row), _restored(other))
    return difference.fd, difference.noise


def paired_mean(rows: list[dict], others: list[dict]) -> tuple[float, float]:
    """Return the difference of FD (rows minus others), mean over the seeds of rows, and its noise.

    Each row is compared with the other of its seed.

    Errors:  ValueError for no rows, two rows of one seed, or a row without another of its seed.
    """
    ours, theirs = ([row["seed"] for row in given] for given in (rows, others))
    if not rows or len({*ours}) < len(ours) or len({*theirs}) < len(theirs) or {*ours} - {*theirs}:
        raise ValueError(f"expected a row a seed, some of {theirs}, to compare with; got {ours}")
    pairs = [paired(row, others[theirs.index(row["seed"])]) for row in rows]
    differences, noises = zip(*pairs, strict=True)
    return sum(differences) / len(pairs), math.hypot(*noises) / len(pairs)


def _restored(row: dict) -> Measures:
    fields = [f for f in Measures.__dataclass_fields__ if f not in {"n", "seed", "without"}]
    parts = tuple(row[f"without_{k}"] for k in range(10))
    values = {field: row[field] for field in fields}
    return Measures(n=row["n"], seed=START + row["seed"], without=parts, **values)


def methods(w: dict[str, list[float]]) -> list[dict]:
    """Return the settings of several methods, each at weights of its own."""
    return [{"method": name, "w": v, "n": SWEEP} for name, values in w.items() for v in values]


_USUAL = [1.25, 1.5, 2.0, 3.0]
_TRAINING = methods(
    {name: _USUAL for name in ("cfg", "autoguidance-early", "autoguidance-small", "sims")}
)


@sweep("image_training", seeds=SEEDS, settings=_TRAINING)
def image_training(method: str, w: float, n: int) -> Row:
    """Guidance of the main 64x64 model by CFG and by models of another training."""
    return judged(guided(method, w), n)


@sweep(
    "image_condition",
    seeds=SEEDS,
    settings=methods({"cfg-separate": _USUAL, "icg": _USUAL, "icg-gaussian": [1.5, 2.0]}),
)
def image_condition(method: str, w: float, n: int) -> Row:
    """Guidance of the 64x64 model trained without condition dropout, by another condition."""
    return image_training(method, w, n)


@sweep(
    "image_clock",
    seeds=SEEDS,
    settings=[
        *grid(model=[MAIN], clock=["noise"], size=[0.05, 0.1, 0.2, 0.5], w=[2.0], n=[SWEEP]),
        *grid(model=[MAIN], clock=["noise"], size=[0.1], w=[1.5, 3.0], n=[SWEEP]),
        *grid(model=[MAIN], clock=["level"], size=[-0.1, -0.03, 0.03, 0.1], w=[1.5], n=[SWEEP]),
        *grid(model=[ALONE], clock=["noise"], size=[0.1, 0.2], w=[2.0], n=[SWEEP]),
    ],
)
def image_clock(model: str, clock: str, size: float, w: float, n: int) -> Row:
    """Time-step guidance at 64x64: noise on the embedding, or a wrong level (in logarithms)."""
    return judged(by_clock(model, clock, size, w), n)


def by_clock(model: str, clock: str, size: float, w: float) -> Denoiser:
    """Return a model guided by time-step guidance."""
    positive = cached(model)
    negative = {
        "noise": lambda: perturbed_time(positive, size, _rng()),
        "level": lambda: wrong_level(positive, size),
    }[clock]()
    return Guided(positive, negative, w)


def _masked(mask: str = "attention", w: float = 2.0, **changed) -> dict:
    usual = {"model": MAIN, "mask": mask, "w": w, "blur": 1.5, "layer": LAST, "n": SWEEP}
    return usual | changed


@sweep(
    "image_masks",
    seeds=SEEDS,
    settings=[
        _masked(w=1.0),
        *[_masked(mask) for mask in MASKS],
        *[_masked(w=w) for w in (1.5, 3.0, 5.0)],
        *[_masked("whole", w=w) for w in (1.5, 3.0)],
        *[_masked(blur=blur) for blur in (0.75, 3.0)],
        *[_masked(layer=layer) for layer in ("enc.16.0", "mid.8")],
        *[_masked(mask, model=ALONE) for mask in ("attention", "whole")],
    ],
)
def image_masks(model: str, mask: str, w: float, blur: float, layer: str, n: int) -> Row:
    """Self-attention guidance at 64x64: which part of the estimate is blurred, and how much."""
    return judged(by_mask(model, mask, w, blur, layer), n, spectrum=True)


def by_mask(model: str, mask: str, w: float, blur: float, layer: str) -> Denoiser:
    """Return a model guided by self-attention guidance, or by another mask in its place."""
    negative = blurred_input(cached(model), layer, blur, mask=MASKS[mask]())
    return Guided(cached(model), negative, w)


@sweep(
    "photograph_spectrum", seeds=(0,), settings=grid(split=["train", "val"], n=[SWEEP]), long=True
)
def photograph_spectrum(split: str, n: int) -> Row:
    """Radial power spectrum of photographs of the ten classes; needs the photographs."""
    photographs = load_images(DATA, split, tuple(BOOK))
    rows = torch.randperm(len(photographs.pixels), generator=generator(START))[:n]
    return _powers(to_range(torch.as_tensor(photographs.pixels[rows])))


def _ruled(layers: str = LAST, rule: str = "identity", w: float = 1.5, model: str = MAIN) -> dict:
    return {"model": model, "layers": layers, "rule": rule, "w": w, "n": SWEEP}


@sweep(
    "image_attention",
    seeds=SEEDS,
    settings=[
        *[_ruled(w=w) for w in _USUAL],
        *[_ruled(layer) for layer in (*LAYERS[:-1], " ".join(LAYERS))],
        *[_ruled(rule=rule) for rule in RULES if rule != "identity"],
        *[_ruled(w=w, model=ALONE) for w in (1.5, 2.0)],
    ],
)
def image_attention(model: str, layers: str, rule: str, w: float, n: int) -> Row:
    """Perturbed-attention guidance at 64x64: which layers, which rule in place of attention."""
    return judged(by_attention(model, layers, rule, w), n)


def by_attention(model: str, layers: str, rule: str, w: float) -> Denoiser:
    """Return a model guided by itself with another rule in some attention layers."""
    positive = cached(model)
    return Guided(positive, perturbed_attention(positive, layers.split(), RULES[rule]()), w)


def _smoothed(
    layers: str = LAST, sigma: float | str = "inf", w: float = 2.0, model: str = MAIN
) -> dict:
    return {"model": model, "layers": layers, "sigma": sigma, "w": w, "n": SWEEP}


@sweep(
    "image_smoothing",
    seeds=SEEDS,
    settings=[
        *[_smoothed(sigma=sigma) for sigma in (0.5, 1.0, 2.0, "inf")],
        *[_smoothed(w=w) for w in (1.25, 1.5, 3.0)],
        *[_smoothed(layer, w=1.5) for layer in ("enc.16.0", "mid.8", "dec.8.0")],
        *[_smoothed(w=w, model=ALONE) for w in (1.5, 2.0)],
    ],
)
def image_smoothing(model: str, layers: str, sigma: float | str, w: float, n: int) -> Row:
    """Smoothed-energy guidance at 64x64: how wide the queries are blurred (in tokens), and where.

    ``inf`` is a word in a record, since JSON has no such number.
    """
    return judged(by_smoothing(model, layers, sigma, w), n)


def by_smoothing(model: str, layers: str, sigma: float | str, w: float) -> Denoiser:
    """Return a model guided by smoothed-energy guidance."""
    negative = smoothed_attention(cached(model), layers.split(), float(sigma))
    return Guided(cached(model), negative, w)


@sweep(
    "image_pairs",
    seeds=SEEDS,
    settings=[
        {"first": first, "w": w, "second": second, "v": v, "n": SWEEP}
        for first, w, second, v in [
            ("cfg", 1.25, "autoguidance-early", 1.25),
            ("cfg", 1.5, "autoguidance-early", 1.5),
            ("cfg", 1.5, "sims", 2.0),
            ("cfg", 1.25, "pag", 1.25),
            ("cfg", 1.5, "pag", 1.5),
            ("autoguidance-early", 1.25, "pag", 1.25),
        ]
    ],
)
def image_pairs(first: str, w: float, second: str, v: float, n: int) -> Row:
    """Two negatives at once on the main 64x64 model."""
    return judged(by_two(first, w, second, v), n)


def by_two(first: str, w: float, second: str, v: float) -> Denoiser:
    """Return the main model guided by two negatives, each with a weight of its own."""
    main = cached(MAIN)
    return Guided(main, [(PAIRS[first][1](main), w), (PAIRS[second][1](main), v)])


def louder(w: float, model: str = MAIN) -> Denoiser:
    """Return the control: no second network, the noise that a model finds is multiplied by w."""
    return Guided(cached(model), lambda x, sigma, condition=None: x, w)


def radial_power(x: Tensor, bands: int = BANDS) -> Tensor:
    """Return the mean power of images in rings of spatial frequency, from coarse to fine.

    Shapes:  x [n, c, h, w]; result [bands], float64.
    Units:   squared pixel values; ring k covers k/2 to (k+1)/2 of 1/bands cycles a pixel. The mean
             of each image is left out.
    """
    power = torch.fft.fft2(x.double(), norm="ortho").abs().square().mean((0, 1))
    rows, columns = (torch.fft.fftfreq(size, dtype=torch.float64) for size in x.shape[-2:])
    radius = (rows[:, None].square() + columns.square()).sqrt()
    ring = (radius * 2 * bands).long()
    ring[0, 0] = bands
    return torch.stack([power[ring == k].mean() for k in range(bands)])
