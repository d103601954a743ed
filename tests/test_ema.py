"""The average of weights over training has the profile that its width promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import nn

from guidance_edu.ema import (
    TRACKS,
    WIDEST,
    PowerEMA,
    Snapshot,
    coefficients,
    exponent,
    misfit,
    overlap,
    reconstruct,
    set_weights,
    take_snapshot,
)

FEW = settings(max_examples=25, deadline=None, derandomize=True)


class Number(nn.Module):
    """A model of one weight, and a buffer that is no weight."""

    def __init__(self, value=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value], dtype=torch.float64))
        self.register_buffer("steps", torch.tensor(5))


def average_of(values, sigma_rel):
    model = Number()
    ema = PowerEMA(model, sigma_rel)
    for value in values:
        with torch.no_grad():
            model.weight.fill_(value)
        ema.update(model)
    return float(ema.weights[0])


@pytest.mark.parametrize(
    ("sigma_rel", "gamma"),
    [(0.05, 16.972), (0.10, 6.937), (0.13, 4.604), (0.20, 1.826), (0.25, 0.720), (0.01, 96.995)],
)
def test_the_exponent_of_a_width_is_the_published_one(sigma_rel, gamma):
    assert exponent(sigma_rel) == pytest.approx(gamma, abs=6e-4)


@FEW
@given(st.floats(1e-4, WIDEST - 1e-4))
def test_the_profile_has_the_width_that_was_asked_for(sigma_rel):
    gamma = exponent(sigma_rel)
    width = math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))
    assert gamma > 0 and width == pytest.approx(sigma_rel, rel=1e-7)


def test_the_widest_profile_is_flat():
    assert exponent(WIDEST - 1e-9) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("bad", [0.0, -0.1, WIDEST, 0.3, math.inf, math.nan])
def test_a_width_that_no_profile_has_is_refused(bad):
    with pytest.raises(ValueError, match=r"expected sigma_rel between 0 and 0\.2887, got"):
        exponent(bad)
    with pytest.raises(ValueError, match="expected sigma_rel"):
        PowerEMA(Number(), bad)


@pytest.mark.parametrize("sigma_rel", [0.01, 0.28])
def test_after_the_first_update_the_average_is_the_weights(sigma_rel):
    assert average_of([0.7], sigma_rel) == 0.7


@FEW
@given(sigma_rel=st.floats(0.02, 0.28), value=st.floats(-5, 5))
def test_weights_that_stand_still_are_their_own_average(sigma_rel, value):
    assert average_of([value] * 20, sigma_rel) == pytest.approx(value, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.25])
def test_each_step_counts_as_the_power_profile_says(sigma_rel):
    """Step i of n covers ((i - 1) / n, i / n], so its share is a difference of t^(gamma + 1)."""
    n, gamma = 40, exponent(sigma_rel)
    for i in (1, 7, 40):
        share = average_of([float(step == i) for step in range(1, n + 1)], sigma_rel)
        wanted = (i / n) ** (gamma + 1) - ((i - 1) / n) ** (gamma + 1)
        assert share == pytest.approx(wanted, rel=1e-10, abs=1e-15)


def test_the_average_is_put_into_a_model_and_leaves_its_source_and_buffers_alone():
    source, target = Number(3.0), Number(0.0)
    target.steps.fill_(9)
    ema = PowerEMA(source, 0.1)
    ema.update(source)
    with torch.no_grad():
        source.weight.fill_(8.0)
    ema.copy_to(target)
    assert (target.weight.item(), target.steps.item(), source.weight.item()) == (3.0, 9, 8.0)
    assert target.weight.requires_grad and not ema.weights[0].requires_grad


def test_another_model_is_refused():
    ema = PowerEMA(Number(), 0.1)
    with pytest.raises(ValueError, match="zip"):
        ema.copy_to(nn.Linear(1, 1))


def profile(t, length, gamma):
    return (gamma + 1) * t**gamma / length ** (gamma + 1) if t <= length else 0.0


def stored(count=16, total=1.0, tracks=TRACKS):
    """Lengths and exponents of equally spaced snapshots of two tracks."""
    lengths = [total * k / count for k in range(1, count + 1) for _ in tracks]
    gammas = [exponent(width) for _ in range(count) for width in tracks]
    return torch.tensor(lengths, dtype=torch.float64), torch.tensor(gammas, dtype=torch.float64)


def walk(updates=240, every=15, dtype=torch.float16, online=(), tracks=TRACKS):
    """A model whose weights wander; snapshots of two tracks, and averages that were tracked."""
    rng = torch.Generator().manual_seed(5)
    model = nn.Linear(20, 10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
    averages = [PowerEMA(model, width) for width in (*tracks, *online)]
    taken = []
    for step in range(1, updates + 1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=rng)
        for average in averages:
            average.update(model)
        if step % every == 0:
            taken += [take_snapshot(average, dtype) for average in averages[: len(tracks)]]
    return model, averages[len(tracks) :], taken


@torch.no_grad()
def apart(weights, others):
    pairs = zip(weights, others, strict=True)
    return math.sqrt(sum(float((a.double() - b.double()).square().sum()) for a, b in pairs))


@FEW
@given(st.floats(0.1, 1), st.floats(0.1, 1), st.floats(0.02, 0.28), st.floats(0.02, 0.28))
def test_the_overlap_of_two_profiles_is_the_integral_of_their_product(a, b, width_a, width_b):
    gamma_a, gamma_b = exponent(width_a), exponent(width_b)
    end = min(a, b)
    wanted, _ = quad(lambda t: profile(t, a, gamma_a) * profile(t, b, gamma_b), 0, end, limit=200)
    assert float(overlap(a, gamma_a, b, gamma_b)) == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    assert float(overlap(b, gamma_b, a, gamma_a)) == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_overlaps_known_by_heart():
    assert float(overlap(4.0, 0.0, 4.0, 0.0)) == 0.25
    assert float(overlap(2.0, 3.0, 2.0, 3.0)) == pytest.approx(16 / (7 * 2))
    assert float(overlap(1.0, 0.0, 4.0, 1.0)) == pytest.approx(1 / 16)  # the integral of t / 8


def test_overlaps_neither_overflow_nor_lose_the_time_unit():
    assert float(overlap(1e9, 5000.0, 3e9, 8000.0)) == 0.0
    assert float(overlap(2e9, 17.0, 1e9, 7.0)) == pytest.approx(
        float(overlap(2.0, 17.0, 1.0, 7.0)) / 1e9
    )


@pytest.mark.parametrize(
    "bad", [(0.0, 1.0, 1.0, 1.0), (1.0, -0.5, 1.0, 1.0), (1.0, 1.0, -2.0, 1.0)]
)
def test_profiles_that_do_not_exist_have_no_overlap(bad):
    with pytest.raises(ValueError, match="expected"):
        overlap(*bad)


@pytest.mark.parametrize("width", [0.03, 0.08, 0.15, 0.25])
def test_the_coefficients_are_those_of_least_squares_on_a_fine_grid(width):
    """Independent: profiles as vectors of their averages over small cells, numpy's solver."""
    lengths, gammas = stored(8)
    edges = np.linspace(0, 1, 20001)

    def cells(length, gamma):
        return np.diff(np.minimum(edges / length, 1) ** (gamma + 1)) * 20000

    table = np.stack([cells(float(a), float(g)) for a, g in zip(lengths, gammas, strict=True)], 1)
    wanted = np.linalg.lstsq(table, cells(1.0, exponent(width)), rcond=None)[0]
    got = coefficients(lengths, gammas, 1.0, exponent(width)).numpy()
    np.testing.assert_allclose(got, wanted / wanted.sum(), atol=2e-4)


@pytest.mark.parametrize("width", TRACKS)
@pytest.mark.parametrize("k", [3, 10, 16])
def test_a_stored_average_is_its_own_reconstruction(width, k):
    lengths, gammas = stored()
    result = coefficients(lengths, gammas, k / 16, exponent(width))
    wanted = torch.zeros_like(result)
    wanted[2 * (k - 1) + TRACKS.index(width)] = 1
    torch.testing.assert_close(result, wanted, atol=1e-8, rtol=0)
    assert misfit(lengths, gammas, k / 16, exponent(width)) < 1e-5


@FEW
@given(st.floats(0.01, 0.28), st.integers(1, 24), st.floats(0.3, 1))
def test_coefficients_sum_to_one_and_know_no_unit_or_order(width, count, length):
    lengths, gammas = stored(count)
    gamma = exponent(width)
    result = coefficients(lengths, gammas, length, gamma)
    assert float(result.sum()) == pytest.approx(1, abs=1e-9)
    scaled = coefficients(lengths * 4096, gammas, length * 4096, gamma)
    torch.testing.assert_close(scaled, result, atol=1e-5, rtol=1e-5)
    flipped = coefficients(lengths.flip(0), gammas.flip(0), length, gamma)
    torch.testing.assert_close(flipped.flip(0), result, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("lengths", "gammas"), [([], []), ([1.0, 2.0], [3.0]), ([[1.0]], [[2.0]]), ([0.0], [1.0])]
)
def test_stored_profiles_that_make_no_sense_are_refused(lengths, gammas):
    with pytest.raises(ValueError, match="expected"):
        coefficients(torch.tensor(lengths), torch.tensor(gammas), 1.0, 5.0)


def test_more_snapshots_fit_better_and_the_reach_ends_where_the_book_says():
    def fit(count, width):
        return misfit(*stored(count), 1.0, exponent(width))

    for width in (0.015, 0.03, 0.08, 0.15, 0.25):
        assert fit(32, width) < fit(16, width) < fit(8, width)
    assert fit(16, 0.08) < 0.006 and fit(16, 0.15) < 0.012
    assert fit(16, 0.015) > 0.15 and fit(16, 0.28) > 0.15  # too short, and too nearly flat


@pytest.mark.parametrize(
    ("width", "bound"), [(0.03, 0.04), (0.08, 0.004), (0.15, 0.006), (0.20, 0.02), (0.25, 0.08)]
)
def test_a_reconstruction_is_close_to_the_average_that_was_tracked(width, bound):
    model, (online,), taken = walk(online=(width,), dtype=torch.float64)
    rebuilt = reconstruct(taken, width)
    moved = apart(online.weights, model.parameters())
    assert apart(rebuilt, online.weights) < bound * moved


def test_the_misfit_foresees_where_a_reconstruction_fails():
    model, online, taken = walk(online=(0.015, 0.03, 0.08), dtype=torch.float64)
    lengths = torch.tensor([float(snapshot.updates) for snapshot in taken])
    gammas = torch.tensor([snapshot.gamma for snapshot in taken], dtype=torch.float64)
    errors, fits = [], []
    for width, average in zip((0.015, 0.03, 0.08), online, strict=True):
        errors.append(apart(reconstruct(taken, width), average.weights))
        fits.append(misfit(lengths, gammas, 240.0, exponent(width)))
    assert errors == sorted(errors, reverse=True) and fits == sorted(fits, reverse=True)


def test_an_average_at_an_earlier_time_is_reconstructed():
    _, (online,), _ = walk(updates=150, online=(0.08,))
    _, _, taken = walk(dtype=torch.float64)
    assert apart(reconstruct(taken, 0.08, updates=150), online.weights) < 0.02


@pytest.mark.parametrize("width", TRACKS)
def test_a_stored_length_comes_back_up_to_the_rounding_of_its_storage(width):
    _, _, taken = walk(online=())
    for k in (4, 9, 16):
        wanted = taken[2 * (k - 1) + TRACKS.index(width)]
        rebuilt = reconstruct(taken, width, updates=15 * k)
        assert apart(rebuilt, wanted.weights) < 1e-6
        assert all(weight.dtype == torch.float64 for weight in rebuilt)


def test_half_precision_sets_a_floor_that_full_precision_does_not_have():
    _, (online,), coarse = walk(every=5, online=(0.07,))
    _, _, fine = walk(every=5, dtype=torch.float64)
    # A weight near 1 is stored to 2^-12 or so; 210 weights of size about 1.3.
    assert 1e-4 < apart(reconstruct(coarse, 0.07), online.weights) < 1e-2
    assert apart(reconstruct(fine, 0.07), online.weights) < 0.2 * apart(
        reconstruct(coarse, 0.07), online.weights
    )


def test_a_snapshot_is_a_copy_in_half_precision():
    model = Number(1.0)
    average = PowerEMA(model, 0.1)
    average.update(model)
    taken = take_snapshot(average)
    kept = take_snapshot(average, torch.float64)
    with torch.no_grad():
        model.weight.fill_(9.0)
    average.update(model)
    assert (taken.updates, taken.gamma) == (1, average.gamma)
    assert taken.weights[0].dtype == torch.float16
    assert float(taken.weights[0]) == 1.0 and float(kept.weights[0]) == 1.0


def test_snapshots_that_cannot_be_are_refused():
    average = PowerEMA(Number(), 0.1)
    with pytest.raises(ValueError, match="at least one update"):
        take_snapshot(average)
    model = Number(1e6)
    average.update(model)
    with pytest.raises(ValueError, match=r"that torch\.float16 can hold, got one of 1e\+06"):
        take_snapshot(average)
    assert float(take_snapshot(average, torch.float32).weights[0]) == 1e6


def test_reconstructions_that_cannot_be_are_refused():
    _, _, taken = walk(updates=30, every=15)
    with pytest.raises(ValueError, match="at least one snapshot"):
        reconstruct([], 0.1)
    with pytest.raises(ValueError, match=r"between 1 and 30, got 31"):
        reconstruct(taken, 0.1, updates=31)
    with pytest.raises(ValueError, match="expected updates"):
        reconstruct(taken, 0.1, updates=0)
    with pytest.raises(ValueError, match="expected sigma_rel"):
        reconstruct(taken, 0.3)
    other = Snapshot(30, 5.0, [torch.zeros(3)])
    with pytest.raises(ValueError, match="of one model"):
        reconstruct([*taken, other], 0.1)


def test_weights_are_put_into_a_model_of_their_shape_only():
    model = Number(0.0)
    model.steps.fill_(9)
    set_weights(model, [torch.tensor([2.5], dtype=torch.float32)])
    assert (model.weight.item(), model.weight.dtype, model.steps.item()) == (2.5, torch.float64, 9)
    for wrong in ([], [torch.zeros(2)], [torch.zeros(1), torch.zeros(1)]):
        with pytest.raises(ValueError, match=r"expected weights of shapes \[\[1\]\], got"):
            set_weights(model, wrong)


def test_an_average_takes_in_the_weights_of_its_own_network_alone():
    average = PowerEMA(nn.Linear(2, 2), 0.1)
    with pytest.raises(ValueError, match="the network whose weights are averaged"):
        average.update(nn.Linear(2, 1))
    assert average.updates == 0
