"""The published recipe, written plainly, is what it says: exact scores, an energy's gradient."""

import math

import torch

from guidance_edu.settings import generator
from toy_models.sweeps.chapter_04 import partners
from toy_models.sweeps.published_recipe import EnergyDenoiser, direct_score, train_plainly
from toy_models.tree import published_tree


def test_the_direct_score_is_the_exact_score():
    world, rng = published_tree().mixture("A"), generator(0)
    sigma = torch.tensor([0.01, 0.1, 1.0, 5.0]).repeat_interleave(8).double()
    x = world.sample(32, rng).double() + sigma[:, None] * torch.randn(32, 2, generator=rng)
    wanted = (world.denoise(x, sigma) - x) / sigma[:, None] ** 2
    torch.testing.assert_close(direct_score(world, x, sigma), wanted, rtol=1e-7, atol=1e-7)


def test_an_untrained_energy_denoises_one_gaussian():
    x = torch.randn(16, 2, generator=generator(1))
    sigma = torch.linspace(0.1, 3, 16)
    wanted = x * (0.25 / (0.25 + sigma**2))[:, None]
    torch.testing.assert_close(EnergyDenoiser(8).eval()(x, sigma), wanted)


def test_the_score_is_the_slope_of_the_log_density():
    model = EnergyDenoiser(8).eval()
    torch.nn.init.constant_(model.gain, 0.3)
    model, step = model.double(), 1e-6
    x = torch.randn(6, 2, generator=generator(2), dtype=torch.float64)
    sigma = torch.full((6,), 0.4, dtype=torch.float64)
    score = model.score(x, sigma)
    for axis in range(2):
        moved = torch.zeros(2, dtype=torch.float64)
        moved[axis] = step
        rise = model.log_density(x + moved, sigma) - model.log_density(x - moved, sigma)
        torch.testing.assert_close(score[:, axis], rise / (2 * step), rtol=1e-6, atol=1e-8)


def test_a_few_steps_of_the_recipe_train_and_report_their_seconds():
    model, seconds = train_plainly(hidden=8, steps=3, batch=32)
    assert len(seconds) == 3 and all(math.isfinite(s) and s >= 0 for s in seconds)
    assert float(model.gain) != 0
    assert model(torch.zeros(4, 2), 0.5).isfinite().all()
    again, _ = train_plainly(hidden=8, steps=3, batch=32)
    assert torch.equal(again.weights[0], model.weights[0])


def test_partners_are_as_improbable_and_not_astray():
    now = torch.tensor([-5.0, -4.9, -1.0, -5.2, -9.0, 0.0])
    astray = torch.tensor([True, False, False, True, True, False])
    control, kept = partners(now, astray)
    assert not (control & astray).any() and (kept <= astray).all()
    # One state is near enough for two astray ones; the rarer takes it only within the limit.
    assert control.tolist() == [False, True, False, False, False, False]
    assert kept.tolist() == [True, False, False, False, False, False]
