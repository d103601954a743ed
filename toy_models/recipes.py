"""Named recipes: what each small model is, how it was trained, and how to get it.

One line a model. ``load`` gives the shipped weights; at a shifted seed (``GUIDANCE_EDU_SEED``) it
trains the recipe again instead, so that no finding of the book hangs on one lucky model.
"""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch

from guidance_edu.checkpoints import load_weights, save_weights
from guidance_edu.denoisers import Preconditioned
from guidance_edu.settings import device, generator, seed_shift
from toy_models.constellation_recipes import (
    CONSTELLATION_RECIPES,
    load_constellation_model,
    store_constellation_model,
)
from toy_models.image_recipes import IMAGE_RECIPES, load_image_model
from toy_models.mlp import tree_denoiser
from toy_models.pool import Pool, fit, make_pool
from toy_models.tree import Tree, own_tree, published_tree

WEIGHTS = Path(__file__).resolve().parent / "weights"
TREES = {"own": own_tree, "published": published_tree}
LICENCE = "MIT, as the code: trained on points drawn from a formula, no third-party data"


@dataclass(frozen=True)
class Recipe:
    """How one model is made. ``classes`` is what it saw: A, B, or AB (unconditional).

    Every recipe has a seed of its own, for its first weights and the order of its batches: a guide
    that shared them with the main model would err like it for no better reason.
    """

    name: str
    what: str
    tree: str
    classes: str
    hidden: int
    steps: int
    seed: int


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("tree-main", "the main model", "own", "A", 64, 3072, 0),
        Recipe("tree-guide", "smaller and less trained", "own", "A", 32, 384, 10),
        Recipe("tree-guide-small", "smaller, fully trained", "own", "A", 32, 3072, 20),
        Recipe("tree-guide-early", "as large, less trained", "own", "A", 64, 384, 30),
        Recipe("tree-unconditional", "both classes, well trained", "own", "AB", 64, 3072, 40),
        Recipe("tree-unconditional-weak", "both classes, small, early", "own", "AB", 32, 384, 50),
        Recipe("published-main", "the main model", "published", "A", 64, 4096, 60),
        Recipe("published-guide", "smaller and less trained", "published", "A", 32, 512, 70),
        Recipe(
            "published-unconditional-weak", "both, small, early", "published", "AB", 32, 512, 80
        ),
    )
}


def recipe_named(name: str) -> Recipe:
    """Return a recipe. Errors: KeyError for an unknown name; the message lists all."""
    if name not in RECIPES:
        known = ", ".join([*RECIPES, *CONSTELLATION_RECIPES, *IMAGE_RECIPES])
        raise KeyError(f"unknown recipe {name!r}; expected one of: {known}")
    return RECIPES[name]


def tree_of(recipe: Recipe) -> Tree:
    """Return the world that a recipe learns."""
    return TREES[recipe.tree]()


@cache
def _pool(tree: str, classes: str, shifted_seed: int) -> Pool:
    """One pool serves all models of a world; the shift is part of the key, not of the call."""
    return make_pool(TREES[tree]().mixture(classes), generator(1000))


@cache
def _trained(name: str, shifted_seed: int) -> tuple[Preconditioned, dict]:
    recipe = recipe_named(name)
    start = time.perf_counter()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # layers and tables this small run slower on several threads
        pool = _pool(recipe.tree, recipe.classes, shifted_seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed + shifted_seed)
            model = tree_denoiser(recipe.hidden)
        loss = fit(model, pool, recipe.steps, generator(recipe.seed + 1))
        validation = validation_loss(model, recipe)
    finally:
        torch.set_num_threads(threads)
    card = {
        "recipe": asdict(recipe),
        "seed": recipe.seed + shifted_seed,
        "data": f"{len(pool.x)} noisy points of the {recipe.tree} tree with exact targets",
        "training_loss": round(loss, 5),
        "validation_loss": round(validation, 5),
        "seconds": round(time.perf_counter() - start, 1),
        "hardware": "one CPU thread",
        "torch": torch.__version__.split("+")[0],
        "licence": LICENCE,
    }
    return model.eval().requires_grad_(False), card


def train(name: str) -> tuple[Preconditioned, dict]:
    """Train a recipe from nothing at the book's seed; return the model and its card.

    Limits:  a recipe is trained once a process; every call returns a copy of its own.
    Errors:  KeyError for an unknown recipe.
    """
    return copy.deepcopy(_trained(name, seed_shift()))


def load(name: str) -> Preconditioned:
    """Return a trained model on the book's device: shipped weights, or trained at a shifted seed.

    Limits:  constellation and 64x64 models are the shipped ones at every seed.
    Errors:  KeyError for an unknown recipe; FileNotFoundError or ValueError for missing, damaged
             or misfitting weights.
    """
    if name in IMAGE_RECIPES:
        return load_image_model(name, WEIGHTS)
    if name in CONSTELLATION_RECIPES:
        return load_constellation_model(name, WEIGHTS)
    recipe = recipe_named(name)
    if seed_shift():
        return train(name)[0].to(device())
    return load_weights(WEIGHTS, name, tree_denoiser(recipe.hidden)).to(device())


def store(name: str, folder: Path = WEIGHTS) -> Path:
    """Train a recipe and write its weights and manifest entry.

    Errors:  KeyError for an unknown recipe; ValueError at a shifted seed where the folder is that
             of the shipped weights, which stand for the book's own seed.
    """
    if seed_shift() and Path(folder).resolve() == WEIGHTS:
        raise ValueError(f"expected GUIDANCE_EDU_SEED=0 for shipped weights, got {seed_shift()}")
    if name in CONSTELLATION_RECIPES:
        return store_constellation_model(name, folder)
    model, card = train(name)
    return save_weights(folder, name, model, card)


@torch.no_grad()
def validation_loss(model: Preconditioned, recipe: Recipe) -> float:
    """Return the mean squared error against the exact denoiser, over the training levels.

    Units:   mean over coordinates of |D - D*|^2 / sigma^2; 32768 fresh points.
    """
    fresh = make_pool(
        tree_of(recipe).mixture(recipe.classes), generator(4242), levels=128, per_level=256
    )
    error = model(fresh.x, fresh.sigma) - fresh.target
    return float((error.square().mean(1) / fresh.sigma**2).mean())
