"""Models that learn from given points: pools of noise, fine-tuning, snapshots of a run."""

import math

import pytest
import torch

from guidance_edu.ema import TRACKS, PowerEMA, reconstruct
from guidance_edu.settings import generator
from toy_models import snapshots as module
from toy_models.mlp import tree_denoiser
from toy_models.own_samples import extrapolate_weights, fine_tune, own_samples
from toy_models.pool import fit, make_pool, noisy_pool, training_steps
from toy_models.recipes import RECIPES, Recipe, train
from toy_models.snapshots import averaged, train_with_snapshots
from toy_models.tree import own_tree

WORLD = own_tree().mixture("A")
POINTS = WORLD.sample(64, generator(5))


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_noisy_pool_holds_each_point_under_several_noises():
    pool = noisy_pool(POINTS, generator(0), copies=50)
    assert pool.x.shape == pool.target.shape == (3200, 2) and pool.sigma.shape == (3200,)
    counts = (pool.target[:, None] == POINTS.float()).all(2).sum(0)
    assert bool((counts == 50).all())
    noise = (pool.x - pool.target) / pool.sigma[:, None]
    assert abs(float(noise.std()) - 1) < 0.05 and abs(float(noise.mean())) < 0.05
    assert abs(float(pool.sigma.log().mean()) + 2.3) < 0.01
    # Levels come in rising order; points must not.
    order = torch.corrcoef(torch.stack([torch.arange(3200.0), pool.target[:, 0]]))[0, 1]
    assert abs(float(order)) < 0.1


@pytest.mark.parametrize(("points", "copies"), [(POINTS[:0], 8), (POINTS, 0)])
def test_a_pool_of_nothing_is_refused(points, copies):
    with pytest.raises(ValueError, match="expected points and copies >= 1"):
        noisy_pool(points, generator(0), copies)


def test_training_step_by_step_is_training():
    pool = make_pool(WORLD, generator(1), levels=16, per_level=32)
    torch.manual_seed(0)
    whole = tree_denoiser(8)
    torch.manual_seed(0)
    stepped = tree_denoiser(8)
    fit(whole, pool, 12, generator(2), batch=64, sigma_rel=0.1)
    average = PowerEMA(stepped, 0.1)
    losses = []
    for loss in training_steps(stepped, pool, 12, generator(2), batch=64):
        average.update(stepped)
        losses.append(loss)
    average.copy_to(stepped)
    assert torch.equal(weights(whole), weights(stepped))
    assert len(losses) == 12 and all(math.isfinite(loss) for loss in losses)


def test_training_steps_refuse_bad_settings_before_the_first_step():
    pool = noisy_pool(POINTS, generator(0))
    for options in ({"steps": 0}, {"steps": 1, "batch": 0}, {"steps": 1, "batch": 10**6}):
        with pytest.raises(ValueError, match="expected steps >= 1"):
            training_steps(tree_denoiser(4), pool, rng=generator(0), **options)


def test_fine_tuning_leaves_the_model_alone_and_learns_the_points():
    torch.manual_seed(0)
    model = tree_denoiser(16).requires_grad_(False)
    before = weights(model).clone()
    spot = torch.full((200, 2), 0.4)
    tuned = fine_tune(model, spot, 300, generator(1), learning_rate=1e-2)
    assert torch.equal(weights(model), before) and not torch.equal(weights(tuned), before)
    assert not any(p.requires_grad for p in tuned.parameters())
    x = 0.4 + 0.3 * torch.randn(100, 2, generator=generator(2))
    assert float((tuned(x, 0.3) - 0.4).abs().mean()) < 0.3 * float(
        (model(x, 0.3) - 0.4).abs().mean()
    )


def test_fine_tuning_for_no_steps_is_a_copy():
    model = tree_denoiser(4)
    copy = fine_tune(model, POINTS, 0, generator(0))
    assert copy is not model and torch.equal(weights(copy), weights(model))
    with pytest.raises(ValueError, match="steps of at least 0"):
        fine_tune(model, POINTS, -1, generator(0))


def test_own_samples_of_the_exact_denoiser_are_the_data_and_repeat():
    x = own_samples(WORLD, POINTS, 500, generator(3))
    assert x.shape == (500, 2) and torch.equal(x, own_samples(WORLD, POINTS, 500, generator(3)))
    assert float(WORLD.log_density(x).mean()) > float(WORLD.log_density(POINTS).mean()) - 0.5
    with pytest.raises(ValueError, match="expected data and n >= 1"):
        own_samples(WORLD, POINTS, 0, generator(3))
    with pytest.raises(ValueError, match="expected data and n >= 1"):
        own_samples(WORLD, POINTS[:0], 5, generator(3))


def test_extrapolated_weights_at_one_are_the_main_ones_and_guide_a_linear_model():
    main, other = (list(torch.nn.Linear(3, 2).parameters()) for _ in range(2))
    assert all(map(torch.equal, extrapolate_weights(main, other, 1.0), main))
    x = torch.randn(4, 3)
    mixed = extrapolate_weights(main, other, 2.5)
    first, second = x @ main[0].T + main[1], x @ other[0].T + other[1]
    torch.testing.assert_close(x @ mixed[0].T + mixed[1], first + 1.5 * (first - second))
    with pytest.raises(ValueError, match="weights of one model"):
        extrapolate_weights(main, other[:1], 2.0)


@pytest.fixture
def tiny(monkeypatch):
    """A recipe that trains in a blink."""
    recipe = Recipe("tiny", "for this test", "own", "A", 4, 32, 500)
    monkeypatch.setitem(RECIPES, "tiny", recipe)
    module._run.cache_clear()
    yield recipe
    module._run.cache_clear()


def test_a_run_with_snapshots_is_the_recipe_and_its_tracks(tiny):
    model, taken = train_with_snapshots("tiny", number=8)
    assert [s.updates for s in taken] == [4 * k for k in range(1, 9) for _ in TRACKS]
    assert len({s.gamma for s in taken}) == len(TRACKS)
    # The shipped average has the width 0.01, out of reach of the tracks; close to the last weights.
    trained = weights(train("tiny")[0])
    assert (weights(model) - trained).norm() < 0.2 * trained.norm()
    rebuilt = torch.cat([w.flatten() for w in reconstruct(taken, 0.05)])
    torch.testing.assert_close(weights(averaged(model, taken, 0.05)), rebuilt.float())
    again, _ = train_with_snapshots("tiny", number=8)
    assert again is not model and torch.equal(weights(again), weights(model))


def test_snapshots_must_divide_the_run(tiny):
    for number in (0, 5):
        with pytest.raises(ValueError, match="that divides 32"):
            train_with_snapshots("tiny", number=number)
