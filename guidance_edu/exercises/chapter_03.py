"""Checks of the exercises of chapter 03: when a worse model helps, and how weights are written."""

from __future__ import annotations

import math

import torch

from guidance_edu.exercises.check import compare, compare_number, exercise


@exercise("3.1")
def proportional(answer):
    """Check the best weight for a guide that errs four times as much, the same way."""
    # Independent of the formula: a parabola through three weights, for an error of 1 and one of 4.
    low, middle, high = ((1 + (w - 1) * (1 - 4)) ** 2 for w in (1.0, 1.5, 2.0))
    lowest = 1.5 - 0.25 * (high - low) / (high - 2 * middle + low)
    hints = {
        "that is the length ratio itself; the walk from w = 1 back to the truth is shorter": 4.0,
        "that is the step w - 1; add the 1 that stands for no guidance": lowest - 1,
        "that is how much further the guide errs, in lengths of the main error; the step from w = 1"
        " is the inverse of it": 3.0,
        "divide by how much further the guide errs than the main model, not by k": 1 + 1 / 4,
        "that walks towards the guide; the truth lies on the other side": 2 - lowest,
    }
    return compare_number(answer, lowest, 0.005, "the weight that removes the error", hints)


@exercise("3.2")
def merged(answer):
    """Check that one negative stands for several, whatever the positive."""
    rng = torch.Generator().manual_seed(32)
    for weights in ([2.5], [1.5, 3.5], [2.0, 0.5, 4.0], [1.0, 2.0]):
        negatives = list(torch.randn(len(weights), 6, 3, generator=rng, dtype=torch.float64))
        where = f"for weights {weights}"
        result = answer(negatives, weights)
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            return f"expected a pair (negative, w) {where}"
        negative, w = result
        pushes = torch.tensor(weights, dtype=torch.float64) - 1
        total = float(pushes.sum())
        hints = {
            "that is the sum of the weights; what adds up is the push, w - 1": sum(weights),
            "that is the total push; w = 1 is no push, so add 1": total,
            "that is the average weight; pushes add, they do not average": sum(weights)
            / len(weights),
            "that is the largest weight; every push counts": max(weights),
        }
        problem = compare_number(w, 1 + total, 1e-6, f"the merged weight {where}", hints)
        if problem:
            return problem
        stack = torch.stack(negatives)
        share = torch.tensor(weights, dtype=torch.float64)
        problem = compare(
            negative,
            torch.tensordot(pushes / pushes.sum(), stack, 1),
            where,
            {
                "a plain mean; a negative with a larger push counts more": stack.mean(0),
                "averaged by w; a negative with w = 1 must not count at all": torch.tensordot(
                    share / share.sum(), stack, 1
                ),
                "not divided by the total push": torch.tensordot(pushes, stack, 1),
            },
        )
        if problem:
            return problem
    return None


@exercise("3.3")
def wrong_clock(answer):
    """Check the repaired guidance by a wrong clock against the difference of clean samples."""
    rng = torch.Generator().manual_seed(33)
    matrix = torch.randn(2, 2, generator=rng, dtype=torch.float64)

    def model(x, sigma):
        return torch.tanh(x @ matrix) / (1 + sigma)

    for sigma, delta, w in ((0.5, 0.3, 2.5), (2.0, -0.4, 3.0), (0.1, 0.2, 1.0)):
        x = torch.randn(5, 2, generator=rng, dtype=torch.float64)
        told = sigma * math.exp(delta)
        clean, lied = model(x, sigma), model(x, told)
        wanted = torch.lerp(lied, clean, w)
        noise, seen = (x - clean) / sigma, (x - lied) / told
        guided = noise + (w - 1) * (noise - seen)
        problem = compare(
            answer(model, x, sigma, delta, w),
            wanted,
            f"at sigma {sigma}, delta {delta}, w {w}",
            {
                "the negative's noise is still divided by the level it was told": x
                - sigma * guided,
                "the result is read off with the level that only the negative was told": x
                - told * guided,
                "that is guided noise; the function returns a clean sample": (x - wanted) / sigma,
                "that walks towards the negative; the difference has the wrong sign": clean
                - (w - 1) * (clean - lied),
                "w steps from the positive; the push is w - 1": clean + w * (clean - lied),
                "both models were told the wrong level": lied,
            },
        )
        if problem:
            return problem
    return None


@exercise("3.4")
def translated(answer):
    """Check three published scales in the weight of the book."""
    try:
        values = [float(value) for value in answer]
    except (TypeError, ValueError):
        return "expected a list of three numbers"
    if len(values) != 3:
        return f"expected three numbers, got {len(values)}"
    # What is wanted is where the published form lands for a positive of 1 and a negative of 0.
    reports = (
        ("Ho & Salimans at 4", lambda c, u: (1 + 4) * c - 4 * u),
        ("the paper on smoothed energy at 3", lambda c, u: 3 * c - 2 * u),
        ("the code of smoothed energy at 3", lambda c, u: c + 3 * (c - u)),
    )
    for value, (name, form) in zip(values, reports, strict=True):
        problem = compare_number(
            value,
            form(1.0, 0.0),
            1e-6,
            f"the weight of {name}",
            {
                "one too small; what does the form give at scale 0?": form(1.0, 0.0) - 1,
                "one too large; which scale switches it off?": form(1.0, 0.0) + 1,
            },
        )
        if problem:
            return problem
    return None


@exercise("3.5")
def worse_yet_below_one(answer):
    """Check a guide that is worse everywhere and still must not be walked away from."""
    rng = torch.Generator().manual_seed(35)
    for n in (1, 7, 40):
        error = torch.randn(n, 2, generator=rng, dtype=torch.float64)
        guide = answer(error.clone())
        if not isinstance(guide, torch.Tensor) or guide.shape != error.shape:
            return f"expected errors of shape {list(error.shape)}"
        if not bool(guide.isfinite().all()):
            return "expected finite errors, got NaN or infinity"
        if not bool((guide.norm(dim=1) > error.norm(dim=1) * (1 + 1e-9)).all()):
            return "the guide must err more than the main model at every point, and it does not"
        # Slope of the squared error at w = 1, by a finite difference.
        h = 1e-5
        ahead, behind = ((error + step * (error - guide)).square().sum() for step in (h, -h))
        if float(ahead - behind) / (2 * h) <= 1e-6 * float(error.square().sum()):
            return (
                "a small step above w = 1 still lowers the error: along the main error, the guide"
                " errs as far or further; turn its direction"
            )
    return None
