"""The closed-form laws agree with the flows they describe, integrated numerically.

The integrations use the exact scores and a method of order eight; their tolerances are those of
the finite start (in powers of s / sigma_max) where a law speaks of an infinite one.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad, solve_ivp

from toy_models import laws

FEW = settings(max_examples=15, deadline=None, derandomize=True)
spreads = st.floats(0.2, 2.0)
weights = st.floats(-1.0, 8.0)
means = st.floats(-3.0, 3.0)


def flow(denoiser, sigma_max, sigma_min=1e-6):
    """Carry 0 and sigma_max down dx / d ln sigma = x - D(x, sigma); return offset and slope."""
    solution = solve_ivp(
        lambda log_sigma, x: x - denoiser(x, math.exp(log_sigma)),
        (math.log(sigma_max), math.log(sigma_min)),
        np.array([0.0, sigma_max]),  # the slope from starts close together would lose digits
        method="DOP853",
        rtol=1e-10,
        atol=1e-13,
    )
    assert solution.success
    offset, far = solution.y[:, -1]
    return offset, (far - offset) / sigma_max


def moments(denoiser, sigma_max, mean=0.0, std=None):
    """Mean and std at the end of a flow that is affine in x, from a Gaussian start."""
    offset, slope = flow(denoiser, sigma_max)
    return offset + slope * mean, abs(slope) * (sigma_max if std is None else std)


def gaussian(mean, variance):
    return lambda x, sigma: (mean * sigma**2 + variance * x) / (variance + sigma**2)


def guided(positive, negative, w):
    return lambda x, sigma: w * positive(x, sigma) + (1 - w) * negative(x, sigma)


# Classifier-free guidance on Gaussians


@FEW
@given(w=weights, m=means, s=spreads, S=spreads, sigma_max=st.floats(1, 50))
@pytest.mark.parametrize("start", laws.STARTS)
def test_cfg_mean_and_std_are_those_of_the_integrated_flow(start, w, m, s, S, sigma_max):
    denoiser = guided(gaussian(m, s**2), gaussian(0, S**2), w)
    began = (0.0, sigma_max) if start == "noise" else (m, math.hypot(s, sigma_max))
    mean, std = moments(denoiser, sigma_max, *began)
    assert laws.cfg_mean(w, m, s, S, sigma_max, start) == pytest.approx(mean, rel=1e-6, abs=1e-7)
    assert laws.cfg_std(w, s, S, sigma_max, start) == pytest.approx(std, rel=1e-6)


@pytest.mark.parametrize("w", [0.5, 2.0, 4.0])
def test_the_infinite_start_is_the_limit_of_finite_ones(w):
    mean, std = moments(guided(gaussian(1, 0.25), gaussian(0, 1), w), 1e6)
    assert laws.cfg_mean(w, 1, 0.5, 1) == pytest.approx(mean, rel=1e-5)
    assert laws.cfg_std(w, 0.5, 1) == pytest.approx(std, rel=1e-5)
    for start in laws.STARTS:
        assert laws.cfg_std(w, 0.5, 1, 1e6, start) == pytest.approx(laws.cfg_std(w, 0.5, 1))
        late = laws.cfg_mean(w, 1, 0.5, 1, 1e6, start)
        assert late == pytest.approx(laws.cfg_mean(w, 1, 0.5, 1), rel=1e-5)


def test_the_mean_is_the_textbook_integral():
    def integral(w, m, s, S):
        # The form before the substitution: variation of constants in y = sigma^2.
        value, _ = quad(
            lambda y: (s**2 + y) ** (-w / 2 - 1) * (S**2 + y) ** ((w - 1) / 2), 0, math.inf
        )
        return w * m / 2 * s**w * S ** (1 - w) * value

    for w in (0.3, 1, 2, 3.7, 8):
        assert laws.cfg_mean(w, 1, 0.5, 1) == pytest.approx(integral(w, 1, 0.5, 1), rel=1e-6)
        assert laws.cfg_mean(w, -2, 1.5, 1) == pytest.approx(integral(w, -2, 1.5, 1), rel=1e-6)


@pytest.mark.parametrize(
    ("w", "mean"),
    [(1, 1.0), (1.5, 1.239), (2, 1.380), (3, 1.5), (4, 1.518), (5, 1.5), (8, 1.43), (20, 1.36)],
)
def test_the_published_table_of_means_is_reproduced(w, mean):
    assert laws.cfg_mean(w, 1, 0.5, 1) == pytest.approx(mean, abs=6e-4)


def test_guidance_collapses_the_spread_below_the_sharpened_density():
    assert laws.cfg_std(4, 0.5, 1) == 0.0625
    assert laws.sharpened(4, 1, 0.5, 1).std == pytest.approx(0.2774, abs=5e-5)
    assert laws.sharpened(3, 1, 0.5, 1) == pytest.approx((1.2, 0.3162), abs=5e-5)


def test_the_mean_overshoots_its_limit_and_is_not_monotone_in_w():
    values = [laws.cfg_mean(w, 1, 0.5, 1) for w in np.linspace(1, 8, 141)]
    peak = int(np.argmax(values))
    assert 1 + 7 * peak / 140 == pytest.approx(3.81, abs=0.03)
    assert all(a < b for a, b in zip(values[:peak], values[1 : peak + 1], strict=True))
    assert all(a > b for a, b in zip(values[peak:], values[peak + 1 :], strict=False))
    assert values[peak] > laws.cfg_mean_limit(1, 0.5, 1)


@FEW
@given(m=means, s=spreads, S=spreads)
def test_w_1_gives_the_conditional_and_w_0_the_unconditional(m, s, S):
    assert laws.cfg_mean(1, m, s, S) == pytest.approx(m)
    assert laws.cfg_std(1, s, S) == pytest.approx(s)
    assert laws.cfg_mean(0, m, s, S) == 0
    assert laws.cfg_std(0, s, S) == pytest.approx(S)
    assert laws.sharpened(1, m, s, S) == pytest.approx((m, s))
    assert laws.sharpened(0, m, s, S) == pytest.approx((0, S))
    assert laws.cfg_mean(1, m, s, S, 3.0, "conditional") == pytest.approx(m)
    assert laws.cfg_std(1, s, S, 3.0, "conditional") == pytest.approx(s)


@FEW
@given(w=weights, m=means, s=spreads)
def test_with_equal_spreads_the_flow_samples_the_sharpened_density(w, m, s):
    assert laws.cfg_mean(w, m, s, s) == pytest.approx(w * m)
    assert laws.cfg_std(w, s, s) == s
    assert laws.sharpened(w, m, s, s) == pytest.approx((w * m, s))


@FEW
@given(w=weights, m=means, s=spreads, S=spreads, unit=st.floats(1e-3, 1e3))
def test_the_laws_do_not_depend_on_the_unit_of_length(w, m, s, S, unit):
    scaled = laws.cfg_mean(w, unit * m, unit * s, unit * S, 10 * unit)
    assert scaled == pytest.approx(unit * laws.cfg_mean(w, m, s, S, 10), rel=1e-8)
    scaled = laws.cfg_std(w, unit * s, unit * S, 10 * unit)
    assert scaled == pytest.approx(unit * laws.cfg_std(w, s, S, 10), rel=1e-8)


def test_the_mean_tends_to_the_mode_of_the_ratio_like_the_sharpened_one():
    limit = laws.cfg_mean_limit(1, 0.5, 1)
    assert limit == pytest.approx(4 / 3)
    assert laws.cfg_mean(1e4, 1, 0.5, 1) == pytest.approx(limit, rel=1e-3)
    assert laws.cfg_mean(1e4, 1, 0.5, 1, 20.0) == pytest.approx(limit, rel=1e-3)
    assert laws.sharpened(1e4, 1, 0.5, 1).mean == pytest.approx(limit, rel=1e-3)
    assert laws.cfg_mean_limit(-1, 1, 1) == -math.inf
    assert laws.cfg_mean_limit(1, 2, 1) == math.inf
    assert laws.cfg_mean_limit(0, 2, 1) == 0


@pytest.mark.parametrize("w", [-1.5, 0.4, 2.5, 6.0])
def test_the_sharpened_density_has_the_moments_of_the_normalised_product(w):
    m, s, S = 0.7, 0.6, 0.9

    def weight(x):
        return math.exp(-0.5 * (w * ((x - m) / s) ** 2 + (1 - w) * (x / S) ** 2))

    if w / s**2 <= (w - 1) / S**2:
        with pytest.raises(ValueError, match="no sharpened density"):
            laws.sharpened(w, m, s, S)
        return
    total, first, second = (quad(lambda x, p=p: x**p * weight(x), -40, 40)[0] for p in (0, 1, 2))
    mean = first / total
    std = math.sqrt(second / total - mean**2)
    assert laws.sharpened(w, m, s, S) == pytest.approx((mean, std), rel=1e-6)


@pytest.mark.parametrize(("w", "s", "S"), [(2, 2.0, 1.0), (-1, 0.5, 1.0), (1.125, 3.0, 1.0)])
def test_a_sharpened_density_that_cannot_be_normalised_is_an_error(w, s, S):
    with pytest.raises(ValueError, match="no sharpened density"):
        laws.sharpened(w, 0, s, S)


@FEW
@given(w=weights, m=means, s=spreads, S=spreads, low=st.floats(0, 1), width=st.floats(0.01, 3))
def test_an_interval_gives_what_the_flow_with_a_window_gives(w, m, s, S, low, width):
    high = low + width
    positive = gaussian(m, s**2)
    denoiser = guided(positive, gaussian(0, S**2), w)
    mean, std = m, math.hypot(s, high)  # the unguided flow from infinity, exactly
    offset, slope = flow(denoiser, high, max(low, 1e-6))
    mean, std = offset + slope * mean, slope * std
    if low > 1e-6:
        offset, slope = flow(positive, low)
        mean, std = offset + slope * mean, slope * std
    expected = laws.cfg_interval(w, m, s, S, low, high)
    assert expected == pytest.approx((mean, std), rel=1e-6, abs=1e-7)


def test_an_interval_without_ends_is_ordinary_guidance_and_an_empty_one_none():
    everywhere = laws.cfg_interval(3, 1, 0.5, 1, 0, math.inf)
    assert everywhere == pytest.approx((laws.cfg_mean(3, 1, 0.5, 1), laws.cfg_std(3, 0.5, 1)))
    assert laws.cfg_interval(3, 1, 0.5, 1, 2, 2) == (1, 0.5)
    assert laws.cfg_interval(1, 1, 0.5, 1, 0.2, 2) == pytest.approx((1, 0.5))
    assert laws.cfg_interval(3, 1, 0.5, 1, 0.28, 2.9) == pytest.approx((1.428, 0.165), abs=6e-4)


# A bad version as the negative


@pytest.mark.parametrize(("k", "w"), [(2, 2.077), (3, 1.557), (5, 1.297)])
def test_the_best_weight_of_a_bad_version_restores_the_data(k, w):
    best = laws.bad_version_best_weight(0.25, 0.02, k)
    assert best == pytest.approx(w, abs=5e-4)
    assert laws.bad_version_std(best, 0.25, 0.02, k) == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize("w", [0.0, 1.0, 2.077, 3.0])
def test_the_std_of_a_guided_bad_version_is_that_of_the_flow(w):
    denoiser = guided(gaussian(0, 0.27), gaussian(0, 0.29), w)
    _, std = moments(denoiser, 1e6)
    assert laws.bad_version_std(w, 0.25, 0.02, 2) == pytest.approx(std, rel=1e-6)


def test_the_best_weight_tends_to_the_rule_for_errors_in_proportion():
    for k in (0.5, 2, 3, 10):
        linear = laws.linear_error_best_weight(k)
        assert laws.bad_version_best_weight(1, 1e-13, k) == pytest.approx(linear, rel=1e-9)
    assert laws.bad_version_best_weight(0.25, 0.02, 0) == pytest.approx(0)
    assert laws.bad_version_best_weight(0.25, 0.02, 0.5) < 1
    assert laws.linear_error_best_weight(2) == 2
    assert laws.linear_error_best_weight(0) == 0


# Blur, wrong level, random condition, CFG++


@pytest.mark.parametrize("power", [0.1, 1.0, 7.0])
@pytest.mark.parametrize(("w", "h"), [(1.0, 0.5), (2.5, 0.3), (4.0, 1.0), (0.0, 0.4)])
def test_blur_guidance_shrinks_each_mode_by_one_factor_whatever_its_power(power, w, h):
    clean = gaussian(0, power)

    def noise(x, sigma):
        return (x - clean(x, sigma)) / sigma

    def denoiser(x, sigma):
        blurred = x - h * clean(x, sigma)  # the clean estimate loses h, the noise stays
        epsilon = noise(x, sigma) + (w - 1) * (noise(x, sigma) - noise(blurred, sigma))
        return x - sigma * epsilon

    _, plain = moments(clean, 1e5)
    _, std = moments(denoiser, 1e5)
    assert std / plain == pytest.approx(laws.blur_guidance_factor(w, h), rel=1e-6)


def test_blur_guidance_combined_as_denoised_samples_diverges_instead():
    clean, w, h = gaussian(0, 1.0), 2.5, 0.3

    def denoiser(x, sigma):
        blurred = x - h * clean(x, sigma)
        return clean(x, sigma) + (w - 1) * (clean(x, sigma) - clean(blurred, sigma))

    ends = [flow(denoiser, 10.0, smallest)[1] for smallest in (1e-3, 1e-5)]  # slopes
    assert ends[1] / ends[0] == pytest.approx(100 ** ((w - 1) * h), rel=1e-5)


@pytest.mark.parametrize("power", [0.1, 4.0])
@pytest.mark.parametrize(("w", "delta"), [(1.0, 0.3), (3.0, 0.3), (3.0, -0.3), (0.0, 0.5)])
def test_a_negative_at_the_wrong_level_rescales_any_gaussian_by_one_factor(power, w, delta):
    clean = gaussian(0.8, power)
    denoiser = guided(clean, lambda x, sigma: clean(x, sigma * math.exp(delta)), w)
    mean, std = moments(denoiser, 1e6)
    factor = laws.wrong_level_factor(w, delta)
    assert std / math.sqrt(power) == pytest.approx(factor, rel=1e-6)
    assert mean == pytest.approx(0.8, rel=1e-4)


@pytest.mark.parametrize("w", [1.0, 2.0, 4.0])
def test_guidance_by_a_kept_random_class_has_the_mean_and_std_of_its_flows(w):
    centres, shares, m, s, sigma_max = (-1.0, 0.0, 2.0), (0.5, 0.3, 0.2), 2.0, 0.3, 1e6
    ends = []
    for centre in centres:
        denoiser = guided(gaussian(m, s**2), gaussian(centre, s**2), w)
        ends.append(moments(denoiser, sigma_max))
    mean = sum(q * end[0] for q, end in zip(shares, ends, strict=True))
    square = sum(q * (end[1] ** 2 + end[0] ** 2) for q, end in zip(shares, ends, strict=True))
    assert laws.icg_mean(w, m, centres, shares) == pytest.approx(mean, rel=1e-5)
    std = math.sqrt(square - mean**2)
    assert laws.icg_std_fixed(w, s, centres, shares) == pytest.approx(std, rel=1e-5)


def test_guidance_by_a_random_class_gives_the_printed_numbers():
    assert laws.icg_mean(4, 2, (-1, 0, 2)) == pytest.approx(7)
    assert laws.icg_std_fixed(4, 0.3, (-1, 0, 2)) == pytest.approx(3.754, abs=5e-4)
    assert [laws.icg_mean(w, 1, (-1, 1)) for w in (2, 4)] == [2, 4]
    assert laws.icg_std_fixed(2, 0.3, (-1, 1)) == pytest.approx(1.044, abs=5e-4)
    assert laws.icg_std_fixed(4, 0.3, (-1, 1)) == pytest.approx(3.015, abs=5e-4)
    assert laws.icg_mean(5, 1.5, [1.5]) == 1.5
    assert laws.icg_std_fixed(5, 0.3, [1.5]) == 0.3


def test_the_negative_averaged_over_classes_is_the_geometric_not_the_arithmetic_mean():
    # The mean score of N(-1, s^2) and N(1, s^2) is that of N(0, s^2), their geometric mean; so a
    # redrawn class acts like that one negative, for which the law is that of equal spreads.
    w, s = 3.0, 0.3
    mean, std = moments(guided(gaussian(1, s**2), gaussian(0, s**2), w), 1e6)
    assert mean == pytest.approx(laws.icg_mean(w, 1, (-1, 1)), rel=1e-5)
    assert std == pytest.approx(s, rel=1e-5)


@FEW
@given(
    lam=st.floats(0, 1),
    a=st.floats(0.1, 1),
    b=st.floats(0.3, 1),
    c=st.floats(0.5, 1),
    share=st.floats(0, 0.9),
)
def test_one_step_of_cfg_plus_plus_equals_a_ddim_step_with_the_weight(lam, a, b, c, share):
    alpha, sigma, alpha_next = a, b, c
    sigma_next = share * alpha_next * sigma / alpha
    w = laws.cfg_plus_plus_weight(lam, alpha, sigma, alpha_next, sigma_next)
    x, conditional, unconditional = 0.37, 1.2, -0.4

    def noise(clean):
        return (x - alpha * clean) / sigma

    plus = unconditional + lam * (conditional - unconditional)
    expected = alpha_next * plus + sigma_next * noise(unconditional)
    clean = unconditional + w * (conditional - unconditional)
    assert alpha_next * clean + sigma_next * noise(clean) == pytest.approx(expected, abs=1e-12)


def test_cfg_plus_plus_ends_with_its_own_strength_and_grows_on_small_steps():
    assert laws.cfg_plus_plus_weight(0.6, 0.9, 0.4, 1.0, 0.0) == 0.6
    assert laws.cfg_plus_plus_weight(0.0, 1, 2, 1, 1) == 0
    assert laws.cfg_plus_plus_weight(0.6, 1, 2, 1, 1.9) == pytest.approx(12)


# Bad input, and the table


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: laws.cfg_std(math.nan, 1, 1), "finite w"),
        (lambda: laws.cfg_std(2, 0, 1), "s above 0"),
        (lambda: laws.cfg_std(2, 1, -1), "S above 0"),
        (lambda: laws.cfg_std(2, 1, 1, 0), "sigma_max above 0"),
        (lambda: laws.cfg_std(2, 1, 1, math.nan), "sigma_max above 0"),
        (lambda: laws.cfg_mean(2, 1, 1, 1, start="data"), "noise, conditional"),
        (lambda: laws.cfg_mean(2, math.inf, 1, 1), "finite m"),
        (lambda: laws.cfg_mean_limit(1, 1, 0), "S above 0"),
        (lambda: laws.cfg_interval(2, 1, 1, 1, 2, 1), "0 <= low <= high"),
        (lambda: laws.cfg_interval(2, 1, 1, 1, -1, 1), "0 <= low <= high"),
        (lambda: laws.bad_version_std(2, 1, -1, 2), "h2 and k"),
        (lambda: laws.bad_version_std(2, 0, 1, 2), "s2 above 0"),
        (lambda: laws.bad_version_best_weight(1, 1, 1), "no best weight"),
        (lambda: laws.bad_version_best_weight(1, 0, 2), "no best weight"),
        (lambda: laws.linear_error_best_weight(1), "other than 1"),
        (lambda: laws.blur_guidance_factor(2, 1.1), "from 0 to 1"),
        (lambda: laws.wrong_level_factor(2, math.inf), "finite delta"),
        (lambda: laws.icg_mean(2, 1, []), "weight for each mean"),
        (lambda: laws.icg_mean(2, 1, [1, 2], [1]), "weight for each mean"),
        (lambda: laws.icg_std_fixed(2, 1, [1, 2], [1, -1]), "weights >= 0"),
        (lambda: laws.icg_std_fixed(2, 0, [1, 2]), "s above 0"),
        (lambda: laws.cfg_plus_plus_weight(0.5, 1, 1, 1, 1), "lower sigma / alpha"),
        (lambda: laws.cfg_plus_plus_weight(0.5, 1, 1, 0, 0.5), "lower sigma / alpha"),
    ],
)
def test_bad_numbers_are_refused_with_a_message_that_names_them(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_table_of_degenerate_cases_names_each_setting_once_with_its_reason():
    keys = [(case.method, case.setting) for case in laws.DEGENERATE_CASES]
    assert len(set(keys)) == len(keys)
    assert {"autoguidance", "SIMS", "ICG", "TSG", "SWG", "PAG", "SEG", "SAG"} < {k[0] for k in keys}
    assert all(case.reason for case in laws.DEGENERATE_CASES)
