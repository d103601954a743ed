"""The measures: their exact values where one is known, their invariances, floors and errors.

Statistical tests run at fixed seeds; their tolerances are at least five standard errors.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from guidance_edu import metrics

FEW = settings(max_examples=15, deadline=None, derandomize=True)
seeds = st.integers(0, 10_000)


def rng(seed):
    return torch.Generator().manual_seed(seed)


def noise(seed, *shape):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def log_density(x, sigma=0.0):
    """Log density of N(0, 1) in d dimensions, blurred by sigma, up to its constant."""
    return -0.5 * x.square().sum(1) / (1 + sigma**2)


def draw(n, generator):
    return torch.randn(n, 2, generator=generator, dtype=torch.float64)


def rotation(seed, d):
    return torch.linalg.qr(noise(seed, d, d)).Q


# Outside and stray


def test_the_floor_leaves_the_quantile_of_the_true_samples_below_it():
    truth = noise(0, 5000, 2)
    floor = metrics.density_floor(log_density, truth)
    assert metrics.fraction_below(log_density, truth, floor) == 5 / 5000
    for quantile in (0.01, 0.5):
        floor = metrics.density_floor(log_density, truth, quantile)
        assert metrics.fraction_below(log_density, truth, floor) == quantile
    assert metrics.density_floor(log_density, truth.flip(0), 0.5) == floor


def test_the_floor_of_a_gaussian_is_its_known_quantile():
    # |x|^2 / 2 is exponential in two dimensions: the log density exceeds ln(quantile).
    # Standard error of the quantile: 1 / sqrt(n quantile) = .05.
    floor = metrics.density_floor(log_density, noise(1, 400_000, 2))
    assert floor == pytest.approx(math.log(0.001), abs=0.25)


def test_a_sample_on_the_floor_is_not_below_it():
    x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    assert metrics.fraction_below(log_density, x, -0.5) == 0.5
    assert metrics.fraction_below(log_density, x, 0.5) == 1
    assert metrics.fraction_below(log_density, x, -math.inf) == 0


def test_outside_counts_samples_beyond_nearly_all_true_ones():
    truth = noise(0, 5000, 2)
    samples = torch.cat([torch.zeros(30, 2), torch.full((10, 2), 9.0)])
    assert metrics.outside(log_density, samples, truth) == 0.25
    # Expected share .001 +- .0005 (floor) +- .0002 (samples): at most .004.
    assert metrics.outside(log_density, noise(2, 20_000, 2), truth) < 0.004


def test_stray_blurs_the_density_and_not_the_samples():
    levels = []

    def comb(x, sigma=0.0):
        # Two spikes of std .001 at 0 and 1: a sample at .02 is out, but not astray.
        levels.append(sigma)
        variance = 1e-6 + sigma**2
        distance = torch.stack([x[:, 0] ** 2, (x[:, 0] - 1) ** 2])
        return (-0.5 * distance / variance).logsumexp(0)

    truth = (noise(0, 5000, 1) * 1e-3) + (torch.arange(5000) % 2)[:, None]
    samples = torch.tensor([[0.0], [0.02], [0.5], [1.0]])
    assert metrics.outside(comb, samples, truth) == 0.5
    assert set(levels) == {0.0}
    # The floor of the blurred density is high, since true samples sit at its peaks; .02 is below.
    assert metrics.stray(comb, samples, truth) == 0.5
    assert levels[-2:] == [metrics.STRAY_BLUR] * 2
    wide = noise(0, 5000, 1) * 0.1
    near = torch.tensor([[0.0], [0.02]])
    assert metrics.stray(comb, near, wide, blur=0.1) == 0
    assert metrics.stray(comb, samples, truth, blur=0.0) == metrics.outside(comb, samples, truth)


def test_a_density_without_a_blur_argument_serves_for_outside():
    def plain(x):
        return -x[:, 0].abs()

    assert metrics.outside(plain, torch.full((3, 1), 99.0), noise(0, 1000, 1)) == 1


# Histograms


def test_the_histogram_counts_branches_and_keeps_empty_ones():
    histogram = metrics.branch_histogram(torch.tensor([0, 2, 2, 0, 2]), 4)
    assert histogram.dtype == torch.float64
    assert histogram.tolist() == pytest.approx([0.4, 0, 0.6, 0])


@FEW
@given(seed=seeds)
def test_the_histogram_and_coverage_ignore_the_order(seed):
    branches = torch.randint(0, 9, (40,), generator=rng(seed))
    order = torch.randperm(40, generator=rng(seed))
    mixed = metrics.branch_histogram(branches[order], 9)
    assert torch.equal(mixed, metrics.branch_histogram(branches, 9))
    assert metrics.coverage(branches[order], 9) == metrics.coverage(branches, 9)


def test_total_variation_is_0_for_equal_1_for_disjoint_and_symmetric():
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    assert metrics.total_variation(p, p) == 0
    assert metrics.total_variation(p, q) == 1
    r = torch.tensor([0.25, 0.5, 0.25])
    assert metrics.total_variation(p, r) == metrics.total_variation(r, p) == 0.25


@FEW
@given(seed=seeds)
def test_total_variation_is_the_largest_difference_any_set_of_branches_shows(seed):
    p, q = noise(seed, 6).softmax(0), noise(seed + 1, 6).softmax(0)
    sets = ((torch.arange(64)[:, None] >> torch.arange(6)) & 1).double()
    assert metrics.total_variation(p, q) == pytest.approx(float((sets @ (p - q)).max()))


@pytest.mark.parametrize("n", [1, 7, 100, 8192])
def test_the_floor_of_total_variation_is_what_true_samples_give(n):
    p = torch.tensor([0.5, 0.2, 0.2, 0.09, 0.01, 0.0], dtype=torch.float64)
    counts = np.random.default_rng(0).multinomial(n, p.numpy(), size=4000) / n
    seen = np.abs(counts - p.numpy()).sum(1) / 2
    floor = metrics.total_variation_floor(p, n)
    assert floor == pytest.approx(seen.mean(), abs=5 * seen.std() / math.sqrt(4000) + 1e-12)


def test_the_floor_of_total_variation_in_its_limits():
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    assert metrics.total_variation_floor(p, 1) == pytest.approx(float((p * (1 - p)).sum()))
    assert metrics.total_variation_floor(torch.tensor([1.0, 0.0]), 50) == 0
    n = 10**7
    large = float((p * (1 - p) / (2 * math.pi * n)).sqrt().sum())
    assert metrics.total_variation_floor(p, n) == pytest.approx(large, rel=1e-5)


def test_coverage_counts_only_branches_hit_from_inside():
    branches = torch.tensor([0, 1, 1, 3])
    assert metrics.coverage(branches, 4) == 0.75
    assert metrics.coverage(branches, 4, torch.tensor([True, False, True, False])) == 0.5
    assert metrics.coverage(branches, 4, torch.zeros(4).bool()) == 0


# Energy distance and kernel discrepancy


def pair_means(x, y, function):
    """Mean of a function of distance over pairs: across, and of distinct samples within x and y."""

    def mean(a, b, distinct):
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if not (distinct and i == j)]
        return sum(function(math.dist(a[i], b[j])) for i, j in pairs) / len(pairs)

    x, y = x.tolist(), y.tolist()
    return mean(x, y, False), mean(x, x, True), mean(y, y, True)


@pytest.mark.parametrize("d", [1, 2, 5, 40])
def test_the_energy_distance_is_its_definition_over_distinct_pairs(d):
    x, y = noise(0, 13, d), noise(1, 9, d) + 0.5
    across, within_x, within_y = pair_means(x, y, lambda r: r)
    expected = 2 * across - within_x - within_y
    assert metrics.energy_distance(x, y) == pytest.approx(expected, rel=1e-9)
    scaled = metrics.energy_distance(x, y, scale=metrics.ED_UNITS)
    assert scaled == pytest.approx(1000 * expected, rel=1e-9)


@pytest.mark.parametrize("d", [1, 2, 40])
def test_the_kernel_discrepancy_is_its_definition_over_distinct_pairs(d):
    x, y, width = noise(0, 13, d), noise(1, 9, d) + 0.5, 0.7 * math.sqrt(d)
    across, within_x, within_y = pair_means(x, y, lambda r: math.exp(-(r**2) / (2 * width**2)))
    got = metrics.maximum_mean_discrepancy(x, y, width)
    assert got == pytest.approx(within_x + within_y - 2 * across, rel=1e-9)


@FEW
@given(seed=seeds, d=st.integers(1, 4))
def test_distances_ignore_order_shift_and_rotation_and_are_symmetric(seed, d):
    x, y = noise(seed, 20, d), 1.3 * noise(seed + 1, 15, d)
    turn, shift = rotation(seed, d), 7 * noise(seed + 2, d)
    order = torch.randperm(20, generator=rng(seed))
    for metric in (metrics.energy_distance, metrics.maximum_mean_discrepancy):
        plain = metric(x, y)
        assert metric(x[order], y) == pytest.approx(plain, abs=1e-12)
        assert metric(y, x) == pytest.approx(plain, abs=1e-12)
        assert metric(x @ turn + shift, y @ turn + shift) == pytest.approx(plain, abs=1e-11)
    three = metrics.energy_distance(3 * x, 3 * y)
    assert three == pytest.approx(3 * metrics.energy_distance(x, y), abs=1e-11)
    scaled = metrics.maximum_mean_discrepancy(3 * x, 3 * y)
    assert scaled == pytest.approx(metrics.maximum_mean_discrepancy(x, y), abs=1e-12)


@pytest.mark.parametrize(
    "metric", [metrics.energy_distance, lambda x, y: metrics.maximum_mean_discrepancy(x, y, 1.0)]
)
def test_two_true_sets_give_zero_on_average_even_when_small(metric):
    # Of 10 samples, a biased estimate would be off by E|x - x'| / 5 = .35 or (1 - .33) / 5 = .13.
    mean, std = metrics.noise_floor(metric, draw, 10, rng(0), repeats=1500)
    assert abs(mean) < 5 * std / math.sqrt(1500)
    assert 5 * std / math.sqrt(1500) < 0.04


def test_the_energy_distance_of_shifted_gaussians_is_the_known_one():
    # In one dimension E|N(a, 2)| = 2 exp(-a^2 / 4) / sqrt(pi) + a erf(a / 2).
    a, n = 1.0, 3000
    x, y = noise(0, n, 1), noise(1, n, 1) + a
    across = 2 * math.exp(-(a**2) / 4) / math.sqrt(math.pi) + a * math.erf(a / 2)
    expected = 2 * across - 4 / math.sqrt(math.pi)
    # One run's std is about .03 (sampling of the two means).
    assert metrics.energy_distance(x, y) == pytest.approx(expected, abs=0.15)


def test_the_kernel_discrepancy_of_shifted_gaussians_is_the_known_one():
    # Kernel of width b on N(0, 1) and N(a, 1): 2 b / sqrt(b^2 + 2) (1 - exp(-a^2 / (2 (b^2 + 2)))).
    a, b, n = 1.0, 0.8, 3000
    x, y = noise(0, n, 1), noise(1, n, 1) + a
    expected = 2 * b / math.sqrt(b**2 + 2) * (1 - math.exp(-(a**2) / (2 * (b**2 + 2))))
    got = metrics.maximum_mean_discrepancy(x, y, b)
    # One run's std is about .01.
    assert got == pytest.approx(expected, abs=0.05)


def test_the_median_bandwidth_is_the_median_of_all_pooled_distances():
    x, y = noise(0, 4, 2), noise(1, 3, 2)
    points = torch.cat([x, y]).tolist()
    pairs = sorted(math.dist(points[i], points[j]) for i in range(7) for j in range(i))
    expected = metrics.maximum_mean_discrepancy(x, y, pairs[10])
    assert metrics.maximum_mean_discrepancy(x, y) == pytest.approx(expected, rel=1e-12)


def test_distances_in_blocks_are_those_in_one_piece(monkeypatch):
    x, y = noise(0, 50, 2), noise(1, 41, 2) + 0.2
    whole = metrics.energy_distance(x, y), metrics.precision_recall(x, y)
    monkeypatch.setattr(metrics, "CHUNK", 90)
    assert metrics.energy_distance(x, y) == pytest.approx(whole[0], rel=1e-12)
    assert metrics.precision_recall(x, y) == whole[1]


def test_far_from_the_origin_and_in_float32_the_distance_keeps_its_digits():
    x, y = noise(0, 60, 40), noise(1, 60, 40) + 0.3
    plain = metrics.energy_distance(x, y)
    assert metrics.energy_distance(x + 1e6, y + 1e6) == pytest.approx(plain, rel=1e-6)
    assert metrics.energy_distance(x.float(), y.float()) == pytest.approx(plain, rel=1e-4)
    images = metrics.energy_distance(x.reshape(60, 5, 8), y.reshape(60, 5, 8))
    assert images == pytest.approx(plain, rel=1e-12)


def test_the_noise_floor_is_the_mean_and_spread_of_single_runs():
    values = iter([1.0, 2.0, 6.0])
    floor = metrics.noise_floor(lambda x, y: next(values), draw, 5, rng(0), repeats=3)
    assert floor.mean == 3
    assert floor.std == pytest.approx(math.sqrt(7))
    seen = []
    metrics.noise_floor(lambda x, y: seen.extend([x, y]) or 0.0, draw, 5, rng(0), repeats=2)
    assert len({tuple(x.flatten().tolist()) for x in seen}) == 4  # all sets are independent
    with pytest.raises(ValueError, match="two repeats"):
        metrics.noise_floor(metrics.energy_distance, draw, 5, rng(0), repeats=1)


# Sliced Wasserstein


@pytest.mark.parametrize(("n", "m"), [(12, 12), (12, 7), (5, 40)])
def test_in_one_dimension_the_sliced_distance_is_the_exact_one(n, m):
    x, y = noise(0, n, 1), noise(1, m, 1) * 2 + 1
    expected = wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy())
    got = metrics.sliced_wasserstein(x, y, rng(0), order=1)
    assert got == pytest.approx(expected, rel=1e-9)
    doubled = metrics.sliced_wasserstein(x.repeat(3, 1), y.repeat(2, 1), rng(0))
    assert metrics.sliced_wasserstein(x, y, rng(0)) == pytest.approx(doubled, rel=1e-9)


def test_a_shift_is_seen_by_its_root_mean_square_shadow():
    x, shift = noise(0, 50, 3), torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64)
    got = metrics.sliced_wasserstein(x, x + shift, rng(0), directions=20_000)
    # Relative standard error sqrt(.8) / 2 / sqrt(20000) = .003.
    assert got == pytest.approx(5 / math.sqrt(3), rel=0.016)


@FEW
@given(seed=seeds)
def test_the_sliced_distance_is_symmetric_and_0_only_for_equal_sets(seed):
    x, y = noise(seed, 9, 2), noise(seed + 1, 6, 2)
    there, back = (metrics.sliced_wasserstein(*pair, rng(seed)) for pair in ((x, y), (y, x)))
    assert there == pytest.approx(back) and there > 0
    assert metrics.sliced_wasserstein(x, x.flip(0), rng(seed)) < 1e-12


# Frechet distance


def covariance(seed, d, rank=None):
    root = noise(seed, d, rank or d)
    return root @ root.T


@FEW
@given(seed=seeds, d=st.integers(1, 6))
def test_the_frechet_distance_is_its_formula(seed, d):
    a, b = covariance(seed, d), covariance(seed + 1, d)
    mean_a, mean_b = noise(seed + 2, d), noise(seed + 3, d)
    # The eigenvalues of a b are those of a^(1/2) b a^(1/2).
    cross = torch.linalg.eigvals(a @ b).real.clamp_min(0).sqrt().sum()
    expected = float((mean_a - mean_b).square().sum() + a.trace() + b.trace() - 2 * cross)
    got = metrics.frechet_distance_from_moments(mean_a, a, mean_b, b)
    assert got == pytest.approx(expected, rel=1e-7, abs=1e-7)
    turn = rotation(seed, d)
    turned = metrics.frechet_distance_from_moments(
        turn @ mean_a, turn @ a @ turn.T, turn @ mean_b, turn @ b @ turn.T
    )
    assert turned == pytest.approx(got, rel=1e-8, abs=1e-10)
    assert metrics.frechet_distance_from_moments(mean_b, b, mean_a, a) == pytest.approx(got)


def test_for_commuting_covariances_it_is_the_difference_of_standard_deviations():
    turn, zero = rotation(0, 3), torch.zeros(3, dtype=torch.float64)
    first, second = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 4.0, 1.0]).double()
    a, b = (turn @ value.diag() @ turn.T for value in (first, second))
    shift = torch.tensor([0.0, 3.0, 0.0], dtype=torch.float64)
    assert metrics.frechet_distance_from_moments(zero, a, shift, b) == pytest.approx(9 + 1 + 4)


def test_singular_covariances_are_measured_without_loss():
    zero = torch.zeros(5, dtype=torch.float64)
    a, b = covariance(0, 5, rank=2), covariance(1, 5, rank=2)
    assert metrics.frechet_distance_from_moments(zero, a, zero, a) < 1e-12
    none = torch.zeros(5, 5, dtype=torch.float64)
    trace = metrics.frechet_distance_from_moments(zero, a, zero, none)
    assert trace == pytest.approx(float(a.trace()))
    ridge = 1e-12 * torch.eye(5, dtype=torch.float64)
    near = metrics.frechet_distance_from_moments(zero, a + ridge, zero, b + ridge)
    assert metrics.frechet_distance_from_moments(zero, a, zero, b) == pytest.approx(near, rel=1e-4)


def test_from_features_it_uses_unbiased_moments():
    x, y = noise(0, 30, 3), noise(1, 20, 3) * 2
    expected = metrics.frechet_distance_from_moments(x.mean(0), x.T.cov(), y.mean(0), y.T.cov())
    assert metrics.frechet_distance(x, y) == pytest.approx(expected, rel=1e-10)
    assert metrics.frechet_distance(x, x.flip(0)) < 1e-12
    assert metrics.frechet_distance(x[:2], y[:2]) > 0  # two samples in three dimensions


# Precision and recall


def test_equal_sets_have_precision_and_recall_one_and_far_sets_zero():
    x = noise(0, 40, 2)
    assert metrics.precision_recall(x, x) == (1, 1)
    assert metrics.precision_recall(x, x + 100) == (0, 0)


def test_a_collapsed_fake_set_is_precise_and_recalls_little():
    real = torch.cat([noise(0, 200, 2), noise(1, 200, 2) + 30])
    fake = noise(2, 400, 2) * 0.5
    precision, recall = metrics.precision_recall(real, fake)
    assert precision > 0.95 and recall < 0.5
    swapped = metrics.precision_recall(fake, real)
    assert swapped == (recall, precision)


def test_the_ball_reaches_the_kth_other_sample_and_includes_its_edge():
    real = torch.tensor([[0.0], [1.0], [3.0]])
    fake = torch.tensor([[-1.0], [-1.5], [5.0], [5.5], [2.5]])
    # k = 1: balls of radius 1, 1, 2 around 0, 1, 3, which cover [-1, 2] and [1, 5].
    assert metrics.precision_recall(real, fake, neighbours=1).precision == pytest.approx(3 / 5)
    # k = 2: radii 3, 2, 3 cover [-3, 6].
    assert metrics.precision_recall(real, fake, neighbours=2).precision == 1


@FEW
@given(seed=seeds)
def test_precision_and_recall_ignore_order_shift_rotation_and_scale(seed):
    real, fake = noise(seed, 25, 3), noise(seed + 1, 20, 3) + 0.5
    turn, order = rotation(seed, 3), torch.randperm(20, generator=rng(seed))
    expected = metrics.precision_recall(real, fake)
    assert metrics.precision_recall(2 * real @ turn + 1, 2 * fake[order] @ turn + 1) == expected


# Bad input

X = torch.zeros(5, 2)
LONG = torch.tensor([0, 1])
EYE = torch.eye(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.density_floor(log_density, X), "at least 1000 true samples"),
        (lambda: metrics.density_floor(log_density, X, 1.0), "between 0 and 1"),
        (lambda: metrics.fraction_below(log_density, X, math.nan), "floor, got NaN"),
        (lambda: metrics.fraction_below(log_density, X[:0], 0.0), "n >= 1"),
        (lambda: metrics.fraction_below(log_density, X / 0, 0.0), "in 5 of 5 samples"),
        (lambda: metrics.fraction_below(lambda x: x, X, 0.0), r"densities of shape \[5\]"),
        (lambda: metrics.fraction_below(lambda x: x[:, 0] / 0, X, 0.0), "5 of 5 samples .* is NaN"),
        (lambda: metrics.branch_histogram(LONG, 1), "from 0 to 0, got 0 to 1"),
        (lambda: metrics.branch_histogram(LONG - 1, 2), "got -1 to 0"),
        (lambda: metrics.branch_histogram(LONG.float(), 2), "dtype long"),
        (lambda: metrics.branch_histogram(LONG[:0], 2), r"shape \[n\]"),
        (lambda: metrics.branch_histogram(LONG, 0), "at least 1, got 0"),
        (lambda: metrics.total_variation(EYE[0], torch.ones(1)), "one length"),
        (lambda: metrics.total_variation(EYE[0], EYE[0] * 2), "sum to 1"),
        (lambda: metrics.total_variation(EYE, EYE), r"shape \[k\]"),
        (lambda: metrics.total_variation(EYE[0] * math.nan, EYE[0]), "shares >= 0"),
        (lambda: metrics.total_variation_floor(EYE[0], 0), "at least 1, got 0"),
        (lambda: metrics.coverage(LONG, 2, torch.ones(2)), "dtype bool"),
        (lambda: metrics.energy_distance(X, X[:1]), "n >= 2"),
        (lambda: metrics.energy_distance(X, X[:, :1]), "one shape"),
        (lambda: metrics.energy_distance(X[:, 0], X[:, 0]), r"shape \[n, ...\]"),
        (lambda: metrics.energy_distance(X, X / 0), "finite y, got NaN or infinity in 5 of 5"),
        (lambda: metrics.maximum_mean_discrepancy(X, X, 0.0), "positive bandwidth"),
        (lambda: metrics.maximum_mean_discrepancy(X, X, "mean"), "'median', got 'mean'"),
        (lambda: metrics.maximum_mean_discrepancy(X, X), "positive bandwidth"),
        (lambda: metrics.sliced_wasserstein(X, X, rng(0), directions=0), "directions >= 1"),
        (lambda: metrics.sliced_wasserstein(X, X, rng(0), order=0.5), "order >= 1"),
        (lambda: metrics.frechet_distance(X[None], X), r"x of shape \[n, d\]"),
        (lambda: metrics.frechet_distance(X[:1], X), "n >= 2"),
        (lambda: metrics.frechet_distance_from_moments(X[0], EYE, X[0], X), "covariance_y"),
        (lambda: metrics.frechet_distance_from_moments(X[0], -EYE, X[0], EYE), "semi-definite"),
        (
            lambda: metrics.frechet_distance_from_moments(
                X[0], EYE, X[0], EYE.triu() + EYE.flip(0).triu()
            ),
            "symmetric covariance_y",
        ),
        (
            lambda: metrics.frechet_distance_from_moments(X[0] / 0, EYE, X[0], EYE),
            "finite mean_x",
        ),
        (lambda: metrics.precision_recall(X[:3], X), "real of shape .* n >= 4"),
        (lambda: metrics.precision_recall(X, X, 0), "neighbours of at least 1"),
    ],
)
def test_bad_input_is_refused_with_a_message_that_names_it(call, message):
    with pytest.raises(ValueError, match=message):
        call()
