"""How good samples of the book's ten classes are, measured without a network connection.

One call gives all numbers: the Frechet distance to real photographs in the features of the book's
own classifier (FD; it is no FID and cannot be compared with one), the share of samples that the
classifier takes for what they were asked to be, precision and recall, diversity, and two plain
properties of the pixels. Real photographs come in as stored statistics, so no data set is needed.

Two sizes exist: 1000 samples for tables, 300 for sweeps. A Frechet distance falls with the number
of samples, so results of different sizes are never compared; to try is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guidance_edu.metrics import precision_recall
from toy_models.classifier import Classifier, features_of, load_classifier
from toy_models.image_reference import (
    SIZES,
    Reference,
    class_spread,
    jackknife,
    load_reference,
    with_parts,
)
from toy_models.imagenet64 import BOOK, to_pixels, to_range

NEIGHBOURS = 4


@dataclass(frozen=True)
class Measures:
    """What was measured on one set of samples.

    ``fd_noise`` is the standard deviation of ``fd`` from one draw of samples to the next, and
    ``floor`` the mean FD of as many real photographs. ``without`` holds the FD without each tenth
    of the samples: what paired comparisons are made of.

    Units:   fd in percent of the variance of real photographs; accuracy, precision, recall and
             saturation are shares; diversity is 1 for real photographs; speckle is the mean
             difference of neighbouring pixels, with pixels in -1 .. 1.
    """

    n: int
    seed: int
    fd: float
    fd_noise: float
    floor: float
    accuracy: float
    precision: float
    recall: float
    diversity: float
    speckle: float
    saturation: float
    without: tuple[float, ...]

    def __str__(self) -> str:
        """Return one line, in which FD never stands without its noise and its size."""
        return (
            f"FD {self.fd:.2f} +- {self.fd_noise:.2f} ({SIZES[self.n]} of {self.n},"
            f" real {self.floor:.2f}), accuracy {self.accuracy:.3f}, precision"
            f" {self.precision:.3f}, recall {self.recall:.3f}, diversity {self.diversity:.2f},"
            f" speckle {self.speckle:.3f}, saturation {self.saturation:.3f}"
        )


@dataclass(frozen=True)
class Difference:
    """A paired difference of two FDs (first minus second) and its standard deviation."""

    fd: float
    noise: float

    @property
    def clear(self) -> bool:
        """Whether the difference exceeds twice its noise."""
        return abs(self.fd) > 2 * self.noise


def measure(
    x: Tensor,
    labels: Tensor,
    seed: int,
    model: Classifier | None = None,
    reference: Reference | None = None,
) -> Measures:
    """Measure samples of the ten classes.

    The samples are clipped and rounded to 8 bits first, since that is what is looked at. ``seed``
    names their starting noise: results of one seed are paired (:func:`compare`).

    Shapes:  x [n, 3, 64, 64], about -1 .. 1; labels [n] long, 0 .. 9.
    Limits:  n is 300 or 1000, with as many samples of each class.
    Errors:  ValueError for another n, labels that are not balanced, samples that are not finite.
    """
    _check_samples(x, labels)
    model, reference = model or load_classifier(), reference or load_reference()
    pixels = to_pixels(x)
    features, logits = features_of(model, pixels)
    points = reference.project(features)
    fd, without = with_parts(points, labels, reference)
    # As many reals as fakes: the balls around the samples of a set grow as it shrinks.
    shares = precision_recall(reference.real[: len(x)], points, NEIGHBOURS)
    return Measures(
        n=len(x),
        seed=seed,
        fd=fd,
        fd_noise=jackknife(without),
        floor=reference.card["floor"][str(len(x))]["fd"],
        accuracy=float((logits[:, : len(BOOK)].argmax(1) == labels).double().mean()),
        precision=shares.precision,
        recall=shares.recall,
        diversity=float((class_spread(points, labels) / reference.spread).mean()),
        speckle=speckle(to_range(pixels)),
        saturation=float((x.abs() > 1).double().mean()),
        without=without,
    )


def compare(first: Measures, second: Measures) -> Difference:
    """Return how far the FD of the first exceeds that of the second, and the noise of that.

    Both have the same starting noise and labels, so much of what moves one moves the other; the
    noise comes from leaving out the same tenth of both.

    Errors:  ValueError for another size or another seed.
    Source:  Efron & Stein 1981 (the jackknife estimate of variance).
    """
    same_size([first, second])
    if first.seed != second.seed:
        raise ValueError(f"expected paired results, got the seeds {first.seed} and {second.seed}")
    pairs = [a - b for a, b in zip(first.without, second.without, strict=True)]
    return Difference(first.fd - second.fd, jackknife(pairs))


def same_size(results: Sequence[Measures]) -> int:
    """Return the one size of the results.

    Errors:  ValueError where there are two (tables have 1000 samples, sweeps 300) or none.
    """
    sizes = sorted({result.n for result in results})
    if len(sizes) != 1:
        kinds = ", ".join(f"{size} ({SIZES[size]})" for size in sizes) or "none"
        raise ValueError(f"expected results of one size, got {kinds}: FD depends on the size")
    return sizes[0]


def table(results: dict[str, Measures]) -> str:
    """Return results as a text table, FD with its noise; the head says the size.

    Errors:  ValueError for results of more than one size.
    """
    n = same_size(list(results.values()))
    floor = next(iter(results.values())).floor
    wide = max(len(name) for name in results)
    lines = [
        f"{SIZES[n]}: {n} samples each; FD of {n} real photographs {floor:.2f}",
        f"{'':{wide}s}      FD  noise   acc  prec   rec   div speckle  satur",
    ]
    lines += [
        f"{name:{wide}s} {m.fd:7.2f} {m.fd_noise:6.2f} {m.accuracy:5.3f} {m.precision:5.3f}"
        f" {m.recall:5.3f} {m.diversity:5.2f} {m.speckle:7.3f} {m.saturation:6.3f}"
        for name, m in results.items()
    ]
    return "\n".join(lines)


def speckle(x: Tensor) -> float:
    """Return the mean absolute difference of pixels that are neighbours, across or down.

    Shapes:  x [n, 3, h, w].
    Units:   those of x.
    """
    return float((x.diff(dim=2).abs().mean() + x.diff(dim=3).abs().mean()) / 2)


def _check_samples(x: Tensor, labels: Tensor) -> None:
    if x.dim() != 4 or x.shape[1:] != (3, 64, 64) or len(x) not in SIZES:
        raise ValueError(
            "expected samples of shape [n, 3, 64, 64] with n = 300 (sweeps) or 1000 (tables),"
            f" got {list(x.shape)}"
        )
    if labels.dtype != torch.long or labels.shape != x.shape[:1]:
        raise ValueError(f"expected labels [{len(x)}] long, got {list(labels.shape)}")
    if not bool(x.isfinite().all()):
        bad = int((~x.flatten(1).isfinite()).any(1).sum())
        raise ValueError(f"expected finite samples, got NaN or infinity in {bad} of {len(x)}")
    if bool((labels < 0).any()) or bool((labels >= len(BOOK)).any()):
        raise ValueError(f"expected labels from 0 to {len(BOOK) - 1}")
    counts = torch.bincount(labels, minlength=len(BOOK))
    if bool((counts != len(x) // len(BOOK)).any()):
        raise ValueError(
            f"expected {len(x) // len(BOOK)} samples of each class, got {counts.tolist()}"
        )
