"""Two trees: one has its published statistics, the book's own one stands still."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from toy_models.tree import PER_BRANCH, own_tree, published_tree

TREES = {"own": own_tree, "published": published_tree}
every_tree = pytest.mark.parametrize("make", TREES.values(), ids=TREES)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def moments(world):
    mean, covariance = world.moments()
    std = covariance.diagonal().sqrt()
    return [*mean.tolist(), *std.tolist(), float(covariance[0, 1] / std.prod())]


def spreads(world):
    """Standard deviations of the components along their short and long axes."""
    return torch.linalg.eigvalsh(world.covariances).sqrt().T


# The published tree. Its statistics are those that were verified against the published code.


def test_the_published_tree_has_127_branches_and_1016_gaussians_a_class():
    tree = published_tree()
    assert [tree.mixture(c).components for c in ("A", "B", "AB")] == [1016, 1016, 2032]
    assert len(tree.branch_weights("A")) == len(tree.branch_weights("B")) == 127


def test_the_published_tree_has_the_published_moments():
    tree = published_tree()
    # Digits as published; a last digit may have been cut or rounded.
    assert moments(tree.mixture("AB")) == pytest.approx([0, 0, 0.4999, 0.4999, 0.353], abs=7e-4)
    stds = tree.mixture("AB").moments()[1].diagonal().sqrt()
    assert stds.tolist() == pytest.approx([0.4999, 0.4999], abs=6e-5)
    assert tree.classes.priors.tolist() == pytest.approx([0.477, 0.523], abs=5e-4)
    published = [0.372, 0.365, 0.333, 0.341]
    assert moments(tree.mixture("A"))[:4] == pytest.approx(published, abs=6e-4)


def test_the_published_branches_have_the_published_widths():
    short, long = spreads(published_tree().mixture("A"))
    assert [float(short.min()), float(short.max())] == pytest.approx([0.0039, 0.016], abs=2e-4)
    assert [float(long.min()), float(long.max())] == pytest.approx([0.0042, 0.0217], abs=5e-5)


def test_the_published_log_densities_are_those_of_a_draw_of_some_thousand_points():
    """The published quantiles come from a sample, and their last digits are its luck.

    Their joint distance from the truth is what a draw of 4096 points shows in most cases (chi
    square 3.5 for 5 numbers) and one of 65536 points never (28). So each is held to 2.5 standard
    deviations of such a draw, and the truth to 5 of the large sample used here.
    """
    world = published_tree().mixture("A").to(torch.float32)
    shares = torch.tensor([0.001, 0.01, 0.05, 0.5, 0.99]).double()
    draws = world.log_density(world.sample(16 * 4096, rng(1))).double().reshape(16, 4096)
    truth = torch.quantile(draws.flatten(), shares)
    scatter = torch.quantile(draws, shares, dim=1).std(1)
    published = torch.tensor([-3.52, -1.75, -0.51, 1.46, 2.89]).double()
    assert bool(((published - truth).abs() < 2.5 * scatter + 0.005).all())
    # Of a million points, at another seed.
    wanted = torch.tensor([-3.87, -1.842, -0.540, 1.450, 2.885]).double()
    assert bool(((wanted - truth).abs() < 5 * scatter / 4).all())
    assert bool((scatter < torch.tensor([0.7, 0.25, 0.1, 0.02, 0.005])).all()), "no vacuous bounds"


def rebuilt():
    """The published tree once more, from its description, by complex numbers and a list of tasks.

    Returns weights [1016], means [1016, 2] and covariances [1016, 2, 2] of both classes.
    """
    draw = np.random.RandomState(2).standard_normal  # noqa: NPY002  as the description says
    scale, origin = (1.3136, 1.3844), 0.0030 + 0.0325j
    classes = []
    for root in (math.pi / 4, 5 * math.pi / 4):
        rows = []
        todo = [("branch", origin, root, 0)]
        while todo:
            kind, start, angle, depth = todo.pop()
            if kind == "turn":  # here ``angle`` is the parent's, and depth carries its sign
                depth, sign = depth
                angle = angle + sign * 0.7**depth * (1 + 0.2 * draw())
                if depth < 6:
                    todo.append(("branch", start, angle, depth + 1))
                continue
            length = 0.292 * 0.8**depth * (1 + 0.2 * draw())
            ray = complex(math.cos(angle), math.sin(angle))
            thin = (0.2 * 0.8**depth / length) ** 2
            for i in range(8):
                mean = start + ray * length * (0.07 + 0.86 * i / 7)
                shape = [
                    ray.real**2 + ray.imag**2 * thin,
                    ray.imag**2 + ray.real**2 * thin,
                    ray.real * ray.imag * (1 - thin),
                ]
                size = [s * length * 0.06 for s in scale]
                covariance = [
                    [shape[0] * size[0] ** 2, shape[2] * size[0] * size[1]],
                    [shape[2] * size[0] * size[1], shape[1] * size[1] ** 2],
                ]
                place = [mean.real * scale[0], mean.imag * scale[1]]
                rows.append((length * 0.5**depth, place, covariance))
            tip = start + ray * length
            todo += [("turn", tip, angle, (depth, -1)), ("turn", tip, angle, (depth, 1))]
        classes.append([torch.from_numpy(np.array(column)) for column in zip(*rows, strict=True)])
    return classes


def test_the_published_tree_is_the_one_of_its_description():
    classes = rebuilt()
    total = sum(float(weights.sum()) for weights, _, _ in classes)
    tree = published_tree()
    for i, (weights, means, covariances) in enumerate(classes):
        world = tree.classes.classes[i]
        torch.testing.assert_close(world.weights, weights / weights.sum(), rtol=1e-12, atol=0)
        torch.testing.assert_close(world.means, means, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(world.covariances, covariances, rtol=1e-10, atol=1e-18)
        prior = float(weights.sum()) / total
        assert float(tree.classes.priors[i]) == pytest.approx(prior, rel=1e-12)


# The book's own tree. Its numbers are the definition: all trained models learned this world.


@pytest.mark.parametrize(("levels", "branches"), [(1, 1), (2, 3), (6, 63), (7, 127)])
def test_each_level_of_the_own_tree_doubles_its_branches(levels, branches):
    tree = own_tree(levels)
    assert tree.name == f"own-{levels}"
    assert [tree.mixture(c).components for c in "AB"] == [8 * branches] * 2
    assert len(tree.branch_weights()) == branches


def test_six_levels_are_the_default():
    assert own_tree().name == "own-6" and own_tree().mixture("A").components == 504


OWN = {
    "A": [0.42137590, 0.35484947, 0.25010895, 0.24486985, 0.06807770],
    "B": [-0.43986934, -0.38808836, 0.23672100, 0.24871085, 0.27794788],
    "AB": [-0.01492918, -0.02152132, 0.49462734, 0.44596726, 0.77194867],
}


@pytest.mark.parametrize("classes", OWN)
def test_the_own_tree_has_not_moved(classes):
    assert moments(own_tree().mixture(classes)) == pytest.approx(OWN[classes], abs=1e-8)


def test_no_part_of_the_own_tree_has_moved():
    tree = own_tree()
    assert float(tree.classes.priors[0]) == pytest.approx(0.49340204, abs=1e-8)
    wanted = [0.21160218, 0.09685460, 0.03352870]
    assert tree.branch_weights()[:3].tolist() == pytest.approx(wanted, abs=1e-8)
    world = tree.mixture("A")
    ends = world.means[[0, -1]].flatten().tolist()
    assert ends == pytest.approx([0.01664570, 0.01320921, 0.77422062, -0.10876671], abs=1e-8)
    levels = world.log_density(world.means[[0, -1]]).tolist()
    assert levels == pytest.approx([2.56198093, 1.86024339], abs=1e-7)
    short, long = spreads(world)
    widths = [float(f(v)) for v in (short, long) for f in (torch.min, torch.max)]
    assert widths == pytest.approx([0.00181686, 0.01668125, 0.00347574, 0.02337500], abs=1e-8)


def test_a_blob_of_the_own_tree_that_moved_by_a_tenth_would_be_noticed():
    """The pins above see the lightest component: it holds 1 / 5000 of the mass."""
    world = own_tree().mixture("A")
    means = world.means.clone()
    means[world.weights.argmin(), 0] += 0.1
    moved = type(world)(world.weights, means, world.covariances)
    change = np.abs(np.array(moments(moved)) - np.array(OWN["A"])).max()
    assert change > 100 * 1e-8


@every_tree
def test_every_branch_starts_where_its_parent_ends(make):
    tree = make()
    for label in ("A", "B"):
        means = tree.mixture(label).means.reshape(-1, PER_BRANCH, 2)
        step = means[:, 1] - means[:, 0]
        gap = {"own": 0.5, "published": 0.07 * 7 / 0.86}[tree.name.partition("-")[0]]
        starts, ends = means[:, 0] - gap * step, means[:, -1] + gap * step
        gaps = (starts[1:, None] - ends).norm(dim=2)
        assert float(gaps.min(1).values.max()) < 1e-12
        # Each of the inner branches is the parent of two.
        children = torch.bincount(gaps.argmin(1), minlength=len(ends))
        assert sorted(children.unique().tolist()) == [0, 2]


# What the trees offer


@every_tree
def test_components_lie_in_order_on_branches_and_weights_add_up(make):
    tree = make()
    for label in ("A", "B"):
        world = tree.mixture(label)
        weights = tree.branch_weights(label)
        assert float(weights.sum()) == pytest.approx(1, abs=1e-12)
        per_component = weights.repeat_interleave(PER_BRANCH) / PER_BRANCH
        torch.testing.assert_close(world.weights, per_component, rtol=1e-12, atol=0)


@every_tree
def test_samples_fall_on_branches_by_weight(make):
    tree, n = make(), 8192
    x = tree.mixture("A").sample(n, rng(2))
    weights = tree.branch_weights()
    share = torch.bincount(tree.branches(x), minlength=len(weights)) / n
    distance = 0.5 * float((share - weights).abs().sum())
    # Counting noise alone gives sum sqrt(2 w / (pi n)) / 2; blobs overlap a little at the forks.
    expected = 0.5 * float((2 * weights / (math.pi * n)).sqrt().sum())
    assert 0.7 * expected < distance < 1.4 * expected + 0.01


@every_tree
def test_the_middle_of_a_branch_is_on_that_branch(make):
    tree = make()
    middle = tree.mixture("A").means.reshape(-1, PER_BRANCH, 2)[:, 3]
    found = tree.branches(middle)
    assert float((found == torch.arange(len(found))).double().mean()) > 0.95


@every_tree
def test_the_view_shows_nearly_all_of_class_a(make):
    tree = make()
    left, right, bottom, top = tree.view
    x = tree.mixture("A").sample(4000, rng(3))
    shown = (x[:, 0] > left) & (x[:, 0] < right) & (x[:, 1] > bottom) & (x[:, 1] < top)
    assert float(shown.double().mean()) > 0.96


@every_tree
def test_both_classes_are_the_mixture_of_each_by_its_prior(make):
    tree, x = make(), torch.tensor([[0.1, 0.1], [0.5, 0.4], [-0.4, -0.3]]).double()
    wanted = sum(
        float(p) * tree.mixture(c).log_density(x).exp()
        for p, c in zip(tree.classes.priors, "AB", strict=True)
    )
    torch.testing.assert_close(tree.mixture("AB").log_density(x).exp(), wanted)


def test_a_tree_is_grown_once_and_leaves_the_global_seed_alone():
    np.random.seed(7)  # noqa: NPY002  the global state is what this is about
    own_tree.__wrapped__(3)
    published_tree.__wrapped__()
    assert np.random.rand() == np.random.RandomState(7).rand()  # noqa: NPY002
    assert own_tree() is own_tree() and published_tree() is published_tree()


# Bad input


@pytest.mark.parametrize("levels", [0, 9, -1, 2.5, math.nan, None, "6"])
def test_levels_out_of_range_are_refused(levels):
    with pytest.raises(ValueError, match="expected 1 to 8 levels, got"):
        own_tree(levels)


@pytest.mark.parametrize("classes", ["C", "BA", "", None, 0])
def test_an_unknown_class_is_refused(classes):
    with pytest.raises(ValueError, match="expected classes A, B or AB, got"):
        own_tree().mixture(classes)
    with pytest.raises(ValueError, match="expected classes A, B or AB, got"):
        own_tree().branch_weights(classes)
