"""The records of chapter 06: guides made from own samples, and models that eat their own samples.

``sims``         one auxiliary model, one weight: how the guided samples are
``own_errors``   how far an auxiliary model errs along the main model's error
``generations``  a chain of models, each trained on samples of the one before
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from guidance_edu.error_shift import error_shift
from guidance_edu.guidance import Guided
from guidance_edu.metrics import density_floor
from guidance_edu.samplers import noise_levels, sample, sample_states
from guidance_edu.settings import device, generator, seed_shift
from toy_models.mlp import tree_denoiser
from toy_models.own_samples import fine_tune, own_samples
from toy_models.recipes import load
from toy_models.sweeps import grid, sweep
from toy_models.sweeps.tree_quality import quality
from toy_models.tree import own_tree

NUMBER = 32768  # samples that an auxiliary model learns from
SCRATCH = 5e-3  # learning rate of a network that starts from nothing
BUDGETS = [10, 30, 100, 300, 1000]


@sweep(
    "sims",
    seeds=(1000, 2000, 3000, 4000, 5000, 6000),
    settings=[
        {"auxiliary": "own", "budget": 0, "w": 1.0},
        *grid(auxiliary=["own"], budget=[100, 300, 1000], w=[0.0, 1.5, 2.0, 3.0, 4.0, 6.0]),
        *grid(auxiliary=["own"], budget=[10, 30], w=[2.0, 3.0, 4.0]),
        *grid(
            auxiliary=["real", "few", "scratch-own", "scratch-real"],
            budget=[1000],
            w=[0.0, 2.0, 3.0, 4.0],
        ),
    ],
)
def sims(auxiliary: str, budget: int, w: float) -> dict[str, float]:
    """Samples of the main model guided by an auxiliary one; w = 0 is the auxiliary alone."""
    start = own_tree().mixture("A").sample(8192, generator(51), sigma=5.0).float().to(device())
    model = load("tree-main")
    if w != 1:
        model = Guided(model, _auxiliary(auxiliary, budget, seed_shift()), w)
    return quality(sample(model, start, noise_levels(32, sigma_max=5.0)).cpu())


@sweep(
    "own_errors",
    seeds=(1000, 2000, 3000, 4000, 5000, 6000),
    settings=grid(auxiliary=["own", "real"]),
)
def own_errors(auxiliary: str) -> dict[str, float]:
    """Error along the main model's error, at states that end outside (sigma from .01 to .04)."""
    world, main = own_tree().mixture("A"), load("tree-main")
    second = _auxiliary(auxiliary, 1000, seed_shift())
    start = world.sample(8192, generator(51), sigma=5.0).float().to(device())
    states = list(sample_states(main, start, noise_levels(32, sigma_max=5.0)))
    floor = density_floor(world.log_density, world.sample(20000, generator(52)))
    strays = world.log_density(states[-1].x.cpu().double()) < floor
    seen = [state for state in states if 0.01 < state.sigma < 0.04]
    shifts = [error_shift(main, second, world, s.x, s.sigma).region(strays) for s in seen]
    return {"along": sum(shift.ratio * shift.cosine for shift in shifts) / len(shifts)}


@cache
def _auxiliary(kind: str, budget: int, shifted_seed: int):
    points, main = _points(kind, shifted_seed), load("tree-main")
    if not kind.startswith("scratch"):
        return fine_tune(main, points, budget, generator(62))
    return fine_tune(_untrained(77), points, budget, generator(62), learning_rate=SCRATCH)


@cache
def _points(kind: str, shifted_seed: int) -> Tensor:
    real = own_tree().mixture("A").sample(NUMBER, generator(60)).float()
    if kind.endswith("real"):
        return real
    if kind == "few":
        return _points("own", shifted_seed)[:1000]
    return own_samples(load("tree-main"), real, NUMBER, generator(61))


def _untrained(seed: int):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + seed_shift())
        return tree_denoiser(64)


@sweep(
    "generations",
    seeds=(1000, 2000, 3000),
    settings=grid(how=["naive", "fresh", "sims"], generation=[0, 1, 2, 3, 4, 5]),
)
def generations(how: str, generation: int) -> dict[str, float]:
    """Quality of 16384 samples of a model trained on the samples of the generation before."""
    return quality(_generation(how, generation, seed_shift()))


@cache
def _generation(how: str, generation: int, shifted_seed: int) -> Tensor:
    """Samples of one generation: the first learns from real data, each next from the last's."""
    world, n = own_tree().mixture("A"), 16384
    if generation == 0:
        points = world.sample(n, generator(70)).float()
    else:
        points = _generation(how, generation - 1, shifted_seed)
        if how == "fresh":
            points = torch.cat([points, world.sample(n // 4, generator(80 + generation)).float()])
    rng = generator(90 + generation)
    options = {"learning_rate": SCRATCH, "batch": 512, "decay": 512.0}
    model = fine_tune(_untrained(100 + generation), points, 1500, rng, **options)
    if how == "sims":
        own = own_samples(model, points, 2 * n, rng)
        model = Guided(model, fine_tune(model, own, 1000, rng, batch=512), 3.0)
    return own_samples(model, points, n, rng)
