"""A recipe trained once more, with the snapshots from which any average can be rebuilt."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache

import torch

from guidance_edu.denoisers import Preconditioned
from guidance_edu.ema import TRACKS, PowerEMA, Snapshot, reconstruct, set_weights, take_snapshot
from guidance_edu.settings import device, generator, seed_shift
from toy_models.mlp import tree_denoiser
from toy_models.pool import make_pool, training_steps
from toy_models.recipes import recipe_named, tree_of


def train_with_snapshots(name: str, number: int = 16) -> tuple[Preconditioned, list[Snapshot]]:
    """Train a recipe; return the last weights and two tracks of equally spaced snapshots.

    The run is that of ``toy_models.recipes.train``, step for step; only what is kept differs.

    Units:   the tracks have the widths ``guidance_edu.ema.TRACKS``.
    Limits:  a run is trained once a process and seed; every call returns copies.
    Errors:  KeyError for an unknown recipe; ValueError when the number of steps is no multiple of
             the number of snapshots.
    Chapter: 05_posthoc_ema
    """
    return copy.deepcopy(_run(name, number, seed_shift()))


@cache
def _run(name: str, number: int, shifted_seed: int) -> tuple[Preconditioned, list[Snapshot]]:
    recipe = recipe_named(name)
    if number < 1 or recipe.steps % number:
        raise ValueError(f"expected a number of snapshots that divides {recipe.steps}")
    pool = make_pool(tree_of(recipe).mixture(recipe.classes), generator(1000))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed + shifted_seed)
        model = tree_denoiser(recipe.hidden)
    tracks = [PowerEMA(model, width) for width in TRACKS]
    snapshots = []
    steps = training_steps(model, pool, recipe.steps, generator(recipe.seed + 1))
    for step, _ in enumerate(steps, 1):
        for track in tracks:
            track.update(model)
        if step % (recipe.steps // number) == 0:
            snapshots += [take_snapshot(track) for track in tracks]
    return model.eval().requires_grad_(False), snapshots


def averaged(
    model: Preconditioned,
    snapshots: Sequence[Snapshot],
    sigma_rel: float,
    updates: int | None = None,
) -> Preconditioned:
    """Return a copy of a model with the average of the given width, on the book's device.

    Units:   ``updates`` is the time of training (None: its end).
    Errors:  as ``guidance_edu.ema.reconstruct``.
    Chapter: 05_posthoc_ema
    """
    result = copy.deepcopy(model)
    set_weights(result, reconstruct(snapshots, sigma_rel, updates))
    return result.to(device())
