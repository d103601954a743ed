"""Sweeps of chapter 4: which second network is a guide, and how much its making matters."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn

from guidance_edu.denoisers import Denoiser
from guidance_edu.error_shift import ErrorShift, error_shift
from guidance_edu.guidance import Guided
from guidance_edu.metrics import (
    ED_UNITS,
    STRAY_BLUR,
    branch_histogram,
    density_floor,
    energy_distance,
    fraction_below,
    total_variation,
)
from guidance_edu.negatives.training import with_dropout, with_low_bits, with_weight_noise
from guidance_edu.samplers import noise_levels, sample, sample_states
from guidance_edu.settings import generator, seed_shift
from toy_models.mlp import tree_denoiser
from toy_models.pool import fit
from toy_models.recipes import _pool, load
from toy_models.sweeps import grid, sweep
from toy_models.tree import own_tree

SAMPLES = 4096
LEVELS = noise_levels(32, sigma_max=5.0)
SEEDS = (1000, 2000, 3000, 4000)
# Settings are chosen on the first two seeds and judged on the other two.
TUNING, JUDGING = SEEDS[:2], SEEDS[2:]
WEIGHTS = (1.5, 2.0, 3.0)

NETWORKS = {
    "smaller and less trained": "tree-guide",
    "smaller": "tree-guide-small",
    "less trained": "tree-guide-early",
    "unconditional, well trained": "tree-unconditional",
    "unconditional, weak": "tree-unconditional-weak",
}
DAMAGES = ("dropout", "weight noise", "few bits")


@cache
def _floors(shift: int) -> tuple[float, float, Tensor]:
    """Return the floors of "out" and "stray", and true samples, at one seed of the book."""
    world = own_tree().mixture("A")
    truth = world.sample(40000, generator(3))
    density = world.log_density
    return density_floor(density, truth), density_floor(density, truth, sigma=STRAY_BLUR), truth


def quality(x: Tensor, distance: bool = True) -> dict[str, float]:
    """Judge samples of class A of the own tree.

    Shapes:  x [n, 2], on the CPU.
    Units:   out, stray: shares of the samples; tv: total variation of the branches; ed: energy
             distance times 1000, of the first 2000.
    """
    tree = own_tree()
    world, x = tree.mixture("A"), x.double()
    floor, blurred_floor, truth = _floors(seed_shift())
    shares = tree.branch_weights()
    found = {
        "out": fraction_below(world.log_density, x, floor),
        "stray": fraction_below(world.log_density, x, blurred_floor, STRAY_BLUR),
        "tv": total_variation(branch_histogram(tree.branches(x), len(shares)), shares),
    }
    if distance:
        found["ed"] = energy_distance(x[:2000], truth[:2000], ED_UNITS)
    return found


@cache
def start(shift: int) -> Tensor:
    """Return the starting points that all samplers of this module share. Shapes: [4096, 2]."""
    return own_tree().mixture("A").sample(SAMPLES, generator(1), sigma=float(LEVELS[0])).float()


def network(name: str) -> nn.Module:
    """Return a recipe's network on the CPU, at the book's seed."""
    return load(name).cpu()


def damaged(kind: str, strength: float, seed: int = 9) -> Denoiser:
    """Return the main network damaged by hand; one seed is one direction of the damage.

    Errors:  KeyError for an unknown kind.
    """
    main, rng = network("tree-main"), generator(seed)
    makers = {
        "dropout": lambda: with_dropout(main, strength, rng),
        "weight noise": lambda: with_weight_noise(main, strength, rng),
        "few bits": lambda: with_low_bits(main, strength),
    }
    return makers[kind]()


@cache
def _data_points(shift: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return noisy true points at low noise, their levels, and their exact denoised values."""
    world, rng = own_tree().mixture("A"), generator(7)
    sigma = torch.linspace(math.log(0.02), math.log(0.15), SAMPLES).exp()
    x = world.sample(SAMPLES, rng) + sigma[:, None] * torch.randn(SAMPLES, 2, generator=rng)
    return x.float(), sigma, world.denoise(x, sigma.double())


def error_on_data(denoiser: Denoiser) -> float:
    """Return the root mean square error on noisy data with sigma from .02 to .15, over sigma."""
    x, sigma, exact = _data_points(seed_shift())
    with torch.no_grad():
        error = (denoiser(x, sigma).double() - exact) / sigma[:, None].double()
    return float(error.square().sum(1).mean().sqrt())


@cache
def matched_strength(kind: str, shift: int) -> float:
    """Return the strength at which a damage errs on data as much as the weak guide does."""
    target = error_on_data(network("tree-guide"))
    # Few bits are many steps of error: the number falls as the damage grows.
    low, high = {"dropout": (1e-3, 0.5), "weight noise": (1e-3, 1.0), "few bits": (14.0, 1.0)}[kind]
    for _ in range(9):
        middle = math.sqrt(low * high)
        weaker = error_on_data(damaged(kind, middle)) < target
        low, high = (middle, high) if weaker else (low, middle)
    return math.sqrt(low * high)


def guide_named(name: str) -> Denoiser:
    """Return a guide: a recipe's network, a damage matched to the weak guide, or one at "10 %".

    Errors:  KeyError for an unknown name.
    """
    if name in NETWORKS:
        return network(NETWORKS[name])
    if name == "dropout 10 %":
        return damaged("dropout", 0.1)
    if name == "unconditional, exact":
        return own_tree().mixture("AB").to(torch.float32)
    kind = {f"{kind}, matched": kind for kind in DAMAGES}[name]
    return damaged(kind, matched_strength(kind, seed_shift()))


MATCHED = tuple(f"{kind}, matched" for kind in DAMAGES)


@sweep(
    "guides",
    seeds=SEEDS,
    settings=[
        {"guide": "none", "w": 1.0},
        *grid(guide=[*NETWORKS, *MATCHED, "dropout 10 %"], w=WEIGHTS),
        *grid(guide=["unconditional, exact"], w=[2.0, 3.0]),
    ],
)
def guides(guide: str, w: float) -> dict[str, float]:
    """Quality of the main network's samples under each guide and weight."""
    main = network("tree-main")
    sampler = main if guide == "none" else Guided(main, guide_named(guide), w)
    return quality(sample(sampler, start(seed_shift()), LEVELS))


@sweep(
    "damage",
    seeds=SEEDS,
    settings=[
        {"main": "whole", "guide": "none", "w": 1.0},
        {"main": "weight noise", "guide": "none", "w": 1.0},
        {"main": "dropout", "guide": "none", "w": 1.0},
        *grid(main=["weight noise"], guide=["same, twice", "other, twice"], w=[1.5, 2.0, 2.5, 3.0]),
        *grid(main=["dropout"], guide=["same, twice"], w=[1.5, 2.0]),
    ],
)
def damage(main: str, guide: str, w: float) -> dict[str, float]:
    """A main network damaged by 5 %, guided by one damaged by 10 % in the same or another way."""
    positive = network("tree-main") if main == "whole" else damaged(main, 0.05)
    if guide != "none":
        # Dropout draws new units at every call, so that it has no direction to share.
        seed = 9 if guide == "same, twice" and main == "weight noise" else 19
        positive = Guided(positive, damaged(main, 0.1, seed), w)
    return quality(sample(positive, start(seed_shift()), LEVELS), distance=False)


@cache
def _run(shift: int) -> tuple[list, Tensor, Tensor]:
    """Return the main network's states, who ended astray, and who ended on the data."""
    world = own_tree().mixture("A")
    floor, blurred_floor, _ = _floors(shift)
    states = [
        (float(state.sigma), state.x)
        for state in sample_states(network("tree-main"), start(shift), LEVELS)
    ]
    end = states[-1][1].double()
    astray = world.log_density(end, STRAY_BLUR) < blurred_floor
    return states, astray, (world.log_density(end) >= floor) & ~astray


def partners(now: Tensor, astray: Tensor, limit: float = 0.25) -> tuple[Tensor, Tensor]:
    """Give each astray state a state of its own that is as improbable now, if there is one.

    Shapes:  now [n], the log density of each state; astray [n] bool; returns two masks [n] bool:
             the partners, and the astray states that have one.
    Chapter: 04_autoguidance
    """
    control, kept = torch.zeros_like(astray), torch.zeros_like(astray)
    rarest_first = astray.nonzero().flatten()[now[astray].argsort()]
    for i in rarest_first.tolist():
        gap = (now - now[i]).abs().masked_fill(astray | control, math.inf)
        if gap.min() < limit:
            control[gap.argmin()] = kept[i] = True
    return control, kept


@cache
def _groups(sigma: float, shift: int) -> tuple[float, Tensor, dict[str, Tensor]]:
    states, astray, on_data = _run(shift)
    level, x = min(states, key=lambda state: abs(state[0] - sigma))
    control, kept = partners(own_tree().mixture("A").log_density(x.double(), level), astray)
    return level, x, {"data": on_data, "control": control, "astray": kept}


@sweep(
    "errors",
    seeds=SEEDS,
    settings=grid(guide=["smaller and less trained", *MATCHED], sigma=[0.005, 0.01, 0.03, 0.1]),
)
def errors(guide: str, sigma: float) -> dict[str, float]:
    """Error ratio, cosine and best weight at states on the data, astray, and their partners."""
    return errors_of(guide_named(guide), sigma)


def errors_of(guide: Denoiser, sigma: float) -> dict[str, float]:
    """Return how main network and guide err near a noise level, at the states of each group."""
    level, x, masks = _groups(sigma, seed_shift())
    world = own_tree().mixture("A")
    return in_groups(error_shift(network("tree-main"), guide, world, x, level), masks)


def in_groups(shift: ErrorShift, masks: dict[str, Tensor]) -> dict[str, float]:
    """Return the main error, ratio, cosine and best weight of each group, by name.

    Shapes:  each mask [n] bool, over the points of the shift.
    """
    found = {}
    for name, mask in masks.items():
        part = shift.region(mask)
        found[f"{name}_main"] = part.rms_positive
        found[f"{name}_ratio"] = part.ratio
        found[f"{name}_cosine"] = part.cosine
        found[f"{name}_best_w"] = part.best_w
    return found


STEPS, HIDDEN, EMA = 384, 32, 0.01  # the weak guide of the recipes


@cache
def trained(hidden: int, steps: int, ema: float, shift: int) -> nn.Module:
    """Train a network of class A: width, iterations, and length of its weight average."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(shift + hidden)
            model = tree_denoiser(hidden)
        fit(model, _pool("own", "A", shift), steps, generator(hidden), sigma_rel=ema)
    finally:
        torch.set_num_threads(threads)
    return model.eval().requires_grad_(False)


@sweep(
    "sensitivity",
    seeds=SEEDS,
    settings=[
        {"knob": "none", "value": 0, "w": 1.0},
        *grid(knob=["steps"], value=[96, 192, 384, 768, 1536], w=[1.5, 2.0, 3.0, 4.0]),
        *grid(knob=["width"], value=[12, 20, 32, 48, 64], w=[1.5, 2.0, 3.0, 4.0]),
        *grid(knob=["average"], value=[0.01, 0.1, 0.25], w=[1.5, 2.0, 3.0, 4.0]),
    ],
)
def sensitivity(knob: str, value: float, w: float) -> dict[str, float]:
    """Quality of autoguidance when one knob of the guide's making is turned."""
    shift, main = seed_shift(), network("tree-main")
    made = {"width": HIDDEN, "steps": STEPS, "average": EMA, knob: value}
    guide = trained(made["width"], made["steps"], made["average"], shift) if w > 1 else main
    return quality(sample(Guided(main, guide, w), start(shift), LEVELS), distance=False)


@sweep("unconditional", seeds=SEEDS, settings=[{"w": w} for w in (1.0, 2.0, 3.0)])
def unconditional(w: float) -> dict[str, float]:
    """Autoguidance of a model of both trees that has no condition, and the share of tree A."""
    tree = own_tree()
    both = tree.mixture("AB")
    main, weak = network("tree-unconditional"), network("tree-unconditional-weak")
    noisy = both.sample(SAMPLES, generator(11), sigma=float(LEVELS[0])).float()
    x = sample(Guided(main, weak, w), noisy, LEVELS).double()
    truth, density = both.sample(20000, generator(12)), both.log_density
    blurred_floor = density_floor(density, truth, sigma=STRAY_BLUR)
    in_a = tree.mixture("A").log_density(x) > tree.mixture("B").log_density(x)
    return {
        "out": fraction_below(density, x, density_floor(density, truth)),
        "stray": fraction_below(density, x, blurred_floor, STRAY_BLUR),
        "in_a": float(in_a.double().mean()),
    }
