"""How good a set of samples is, when the truth is known and when only true samples are.

With a known density: the share of samples that lie outside the data or far astray of it, the
histogram of branches, coverage. With two sample sets: energy distance, kernel discrepancy, sliced
Wasserstein distance, Frechet distance, precision and recall. Every measure has a floor, the value
that two sets of true samples give; a difference below the floor's spread means nothing.

All sums run in float64 on the device of the samples. Nothing is dropped: a sample that is not
finite is an error, never an omission.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor

ED_UNITS = 1000.0  # the book prints 1000 times the energy distance, as "ED"
QUANTILE = 0.001  # the share of true samples that counts as outside
STRAY_BLUR = 0.03  # blur of the density under which "stray" is judged, in data units
CHUNK = 2**21  # distances in one block: 16 MB

LogDensity = Callable[..., Tensor]


class NoiseFloor(NamedTuple):
    """What a metric says about two sets that are both true: mean and std of a single run."""

    mean: float
    std: float


class PrecisionRecall(NamedTuple):
    """Shares of fakes that look real, and of reals that the fakes reach."""

    precision: float
    recall: float


def density_floor(
    log_density: LogDensity, truth: Tensor, quantile: float = QUANTILE, sigma: float = 0.0
) -> float:
    """Return the log density that all but a share ``quantile`` of the true samples reach.

    Shapes:  truth [n, ...]; log_density(x) and log_density(x, sigma) return [n].
    Units:   nats; sigma is the blur of the density, in data units. The samples are not blurred.
    Limits:  floor(n quantile) of the true samples lie below it, ties aside; unchanged by the order
             of the samples. Of fresh true samples a share quantile lies below it, give or take
             sqrt(quantile / n): 22 % of itself for n = 20000 and the default quantile.
    Errors:  ValueError for fewer than 1 / quantile samples, a quantile outside (0, 1), samples
             that are not finite, or log densities that are NaN or have another shape.
    Chapter: 02_classifier_free_guidance
    """
    if not 0 < quantile < 1:
        raise ValueError(f"expected a quantile between 0 and 1, got {quantile}")
    values = _log_densities(log_density, truth, sigma, "truth")
    below = math.floor(len(values) * quantile + 1e-9)  # 1e-9: 3000 * .001 may round below 3
    if below < 1:
        raise ValueError(
            f"expected at least {math.ceil(1 / quantile - 1e-9)} true samples for the quantile"
            f" {quantile:g}, got {len(values)}"
        )
    return float(values.kthvalue(below + 1).values)


def fraction_below(
    log_density: LogDensity, samples: Tensor, floor: float, sigma: float = 0.0
) -> float:
    """Return the share of samples whose log density lies below the floor.

    Shapes:  samples [n, ...]; log_density(x) and log_density(x, sigma) return [n].
    Limits:  0 where all reach the floor (a sample on the floor reaches it), 1 where none does.
             Two runs of one sampler with share p differ by about sqrt(2 p (1 - p) / n).
    Errors:  ValueError for no samples, samples that are not finite, a NaN floor, or log densities
             that are NaN or have another shape.
    Chapter: 02_classifier_free_guidance
    """
    if math.isnan(floor):
        raise ValueError("expected a floor, got NaN")
    values = _log_densities(log_density, samples, sigma, "samples")
    return float((values < floor).double().mean())


def outside(
    log_density: LogDensity, samples: Tensor, truth: Tensor, quantile: float = QUANTILE
) -> float:
    """Return the share of samples that are "out": less probable than 99.9 % of true samples.

    ``outside(world.log_density, samples, truth)``; in a sweep, compute ``density_floor`` once.

    Shapes:  samples [n, ...], truth [m, ...]; log_density(x) returns [n].
    Limits:  true samples score ``quantile`` on average.
    Errors:  as density_floor and fraction_below.
    Chapter: 02_classifier_free_guidance
    """
    return fraction_below(log_density, samples, density_floor(log_density, truth, quantile))


def stray(
    log_density: LogDensity,
    samples: Tensor,
    truth: Tensor,
    blur: float = STRAY_BLUR,
    quantile: float = QUANTILE,
) -> float:
    """Return the share of samples that are far from all data: out even of the blurred density.

    ``stray(world.log_density, samples, truth)``; in a sweep, compute ``density_floor`` once.

    Shapes:  samples [n, ...], truth [m, ...]; log_density(x, sigma) returns [n].
    Units:   blur in data units. Only the density is blurred, never the samples.
    Limits:  blur = 0 is ``outside``; true samples score ``quantile`` on average.
    Errors:  as density_floor and fraction_below.
    Chapter: 02_classifier_free_guidance
    """
    floor = density_floor(log_density, truth, quantile, blur)
    return fraction_below(log_density, samples, floor, blur)


def branch_histogram(branches: Tensor, number: int) -> Tensor:
    """Return the share of samples on each branch.

    Shapes:  branches [n] long, with values in 0 .. number - 1; result [number], float64.
    Limits:  sums to 1; unchanged by the order of the samples.
    Errors:  ValueError for no samples, another dtype or shape, or an index out of range.
    Chapter: 02_classifier_free_guidance
    """
    counts = _branch_counts(branches, number)
    return counts.double() / counts.sum()


def total_variation(p: Tensor, q: Tensor) -> float:
    """Return half the sum of absolute differences of two histograms.

    Shapes:  p, q [k], non-negative, each summing to 1.
    Limits:  0 for equal, 1 for disjoint histograms; symmetric; the largest difference in
             probability that any set of branches can show.
    Errors:  ValueError for different shapes, or a histogram that is not one.
    Chapter: 02_classifier_free_guidance
    """
    p, q = _histogram(p, "p"), _histogram(q, "q").to(p.device)
    if p.shape != q.shape:
        raise ValueError(f"expected histograms of one length, got {len(p)} and {len(q)}")
    return float((p - q).abs().sum() / 2)


def total_variation_floor(p: Tensor, n: int) -> float:
    """Return the expected total variation between p and the histogram of n samples drawn from p.

    The count on a branch is binomial, whose mean absolute deviation has a closed form.

    Shapes:  p [k], non-negative, sums to 1.
    Limits:  n = 1: sum of p (1 - p); a sure outcome: 0; large n: sum of sqrt(p (1 - p) / (2 pi n)).
    Errors:  ValueError for n < 1 or a p that is no histogram.
    Source:  De Moivre 1730, as given by Diaconis & Zabell 1991, eq. 1.1.
    Chapter: 02_classifier_free_guidance
    """
    if isinstance(n, bool) or int(n) != n or n < 1:
        raise ValueError(f"expected a whole number of samples of at least 1, got {n}")
    shares = _histogram(p, "p").cpu().numpy().clip(0, 1)
    above = np.floor(n * shares) + 1  # the first count above the mean
    deviation = 2 * above * (1 - shares) * binom.pmf(above, n, shares)
    return float(deviation.sum() / (2 * n))


def coverage(branches: Tensor, number: int, inside: Tensor | None = None) -> float:
    """Return the share of branches (or components) that at least one good sample hits.

    Shapes:  branches [n] long, with values in 0 .. number - 1; inside None or [n] bool, True where
             a sample lies on the data (log density at or above the floor).
    Limits:  at most n / number; 0 where no sample is inside.
    Errors:  as branch_histogram; ValueError for an ``inside`` that is not [n] bool.
    Chapter: 02_classifier_free_guidance
    """
    _branch_counts(branches, number)
    if inside is not None:
        if inside.shape != branches.shape or inside.dtype != torch.bool:
            raise ValueError(
                f"expected inside of shape {list(branches.shape)} and dtype bool,"
                f" got {_form(inside)}"
            )
        branches = branches[inside.to(branches.device)]
    return len(branches.unique()) / number


def energy_distance(x: Tensor, y: Tensor, scale: float = 1.0) -> float:
    """Return the unbiased estimate of 2 E|x - y| - E|x - x'| - E|y - y'|.

    Shapes:  x [n, ...], y [m, ...]: at least two samples each, of one shape; all further axes are
             flattened.
    Units:   data units; ``scale=ED_UNITS`` gives the thousandths that the book prints as ED.
    Limits:  0 on average, and so sometimes negative, where both sets have one distribution;
             symmetric; unchanged by shifts and rotations of both sets; proportional to their scale.
    Errors:  ValueError for shapes that differ, fewer than two samples, values that are not finite.
    Source:  Székely & Rizzo 2013 (Energy statistics); the unbiased form leaves out the n pairs of
             a sample with itself.
    Chapter: 02_classifier_free_guidance
    """
    x, y = _two_sets(x, y)
    across, within_x, within_y = (_pair_sum(a, b) for a, b in ((x, y), (x, x), (y, y)))
    n, m = len(x), len(y)
    unbiased = 2 * across / (n * m) - within_x / (n * (n - 1)) - within_y / (m * (m - 1))
    return scale * unbiased


def maximum_mean_discrepancy(x: Tensor, y: Tensor, bandwidth: float | str = "median") -> float:
    """Return the unbiased estimate of the squared MMD with a Gaussian kernel.

    The kernel is exp(-|a - b|^2 / (2 bandwidth^2)). "median" takes the median distance between
    all pairs of the two sets together, or of their first 1000 samples each where there are more.

    Shapes:  x [n, ...], y [m, ...]: at least two samples each, of one shape.
    Units:   bandwidth in data units; the result has none and lies below 2.
    Limits:  0 on average, and so sometimes negative, where both sets have one distribution;
             symmetric; with "median", unchanged by shifts, rotations and scalings of both sets.
    Errors:  as energy_distance; ValueError for a bandwidth that is neither positive nor "median",
             or a median distance of 0.
    Source:  Gretton et al. 2012, lemma 6.
    """
    x, y = _two_sets(x, y)
    width = _median_distance(x, y) if bandwidth == "median" else bandwidth
    if isinstance(width, str) or not 0 < width < math.inf:
        raise ValueError(f"expected a positive bandwidth or 'median', got {width!r}")

    def kernel(distance: Tensor) -> Tensor:
        return torch.exp(-0.5 * (distance / width) ** 2)

    across, within_x, within_y = (_pair_sum(a, b, kernel) for a, b in ((x, y), (x, x), (y, y)))
    n, m = len(x), len(y)
    # A sample's kernel with itself is 1; the unbiased form leaves these n and m terms out.
    within = (within_x - n) / (n * (n - 1)) + (within_y - m) / (m * (m - 1))
    return within - 2 * across / (n * m)


def noise_floor(
    metric: Callable[[Tensor, Tensor], float],
    draw: Callable[[int, torch.Generator], Tensor],
    n: int,
    rng: torch.Generator,
    repeats: int = 8,
) -> NoiseFloor:
    """Return mean and standard deviation of a metric between two independent true sets.

    ``noise_floor(energy_distance, world.sample, 4000, generator(0))``. The standard deviation is
    that of one run, which is what one measured number has to be compared with.

    Shapes:  draw(n, rng) returns [n, ...]; metric(x, y) returns a number.
    Limits:  an unbiased metric has mean 0 up to std / sqrt(repeats).
    Errors:  ValueError for fewer than two repeats.
    Chapter: 02_classifier_free_guidance
    """
    if repeats < 2:
        raise ValueError(f"expected at least two repeats for a standard deviation, got {repeats}")
    values = [float(metric(draw(n, rng), draw(n, rng))) for _ in range(repeats)]
    return NoiseFloor(float(np.mean(values)), float(np.std(values, ddof=1)))


def sliced_wasserstein(
    x: Tensor, y: Tensor, rng: torch.Generator, directions: int = 64, order: float = 2.0
) -> float:
    """Return the Wasserstein distance of one-dimensional shadows, averaged over directions.

    Every shadow's distance is exact, also for sets of different sizes: both are sorted and
    transported step by step. The mean is taken of its power ``order``, then the root.

    Shapes:  x [n, ...], y [m, ...] of one shape; all further axes are flattened.
    Units:   data units.
    Limits:  0 for equal sets; symmetric for one rng state; a shift by s in d dimensions gives
             |s| / sqrt(d) for order 2 and many directions. Two true sets do not give 0: take
             ``noise_floor``.
    Errors:  ValueError for shapes that differ, no samples, values that are not finite,
             directions < 1, or order < 1.
    Source:  Bonneel et al. 2015 (Sliced and Radon Wasserstein barycenters of measures).
    """
    x, y = _two_sets(x, y, least=1)
    if directions < 1 or not 1 <= order < math.inf:
        raise ValueError(f"expected directions >= 1 and order >= 1, got {directions} and {order}")
    unit = torch.randn(directions, x.shape[1], generator=rng, dtype=torch.float64).to(x.device)
    unit = unit / unit.norm(dim=1, keepdim=True)
    n, m = len(x), len(y)
    # The quantile functions are steps that jump at i / n and j / m; in units of 1 / (n m) all
    # jumps are whole numbers, so that no jump is counted twice by rounding.
    jumps = torch.cat([torch.arange(n + 1) * m, torch.arange(m + 1) * n]).unique().to(x.device)
    start, share = jumps[:-1], (jumps[1:] - jumps[:-1]).double() / (n * m)
    shadow_x = (x @ unit.T).sort(0).values[start // m]
    shadow_y = (y @ unit.T).sort(0).values[start // n]
    costs = (share[:, None] * (shadow_x - shadow_y).abs() ** order).sum(0)
    return float(costs.mean() ** (1 / order))


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Return the Frechet distance of the Gaussians that fit two sets of features.

    Shapes:  x [n, d], y [m, d], with at least two samples each.
    Units:   squared feature units.
    Limits:  grows with smaller sets: compare only equal n. With n <= d the covariances are
             singular; the distance stays defined.
    Errors:  ValueError for shapes that differ or are not [n, d], fewer than two samples, values
             that are not finite.
    Source:  Dowson & Landau 1982; Heusel et al. 2017 use it on Inception features (FID).
    """
    for name, value in (("x", x), ("y", y)):
        if value.dim() != 2:
            raise ValueError(f"expected features {name} of shape [n, d], got {list(value.shape)}")
    x, y = _two_sets(x, y)
    moments = [(z.mean(0), (z - z.mean(0)).T @ (z - z.mean(0)) / (len(z) - 1)) for z in (x, y)]
    (mean_x, covariance_x), (mean_y, covariance_y) = moments
    return frechet_distance_from_moments(mean_x, covariance_x, mean_y, covariance_y)


def frechet_distance_from_moments(
    mean_x: Tensor, covariance_x: Tensor, mean_y: Tensor, covariance_y: Tensor
) -> float:
    """Return |mean_x - mean_y|^2 + tr(C_x + C_y - 2 (C_x^(1/2) C_y C_x^(1/2))^(1/2)).

    The trace equals the smallest |A - B U|^2 over orthogonal U, with A and B the symmetric square
    roots. In this form nothing cancels: equal inputs give 0 and no result is negative.

    Shapes:  means [d]; covariances [d, d], symmetric and positive semi-definite.
    Units:   squared feature units.
    Limits:  symmetric; unchanged by rotations of both; for commuting covariances the trace is the
             sum of squared differences of the axes' standard deviations; singular is allowed.
    Errors:  ValueError for wrong shapes, values that are not finite, covariances that are not
             symmetric or have a negative eigenvalue beyond rounding.
    Source:  Dowson & Landau 1982; Bhatia, Jain & Lim 2019 (the orthogonal form).
    Chapter: 90_image_models
    """
    d = mean_x.shape[-1] if mean_x.dim() else 0
    names = ("mean_x", "covariance_x", "mean_y", "covariance_y")
    given = (mean_x, covariance_x, mean_y, covariance_y)
    for name, value, shape in zip(names, given, ((d,), (d, d)) * 2, strict=True):
        if tuple(value.shape) != shape or d == 0:
            raise ValueError(f"expected {name} of shape {list(shape)}, got {list(value.shape)}")
        if not bool(value.isfinite().all()):
            raise ValueError(f"expected finite {name}, got NaN or infinity")
    root_x, root_y = (_square_root(covariance_x, names[1]), _square_root(covariance_y, names[3]))
    left, _, right = torch.linalg.svd(root_y @ root_x)
    gap = root_x - root_y @ (left @ right)
    return float((mean_x.double() - mean_y.double()).square().sum() + gap.square().sum())


def precision_recall(real: Tensor, fake: Tensor, neighbours: int = 3) -> PrecisionRecall:
    """Return which share of fakes lies among the reals, and of reals among the fakes.

    Each set is widened to balls around its samples that just reach their k-th nearest neighbour in
    the same set. Precision: fakes inside a ball of the reals. Recall: reals inside a ball of the
    fakes.

    Shapes:  real [n, ...], fake [m, ...] of one shape, more than ``neighbours`` samples each.
    Limits:  both 1 for equal sets; swapping the sets swaps the two shares; unchanged by shifts,
             rotations and scalings of both. One sample far out has a wide ball: a known weakness.
    Errors:  ValueError for shapes that differ, neighbours < 1, too few samples, values that are
             not finite.
    Source:  Kynkäänniemi et al. 2019 (arXiv:1904.06991), eq. 1 and 2.
    Chapter: 12_side_by_side
    """
    if isinstance(neighbours, bool) or int(neighbours) != neighbours or neighbours < 1:
        raise ValueError(f"expected a whole number of neighbours of at least 1, got {neighbours}")
    real, fake = _two_sets(real, fake, least=int(neighbours) + 1, names=("real", "fake"))
    balls = [_neighbour_distance(points, int(neighbours)) for points in (real, fake)]
    return PrecisionRecall(_share_inside(fake, real, balls[0]), _share_inside(real, fake, balls[1]))


def _log_densities(log_density: LogDensity, x: Tensor, sigma: float, name: str) -> Tensor:
    """Evaluate a density, with the blur passed on only where there is one."""
    if x.dim() < 2 or not len(x):
        raise ValueError(f"expected {name} of shape [n, ...] with n >= 1, got {list(x.shape)}")
    if not bool(x.isfinite().all()):
        raise ValueError(f"expected finite {name}, got NaN or infinity in {_bad_rows(x)}")
    values = torch.as_tensor(log_density(x, sigma) if sigma else log_density(x)).detach()
    if values.shape != x.shape[:1]:
        raise ValueError(f"expected log densities of shape [{len(x)}], got {list(values.shape)}")
    if bool(values.isnan().any()):
        raise ValueError(f"the log density of {_bad_rows(values)} of {name} is NaN")
    return values.double()


def _branch_counts(branches: Tensor, number: int) -> Tensor:
    if isinstance(number, bool) or int(number) != number or number < 1:
        raise ValueError(f"expected a whole number of branches of at least 1, got {number}")
    if branches.dim() != 1 or branches.dtype != torch.long or not len(branches):
        raise ValueError(f"expected branches of shape [n] and dtype long, got {_form(branches)}")
    low, high = int(branches.min()), int(branches.max())
    if low < 0 or high >= number:
        raise ValueError(f"expected branches from 0 to {number - 1}, got {low} to {high}")
    return torch.bincount(branches, minlength=int(number))


def _histogram(p: Tensor, name: str) -> Tensor:
    p = torch.as_tensor(p).double()
    if p.dim() != 1 or not len(p):
        raise ValueError(f"expected a histogram {name} of shape [k], got {list(p.shape)}")
    # 1e-5: shares given in float32 sum to 1 only so far.
    if not bool((p >= 0).all()) or abs(float(p.sum()) - 1) > 1e-5:
        raise ValueError(f"expected a histogram {name} of shares >= 0 that sum to 1, got {p}")
    return p


def _two_sets(
    x: Tensor, y: Tensor, least: int = 2, names: tuple[str, str] = ("x", "y")
) -> tuple[Tensor, Tensor]:
    """Check two sample sets; return them flat, centred together, in float64."""
    for name, value in zip(names, (x, y), strict=True):
        if value.dim() < 2 or len(value) < least or not value[:1].numel():
            raise ValueError(
                f"expected {name} of shape [n, ...] with n >= {least}, got {list(value.shape)}"
            )
        if not bool(value.isfinite().all()):
            raise ValueError(f"expected finite {name}, got NaN or infinity in {_bad_rows(value)}")
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"expected samples of one shape, got {list(x.shape[1:])} and {list(y.shape[1:])}"
        )
    x, y = x.detach().double().flatten(1), y.detach().double().to(x.device).flatten(1)
    centre = x.mean(0)  # keeps the rounding of distances small, far from the origin
    return x - centre, y - centre


def _distances(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Yield blocks of rows of the distance matrix [n, m]; within one set, 0 on its diagonal."""
    # Matrix products lose half the digits of small distances, but are far faster in high dimension.
    exact = x.shape[1] <= 32
    mode = "donot_use_mm_for_euclid_dist" if exact else "use_mm_for_euclid_dist"
    start = 0
    for rows in x.split(max(1, CHUNK // len(y))):
        block = torch.cdist(rows, y, compute_mode=mode)
        if x is y:
            block.diagonal(start).zero_()
        start += len(rows)
        yield block


def _pair_sum(x: Tensor, y: Tensor, function: Callable[[Tensor], Tensor] | None = None) -> float:
    return math.fsum(
        float((block if function is None else function(block)).sum()) for block in _distances(x, y)
    )


def _median_distance(x: Tensor, y: Tensor, most: int = 1000) -> float:
    pooled = torch.cat([x[:most], y[:most]])
    return float(torch.pdist(pooled).median())


def _square_root(covariance: Tensor, name: str) -> Tensor:
    covariance = covariance.double()
    size = float(covariance.abs().max())
    if not torch.allclose(covariance, covariance.mT, rtol=0, atol=1e-6 * size):
        raise ValueError(f"expected a symmetric {name}")
    values, axes = torch.linalg.eigh((covariance + covariance.mT) / 2)
    if bool((values < -1e-6 * size).any()):
        raise ValueError(
            f"expected a positive semi-definite {name}, got eigenvalue {float(values.min()):g}"
        )
    return (axes * values.clamp_min(0).sqrt()) @ axes.mT


def _neighbour_distance(points: Tensor, neighbours: int) -> Tensor:
    """Return each point's distance to its k-th nearest other point. [n]."""
    # A point is its own nearest, at distance 0: hence the k + 1.
    nearest = (block.topk(neighbours + 1, largest=False) for block in _distances(points, points))
    return torch.cat([block.values[:, -1] for block in nearest])


def _share_inside(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    hits = [(block <= radii).any(1) for block in _distances(points, centres)]
    return float(torch.cat(hits).double().mean())


def _bad_rows(x: Tensor) -> str:
    bad = int((~x.flatten(1 if x.dim() > 1 else 0).isfinite()).reshape(len(x), -1).any(1).sum())
    return f"{bad} of {len(x)} samples"


def _form(value: Tensor) -> str:
    return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
