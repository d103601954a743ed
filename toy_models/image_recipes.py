"""Named recipes of the 64x64 image models: what each is, how it was trained, and how to get it.

A run takes hours on a CPU core, so shipped weights are used at every seed of the book. Claims about
these models hold "for these weights".
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save as write_tensors
from torch import Tensor
from torch.nn import functional as F

from guidance_edu.checkpoints import load_weights, read_safetensors, save_weights, write_whole
from guidance_edu.denoisers import Denoiser, Preconditioned
from guidance_edu.samplers import noise_levels, sample
from guidance_edu.settings import device, progress, quick_bf16, seed_shift
from guidance_edu.training import SNAPSHOTS, Batches, Run, Settings, validation_losses
from toy_models.imagenet64 import BOOK, Images, load, to_pixels, to_range
from toy_models.unet import image_denoiser

SHIFT = 3  # pixels by which a training image may be moved
WIDTH = 0.05  # relative width of the weight average that is shipped
SIGMA_MAX, SIGMA_MIN = 80.0, 0.01
OWN_SAMPLES, OWN_SEED, OWN_STEPS = 2500, 5000, 12
LICENCE = (
    "Weights for non-commercial research and teaching alone: trained on ImageNet photographs,"
    " whose terms allow no more"
)
SMALL = {"channels": (16, 32, 96), "heads": (0, 1, 1)}
OFTEN = (1 / 32, *(k / 16 for k in range(1, 17)))


@dataclass(frozen=True)
class ImageRecipe:
    """How one image model is made.

    ``run`` is its training; ``network`` differs from the defaults of :class:`toy_models.unet.UNet`
    where it says so. A model may instead be an early average out of another's run (``of``,
    ``share``), or start from another's weights and learn from that one's samples (``of`` alone).
    """

    name: str
    what: str
    run: Settings
    network: dict = field(default_factory=dict)
    of: str = ""
    share: float = 0.0


_LONG = Settings(600_000, keep=OFTEN)
_LABELLED = Settings(600_000, keep=OFTEN, drop=0.0)
_SHORT = Settings(60_000, seed=10)
_UNLABELLED = Settings(200_000, drop=0.0, seed=20)
_FINE = Settings(10_000, rate=3e-4, warmup=50, seed=30)

IMAGE_RECIPES = {
    recipe.name: recipe
    for recipe in (
        ImageRecipe("imagenet64-main", "the main model", _LONG),
        ImageRecipe(
            "imagenet64-nodrop", "as main, labels never dropped", _LABELLED, {"null": False}
        ),
        ImageRecipe("imagenet64-early", "main at an eighth", _LONG, {}, "imagenet64-main", 1 / 8),
        ImageRecipe("imagenet64-guide", "smaller and less trained", _SHORT, SMALL),
        ImageRecipe("imagenet64-unconditional", "no classes", _UNLABELLED, {**SMALL, "classes": 0}),
        ImageRecipe("imagenet64-sims", "main on own samples", _FINE, {}, "imagenet64-main"),
    )
}


def image_recipe_named(name: str) -> ImageRecipe:
    """Return a recipe. Errors: KeyError for an unknown name; the message lists all."""
    if name not in IMAGE_RECIPES:
        known = ", ".join(IMAGE_RECIPES)
        raise KeyError(f"unknown image recipe {name!r}; expected one of: {known}")
    return IMAGE_RECIPES[name]


def new_model(recipe: ImageRecipe) -> Preconditioned:
    """Return a recipe's model before training, in the layout and precision of this machine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.run.seed)
        model = image_denoiser(bf16=quick_bf16(), **recipe.network)
    return model.to(memory_format=torch.channels_last)


def load_image_model(name: str, folder: Path) -> Preconditioned:
    """Return shipped weights on the book's device.

    Errors:  KeyError for an unknown recipe; FileNotFoundError or ValueError for missing, damaged or
             misfitting weights.
    """
    model = new_model(image_recipe_named(name))
    return load_weights(folder, name, model).to(device())


def image_noise(n: int, rng: torch.Generator) -> Tensor:
    """Return starting points for sampling: [n, 3, 64, 64] at noise level 80, on the CPU."""
    return SIGMA_MAX * torch.randn(n, 3, 64, 64, generator=rng)


def image_levels(steps: int = 8) -> Tensor:
    """Return the noise levels with which images are sampled: from 80 to .01, then 0."""
    return noise_levels(steps, sigma_max=SIGMA_MAX, sigma_min=SIGMA_MIN)


def sample_images(
    denoiser: Denoiser,
    labels: Tensor | None,
    rng: torch.Generator,
    n: int = 0,
    steps: int = 8,
    batch: int = 50,
    **options,
) -> Tensor:
    """Draw images, a batch at a time; all starting noise is drawn first, so batches do not matter.

    Shapes:  labels [n] long, or None and ``n``; result [n, 3, 64, 64] on the CPU, not clipped.
    Errors:  ValueError for no labels and no ``n``; those of :func:`guidance_edu.samplers.sample`.
    """
    n = n if labels is None else len(labels)
    if n < 1:
        raise ValueError("expected labels, or a number n of images of at least 1")
    start, parts = image_noise(n, rng), []
    for first in progress(range(0, n, batch), "images"):
        rows = slice(first, first + batch)
        condition = None if labels is None else labels[rows].to(device())
        x = start[rows].to(device())
        parts.append(sample(denoiser, x, image_levels(steps), condition, **options).cpu())
    return torch.cat(parts)


def balanced_labels(n: int, classes: int = len(BOOK)) -> Tensor:
    """Return n labels, 0, 1, 2 ... in turn: every class as often as the others. Shape [n] long."""
    return torch.arange(n) % classes


def augmented(images: Images, labelled: bool = True) -> Batches:
    """Return a source of training batches: images at random, half of them flipped, half moved.

    What was done to an image is told to the network as ``augmentation`` [n, 3] (flipped or not,
    moved right and down in units of 3 pixels). Samples are drawn with none, so that nothing of it
    leaks into them.

    Shapes:  x0 [n, 3, 64, 64] in -1 .. 1; labels [n] long, or None.
    Source:  the idea of Karras et al. 2020 (arXiv:2006.06676) in the form of Karras et al. 2022,
             app. F.2.
    """

    def draw(rng: torch.Generator, n: int) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        chosen = torch.randint(len(images), (n,), generator=rng)
        flip = torch.rand(n, generator=rng) < 0.5
        moved = torch.rand(n, 1, generator=rng) < 0.5
        shift = torch.randint(-SHIFT, SHIFT + 1, (n, 2), generator=rng) * moved
        x = to_range(images.pixels[chosen])
        x = torch.where(flip[:, None, None, None], x.flip(3), x)
        x = moved_by(x, shift)
        told = torch.cat([flip[:, None].float(), shift / SHIFT], dim=1)
        return x, images.labels[chosen] if labelled else None, {"augmentation": told}

    return draw


def moved_by(x: Tensor, shift: Tensor) -> Tensor:
    """Move images right and down, by at most 3 pixels; what enters is the mirrored border.

    Shapes:  x, result [n, c, h, w]; shift [n, 2] long: right, down.
    """
    size = x.shape[-1]
    x = F.pad(x, [SHIFT] * 4, mode="reflect")
    corners = (SHIFT - shift).tolist()
    return torch.stack([x[k, :, b : b + size, a : a + size] for k, (a, b) in enumerate(corners)])


def begin(name: str, data: Path, runs: Path, weights: Path) -> Run:
    """Begin a recipe's run, or go on with the one that its folder holds.

    Errors:  KeyError for an unknown recipe; FileNotFoundError or ValueError for missing data, or
             where the model that it starts from is not there; those of :class:`Run`.
    """
    recipe = image_recipe_named(name)
    if recipe.share:
        raise ValueError(f"{name} has no run of its own: it is taken out of that of {recipe.of}")
    model = new_model(recipe)
    if recipe.of:
        base = load_image_model(recipe.of, weights)
        model.load_state_dict(base.state_dict())
        images = own_images(base, runs / name)
    else:
        images = load(data, "train", tuple(BOOK))
    batches = augmented(images, labelled=model.network.label is not None)
    return Run(model, batches, recipe.run, runs / name, images.sha256(), cpu=device().type == "cpu")


def own_images(model: Preconditioned, folder: Path) -> Images:
    """Return images that a model drew itself, of all classes alike; drawn once, then kept.

    Source:  Alemohammad et al. 2024 (arXiv:2408.16333), algorithm 1: the auxiliary training set.
    """
    path = folder / "own.safetensors"
    labels = balanced_labels(OWN_SAMPLES)
    if not path.exists():
        # A plain generator: runs do not move with the seed of the book.
        rng = torch.Generator().manual_seed(OWN_SEED)
        drawn = sample_images(model, labels, rng, steps=OWN_STEPS)
        write_whole({path: write_tensors({"pixels": to_pixels(drawn)})})
    pixels = read_safetensors(path)["pixels"]
    return Images(pixels, labels, tuple(f"own/{k}" for k in range(len(labels))))


def train_image_model(
    name: str, data: Path, runs: Path, weights: Path, until: int | None = None
) -> Path | None:
    """Train a recipe, or go on with it; at its end write the weights and return their path.

    Units:   ``until`` is a step at which to stop for now; the result is then None, as it is in all
             processes but the first.
    Errors:  as :func:`begin`; FileNotFoundError for an early average whose run was not made;
             ValueError at a shifted seed, at which these models are not trained anew.
    """
    recipe = image_recipe_named(name)
    if seed_shift():
        raise ValueError(f"expected GUIDANCE_EDU_SEED=0 to train {name}, got {seed_shift()}")
    if recipe.share:
        return _store_early(recipe, data, runs, weights)
    run = begin(name, data, runs, weights)
    run.train(until)
    if run.step < recipe.run.steps or not run.accelerator.is_main_process:
        return None  # of several processes one stores what all have trained
    images = run.images
    model = run.average(WIDTH)
    card = {"seconds": round(run.seconds), "data_sha256": run.data}
    return _store(recipe, model, data, weights, card | {"images_seen": images})


def _store_early(recipe: ImageRecipe, data: Path, runs: Path, weights: Path) -> Path:
    """Store an average out of the middle of another recipe's run."""
    step = max(1, round(recipe.share * recipe.run.steps))
    images = step * recipe.run.batch
    path = runs / recipe.of / SNAPSHOTS / f"{images:09d}_{WIDTH:.3f}.safetensors"
    model = new_model(recipe)
    stored = {key: value.float() for key, value in read_safetensors(path).items()}
    model.load_state_dict(stored)
    source = load(data, "train", tuple(BOOK)).sha256()
    return _store(
        recipe,
        model.eval().requires_grad_(False),
        data,
        weights,
        {"images_seen": images, "data_sha256": source},
    )


def _store(recipe: ImageRecipe, model: Preconditioned, data: Path, weights: Path, more: dict):
    """Write weights in half precision with their card, which says what the rounding cost."""
    held_out = load(data, "val", tuple(BOOK))
    x0 = to_range(held_out.pixels)
    labels = held_out.labels if model.network.label is not None else None
    losses = validation_losses(model, x0, labels)
    rounded = validation_losses(_in_half(model), x0, labels)
    own = bool(recipe.of) and not recipe.share
    card = {
        "recipe": asdict(recipe),
        "seed": recipe.run.seed,
        "data": f"{OWN_SAMPLES} samples of {recipe.of}"
        if own
        else "Tiny ImageNet, training images",
        "classes": list(BOOK.values()),
        **more,
        "average": WIDTH,
        "precision": "float16",
        "validation_losses": {level: round(value, 4) for level, value in rounded.items()},
        "rounding_cost": round(max(abs(rounded[k] - losses[k]) for k in losses), 6),
        "hardware": _hardware(),
        "torch": torch.__version__.split("+")[0],
        "licence": LICENCE,
    }
    return save_weights(weights, recipe.name, model, card, dtype=torch.float16)


def _in_half(model: Preconditioned) -> Preconditioned:
    """Round a model's weights to float16, in place: from here on it is what is stored."""
    for parameter in model.parameters():
        parameter.copy_(parameter.half())
    return model


def _hardware() -> str:
    if device().type == "cuda":
        return torch.cuda.get_device_name()
    precision = "bfloat16" if quick_bf16() else "float32"
    threads = torch.get_num_threads()
    return f"CPU ({platform.machine()}), {threads} thread, {precision}"
