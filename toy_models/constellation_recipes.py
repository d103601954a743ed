"""Named recipes of the constellation models: what each is, how it was trained, and how to get it.

A model takes up to a minute on a CPU core, so the shipped weights are used at every seed of the
book. What hangs on a lucky model shows in three of them, trained from different seeds.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from guidance_edu.checkpoints import load_weights, save_weights
from guidance_edu.denoisers import Preconditioned
from guidance_edu.settings import device, seed_shift
from guidance_edu.training import Batches, Run, Settings, validation_losses
from toy_models.constellations import Constellations
from toy_models.set_transformer import constellation_denoiser

WIDTH = 0.05  # relative width of the weight average that is shipped
BATCH = 64
LICENCE = "MIT, as the code: trained on shapes drawn from a formula, no third-party data"
NO_LABELS = {"classes": 0}
NO_NULL = {"null": False}


@dataclass(frozen=True)
class ConstellationRecipe:
    """How one model of the constellations is made.

    ``drop`` is the share of labels that are dropped in training; ``network`` differs from the
    defaults of :class:`toy_models.set_transformer.SetTransformer` where it says so.
    """

    name: str
    what: str
    steps: int
    seed: int
    drop: float = 0.0
    network: dict = field(default_factory=dict)

    @property
    def run(self) -> Settings:
        """The training: noise levels and rates of the trial that the book began with."""
        return Settings(
            self.steps * BATCH,
            batch=BATCH,
            rate=4e-3,
            warmup=50,
            decay=1.0,
            floor=0.0,
            mean=-1.2,
            drop=self.drop,
            widths=(WIDTH,),
            seed=self.seed,
        )


CONSTELLATION_RECIPES = {
    recipe.name: recipe
    for recipe in (
        *(
            ConstellationRecipe(f"constellations-{k}", "four classes", 562, 100 + k, drop=0.2)
            for k in range(3)
        ),
        *(
            ConstellationRecipe(
                f"constellations-nodrop-{k}", "labels never dropped", 562, 110 + k, 0.0, NO_NULL
            )
            for k in range(3)
        ),
        *(
            ConstellationRecipe(
                f"constellations-unconditional-{k}", "no classes", 1000, 120 + k, 0.0, NO_LABELS
            )
            for k in range(3)
        ),
        ConstellationRecipe("constellations-guide", "four classes, early", 187, 130, 0.0, NO_NULL),
        ConstellationRecipe(
            "constellations-unconditional-guide", "no classes, early", 500, 140, 0.0, NO_LABELS
        ),
    )
}


def constellation_recipe_named(name: str) -> ConstellationRecipe:
    """Return a recipe. Errors: KeyError for an unknown name; the message lists all."""
    if name not in CONSTELLATION_RECIPES:
        known = ", ".join(CONSTELLATION_RECIPES)
        raise KeyError(f"unknown constellation recipe {name!r}; expected one of: {known}")
    return CONSTELLATION_RECIPES[name]


def new_constellation_model(recipe: ConstellationRecipe) -> Preconditioned:
    """Return a recipe's model before training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return constellation_denoiser(**recipe.network)


def load_constellation_model(name: str, folder: Path) -> Preconditioned:
    """Return shipped weights on the book's device; they are the same at every seed of the book.

    Errors:  KeyError for an unknown recipe; FileNotFoundError or ValueError for missing, damaged or
             misfitting weights.
    """
    model = new_constellation_model(constellation_recipe_named(name))
    return load_weights(folder, name, model).to(device())


def drawn(labelled: bool) -> Batches:
    """Return a source of training batches: fresh samples every time.

    Shapes:  x0 [n, 24, 2]; labels [n] long, or None.
    """
    world = Constellations()

    def draw(rng: torch.Generator, n: int) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        x0, labels = world.sample(n, rng)
        return x0, labels if labelled else None, {}

    return draw


def train_constellation_model(name: str) -> tuple[Preconditioned, dict]:
    """Train a recipe from nothing; return the model, as precise as it is stored, and its card.

    Errors:  KeyError for an unknown recipe; ValueError at a shifted seed, at which these models are
             not trained anew; FloatingPointError when a gradient is not finite.
    """
    recipe = constellation_recipe_named(name)
    if seed_shift():
        raise ValueError(f"expected GUIDANCE_EDU_SEED=0 to train {name}, got {seed_shift()}")
    model, threads = new_constellation_model(recipe), torch.get_num_threads()
    labelled = model.network.label is not None
    try:
        torch.set_num_threads(1)  # layers this small run slower on several threads
        with tempfile.TemporaryDirectory() as folder:
            run = Run(model, drawn(labelled), recipe.run, folder, cpu=device().type == "cpu")
            run.train(save_every=recipe.steps, log_every=recipe.steps)
        trained = run.average(WIDTH).cpu()
    finally:
        torch.set_num_threads(threads)
    for parameter in trained.parameters():
        parameter.copy_(parameter.half())
    losses = held_out_losses(trained, labelled)
    card = {
        "recipe": asdict(recipe),
        "seed": recipe.seed,
        "data": f"{recipe.steps * BATCH} fresh samples of the constellations",
        "average": WIDTH,
        "precision": "float16",
        "validation_loss": round(sum(losses.values()) / len(losses), 5),
        "seconds": round(run.seconds, 1),
        "hardware": "one CPU thread",
        "torch": torch.__version__.split("+")[0],
        "licence": LICENCE,
    }
    return trained, card


def store_constellation_model(name: str, folder: Path) -> Path:
    """Train a recipe and write its weights and manifest entry. Errors: as training does."""
    model, card = train_constellation_model(name)
    return save_weights(folder, name, model, card, dtype=torch.float16)


def held_out_losses(model: Preconditioned, labelled: bool) -> dict[str, float]:
    """Return the weighted loss on 1000 fresh samples at five noise levels.

    Units:   as :func:`guidance_edu.training.denoising_loss`.
    """
    rng = torch.Generator().manual_seed(4242)  # not moved by the seed of the book
    x0, labels = Constellations().sample(1000, rng)
    return validation_losses(model, x0, labels if labelled else None, (0.03, 0.1, 0.3, 1.0, 3.0))
