"""What the records of chapters 05 and 06 say about samples of the tree."""

from __future__ import annotations

from functools import cache

from torch import Tensor

from guidance_edu.metrics import branch_histogram, density_floor, fraction_below, total_variation
from guidance_edu.settings import generator, seed_shift
from toy_models.tree import own_tree


def quality(x: Tensor) -> dict[str, float]:
    """Measure samples of the tree: shares outside and astray, distance of branch shares.

    Shapes:  x [n, 2].
    """
    tree = own_tree()
    world, truth = tree.mixture("A"), tree.branch_weights()
    sharp, blurred = _floors(seed_shift())
    return {
        "outside": fraction_below(world.log_density, x, sharp),
        "astray": fraction_below(world.log_density, x, blurred, 0.03),
        "branches": total_variation(branch_histogram(tree.branches(x), len(truth)), truth),
    }


@cache
def _floors(shifted_seed: int) -> tuple[float, float]:
    world = own_tree().mixture("A")
    truth = world.sample(20000, generator(52))
    return (
        density_floor(world.log_density, truth),
        density_floor(world.log_density, truth, sigma=0.03),
    )
