"""The world of four shapes: its data, the distance to them, the exact denoiser, the recipes."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch

from guidance_edu.checkpoints import load_weights, read_manifest
from guidance_edu.denoisers import Denoiser
from guidance_edu.guidance import Guided
from guidance_edu.negatives import without_condition
from guidance_edu.samplers import noise_levels, sample
from toy_models import constellation_recipes as recipes
from toy_models.constellation_recipes import (
    CONSTELLATION_RECIPES,
    ConstellationRecipe,
    constellation_recipe_named,
    drawn,
    held_out_losses,
    load_constellation_model,
    new_constellation_model,
    store_constellation_model,
)
from toy_models.constellations import (
    LARGEST,
    POINTS,
    SHAPES,
    SHIFT,
    SIGMA_DATA,
    SMALLEST,
    TURN,
    Constellations,
    fit,
    templates,
)
from toy_models.recipes import WEIGHTS, load

SHIPPED = [name for name in read_manifest(WEIGHTS) if name in CONSTELLATION_RECIPES]
WORLD = Constellations()


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("DEVICE", "SEED"):
        monkeypatch.delenv(f"GUIDANCE_EDU_{name}", raising=False)
    monkeypatch.setenv("GUIDANCE_EDU_PROGRESS", "0")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def posed(shape, scale, turn, place=(0.0, 0.0)):
    """A member of the data by matrices, not complex numbers."""
    matrix = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    return (scale * templates()[shape] @ matrix.double() + torch.tensor(place)).unsqueeze(0)


# Data


def test_templates_are_centred_of_unit_size_and_told_apart():
    shapes = templates()
    assert shapes.shape == (len(SHAPES), POINTS, 2)
    torch.testing.assert_close(shapes.mean(1), torch.zeros(4, 2).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(shapes.square().sum(2).mean(1), torch.ones(4).double())
    for k, shape in enumerate(shapes):
        others = torch.cat([shapes[:k], shapes[k + 1 :]])
        assert float((others - shape).square().sum(2).mean(1).min()) > 0.5
    shapes.zero_()
    assert bool(templates().any()), "a caller may change its copy"


@pytest.mark.parametrize("shape", [0, 1, 3])
def test_points_of_a_closed_shape_are_evenly_spaced_along_its_line(shape):
    line = templates()[shape]
    steps = (line.roll(-1, 0) - line).norm(dim=1)
    # A straight step is shorter than the line where it cuts a corner.
    assert float(steps.max() / steps.median()) < 1.05


def test_samples_are_what_they_are_said_to_be():
    x, labels = WORLD.sample(20000, rng())
    assert x.dtype == torch.float32 and x.shape == (20000, POINTS, 2)
    assert float(x.std()) == pytest.approx(SIGMA_DATA, rel=0.01)
    found = fit(x)
    assert torch.equal(found.shape, labels) and float(found.residual.max()) < 1e-6
    assert SMALLEST <= float(found.scale.min()) < 1.001 * SMALLEST
    assert LARGEST >= float(found.scale.max()) > 0.999 * LARGEST
    assert 0.999 * TURN < float(found.turn.abs().max()) <= TURN
    assert float(found.scale.log().mean()) == pytest.approx(math.log(0.45 * 0.9) / 2, abs=0.01)
    assert x.mean(1).std(0).tolist() == pytest.approx([SHIFT] * 2, rel=0.03)
    assert (torch.bincount(labels) / 20000).tolist() == pytest.approx([0.25] * 4, abs=0.02)


def test_labels_can_be_chosen_and_change_nothing_else():
    free, labels = WORLD.sample(50, rng())
    chosen, got = WORLD.sample(50, rng(), labels)
    assert torch.equal(free, chosen) and torch.equal(got, labels)
    stars = WORLD.sample(50, rng(), torch.full((50,), 3))[0]
    assert bool((fit(stars).shape == 3).all())
    torch.testing.assert_close(fit(stars).scale, fit(free).scale, rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match="expected classes from 0 to 3"):
        WORLD.sample(2, rng(), torch.tensor([0, 4]))


# Distance


def test_the_distance_is_the_least_over_a_fine_grid():
    x = 0.5 * torch.randn(6, POINTS, 2, generator=rng(1), dtype=torch.float64)
    x[0] = posed(2, 1.3, 0.9)[0] + 0.05 * x[0]  # too large, turned too far
    best = torch.full((6,), math.inf, dtype=torch.float64)
    centred = x - x.mean(1, keepdim=True)
    for turn in np.linspace(-TURN, TURN, 41).tolist():
        for scale in np.linspace(SMALLEST, LARGEST, 41).tolist():
            for shape in range(4):
                gap = (centred - posed(shape, scale, turn)).square().sum(2).mean(1).sqrt()
                best = torch.minimum(best, gap)
    found = fit(x)
    distance = found.residual * found.scale
    assert bool((distance <= best + 1e-9).all())
    torch.testing.assert_close(distance, best, rtol=2e-3, atol=0)
    torch.testing.assert_close((x - found.nearest).square().sum(2).mean(1).sqrt(), distance)
    assert found.scale[0] == LARGEST or found.scale[0] == pytest.approx(LARGEST, rel=1e-9)


def test_only_the_class_that_is_asked_for_is_fitted():
    x, labels = WORLD.sample(30, rng())
    wrong = (labels + 1) % 4
    assert torch.equal(fit(x, wrong).shape, wrong)
    assert float(fit(x, wrong).residual.min()) > 0.3
    assert torch.equal(fit(x, labels).residual, fit(x).residual)


@pytest.mark.parametrize("shape", [(3, 23, 2), (3, 24, 3), (24, 2)])
def test_what_is_no_constellation_is_refused(shape):
    for ask in (fit, lambda x: WORLD(x, 1.0)):
        with pytest.raises(ValueError, match=r"expected x of shape \[n, 24, 2\]"):
            ask(torch.zeros(shape))
    with pytest.raises(ValueError, match="expected finite x"):
        fit(torch.full((1, POINTS, 2), math.nan))


# The exact denoiser


def by_hand(x, sigma, only=None):
    """The posterior mean over many samples of turn and scale, weighted by their likelihood."""
    turns = torch.linspace(-TURN, TURN, 401, dtype=torch.float64)[1::2]
    scales = torch.linspace(math.log(SMALLEST), math.log(LARGEST), 401).double()[1::2].exp()
    grid = torch.polar(scales[None].expand(200, 200), turns[:, None].expand(200, 200)).flatten()
    z = torch.view_as_complex(x)
    share = SHIFT**2 / (SHIFT**2 + sigma**2 / POINTS)
    log_weights, means = [], []
    for shape in torch.view_as_complex(templates()):
        gaps = (z - z.mean()) - grid[:, None] * shape  # [poses, 24]
        log_weight = -gaps.abs().square().sum(1) / (2 * sigma**2)
        log_weights.append(log_weight.logsumexp(0))
        means.append((log_weight.softmax(0) * grid).sum() * shape)
    weights = torch.stack(log_weights).softmax(0)
    mean = means[only] if only is not None else (weights[:, None] * torch.stack(means)).sum(0)
    return torch.view_as_real(mean + share * z.mean())


@pytest.mark.parametrize("sigma", [4.0, 1.0, 0.4, 0.2])
def test_the_exact_denoiser_is_the_posterior_mean(sigma):
    clean, labels = WORLD.sample(3, rng(2))
    noise = torch.randn(clean.shape, generator=rng(3), dtype=torch.float64)
    x = clean.double() + sigma * noise
    for k in range(3):
        free, own = WORLD(x[k : k + 1], sigma)[0], WORLD(x[k : k + 1], sigma, labels[k : k + 1])[0]
        # The grid of this test is what errs, by the square of its step.
        torch.testing.assert_close(free, by_hand(x[k], sigma), atol=2e-5, rtol=0)
        torch.testing.assert_close(own, by_hand(x[k], sigma, int(labels[k])), atol=2e-5, rtol=0)


def test_the_exact_denoiser_has_the_limits_that_it_states():
    assert isinstance(WORLD, Denoiser)
    x, labels = WORLD.sample(5, rng())
    assert torch.equal(WORLD(x, 0.0), x)
    torch.testing.assert_close(WORLD(x, 1e-4), x, atol=1e-4, rtol=0)
    far = WORLD(x.double() + 1e4 * torch.randn(5, POINTS, 2, generator=rng()).double(), 1e5)
    torch.testing.assert_close(far, far[:1].expand(5, -1, -1), atol=1e-3, rtol=0)
    levels = torch.tensor([0.1, 0.5, 1.0, 2.0, 5.0])
    together = WORLD(x, levels, labels)
    for k in range(5):
        alone = WORLD(x[k : k + 1], float(levels[k]), labels[k : k + 1])
        torch.testing.assert_close(together[k : k + 1], alone, atol=1e-6, rtol=0)
    assert together.dtype == x.dtype


def test_no_estimate_is_better_on_average():
    """The posterior mean beats itself scaled, and the mean without the class."""
    clean, labels = WORLD.sample(400, rng(5))
    x = clean + 0.7 * torch.randn(clean.shape, generator=rng(6))
    own, free = WORLD(x, 0.7, labels), WORLD(x, 0.7)

    def loss(estimate):
        return float((estimate - clean).square().mean())

    assert loss(own) < loss(free) < loss(x)
    assert loss(own) < min(loss(1.1 * own), loss(0.9 * own))


def test_samples_drawn_with_the_exact_denoiser_are_intact():
    levels = noise_levels(16, sigma_max=10.0, sigma_min=0.005)
    start = levels[0] * torch.randn(40, POINTS, 2, generator=rng(), dtype=torch.float64)
    labels = torch.arange(40) % 4
    x = sample(WORLD, start, levels, labels)
    assert torch.equal(fit(x).shape, labels) and float(fit(x).residual.max()) < 1e-6
    # Guidance cannot improve them; what it can do is change which of them are drawn.
    pushed = sample(Guided(WORLD, without_condition(WORLD), 3.0), start, levels, labels)
    assert float((fit(pushed).scale - fit(x).scale).abs().mean()) > 1e-3


# Recipes


def test_recipes_have_names_and_seeds_of_their_own():
    assert all(name == recipe.name for name, recipe in CONSTELLATION_RECIPES.items())
    seeds = [recipe.seed for recipe in CONSTELLATION_RECIPES.values()]
    assert len(set(seeds)) == len(seeds)
    with pytest.raises(KeyError, match="unknown constellation recipe 'x'; expected one of: const"):
        constellation_recipe_named("x")


@pytest.mark.parametrize("name", CONSTELLATION_RECIPES)
def test_a_recipe_builds_the_network_that_its_data_can_train(name):
    model = new_constellation_model(CONSTELLATION_RECIPES[name])
    labelled = model.network.label is not None
    x0, labels, extra = drawn(labelled)(rng(), 4)
    assert (labels is None) != labelled and not extra
    assert model(x0, 1.0, labels).shape == x0.shape
    assert (CONSTELLATION_RECIPES[name].drop > 0) == (model.null_label is not None)


@pytest.fixture
def tiny(monkeypatch):
    recipe = ConstellationRecipe("tiny", "for tests", 3, 5, 0.2, {"width": 8, "layers": 1})
    monkeypatch.setitem(CONSTELLATION_RECIPES, "tiny", recipe)
    monkeypatch.setattr(recipes, "BATCH", 4)


def test_training_repeats_bit_for_bit_and_is_stored_as_its_card_says(tiny, tmp_path):
    paths = [store_constellation_model("tiny", tmp_path / name) for name in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    card = read_manifest(tmp_path / "a")["tiny"]
    assert card["recipe"]["steps"] == 3 and card["licence"].startswith("MIT")
    model = load_constellation_model("tiny", tmp_path / "a")
    losses = held_out_losses(model, labelled=True)
    mean = sum(losses.values()) / len(losses)
    assert mean == pytest.approx(card["validation_loss"], abs=6e-6)
    assert not any(p.requires_grad for p in model.parameters()) and not model.training


def test_a_shifted_seed_trains_nothing_anew(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("GUIDANCE_EDU_SEED", "1000")
    with pytest.raises(ValueError, match="expected GUIDANCE_EDU_SEED=0 to train tiny, got 1000"):
        store_constellation_model("tiny", tmp_path)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_what_their_card_says(name, monkeypatch):
    card = read_manifest(WEIGHTS)[name]
    data = (WEIGHTS / f"{name}.safetensors").read_bytes()
    assert card["sha256"] == hashlib.sha256(data).hexdigest()
    assert card["bytes"] == len(data) < 1_000_000
    recipe = CONSTELLATION_RECIPES[name]
    assert card["seed"] == recipe.seed and card["recipe"]["steps"] == recipe.steps
    model = load_weights(WEIGHTS, name, new_constellation_model(recipe))
    losses = held_out_losses(model, model.network.label is not None)
    mean = sum(losses.values()) / len(losses)
    assert mean == pytest.approx(card["validation_loss"], rel=2e-3)
    monkeypatch.setenv("GUIDANCE_EDU_SEED", "3000")
    again = load(name)  # the same weights at every seed of the book
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )
