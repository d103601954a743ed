"""Checks of the exercises of chapter 06: models that learn from their own samples."""

from __future__ import annotations

import math

import torch

from guidance_edu.exercises.check import compare, compare_number, exercise


@exercise("6.1")
def weight_of_two_blurs(answer):
    """Check the weight at which a base of variance .26 and an auxiliary of .28 give .25."""
    low, high = 1.0, 4.0  # independent of the formula: bisection on the final variance
    for _ in range(60):
        middle = (low + high) / 2
        left = 0.26 * math.exp((middle - 1) * (math.log(0.26) - math.log(0.28)))
        low, high = (middle, high) if left > 0.25 else (low, middle)
    hints = {
        "that holds where both trainings add as much; here the second adds twice as much": 2,
        "that is for errors in proportion; variances multiply, they do not add": 1.5,
        "that is w - 1; add the 1 that stands for no guidance": low - 1,
        "compare the base with the truth, then the auxiliary model with the base": 1
        + math.log(0.26 / 0.25) / math.log(0.28 / 0.25),
    }
    return compare_number(answer, low, 0.006, "the weight that gives the right variance", hints)


@exercise("6.2")
def chained(answer):
    """Check the variance after some generations of a loop in which each samples with guidance."""
    for variance, added, w, generations in (
        (0.25, 0.02, 2.0, 0),
        (0.25, 0.02, 2.0, 1),
        (0.25, 0.02, 1.0, 5),
        (0.4, 0.05, 3.0, 4),
        (0.25, 0.1, 1.5, 7),
    ):

        def course(
            second, carry=True, variance=variance, added=added, w=w, generations=generations
        ):
            log = math.log(variance)
            for _ in range(generations):
                start = math.exp(log) if carry else variance
                log = math.log(start + added)
                log += (w - 1) * (log - math.log(start + second * added))
            return math.exp(log)

        hints = {
            "each generation learns from samples of the last, not from the real data": course(
                2, False
            ),
            "the auxiliary model learns from the base model's samples: two additions": course(1),
            "that is the naive loop; guidance is missing": variance + generations * added,
        }
        where = f"the variance after {generations} generations at w {w:g}"
        found = answer(variance, added, w, generations)
        problem = compare_number(found, course(2), 1e-7, where, hints if generations else {})
        if problem:
            return problem
    return None


class _Linear:
    """A model of one weight matrix."""

    def __init__(self, weight: torch.Tensor):
        self.weight = weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


@exercise("6.3")
def two_models(answer):
    """Check that the auxiliary model is a copy, and the base model stays as it was."""
    rng = torch.Generator().manual_seed(63)
    for w in (1.0, 2.5, 4.0):
        before, change = torch.randn(2, 3, 3, generator=rng, dtype=torch.float64)
        x = torch.randn(5, 3, generator=rng, dtype=torch.float64)
        model = _Linear(before.clone())

        def train(given, change=change):
            given.weight += change

        found = answer(model, train, x, w)
        if not torch.equal(model.weight, before):
            return "the base model was changed: train a copy of it, with weights of its own"
        positive, negative = x @ before, x @ (before + change)
        problem = compare(
            found,
            torch.lerp(negative, positive, w),
            f"at w {w:g}",
            {
                "that is the base model without guidance": positive,
                "that is the auxiliary model alone": negative,
                "that walks towards the auxiliary model": positive
                - (w - 1) * (positive - negative),
                "that steps w, not w - 1": positive + w * (positive - negative),
            },
        )
        if problem:
            return problem
    return None


@exercise("6.4")
def harmful(answer):
    """Check a world in which every weight above 1 moves the base model away from the truth."""
    try:
        truth, base, auxiliary = (float(value) for value in answer)
    except (TypeError, ValueError):
        return "expected three variances (truth, base, auxiliary)"
    if not (min(truth, base, auxiliary) > 0 and math.isfinite(truth + base + auxiliary)):
        return "expected three finite variances above 0"
    if base <= truth:
        return "the base model is to be too wide: its variance must exceed that of the truth"
    for w in (1.1, 1.5, 2.0, 4.0, 8.0):
        final = math.exp(w * math.log(base) + (1 - w) * math.log(auxiliary))
        if abs(final - truth) <= (base - truth) * (1 + 1e-9):
            return (
                f"at w = {w:g} guidance does not make it worse; a wider auxiliary model points away"
                " from the truth, and walking back from it narrows"
            )
    return None
