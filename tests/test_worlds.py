"""The small named worlds are what the chapters say they are, to the last digit."""

from __future__ import annotations

import math

import pytest
import torch

from toy_models.gaussian_mixture import ClassMixture, GaussianMixture
from toy_models.worlds import line, lost_mode, one_gaussian, three_blobs, two_classes, two_modes


def normal(x, mean, std):
    return math.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))


def density(world, *point, sigma=0.0):
    return float(world.log_density(torch.tensor([point], dtype=torch.float64), sigma).exp())


def parameters(world):
    return [v.tolist() for v in (world.weights, world.means, world.covariances)]


def assert_parameters(world, weights, means, covariances):
    for got, wanted in zip(
        (world.weights, world.means, world.covariances), (weights, means, covariances), strict=True
    ):
        wanted = torch.tensor(wanted, dtype=torch.float64)
        torch.testing.assert_close(got, wanted, rtol=1e-14, atol=0)


def test_one_gaussian():
    assert_parameters(one_gaussian(), [1.0], [[1.0]], [[[0.25]]])
    assert density(one_gaussian(2.0, 0.1), 2.1) == pytest.approx(normal(2.1, 2.0, 0.1), rel=1e-13)


def test_two_modes():
    assert_parameters(two_modes(), [0.3, 0.7], [[-1.0], [1.0]], [[[0.09]], [[0.09]]])
    for x in (-1.0, 0.0, 0.5):
        wanted = 0.3 * normal(x, -1, 0.3) + 0.7 * normal(x, 1, 0.3)
        assert density(two_modes(), x) == pytest.approx(wanted, rel=1e-12)


def test_two_classes():
    world = two_classes()
    assert_parameters(world.classes[0], [1.0], [[1.0]], [[[0.25]]])
    assert_parameters(world.classes[1], [1.0], [[-1.0]], [[[0.25]]])
    assert world.priors.tolist() == [0.5, 0.5]
    assert_parameters(two_classes(0.2).classes[1], [1.0], [[-1.0]], [[[0.04]]])


def test_lost_mode():
    world = lost_mode()
    assert_parameters(world.classes[0], [0.5, 0.5], [[0.4], [2.0]], [[[0.09]], [[0.09]]])
    assert_parameters(world.classes[1], [0.5, 0.5], [[-0.4], [-2.0]], [[[0.09]], [[0.09]]])
    assert world.priors.tolist() == [0.5, 0.5]
    for x in (0.0, 0.4, 2.0):
        mirrored = density(world.classes[1], -x)
        assert density(world.classes[0], x) == pytest.approx(mirrored, rel=1e-13)


def test_three_blobs():
    world = three_blobs()
    assert_parameters(
        world.classes[0],
        [0.5, 0.5],
        [[-1.0, 0.0], [0.4, 0.8]],
        [[[0.05, 0.02], [0.02, 0.10]], [[0.08, 0.0], [0.0, 0.03]]],
    )
    assert_parameters(world.classes[1], [1.0], [[1.0, -0.4]], [[[0.10, -0.04], [-0.04, 0.06]]])
    assert world.priors.tolist() == [0.5, 0.5]


# By hand from the parameters above: at its mean a Gaussian is 1 / (2 pi sqrt(det)), and the other
# blob of the class adds less than e^-11 of it.
@pytest.mark.parametrize(
    ("label", "point", "det", "share"),
    [(0, (-1.0, 0.0), 0.0046, 0.5), (0, (0.4, 0.8), 0.0024, 0.5), (1, (1.0, -0.4), 0.0044, 1.0)],
)
def test_a_blob_that_moved_by_a_tenth_would_be_noticed(label, point, det, share):
    wanted = share / (2 * math.pi * math.sqrt(det))
    world = three_blobs().classes[label]
    assert density(world, *point) == pytest.approx(wanted, rel=1e-5)
    moved = (point[0] + 0.1, point[1])
    assert density(world, *moved) < 0.96 * wanted


@pytest.mark.parametrize("make", [one_gaussian, two_modes, two_classes, lost_mode, three_blobs])
def test_every_world_is_exact_in_double_precision_on_the_cpu_and_made_anew(make):
    world = make()
    parts = world.classes if isinstance(world, ClassMixture) else [world]
    for part in parts:
        assert isinstance(part, GaussianMixture)
        assert part.dtype == torch.float64 and part.device.type == "cpu"
    assert make() is not world


def test_a_line_takes_weights_in_any_unit():
    world = line([0.0, 1.0, 3.0], [1.0, 2.0, 0.5], [2, 1, 1])
    assert_parameters(world, [0.5, 0.25, 0.25], [[0], [1], [3]], [[[1.0]], [[4.0]], [[0.25]]])
    assert line([0.0, 1.0], [1.0, 1.0]).weights.tolist() == [0.5, 0.5]


def test_a_malformed_line_is_refused():
    with pytest.raises(ValueError, match="as many stds as means, got 1 and 2"):
        line([0.0, 1.0], [1.0])
    for std in (0.0, -0.3, math.nan):
        with pytest.raises(ValueError, match="expected positive stds, got"):
            line([0.0, 1.0], [1.0, std])
    with pytest.raises(ValueError, match=r"expected weights \[K\] and means \[K, d\], got \[3\]"):
        line([0.0, 1.0], [1.0, 1.0], [1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="expected finite covariances"):
        line([0.0], [math.inf])
    with pytest.raises(ValueError, match="empty mixture"):
        line([], [])
