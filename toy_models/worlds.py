"""The small named worlds of the chapters, on the line and in the plane.

Every function returns an exact world in float64 on the CPU.
"""

from __future__ import annotations

from toy_models.gaussian_mixture import ClassMixture, GaussianMixture


def line(
    means: list[float], stds: list[float], weights: list[float] | None = None
) -> GaussianMixture:
    """Return a mixture of Gaussians on the line.

    Shapes:  means, stds, weights: K numbers; samples are [n, 1].
    Errors:  ValueError for different lengths, or a std that is not positive.
    """
    if len(means) != len(stds):
        raise ValueError(f"expected as many stds as means, got {len(stds)} and {len(means)}")
    if not all(s > 0 for s in stds):
        raise ValueError(f"expected positive stds, got {stds}")
    weights = [1.0] * len(means) if weights is None else weights
    return GaussianMixture(weights, [[m] for m in means], [[[s * s]] for s in stds])


def one_gaussian(mean: float = 1.0, std: float = 0.5) -> GaussianMixture:
    """Return N(mean, std^2) on the line."""
    return line([mean], [std])


def two_modes() -> GaussianMixture:
    """Return two unequal modes on the line: the first world of chapter 01."""
    return line([-1.0, 1.0], [0.3, 0.3], [0.3, 0.7])


def two_classes(std: float = 0.5) -> ClassMixture:
    """Return N(1, std^2) against an equal class at -1. Class 0 is the one at 1."""
    return ClassMixture([line([1.0], [std]), line([-1.0], [std])])


def lost_mode() -> ClassMixture:
    """Return a class with two equal modes, at .4 and 2, against its mirror image.

    The inner mode lies near the border of the two classes; guidance empties it.
    """
    return ClassMixture([line([0.4, 2.0], [0.3, 0.3]), line([-0.4, -2.0], [0.3, 0.3])])


def three_blobs() -> ClassMixture:
    """Return the plane's running example: class 0 has two blobs, class 1 has one."""
    class_0 = GaussianMixture(
        [0.5, 0.5],
        [[-1.0, 0.0], [0.4, 0.8]],
        [[[0.05, 0.02], [0.02, 0.10]], [[0.08, 0.0], [0.0, 0.03]]],
    )
    class_1 = GaussianMixture([1.0], [[1.0, -0.4]], [[[0.10, -0.04], [-0.04, 0.06]]])
    return ClassMixture([class_0, class_1])
