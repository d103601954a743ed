"""Two trees: worlds in the plane in which a sample can be on a branch, or astray between branches.

Each branch is a row of eight narrow Gaussians, so density, score and denoiser are exact. The
default is the book's own tree. The second is the tree of the autoguidance paper, rebuilt from its
description, for the paper's own figure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from toy_models.gaussian_mixture import ClassMixture, GaussianMixture

PER_BRANCH = 8


@dataclass(frozen=True)
class Tree:
    """A two-class world of branches.

    Shapes:  each class is a mixture whose component k lies on branch k // 8 of that class.
    Chapter: 02_classifier_free_guidance
    """

    name: str
    classes: ClassMixture
    view: tuple[float, float, float, float]  # left, right, bottom, top of a picture of class A

    def mixture(self, classes: str) -> GaussianMixture:
        """Return the exact world of class "A", of "B", or of both, "AB".

        Errors:  ValueError for another name.
        """
        worlds = {"A": self.classes.classes[0], "B": self.classes.classes[1]}
        worlds["AB"] = self.classes.marginal
        if classes not in worlds:
            raise ValueError(f"expected classes A, B or AB, got {classes!r}")
        return worlds[classes]

    def branch_weights(self, classes: str = "A") -> Tensor:
        """Return the true share of samples on each branch. Shapes: result [branches]."""
        return self.mixture(classes).weights.reshape(-1, PER_BRANCH).sum(1)

    def branches(self, x: Tensor, classes: str = "A") -> Tensor:
        """Return the branch where each point most probably lies. Shapes: x [n, 2]; result [n]."""
        return self.mixture(classes).nearest_component(x) // PER_BRANCH


@cache
def own_tree(levels: int = 6) -> Tree:
    """Return the book's tree: tapering branches that fork with shrinking angles.

    Six levels give 63 branches and 504 Gaussians a class; seven give 127 and 1016. Class B grows
    from the same point at the opposite angle.

    Units:   the data have a standard deviation of about 0.5.
    Errors:  ValueError for levels outside 1 .. 8.
    Source:  this book; the idea of a branching class is that of Karras et al. 2024, fig. 1.
    """
    if levels not in range(1, 9):
        raise ValueError(f"expected 1 to 8 levels, got {levels}")
    random = np.random.RandomState(11)  # noqa: NPY002  its stream is frozen for ever
    parts: dict[str, list] = {"A": [], "B": []}

    def grow(start: np.ndarray, angle: float, length: float, level: int, label: str) -> None:
        along = np.array([math.cos(angle), math.sin(angle)])
        across = np.array([-along[1], along[0]])
        for t in (np.arange(PER_BRANCH) + 0.5) / PER_BRANCH:
            spread = (length / PER_BRANCH * 0.55) ** 2 * np.outer(along, along)
            spread += (0.05 * length * (1 - 0.3 * t)) ** 2 * np.outer(across, across)
            parts[label].append((length * 0.62**level, start + along * length * t, spread))
        if level + 1 == levels:
            return
        for side in (1, -1):
            turn = side * 0.62 * 0.85**level * (1 + 0.15 * random.randn())
            child = length * 0.76 * (1 + 0.1 * random.randn())
            grow(start + along * length, angle + turn, child, level + 1, label)

    grow(np.zeros(2), math.pi / 2 - 0.9, 0.34, 0, "A")
    grow(np.zeros(2), -math.pi / 2 - 0.9, 0.34, 0, "B")
    return _tree(f"own-{levels}", parts, view=(-0.12, 1.08, -0.16, 1.02))


@cache
def published_tree() -> Tree:
    """Return the tree of the autoguidance paper: 127 branches and 1016 Gaussians a class.

    Units:   the data have a standard deviation of 0.5 along each axis.
    Source:  Karras et al. 2024 (arXiv:2406.02507), app. C, rebuilt from the description; the tests
             hold it to that world's statistics.
    """
    random = np.random.RandomState(2)  # noqa: NPY002  the published world is defined by its stream
    scale = np.array([1.3136, 1.3844])
    parts: dict[str, list] = {"A": [], "B": []}

    def grow(start: np.ndarray, angle: float, depth: int, label: str) -> None:
        length = 0.292 * 0.8**depth * (1 + 0.2 * random.randn())
        thickness = 0.2 * 0.8**depth / length
        size = scale * length * 0.06
        along = np.array([math.cos(angle), math.sin(angle)])
        shape = np.outer(along, along) + (np.eye(2) - np.outer(along, along)) * thickness**2
        for u in np.linspace(0.07, 0.93, PER_BRANCH):
            mean = (start + along * length * u) * scale
            parts[label].append((length * 0.5**depth, mean, shape * np.outer(size, size)))
        for side in (1, -1):
            turn = side * 0.7**depth * (1 + 0.2 * random.randn())
            # The last level draws the angles of children that are never built: they are part of
            # the stream.
            if depth < 6:
                grow(start + along * length, angle + turn, depth + 1, label)

    origin = np.array([0.0030, 0.0325])
    grow(origin, math.pi / 4, 0, "A")
    grow(origin, 5 * math.pi / 4, 0, "B")
    return _tree("published", parts, view=(-0.35, 1.6, -0.3, 1.65))


def _tree(name: str, parts: dict[str, list], view: tuple[float, float, float, float]) -> Tree:
    mixtures = []
    for label in ("A", "B"):
        columns = zip(*parts[label], strict=True)
        weights, means, covariances = (torch.tensor(np.array(column)) for column in columns)
        mixtures.append(GaussianMixture(weights, means, (covariances + covariances.mT) / 2))
    priors = [sum(weight for weight, _, _ in parts[label]) for label in ("A", "B")]
    return Tree(name, ClassMixture(mixtures, priors), view)
