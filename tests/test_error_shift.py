"""Error shift: the measures of two error fields, the best weight, regions and sweeps."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guidance_edu.error_shift import along, best_weight, by_region, error_shift

FEW = settings(max_examples=20, deadline=None, derandomize=True)
seeds = st.integers(0, 10_000)


def noise(seed, *shape):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def truth(x, sigma, condition=None):
    level = torch.as_tensor(sigma, dtype=x.dtype)
    level = level.reshape(-1, *[1] * (x.dim() - 1)) if level.dim() else level
    return x / (1 + level**2)


def off_by(error):
    """Return a denoiser whose error is given, or computed from (x, sigma, condition)."""

    def denoiser(x, sigma, condition=None):
        wrong = error(x, sigma, condition) if callable(error) else error
        return truth(x, sigma) + wrong

    return denoiser


# The best weight


@FEW
@given(seed=seeds, size=st.floats(-8, 8), k=st.floats(-3, 3))
def test_no_other_weight_gives_a_smaller_guided_error(seed, size, k):
    positive = noise(seed, 20, 2) * 10**size
    negative = k * positive + noise(seed + 1, 20, 2) * 10**size
    best = best_weight(positive, negative)

    def loss(w):
        return float((positive + (w - 1) * (positive - negative)).square().sum())

    assert loss(best) < min(loss(best - 1e-3), loss(best + 1e-3), loss(1.1), loss(0.9))


@FEW
@given(seed=seeds, k=st.floats(-4, 4).filter(lambda k: abs(k - 1) > 1e-3))
def test_errors_in_proportion_are_removed_by_one_plus_one_over_k_minus_one(seed, k):
    positive = noise(seed, 5, 3)
    w = best_weight(positive, k * positive)
    assert w == pytest.approx(1 + 1 / (k - 1), rel=1e-9)
    left = positive + (w - 1) * (positive - k * positive)
    assert float(left.abs().max()) < 1e-9 * float(positive.abs().max()) * (1 + abs(k))


def test_the_best_weight_of_special_errors():
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    zero = torch.zeros(1, 2)
    assert best_weight(zero, one) == 1  # a perfect positive
    assert best_weight(one, zero) == 0  # a perfect negative
    assert best_weight(one, other) == pytest.approx(0.5)
    assert best_weight(one, 2 * one) == pytest.approx(2)


@pytest.mark.parametrize("error", [torch.ones(3, 2), torch.zeros(3, 2)])
def test_equal_errors_have_no_best_weight(error):
    assert math.isnan(best_weight(error, error.clone()))


@FEW
@given(seed=seeds, size=st.sampled_from([1e-200, 1e-8, 1.0, 1e8, 1e200]))
def test_the_best_weight_does_not_depend_on_rotation_or_scale(seed, size):
    positive, negative = noise(seed, 10, 3), noise(seed + 1, 10, 3)
    rotation = torch.linalg.qr(noise(seed + 2, 3, 3)).Q
    plain = best_weight(positive, negative)
    turned = best_weight(positive @ rotation * size, negative @ rotation * size)
    assert turned == pytest.approx(plain, rel=1e-9)


def test_the_best_weight_needs_no_truth_when_clean_samples_are_many():
    # N(0, 1) data; both denoisers shrink too little, the negative twice as much too little.
    rng = torch.Generator().manual_seed(3)
    x0 = torch.randn(200_000, 1, generator=rng, dtype=torch.float64)
    x = x0 + 0.5 * torch.randn(200_000, 1, generator=rng, dtype=torch.float64)
    exact, positive, negative = x / 1.25, x / 1.25 + 0.2 * x, x / 1.25 + 0.4 * x
    assert best_weight(positive - exact, negative - exact) == pytest.approx(2)
    # Standard error: rms(x0 - D) / rms(d) / sqrt(n) = .45 / .22 / 447 = .005.
    assert best_weight(positive - x0, negative - x0) == pytest.approx(2, abs=0.025)


# The measures


def test_a_negative_that_errs_twice_as_far_is_described_exactly():
    error = noise(0, 50, 2)
    shift = error_shift(off_by(error), off_by(2 * error), truth, noise(1, 50, 2), 0.5)
    length = float((error / 0.5).norm(dim=1).square().mean().sqrt())
    assert shift.rms_positive == pytest.approx(length)
    assert shift.rms_negative == pytest.approx(2 * length)
    assert shift.ratio == pytest.approx(2)
    assert shift.cosine == pytest.approx(1)
    assert shift.median_cosine == pytest.approx(1)
    assert shift.best_w == pytest.approx(2)
    assert shift.n == 50 and shift.sigma == 0.5
    assert torch.allclose(shift.error_positive, error, atol=1e-14)
    assert torch.allclose(shift.error_negative, 2 * error, atol=1e-14)


def test_the_weighted_cosine_follows_long_errors_and_the_median_counts_points():
    positive = torch.tensor([[100.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    negative = torch.tensor([[100.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    shift = error_shift(off_by(positive), off_by(negative), truth, torch.zeros(4, 2), 1.0)
    assert shift.cosine > 0.99
    assert shift.median_cosine == pytest.approx(0, abs=1e-12)  # the point without error left out


def test_opposite_errors_have_cosine_minus_one_and_a_weight_below_one():
    error = noise(0, 9, 2)
    shift = error_shift(off_by(error), off_by(-error), truth, noise(1, 9, 2), 0.5)
    assert shift.cosine == pytest.approx(-1)
    assert shift.median_cosine == pytest.approx(-1)
    assert shift.best_w == pytest.approx(0.5)


def test_a_negative_that_is_the_positive_has_ratio_and_cosine_one_and_no_best_weight():
    model = off_by(noise(0, 9, 2))
    shift = error_shift(model, model, truth, noise(1, 9, 2), 0.5)
    assert (shift.ratio, shift.cosine) == (pytest.approx(1), pytest.approx(1))
    assert math.isnan(shift.best_w)


def test_a_positive_without_error_wants_no_guidance():
    shift = error_shift(truth, off_by(noise(0, 9, 2)), truth, noise(1, 9, 2), 0.5)
    assert shift.rms_positive == 0 and shift.ratio == math.inf and shift.best_w == 1
    assert math.isnan(shift.cosine) and math.isnan(shift.median_cosine)


def test_guiding_with_the_best_weight_gives_the_least_error_of_the_guided_denoiser():
    x = noise(1, 40, 2)
    positive, negative = off_by(noise(2, 40, 2)), off_by(noise(2, 40, 2) * 3 + noise(3, 40, 2))
    shift = error_shift(positive, negative, truth, x, 0.5)

    def rms(w):
        guided = positive(x, 0.5) + (w - 1) * (positive(x, 0.5) - negative(x, 0.5))
        return float((guided - truth(x, 0.5)).square().mean().sqrt())

    assert rms(shift.best_w) < min(rms(1), rms(shift.best_w * 1.02), rms(shift.best_w * 0.98))


@FEW
@given(seed=seeds)
def test_the_order_of_the_points_does_not_matter(seed):
    x, good, bad = noise(seed, 12, 2), noise(seed + 1, 12, 2), noise(seed + 2, 12, 2)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    plain = error_shift(off_by(good), off_by(bad), truth, x, 0.7)
    mixed = error_shift(off_by(good[order]), off_by(bad[order]), truth, x[order], 0.7)
    for name in ("rms_positive", "rms_negative", "ratio", "cosine", "median_cosine", "best_w"):
        assert getattr(mixed, name) == pytest.approx(getattr(plain, name), rel=1e-9)


def test_each_point_counts_in_units_of_its_own_sigma():
    x, sigma = noise(1, 6, 2), torch.tensor([0.1, 0.1, 0.1, 2.0, 2.0, 2.0], dtype=torch.float64)
    unit = noise(2, 6, 2)
    model = off_by(lambda x, sigma, condition: unit * sigma[:, None])
    shift = error_shift(model, off_by(0 * unit), truth, x, sigma)
    assert shift.rms_positive == pytest.approx(float(unit.norm(dim=1).square().mean().sqrt()))
    assert torch.equal(shift.sigma, sigma)
    assert torch.equal(shift.region(sigma > 1).sigma, sigma[3:])


def test_images_float32_and_conditions_pass_through():
    x, labels = noise(1, 4, 3, 2, 2).float(), torch.tensor([0, 1, 1, 0])

    def wrong(x, sigma, condition):
        return condition.reshape(-1, 1, 1, 1).to(x) + 1

    shift = error_shift(off_by(wrong), off_by(lambda *a: 3 * wrong(*a)), truth, x, 0.5, labels)
    assert shift.error_positive.shape == x.shape and shift.error_positive.dtype == torch.float64
    assert shift.ratio == pytest.approx(3, rel=1e-5)
    assert shift.best_w == pytest.approx(1.5, rel=1e-5)


def test_no_gradients_are_kept():
    layer = torch.nn.Linear(2, 2).double()
    shift = error_shift(lambda x, s, c: layer(x), truth, truth, noise(0, 5, 2), 0.5)
    assert not shift.error_positive.requires_grad


def test_the_result_cannot_be_changed():
    shift = error_shift(off_by(1.0), off_by(2.0), truth, noise(0, 5, 2), 0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        shift.ratio = 1.0


# Regions and sweeps


def test_a_region_gives_what_its_points_alone_give_and_each_model_is_called_once():
    x, good, bad = noise(1, 10, 2), noise(2, 10, 2), noise(3, 10, 2)
    inside = torch.arange(10) % 3 == 1
    calls = []

    def counted(model):
        return lambda *a: calls.append(1) or model(*a)

    parts = by_region(
        counted(off_by(good)),
        counted(off_by(bad)),
        counted(truth),
        x,
        0.3,
        {"inside": inside, "astray": ~inside, "all": inside | True},
    )
    assert len(calls) == 3 and list(parts) == ["inside", "astray", "all"]
    alone = error_shift(off_by(good[inside]), off_by(bad[inside]), truth, x[inside], 0.3)
    assert parts["inside"].n == 3 and parts["inside"].best_w == pytest.approx(alone.best_w)
    assert parts["inside"].rms_positive == pytest.approx(alone.rms_positive)
    whole = error_shift(off_by(good), off_by(bad), truth, x, 0.3)
    assert parts["all"].best_w == pytest.approx(whole.best_w)
    assert parts["astray"].cosine != pytest.approx(parts["inside"].cosine)


def test_a_sweep_measures_each_level_of_a_run_and_passes_over_sigma_zero():
    x, labels = noise(0, 6, 2), torch.arange(6)
    astray = labels >= 2

    def wrong(x, sigma, condition):
        assert condition.tolist() == [2, 3, 4, 5]
        return sigma * torch.ones_like(x)

    states = [(2.0, x, None), (0.5, x + 1, None), (0.0, x, None)]
    sweep = along(off_by(wrong), off_by(lambda *a: 5 * wrong(*a)), truth, states, labels, astray)
    assert [shift.sigma for shift in sweep] == [2.0, 0.5]
    assert [shift.n for shift in sweep] == [4, 4]
    for shift in sweep:
        assert shift.rms_positive == pytest.approx(math.sqrt(2))
        assert shift.best_w == pytest.approx(1.25)
    plain = along(off_by(1.0), off_by(2.0), truth, [(0.5, x)])
    assert plain[0].n == 6 and plain[0].best_w == pytest.approx(2)


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: best_weight(x, x[:2]), r"one shape \[n, ...\]"),
        (lambda x: best_weight(x[:0], x[:0]), "n >= 1"),
        (lambda x: best_weight(x, x * math.nan), "finite error of the negative"),
        (lambda x: error_shift(truth, truth, truth, x, 0.0), "sigma above 0"),
        (lambda x: error_shift(truth, truth, truth, x, -1.0), "sigma"),
        (lambda x: error_shift(truth, truth, truth, x, math.nan), "sigma"),
        (lambda x: error_shift(truth, truth, truth, x, torch.ones(2)), "sigma of shape"),
        (lambda x: error_shift(truth, truth, truth, x[:0], 1.0), "at least one point"),
        (lambda x: error_shift(lambda *a: x[:1], truth, truth, x, 1.0), "the positive to return"),
        (lambda x: error_shift(truth, lambda *a: x / 0, truth, x, 1.0), "negative returned NaN"),
        (
            lambda x: by_region(truth, truth, truth, x, 1.0, {"core": torch.zeros(5).bool()}),
            "region 'core': expected a mask that selects",
        ),
        (
            lambda x: by_region(truth, truth, truth, x, 1.0, {"core": torch.ones(5)}),
            r"region 'core': expected a mask of shape \[5\] and dtype bool, got \[5\] float32",
        ),
        (lambda x: along(truth, truth, truth, [(0.0, x)]), "at least one state"),
        (
            lambda x: along(truth, truth, truth, [(1.0, x)], mask=torch.zeros(5).bool()),
            "with a True",
        ),
    ],
)
def test_bad_input_is_refused_with_a_message_that_names_it(call, message):
    with pytest.raises(ValueError, match=message):
        call(noise(0, 5, 2))
