"""Noise levels, and three ways down them, against flows that are known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guidance_edu.samplers import (
    METHODS,
    euler_step,
    heun_step,
    noise_levels,
    sample,
    sample_states,
)
from toy_models.worlds import line, three_blobs

FEW = settings(max_examples=20, deadline=None, derandomize=True)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64).to(dtype)


def half(x, sigma, condition=None):
    return 0.5 * x


# Noise levels


@FEW
@given(
    steps=st.integers(2, 60), top=st.floats(1, 200), ratio=st.floats(1e-5, 0.5), rho=st.floats(1, 9)
)
def test_levels_are_those_of_the_formula(steps, top, ratio, rho):
    levels = noise_levels(steps, top, top * ratio, rho)
    i = np.arange(steps)
    ends = np.array([top, top * ratio]) ** (1 / rho)
    wanted = (ends[0] + i / (steps - 1) * (ends[1] - ends[0])) ** rho
    np.testing.assert_allclose(levels[:-1].numpy(), wanted, rtol=1e-12, atol=1e-14 * top)
    assert levels.dtype == torch.float64 and levels.shape == (steps + 1,)
    assert levels[-1] == 0 and levels[0] == top and levels[-2] == top * ratio
    assert bool((levels.diff() < 0).all())


def test_the_default_levels_are_those_of_the_paper():
    levels = noise_levels(18)
    assert levels[0] == 80 and levels[-2] == 0.002
    # Computed by hand from Karras et al. 2022, eq. 5: i = 1 and i = 9 of 18.
    top, bottom = 80 ** (1 / 7), 0.002 ** (1 / 7)
    for i in (1, 9):
        assert float(levels[i]) == pytest.approx((top + i / 17 * (bottom - top)) ** 7, rel=1e-13)


def test_the_limits_of_rho():
    even = noise_levels(5, 9.0, 1.0, rho=1)
    torch.testing.assert_close(even, torch.tensor([9.0, 7.0, 5.0, 3.0, 1.0, 0.0]).double())
    geometric = noise_levels(5, 16.0, 1.0, rho=1e7)
    torch.testing.assert_close(
        geometric, torch.tensor([16.0, 8.0, 4.0, 2.0, 1.0, 0.0]).double(), rtol=1e-6, atol=0
    )
    assert noise_levels(1, 3.0).tolist() == [3.0, 0.0]


@pytest.mark.parametrize("steps", [0, -1, 2.5, 2.0, True, "18", None, math.nan, math.inf])
def test_a_number_of_steps_that_is_none_is_refused(steps):
    with pytest.raises(ValueError, match="expected a whole number of steps of at least 1, got"):
        noise_levels(steps)


@pytest.mark.parametrize(
    ("top", "bottom"),
    [(1, 1), (1, 2), (1, 0), (1, -1), (math.inf, 1), (math.nan, 1), (1, math.nan)],
)
def test_ends_that_do_not_fall_are_refused(top, bottom):
    with pytest.raises(ValueError, match="expected 0 < sigma_min < sigma_max, got"):
        noise_levels(5, top, bottom)


@pytest.mark.parametrize("rho", [0.5, -7, math.inf, math.nan])
def test_a_rho_below_1_is_refused(rho):
    with pytest.raises(ValueError, match="expected finite rho of at least 1, got"):
        noise_levels(5, rho=rho)


# One step


@FEW
@given(seed=st.integers(0, 1000), sigma=st.floats(0.1, 50), share=st.floats(0, 0.99))
def test_an_euler_step_follows_the_tangent(seed, sigma, share):
    x = noise(seed, 3, 2)
    # D = x / 2, so dx / dsigma = x / (2 sigma).
    wanted = x * (1 + (share - 1) / 2)
    got = euler_step(half, x, sigma, sigma * share)
    torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-13)


@FEW
@given(seed=st.integers(0, 1000), sigma=st.floats(0.1, 50), share=st.floats(0.01, 0.99))
def test_a_heun_step_follows_the_mean_of_the_tangents(seed, sigma, share):
    x = noise(seed, 3, 2)
    ahead = 1 + (share - 1) / 2
    wanted = x * (1 + (share - 1) * (1 + ahead / share) / 4)
    got = heun_step(half, x, sigma, sigma * share)
    torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("step", [euler_step, heun_step])
def test_a_step_to_0_returns_the_denoised_sample(step):
    x, world = noise(0, 5, 2), three_blobs()
    labels = torch.tensor([0, 1, 0, 1, 0])
    wanted = world(x, 0.7, labels)
    torch.testing.assert_close(step(world, x, 0.7, 0.0, labels), wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("step", [euler_step, heun_step])
@pytest.mark.parametrize(("sigma", "target"), [(1, 1), (1, 2), (0, 0), (1, -0.5), (math.nan, 0)])
def test_a_step_that_does_not_go_down_is_refused(step, sigma, target):
    with pytest.raises(ValueError, match="expected a step down to at least 0, got"):
        step(half, noise(0, 3, 2), sigma, target)


# The whole way

MEAN, STD, START = 0.3, 0.5, 10.0


def exact(x, sigma, target):
    """The flow of one Gaussian: distances from the mean shrink with the noisy deviation."""
    return MEAN + (x - MEAN) * math.sqrt((STD**2 + target**2) / (STD**2 + sigma**2))


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_halving_the_steps_shows_the_order_of_the_method(method, order):
    world, x = line([MEAN], [STD]), START * noise(0, 8, 1)
    errors = []
    for steps in (40, 80, 160):
        levels = noise_levels(steps, START, 0.05)[:-1]  # the last step, to 0, has its own error
        end = sample(world, x, levels, method=method)
        errors.append(float((end - exact(x, START, 0.05)).abs().max()))
    assert errors[-1] < (0.02 if order == 1 else 2e-4)
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_does_not_depend_on_its_batch_and_keeps_its_dtype(method, n, dtype):
    world, levels = three_blobs(), noise_levels(8, 5.0, 0.01)
    x, labels = 5 * noise(1, 3, 2, dtype=dtype), torch.tensor([0, 1, 0])
    together = sample(world, x[:n], levels, labels[:n], method)
    assert together.dtype == dtype
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    for i in range(n):
        alone = sample(world, x[i : i + 1], levels, labels[i : i + 1], method)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_every_state_is_yielded_with_its_level_and_the_estimate_used(method):
    world, levels = line([MEAN], [STD]), [4.0, 1.0, 0.2, 0.0]
    x = 4 * noise(0, 5, 1)
    states = list(sample_states(world, x, levels, method=method, churn=0.0, rng=rng()))
    assert [state.sigma for state in states] == levels
    assert states[0].x is x and states[0].denoised is None
    for before, after in zip(states[:-1], states[1:], strict=True):
        torch.testing.assert_close(after.denoised, world(before.x, before.sigma))
    torch.testing.assert_close(states[-1].x, states[-1].denoised, rtol=1e-12, atol=1e-12)
    end = sample(world, x, levels, method=method, churn=0.0, rng=rng())
    assert torch.equal(end, states[-1].x)


def test_the_stochastic_sampler_records_the_estimate_at_the_level_it_climbed_to():
    asked = []

    def spy(x, sigma, condition=None):
        asked.append((x, sigma))
        return 0.5 * x

    levels = [4.0, 1.0, 0.0]
    states = list(sample_states(spy, noise(0, 5, 1), levels, None, "stochastic", 0.5, rng()))
    assert [sigma for _, sigma in asked] == [6.0, 1.0, 1.0]  # no climb before the step to 0
    assert torch.equal(states[1].denoised, 0.5 * asked[0][0])


def test_levels_may_end_above_0_and_come_as_a_list_or_a_tensor():
    x, levels = noise(0, 3, 1), [2.0, 1.0, 0.5]
    end = sample(half, x, levels)
    assert torch.equal(end, sample(half, x, torch.tensor(levels)))
    assert torch.equal(end, sample(half, x, tuple(levels)))
    assert [s.sigma for s in sample_states(half, x, levels)] == levels


@FEW
@given(seed=st.integers(0, 1000))
def test_without_churn_the_stochastic_sampler_is_heuns(seed):
    world, x, levels = three_blobs(), 5 * noise(seed, 4, 2), noise_levels(6, 5.0, 0.01)
    stochastic = sample(world, x, levels, method="stochastic", churn=0.0, rng=rng(seed))
    assert torch.equal(stochastic, sample(world, x, levels, method="heun"))


def test_the_stochastic_sampler_keeps_the_distribution_of_a_gaussian():
    n = 20_000
    world = line([MEAN], [STD])
    x = MEAN + math.hypot(STD, START) * noise(3, n, 1)
    end = sample(world, x, noise_levels(160, START, 0.01), None, "stochastic", 0.4, rng(4))
    # Five standard errors, 5 STD / sqrt(n) and 5 STD / sqrt(2 n), and .002 for the 160 steps.
    assert abs(float(end.mean()) - MEAN) < 0.0177 + 0.002
    assert abs(float(end.std()) - STD) < 0.0125 + 0.002
    correlation = float(torch.corrcoef(torch.cat([x, end], 1).T)[0, 1])
    assert abs(correlation) < 0.05, "fresh noise makes the end forget the start"


def test_churn_adds_the_noise_that_lifts_sigma_to_its_share_above():
    lifted = []

    def spy(x, sigma, condition=None):
        lifted.append(x)
        return x

    n = 100_000
    start = torch.zeros(n, 1, dtype=torch.float64)
    sample(spy, start, [2.0, 1.0], method="stochastic", churn=0.4, rng=rng())
    # (1.4^2 - 1) 2^2 = 3.84; five standard errors of a deviation are 5 / sqrt(2 n) = 1.1 %.
    assert float(lifted[0].std()) == pytest.approx(math.sqrt(3.84), rel=0.012)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_start_and_rng_give_the_same_samples(method):
    world, x, levels = three_blobs(), 5 * noise(0, 4, 2), noise_levels(6, 5.0, 0.01)
    first = sample(world, x, levels, method=method, rng=rng(1))
    assert torch.equal(first, sample(world, x, levels, method=method, rng=rng(1)))
    other = sample(world, x, levels, method=method, rng=rng(2))
    assert torch.equal(first, other) == (method != "stochastic")


def test_the_start_is_left_alone():
    x = noise(0, 3, 2)
    before = x.clone()
    sample(half, x, [4.0, 1.0, 0.0], method="stochastic", rng=rng())
    assert torch.equal(x, before)


def test_sampling_records_no_gradient_and_leaves_the_callers_mode_alone():
    x = noise(0, 3, 2).requires_grad_()
    modes = [(state.x.grad_fn, torch.is_grad_enabled()) for state in sample_states(half, x, [2, 1])]
    assert modes == [(None, True), (None, True)]
    assert not sample(half, x, [2, 1, 0]).requires_grad


def test_samples_of_any_shape_and_a_batch_of_none():
    assert sample(half, noise(0, 2, 3, 8, 8), [2, 1, 0]).shape == (2, 3, 8, 8)
    assert sample(half, noise(0, 0, 2), [2, 1, 0]).shape == (0, 2)


@pytest.mark.parametrize("size", [1e-8, 1e8])
@pytest.mark.parametrize("method", METHODS)
def test_tiny_and_huge_samples_stay_finite(size, method):
    end = sample(half, noise(0, 3, 2).float() * size, [2, 1, 0.1, 0], method=method, rng=rng())
    assert end.isfinite().all()


# Bad input


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([1.0, 2.0, 0.0], "expected falling noise levels, got 1 before 2"),
        ([2.0, 2.0], "expected falling noise levels, got 2 before 2"),
        ([0.0, 1.0], "expected falling noise levels, got 0 before 1"),
        ([2.0, -1.0], "expected finite noise levels of at least 0, got"),
        ([math.inf, 1.0], "expected finite noise levels of at least 0, got"),
        ([2.0, math.nan], "expected finite noise levels of at least 0, got"),
        ([2.0], r"expected at least two noise levels, got shape \[1\]"),
        ([], r"expected at least two noise levels, got shape \[0\]"),
        ([[2.0, 1.0]], r"expected at least two noise levels, got shape \[1, 2\]"),
        (2.0, r"expected at least two noise levels, got shape \[\]"),
    ],
)
def test_levels_that_do_not_fall_are_refused_before_a_model_is_called(levels, message):
    def never(x, sigma, condition=None):
        raise AssertionError("called")

    with pytest.raises(ValueError, match=message):
        sample_states(never, noise(0, 3, 2), levels)  # at once, not at the first state
    with pytest.raises(ValueError, match=message):
        sample(never, noise(0, 3, 2), levels)


def test_other_bad_input_is_refused():
    x = noise(0, 3, 2)
    with pytest.raises(ValueError, match="unknown method 'ddim'; expected one of euler, heun, st"):
        sample(half, x, [2, 1], method="ddim")
    with pytest.raises(ValueError, match="expected finite starting points x, got NaN or infinity"):
        sample(half, x * math.nan, [2, 1])
    with pytest.raises(ValueError, match="the stochastic sampler needs rng"):
        sample(half, x, [2, 1], method="stochastic")
    for churn in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="expected finite churn of at least 0, got"):
            sample(half, x, [2, 1], method="stochastic", churn=churn, rng=rng())
    with pytest.raises(ValueError, match=r"expected condition of shape \[3\] and dtype long"):
        sample(three_blobs(), x, [2, 1], condition=torch.zeros(2).long())


@pytest.mark.parametrize("answer", [lambda x: (x / 2).squeeze(-1), lambda x: x[:1], lambda x: 0.0])
def test_a_denoiser_that_returns_another_shape_is_refused(answer):
    with pytest.raises(ValueError, match=r"expected a denoised x of shape \[5, 1\], got"):
        sample(lambda x, sigma, condition=None: answer(x), torch.ones(5, 1), [1.0, 0.5, 0.0])


def test_the_stochastic_sampler_wants_a_generator():
    with pytest.raises(ValueError, match=r"needs rng, a torch\.Generator"):
        sample(lambda x, s, c=None: x / 2, torch.ones(2, 1), [1.0, 0.0], method="stochastic", rng=3)
