"""Sweeps of chapters 10 and 11: every method on the constellations, and where their errors point.

Three networks, trained from different seeds, draw 40 samples each; a row pools them. All rows of
one seed start from the same noise. Weights are chosen on the first seed and judged on the others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from guidance_edu.attention import Attend
from guidance_edu.denoisers import Denoiser, Preconditioned
from guidance_edu.error_shift import error_shift
from guidance_edu.guidance import EVERYWHERE, Guided
from guidance_edu.metrics import ED_UNITS, energy_distance, total_variation
from guidance_edu.negatives import perturbed_time, random_condition, without_condition, wrong_level
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
from guidance_edu.samplers import noise_levels, sample, sample_states
from guidance_edu.settings import generator, seed_shift
from toy_models.constellations import INTACT, SHAPES, Constellations, fit
from toy_models.recipes import load
from toy_models.sweeps import grid, sweep
from toy_models.sweeps.chapter_04 import in_groups
from toy_models.sweeps.image_guidance import judged, louder
from toy_models.sweeps.images import SWEEP

SEEDS = (0, 1000, 2000)
TUNING, JUDGING = SEEDS[:1], SEEDS[1:]
NETWORKS = (0, 1, 2)
EACH = 40  # samples of each network
LEVELS = noise_levels(20, sigma_max=10.0, sigma_min=0.005)
LAYERS = ("block.0", "block.1", "block.2")
ALL = " ".join(LAYERS)
MIDDLE = (0.1, 1.0)
CONDITIONAL, UNCONDITIONAL = "conditional", "unconditional"
NAMES = {CONDITIONAL: "constellations", UNCONDITIONAL: "constellations-unconditional"}

Row = dict[str, float]

# method -> rule in place of attention, from its size and a generator
RULES: dict[str, Callable[[float, torch.Generator], Attend]] = {
    "identity": lambda size, rng: keep_values,
    "zero": lambda size, rng: no_values,
    "uniform": lambda size, rng: average_values,
    "random mask": dropped_weights,
    "noise": noisy_weights,
    "blurred map": lambda size, rng: blurred_weights(size),
}


@cache
def networks(model: str) -> tuple[Preconditioned, ...]:
    """Return the three networks of a kind, on the CPU. Errors: KeyError for an unknown kind."""
    return tuple(load(f"{NAMES[model]}-{k}").cpu() for k in NETWORKS)


@cache
def _early(model: str) -> Preconditioned:
    return load(f"{NAMES[model]}-guide").cpu()


def asked(model: str) -> Tensor | None:
    """Return the classes asked of each network: all in turn, or None where it knows none."""
    return torch.arange(EACH) % len(SHAPES) if model == CONDITIONAL else None


def negative(
    method: str, model: str, number: int, layers: str = ALL, size: float | str = 0.0
) -> Denoiser:
    """Return the negative of one network.

    ``size`` is what the method is set to: the rate of the random mask, the noise on the weights,
    the blur in tokens (of the map, or of the queries, where ``"inf"`` is the mean), the noise on
    the clock, the error of the told level. The others have none.

    Errors:  KeyError for an unknown method.
    """
    network, rng = networks(model)[number], generator(20 + number)
    if method in RULES:
        return perturbed_attention(network, layers.split(), RULES[method](size, rng))
    return {
        "queries": lambda: smoothed_attention(network, layers.split(), float(size)),
        "autoguidance": lambda: _early(model),
        "cfg": lambda: without_condition(network),
        "icg": lambda: random_condition(network, len(SHAPES), rng),
        "clock": lambda: perturbed_time(network, float(size), rng),
        "level": lambda: wrong_level(network, float(size)),
    }[method]()


def start() -> Tensor:
    """Return the noise from which every row of a seed starts. Shapes: [3, 40, 24, 2]."""
    noise = torch.randn(len(NETWORKS), EACH, 24, 2, generator=generator(0))
    return LEVELS[0].float() * noise


def samples(
    model: str, method: str, layers: str, size: float | str, w: float, window: str
) -> Tensor:
    """Return the samples of one row, network by network.

    In ``cfg + identity`` the weight is that of perturbed attention and the size that of CFG.

    Shapes:  result [120, 24, 2].
    """
    bounds = {"all": EVERYWHERE, "middle": MIDDLE}[window]
    parts = []
    for number, x in enumerate(start()):
        network = networks(model)[number]
        if method == "none":
            denoiser: Denoiser = network
        elif method == "cfg + identity":
            pushes = [(identity_attention(network, layers.split()), w)]
            denoiser = Guided(network, [*pushes, (without_condition(network), float(size))])
        else:
            denoiser = Guided(network, negative(method, model, number, layers, size), w, bounds)
        parts.append(sample(denoiser, x, LEVELS, asked(model)))
    return torch.cat(parts)


@cache
def _truth(shift: int) -> Tensor:
    return Constellations().sample(1000, generator(3))[0]


def quality(x: Tensor, model: str) -> Row:
    """Judge samples that lie network by network.

    Shapes:  x [120, 24, 2], on the CPU.
    Units:   residual: mean distance to the nearest true drawing, of the class where one was asked;
             intact: share below .05; scale: mean fitted scale (.65 in the data); spread: its
             standard deviation (.13); uneven: total variation between the shares of the shapes and
             equal ones; ed: energy distance times 1000. residual_k belongs to network k.
    """
    labels = asked(model)
    found = fit(x, None if labels is None else labels.repeat(len(NETWORKS)))
    shares = torch.bincount(fit(x).shape, minlength=len(SHAPES)).double() / len(x)
    row = {
        "residual": found.residual.mean(),
        "intact": (found.residual < INTACT).double().mean(),
        "scale": found.size.mean(),
        "spread": found.size.std(),
        "uneven": total_variation(shares, torch.full_like(shares, 1 / len(SHAPES))),
        "ed": energy_distance(x, _truth(seed_shift()), ED_UNITS),
    }
    parts = found.residual.chunk(len(NETWORKS))
    return row | {f"residual_{k}": part.mean() for k, part in enumerate(parts)}


def _row(method="none", w=1.0, layers=ALL, size=0.0, window="all", model=CONDITIONAL) -> dict:
    return {
        "model": model,
        "method": method,
        "layers": layers,
        "size": size,
        "w": w,
        "window": window,
    }


def _shared(model: str) -> list[dict]:
    """Return the settings that both kinds of network are measured at."""
    rules = [("zero", 0.0), ("uniform", 0.0), ("random mask", 0.5), ("noise", 0.1)]
    rows = [
        _row(),
        *[_row("identity", w) for w in (1.25, 1.5, 2.0, 3.0, 4.0)],
        *[_row("identity", w, window=where) for w, where in ((2.5, "all"), (2.5, "middle"))],
        *[_row("identity", 2.0, layer) for layer in LAYERS],
        *[_row(rule, w, size=s) for rule, s in (*rules, ("blurred map", 1.0)) for w in (1.1, 1.5)],
        *[_row("queries", 1.1, size=s) for s in (0.5, 1.0, 2.0, 4.0, "inf")],
        *[_row("queries", w, size=s) for w, s in ((1.25, 4.0), (1.25, "inf"))],
        *[_row("autoguidance", w) for w in (2.0, 3.0)],
        _row("clock", 1.5, size=2.0),
        _row("level", 3.0, size=-0.6),
    ]
    return [row | {"model": model} for row in rows]


@sweep(
    "constellation_guidance",
    seeds=SEEDS,
    settings=[
        *_shared(UNCONDITIONAL),
        *_shared(CONDITIONAL),
        *[_row("cfg", w) for w in (1.5, 2.0, 5.0)],
        _row("cfg", 5.0, window="middle"),
        *[_row("icg", w) for w in (1.05, 1.1, 1.5)],
        *[_row("cfg + identity", w, size=v) for w, v in ((1.25, 1.5), (1.5, 1.5))],
    ],
)
def constellation_guidance(
    model: str, method: str, layers: str, size: float | str, w: float, window: str
) -> Row:
    """Every method on the constellations: broken drawings, and what mending them costs."""
    return quality(samples(model, method, layers, size, w, window), model)


class _Each:
    """A denoiser that gives every network its own share of the batch."""

    def __init__(self, denoisers: list[Denoiser]):
        self.denoisers = denoisers

    def __call__(self, x: Tensor, sigma: float | Tensor, condition: Tensor | None = None) -> Tensor:
        parts = x.chunk(len(self.denoisers))
        labels = [None] * len(parts) if condition is None else condition.chunk(len(parts))
        calls = zip(self.denoisers, parts, labels, strict=True)
        return torch.cat([denoiser(part, sigma, label) for denoiser, part, label in calls])


@cache
def _runs(model: str, shift: int) -> tuple[dict[float, Tensor], Tensor]:
    """Return the unguided states by level, [3, 40, 24, 2], and who ends broken, [3, 40]."""
    labels, states, broken = asked(model), {}, []
    for network, x in zip(networks(model), start(), strict=True):
        for level, now, _ in sample_states(network, x, LEVELS, labels):
            states.setdefault(float(level), []).append(now)
        broken.append(fit(now, labels).residual >= INTACT)
    return {level: torch.stack(parts) for level, parts in states.items()}, torch.stack(broken)


@cache
def _points(model: str, sigma: float, shift: int) -> tuple:
    """Return level, points, labels, exact estimates, clean data, and the groups of the points.

    Each network has its 40 unguided states and 40 noisy true drawings.
    """
    states, broken = _runs(model, shift)
    level = min((known for known in states if known > 0), key=lambda known: abs(known - sigma))
    labels, shape = asked(model), states[level].shape
    world, rng = Constellations(), generator(7)
    clean, _ = world.sample(broken.numel(), rng, None if labels is None else labels.repeat(3))
    clean = clean.view(shape)
    noisy = clean + level * torch.randn(shape, generator=rng)
    x = torch.cat([states[level], noisy], 1).flatten(0, 1)
    given = None if labels is None else labels.repeat(2 * len(NETWORKS))
    no = torch.zeros_like(broken)
    groups = {
        "data": torch.cat([no, ~no], 1),
        "intact": torch.cat([~broken, no], 1),
        "broken": torch.cat([broken, no], 1),
    }
    groups = {name: group.flatten() for name, group in groups.items()}
    return level, x, given, world(x, level, given), clean.flatten(0, 1), groups


_SIZED = {"random mask": 0.5, "noise": 0.1, "blurred map": 1.0}


def _errors(model: str) -> list[dict]:
    kinds = [
        *[("identity", layers, 0.0) for layers in (ALL, *LAYERS)],
        *[(rule, ALL, _SIZED.get(rule, 0.0)) for rule in RULES if rule != "identity"],
        *[("queries", ALL, size) for size in (0.5, 1.0, 2.0, 4.0, "inf")],
        ("autoguidance", ALL, 0.0),
        ("level", ALL, -0.6),
        ("clock", ALL, 2.0),
        *([("cfg", ALL, 0.0), ("icg", ALL, 0.0)] if model == CONDITIONAL else []),
    ]
    return [
        {"model": model, "method": method, "layers": layers, "size": size, "sigma": sigma}
        for method, layers, size in kinds
        for sigma in (0.03, 0.1, 0.3, 1.0, 3.0)
    ]


@sweep(
    "constellation_errors",
    seeds=SEEDS,
    settings=[*_errors(UNCONDITIONAL), *_errors(CONDITIONAL)],
)
def constellation_errors(
    model: str, method: str, layers: str, size: float | str, sigma: float
) -> Row:
    """Where each negative errs against the exact denoiser, on data and in unguided runs.

    Three groups of points at the level of the sampler next to sigma: noisy true drawings, and the
    states of unguided runs that end intact or broken. ``rise`` is by how much the negative's mean
    squared distance to the clean drawing exceeds the network's, on data: the guide test.
    """
    level, x, given, exact, clean, groups = _points(model, sigma, seed_shift())
    positive = _Each(list(networks(model)))
    other = _Each([negative(method, model, k, layers, size) for k in NETWORKS])
    shift = error_shift(positive, other, lambda *_: exact, x, level, given)
    found: Row = {"level": level} | in_groups(shift, groups)
    true = (exact[groups["data"]] - clean).double()
    before, after = (
        (error[groups["data"]] + true).square().mean()
        for error in (shift.error_positive, shift.error_negative)
    )
    return found | {"rise": float(after / before - 1)}


@sweep("image_louder", seeds=SEEDS, settings=grid(w=[1.02, 1.05, 1.1], n=[SWEEP]))
def image_louder(w: float, n: int) -> Row:
    """The control at 64x64: the noise that the main model finds is multiplied by w."""
    return judged(louder(w), n)
