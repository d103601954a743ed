"""Exact worlds: density, score, denoiser and samples agree with each other and with arithmetic."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guidance_edu.denoisers import Denoiser
from toy_models.gaussian_mixture import ClassMixture, GaussianMixture
from toy_models.tree import published_tree
from toy_models.worlds import line, one_gaussian, three_blobs, two_classes

FEW = settings(max_examples=20, deadline=None, derandomize=True)
seeds = st.integers(0, 10_000)
DIMENSIONS = [1, 2, 3]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(seed, *shape):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def mixture(seed, dimension, components=4, **options):
    """A random mixture with full covariances."""
    root = noise(seed, components, dimension, dimension) * 0.4
    covariances = root @ root.mT + 0.05 * torch.eye(dimension)
    weights = noise(seed + 1, components).exp()
    return GaussianMixture(weights, noise(seed + 2, components, dimension), covariances, **options)


def direct(world, x, sigma):
    """Log density, score and denoised value by solving with every covariance: no shared code."""
    d = world.dimension
    noisy = world.covariances + sigma**2 * torch.eye(d, dtype=torch.float64)
    offset = world.means[None] - x[:, None].double()  # [n, K, d]
    pull = torch.einsum("kij,nkj->nki", torch.linalg.inv(noisy), offset)
    logits = (
        world.weights.log()
        - 0.5 * torch.logdet(2 * math.pi * noisy)
        - 0.5 * (offset * pull).sum(-1)
    )
    score = torch.einsum("nk,nki->ni", logits.softmax(-1), pull)
    return logits.logsumexp(-1), score, x.double() + sigma**2 * score


# One world, four answers


@pytest.mark.parametrize("d", DIMENSIONS)
@FEW
@given(seed=seeds, power=st.floats(-2, 1))
def test_all_answers_are_those_of_a_direct_sum_over_components(d, seed, power):
    world, x, sigma = mixture(seed, d), noise(seed + 9, 6, d) * 2, 10**power
    log_density, score, denoised = direct(world, x, sigma)
    torch.testing.assert_close(world.log_density(x, sigma), log_density, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(world.score(x, sigma), score, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(world.denoise(x, sigma), denoised, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("per_sample", [False, True])
@FEW
@given(seed=seeds, power=st.floats(-2, 1))
def test_the_score_is_the_gradient_of_the_log_density(d, per_sample, seed, power):
    world, x = mixture(seed, d), (noise(seed + 9, 5, d) * 2).requires_grad_()
    sigma = 10**power * (torch.linspace(0.5, 1, 5).double() if per_sample else 1.0)
    (gradient,) = torch.autograd.grad(world.log_density(x, sigma).sum(), x)
    torch.testing.assert_close(world.score(x.detach(), sigma), gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("d", DIMENSIONS)
@FEW
@given(seed=seeds, power=st.floats(-2, 1))
def test_the_denoised_sample_is_x_plus_sigma_squared_times_the_score(d, seed, power):
    world, x, sigma = mixture(seed, d), noise(seed + 9, 5, d) * 2, 10**power
    wanted = x + sigma**2 * world.score(x, sigma)
    torch.testing.assert_close(world.denoise(x, sigma), wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("per_sample", [False, True])
def test_the_denoiser_can_be_differentiated(per_sample):
    """Its Jacobian is the posterior covariance over sigma^2; here against finite differences."""
    world, x = mixture(3, 2), noise(4, 3, 2)
    sigma = torch.tensor([0.5, 0.6, 0.7]).double() if per_sample else 0.5
    assert torch.autograd.gradcheck(lambda y: world.denoise(y, sigma), x.requires_grad_())


@pytest.mark.parametrize("d", DIMENSIONS)
def test_a_density_of_total_mass_1(d):
    world = mixture(0, d, components=2)
    side = torch.linspace(-7, 7, 61).double()
    grid = torch.cartesian_prod(*[side] * d).reshape(-1, d)
    mass = float(world.log_density(grid, 0.3).exp().sum()) * float(side[1] - side[0]) ** d
    assert mass == pytest.approx(1, abs=1e-4)  # what is left of the tails at distance 7


@FEW
@given(seed=seeds, power=st.floats(-4, 3))
def test_responsibilities_are_probabilities_and_bayes_rule(seed, power):
    world, x, sigma = mixture(seed, 2), noise(seed + 9, 5, 2) * 3, 10**power
    share = world.responsibilities(x, sigma)
    assert share.shape == (5, 4) and bool((share >= 0).all())
    torch.testing.assert_close(share.sum(1), torch.ones(5).double(), rtol=0, atol=1e-12)
    assert torch.equal(world.nearest_component(x, sigma), share.argmax(1))
    for k in range(4):
        alone = world.select([k]).log_density(x, sigma) + world.weights[k].log()
        wanted = (alone - world.log_density(x, sigma)).exp()
        torch.testing.assert_close(share[:, k], wanted, rtol=1e-6, atol=1e-9)


def test_the_denoiser_of_one_gaussian_is_the_linear_one():
    world, x, sigma = line([0.3], [0.5]), noise(0, 9, 1), 0.8
    wanted = (0.25 * x + sigma**2 * 0.3) / (0.25 + sigma**2)
    torch.testing.assert_close(world.denoise(x, sigma), wanted, rtol=1e-13, atol=1e-13)


def test_the_limits_of_the_denoiser():
    world, x = mixture(0, 2), noise(1, 5, 2)
    torch.testing.assert_close(world.denoise(x, 0.0), x, rtol=1e-12, atol=1e-12)
    mean = world.moments()[0].expand(5, 2)
    torch.testing.assert_close(world.denoise(x, 1e6), mean, rtol=1e-5, atol=1e-5)


# Numbers at the edge


def exact(world, x, sigma):
    """Score and log density at one point with 60 digits."""
    with mpmath.workdps(60):
        parts, point = [], mpmath.matrix(x.tolist())
        for k in range(world.components):
            noisy = mpmath.matrix(world.covariances[k].tolist())
            noisy += mpmath.mpf(sigma) ** 2 * mpmath.eye(2)
            pull = mpmath.lu_solve(noisy, mpmath.matrix(world.means[k].tolist()) - point)
            offset = mpmath.matrix(world.means[k].tolist()) - point
            exponent = -(offset.T * pull)[0] / 2
            scale = (
                mpmath.mpf(float(world.weights[k]))
                / (2 * mpmath.pi)
                / mpmath.sqrt(mpmath.det(noisy))
            )
            parts.append((mpmath.log(scale) + exponent, pull))
        top = max(logit for logit, _ in parts)
        shares = [mpmath.exp(logit - top) for logit, _ in parts]
        total = mpmath.fsum(shares)
        score = [
            float(
                mpmath.fsum(s * pull[i] for s, (_, pull) in zip(shares, parts, strict=True)) / total
            )
            for i in range(2)
        ]
        return torch.tensor(score, dtype=torch.float64), float(top + mpmath.log(total))


POINTS = [
    [0.1, 0.2],
    [1e4, 0.0],
    [-7e3, 7e3],
    [3.0, -1e4],
]


@pytest.mark.parametrize("sigma", [1e-4, 1e-2, 1.0, 1e3])
@pytest.mark.parametrize("per_sample", [False, True])
def test_far_from_the_data_and_at_extreme_noise_all_answers_are_right(sigma, per_sample):
    world = three_blobs().marginal
    x = torch.tensor(POINTS, dtype=torch.float64)
    levels = sigma * torch.tensor([1, 1, 1, 1.5]).double() if per_sample else sigma
    score, denoised = world.score(x, levels), world.denoise(x, levels)
    log_density = world.log_density(x, levels)
    for i in range(len(x)):
        level = float(levels[i]) if per_sample else sigma
        wanted, log_wanted = exact(world, x[i], level)
        # Rounding of an exponent of 1e10 moves a share by 1e-6 of itself.
        torch.testing.assert_close(score[i], wanted, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(denoised[i], x[i] + level**2 * wanted, rtol=1e-9, atol=1e-9)
        assert float(log_density[i]) == pytest.approx(log_wanted, rel=1e-12, abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sigma", [1e-4, 1e-2, 1.0, 1e3])
@pytest.mark.parametrize("classes", ["A", "AB"])
def test_the_trees_too_stay_finite_far_away(dtype, sigma, classes):
    world = published_tree().mixture(classes).to(dtype)
    angle = torch.linspace(0, 2 * math.pi, 9, dtype=dtype)
    x = 1e4 * torch.stack([angle.cos(), angle.sin()], 1)
    for level in (sigma, sigma * torch.linspace(0.5, 1, 9, dtype=dtype)):
        score, denoised = world.score(x, level), world.denoise(x, level)
        assert score.isfinite().all() and world.log_density(x, level).isfinite().all()
        inwards = (score * x).sum(1) / score.norm(dim=1) / 1e4
        assert float(inwards.max()) < -0.2  # narrow, slanted blobs pull sideways too
        if sigma < 1:
            assert float(denoised.norm(dim=1).max()) < 2e4


@pytest.mark.parametrize("sigma", [0.03, 0.3, 3.0])
def test_many_points_in_single_precision_equal_a_direct_sum(sigma):
    """4096 points, 1016 components: to 1e-4 of sigma times the score, in units of its size."""
    world = published_tree().mixture("A")
    x = world.to(torch.float32).sample(4096, rng(), sigma)
    _, score, _ = direct(world, x, sigma)
    single = world.to(torch.float32)
    size = score.norm(dim=1).square().mean().sqrt()
    assert float((single.score(x, sigma) - score).abs().max()) < 1e-4 * float(size)
    from_denoised = (single.denoise(x, sigma).double() - x.double()) / sigma**2
    assert float((from_denoised - score).abs().max()) < 1e-4 * float(size)


# Shapes, dtypes, batches


@pytest.mark.parametrize("d", DIMENSIONS)
@settings(FEW, max_examples=6)
@given(seed=seeds)
def test_a_noise_level_each_equals_one_shared(d, seed):
    world, x = mixture(seed, d), noise(seed + 9, 4, d)
    sigma = noise(seed + 10, 4).exp()
    for answer in (world.denoise, world.score, world.log_density, world.responsibilities):
        together = answer(x, sigma)
        for i in range(4):
            alone = answer(x[i : i + 1], float(sigma[i]))
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-9, atol=1e-10)
        same = answer(x, torch.full((4,), 0.7, dtype=torch.float64))
        torch.testing.assert_close(same, answer(x, 0.7), rtol=1e-12, atol=1e-12)


def test_many_points_equal_the_same_points_in_small_batches(monkeypatch):
    world, x = mixture(0, 2), noise(1, 50, 2)
    sigma = noise(2, 50).exp()
    whole = [world.denoise(x, 0.5), world.denoise(x, sigma), world.log_density(x, sigma)]
    monkeypatch.setattr("toy_models.gaussian_mixture.CHUNK", 64)
    parts = [world.denoise(x, 0.5), world.denoise(x, sigma), world.log_density(x, sigma)]
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("shared", [True, False])
def test_a_batch_of_none_or_one(n, shared):
    world, x = mixture(0, 2), noise(1, n, 2)
    sigma = 0.5 if shared else torch.full((n,), 0.5, dtype=torch.float64)
    assert world.denoise(x, sigma).shape == world.score(x, sigma).shape == (n, 2)
    assert world.log_density(x, sigma).shape == (n,)
    assert world.responsibilities(x, sigma).shape == (n, 4)


@pytest.mark.parametrize("inner", [torch.float32, torch.float64])
@pytest.mark.parametrize("outer", [torch.float32, torch.float64])
def test_a_world_computes_in_its_own_dtype_and_answers_in_that_of_x(inner, outer):
    double = mixture(0, 2)
    world, x = double.to(inner), noise(1, 5, 2).to(outer)
    assert world.denoise(x, 0.5).dtype == world.score(x, 0.5).dtype == outer
    assert world.log_density(x, 0.5).dtype == world.means.dtype == inner
    assert double.dtype == torch.float64, "the world itself stays"
    torch.testing.assert_close(
        world.denoise(x, 0.5).double(), double.denoise(x.double(), 0.5), rtol=1e-5, atol=1e-5
    )


def test_changing_the_dtype_there_and_back_loses_nothing():
    world = mixture(0, 2)
    back = world.to(torch.float32).to(torch.float64)
    assert torch.equal(back.means, world.means) and torch.equal(back.covariances, world.covariances)
    torch.testing.assert_close(back.weights, world.weights, rtol=1e-15, atol=0)
    assert world.to(device="cpu").dtype == torch.float64
    assert repr(world.to(torch.float32)) == "GaussianMixture(4 components in 2D, float32)"


def test_a_world_is_an_unconditional_denoiser():
    world, x = mixture(0, 2), noise(1, 5, 2)
    assert isinstance(world, Denoiser) and torch.equal(world(x, 0.5), world.denoise(x, 0.5))
    with pytest.raises(ValueError, match="a plain mixture has no classes; expected condition=None"):
        world(x, 0.5, torch.zeros(5).long())


# Samples and moments


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("sigma", [0.0, 0.7])
def test_samples_have_the_moments_of_the_world(d, sigma):
    n, world = 50_000, mixture(5, d)
    x = world.sample(n, rng(1), sigma)
    mean, covariance = world.moments()
    covariance = covariance + sigma**2 * torch.eye(d)
    # Five standard errors; that of a covariance is below sqrt(3) times its largest variance over
    # sqrt(n) for mixtures as flat as these.
    top = float(covariance.diagonal().max())
    assert float((x.mean(0) - mean).abs().max()) < 5 * math.sqrt(top / n)
    assert float((x.T.cov() - covariance).abs().max()) < 5 * top * math.sqrt(3 / n)


def test_samples_lie_on_components_by_weight_and_on_each_with_its_covariance():
    world = GaussianMixture(
        [0.2, 0.8], [[-9.0, 0.0], [9.0, 0.0]], [[[1.0, 0.6], [0.6, 0.5]], [[0.2, 0.0], [0.0, 2.0]]]
    )
    n = 50_000
    x = world.sample(n, rng(2))
    left = x[:, 0] < 0
    assert float(left.double().mean()) == pytest.approx(0.2, abs=5 * math.sqrt(0.16 / n))
    for rows, covariance in zip((left, ~left), world.covariances, strict=True):
        error = (x[rows].T.cov() - covariance).abs().max()
        assert float(error) < 5 * float(covariance.max()) * math.sqrt(2 / int(rows.sum()))


def test_samples_have_a_noise_level_each():
    x = line([0.0], [1e-6]).sample(20_000, rng(3), torch.tensor([0.1, 2.0]).repeat(10_000))
    assert float(x[::2].std()) == pytest.approx(0.1, rel=0.04)
    assert float(x[1::2].std()) == pytest.approx(2.0, rel=0.04)


def test_moments_are_those_of_the_law_of_total_variance():
    mean, covariance = line([-1.0, 3.0], [0.5, 2.0], [3, 1]).moments()
    assert float(mean) == pytest.approx(0.0, abs=1e-15)
    assert float(covariance) == pytest.approx(0.75 * (0.25 + 1) + 0.25 * (4 + 9), rel=1e-14)


def test_the_same_rng_gives_the_same_points_in_every_dtype():
    world = mixture(0, 2)
    double, single = (world.to(d).sample(100, rng(1), 0.3) for d in (torch.float64, torch.float32))
    assert torch.equal(single, double.float())
    assert not torch.equal(double, world.sample(100, rng(2), 0.3))


@FEW
@given(seed=seeds, chosen=st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True))
def test_selected_components_keep_their_share_among_themselves(seed, chosen):
    world = mixture(seed, 2)
    part = world.select(chosen)
    torch.testing.assert_close(part.weights, world.weights[chosen] / world.weights[chosen].sum())
    assert torch.equal(part.means, world.means[chosen])
    assert torch.equal(part.covariances, world.covariances[chosen])
    mask = torch.zeros(4, dtype=torch.bool)
    mask[chosen] = True
    assert torch.equal(world.select(mask).means, world.means[sorted(chosen)])


# Classes


def test_every_sample_is_denoised_by_its_own_class():
    world, x = three_blobs(), noise(0, 6, 2)
    labels, sigma = torch.tensor([0, 1, 1, 0, 1, 0]), torch.linspace(0.1, 3, 6).double()
    got = world(x, sigma, labels)
    for i in range(6):
        wanted = world.classes[int(labels[i])].denoise(x[i : i + 1], float(sigma[i]))
        torch.testing.assert_close(got[i : i + 1], wanted, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(
        world(x, 0.5, torch.zeros(6).long()), world.classes[0].denoise(x, 0.5), rtol=0, atol=1e-14
    )
    assert world(x.float(), 0.5, labels).dtype == torch.float32
    assert world(x[:0], 0.5, labels[:0]).shape == (0, 2)


@FEW
@given(seed=seeds, prior=st.floats(0.05, 0.95))
def test_without_a_condition_classes_mix_by_their_priors(seed, prior):
    classes = [mixture(seed, 2, 3), mixture(seed + 50, 2, 5)]
    world = ClassMixture(classes, [prior, 1 - prior])
    x = noise(seed + 9, 5, 2)
    density = sum(
        p * c.log_density(x, 0.4).exp() for p, c in zip((prior, 1 - prior), classes, strict=True)
    )
    torch.testing.assert_close(world.marginal.log_density(x, 0.4), density.log())
    assert torch.equal(world(x, 0.4), world.marginal.denoise(x, 0.4))
    torch.testing.assert_close(
        ClassMixture(classes, [7 * prior, 7 * (1 - prior)]).marginal.weights, world.marginal.weights
    )


def test_priors_are_equal_unless_given():
    assert ClassMixture([mixture(i, 1) for i in range(4)]).priors.tolist() == [0.25] * 4


# Bad input


def one(weights=(1.0,), means=((0.0, 0.0),), covariances=(((1.0, 0.0), (0.0, 1.0)),)):
    return GaussianMixture(weights, means, covariances)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"weights": [], "means": [], "covariances": []}, "at least one component, got an empty m"),
        ({"weights": [[1.0]]}, r"expected weights \[K\] and means \[K, d\], got \[1, 1\] and \[1"),
        ({"weights": [1.0, 1.0]}, r"expected weights \[K\] and means \[K, d\], got \[2\]"),
        ({"means": [0.0]}, r"expected weights \[K\] and means \[K, d\], got \[1\] and \[1\]"),
        ({"means": [[0.0]]}, r"expected covariances \[1, 1, 1\], got \[1, 2, 2\]"),
        ({"weights": [0.0]}, "expected positive weights, got 0"),
        ({"weights": [-1.0]}, "expected positive weights, got -1"),
        ({"weights": [math.nan]}, "expected finite weights, got NaN or infinity"),
        ({"means": [[math.inf, 0.0]]}, "expected finite means"),
        ({"covariances": [[[math.nan, 0.0], [0.0, 1.0]]]}, "expected finite covariances"),
        ({"covariances": [[[1.0, 0.5], [0.4, 1.0]]]}, "expected symmetric covariances"),
        ({"covariances": [[[1.0, 0.0], [0.0, 0.0]]]}, "component 0 is singular"),
        ({"covariances": [[[1.0, 1.0], [1.0, 1.0]]]}, "component 0 is singular"),
        ({"covariances": [[[1.0, 0.3], [0.3, 0.09]]]}, "component 0 is singular"),
        # Its computed eigenvalue is 1e-16, above 0.
        ({"covariances": [[[1.0, 3.0], [3.0, 9.0]]]}, "component 0 is singular"),
        ({"covariances": [[[1.0, 2.0], [2.0, 1.0]]]}, "expected positive definite covariances"),
        ({"covariances": [[[0.0, 0.0], [0.0, 0.0]]]}, "expected positive definite covariances"),
    ],
)
def test_parameters_that_make_no_mixture_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        one(**parameters)


def test_the_singular_component_is_named():
    eye = torch.eye(2).double()
    with pytest.raises(ValueError, match="positive definite covariances; component 2 is singular"):
        one([1.0] * 3, torch.zeros(3, 2), torch.stack([eye, eye, eye * torch.tensor([1, 0])]))


def test_narrow_rotated_and_tiny_components_are_not_mistaken_for_bad_ones():
    angle = torch.tensor(0.3).double()
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).reshape(2, 2)
    for spread in ((1.0, 1e-10), (1e-20, 2e-20), (1.0, 1.0)):
        covariance = turn @ torch.tensor(spread).double().diag() @ turn.T
        assert one(covariances=covariance[None]).components == 1


@pytest.mark.parametrize("answer", ["denoise", "score", "log_density", "responsibilities"])
def test_points_and_levels_of_the_wrong_kind_are_refused(answer):
    ask, x = getattr(mixture(0, 2), answer), noise(1, 4, 2)
    for bad in (x[:, :1], x[0], x[None], x.long()):
        with pytest.raises(
            ValueError, match=r"expected x of shape \[n, 2\] in floating point, got"
        ):
            ask(bad, 1.0)
    with pytest.raises(ValueError, match="expected finite x, got NaN or infinity"):
        ask(x * math.nan, 1.0)
    with pytest.raises(ValueError, match=r"expected sigma of shape \[\] or \[4\], got \[3\]"):
        ask(x, torch.ones(3))
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"expected finite sigma of at least 0, got {bad}"):
            ask(x, bad)


def test_sampling_and_selecting_nothing_are_refused():
    world = mixture(0, 2)
    for n in (0, -3):
        with pytest.raises(ValueError, match=f"expected to draw at least one point, got n = {n}"):
            world.sample(n, rng())
    with pytest.raises(ValueError, match="expected finite sigma of at least 0, got -1"):
        world.sample(3, rng(), -1.0)
    for nothing in ([], torch.zeros(4, dtype=torch.bool)):
        with pytest.raises(ValueError, match="expected at least one component, got"):
            world.select(nothing)


def test_classes_that_make_no_world_are_refused():
    world = mixture(0, 2)
    with pytest.raises(ValueError, match="expected at least one class, got none"):
        ClassMixture([])
    with pytest.raises(ValueError, match=r"expected classes of one dimension, got \[2, 1\]"):
        ClassMixture([world, mixture(0, 1)])
    for priors in ([1.0], [1.0, 0.0], [1.0, -1.0], [1.0, math.nan], [1.0, math.inf]):
        with pytest.raises(ValueError, match="expected 2 positive priors, got"):
            ClassMixture([world, world], priors)


def test_labels_and_levels_of_the_wrong_kind_are_refused():
    world, x, labels = two_classes(), noise(0, 3, 1), torch.tensor([0, 1, 0])
    for bad in (labels[:2], labels.double(), labels[:, None]):
        with pytest.raises(ValueError, match=r"expected condition of shape \[3\] and dtype long"):
            world(x, 1.0, bad)
    with pytest.raises(ValueError, match="expected classes from 0 to 1, got 0 to 2"):
        world(x, 1.0, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"expected sigma of shape \[\] or \[3\], got \[2\]"):
        world(x, torch.ones(2), labels)
    with pytest.raises(ValueError, match="expected finite sigma of at least 0, got -1"):
        world(x, -1.0, labels)
    with pytest.raises(ValueError, match=r"expected x of shape \[n, 1\]"):
        world(noise(0, 3, 2), 1.0, labels)


def test_points_that_are_not_a_tensor_are_a_clear_error():
    with pytest.raises(TypeError, match="expected x as a tensor"):
        one_gaussian().denoise([[1.0]], 1.0)
    with pytest.raises(TypeError, match="expected x as a tensor"):
        two_classes()([[1.0]], 1.0)
