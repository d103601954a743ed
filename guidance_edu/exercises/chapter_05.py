"""Checks of the exercises of chapter 05: averages of weights, their profiles and their price."""

from __future__ import annotations

import numpy as np
import torch
from scipy.integrate import quad

from guidance_edu.ema import exponent
from guidance_edu.exercises.check import compare_number, exercise


@exercise("5.1")
def last_tenth(answer):
    """Check the share of the last tenth of training in an average with exponent 6."""
    share, _ = quad(lambda t: 7 * t**6, 0.9, 1.0)
    hints = {
        "that is the share of everything before the last tenth": 1 - share,
        "the exponent of the sum is gamma + 1": 1 - 0.9**6,
        "that is the share of that much time in a plain mean": 0.1,
        "that is the profile's height at the end times a tenth; it falls towards the past": 0.7,
        "that is what the first tenth gives": 0.1**7,
    }
    return compare_number(answer, share, 0.002, "the share of the last tenth", hints)


@exercise("5.2")
def uneven_steps(answer):
    """Check an average over steps of different length against the integral of its profile."""
    rng = torch.Generator().manual_seed(52)
    for steps, gamma in ((1, 4.0), (6, 2.5), (30, 17.0), (5, 0.0)):
        images = torch.randint(1, 9, (steps,), generator=rng).double().cumsum(0)
        weights = torch.randn(steps, generator=rng, dtype=torch.float64)

        def mass(ends, gamma=gamma):
            edges = np.concatenate([[0.0], np.asarray(ends, dtype=float)]) / float(ends[-1])
            return torch.from_numpy(np.diff(edges ** (gamma + 1)))

        equal = torch.arange(1, steps + 1)
        hints = {
            "steps are counted, not images": float(mass(equal) @ weights),
            "the exponent in eq. (5.2) is gamma + 1": float(mass(images, gamma - 1) @ weights)
            if gamma >= 1
            else float("nan"),
            "that is the last weight": float(weights[-1]),
            "that is the plain mean over steps": float(weights.mean()),
        }
        problem = compare_number(
            answer(weights.tolist(), images.tolist(), gamma),
            float(mass(images) @ weights),
            1e-9,
            f"the average of {steps} steps at gamma {gamma:g}",
            {} if steps == 1 else hints,
        )
        if problem:
            return problem
    return None


@exercise("5.3")
def inner_product(answer):
    """Check the repaired inner product against the integral."""
    rng = torch.Generator().manual_seed(53)
    cases = [(0.7, 3.0, 0.7, 5.0), (0.4, 3.0, 1.0, 5.0), (1.0, 2.0, 0.5, 6.0)]
    cases += (torch.rand(6, 4, generator=rng) * torch.tensor([1.0, 9.0, 1.0, 9.0])).tolist()
    for s, gamma, t, delta in cases:

        def product(u, s=s, gamma=gamma, t=t, delta=delta):
            first = (gamma + 1) * u**gamma / s ** (gamma + 1)
            return first * (delta + 1) * u**delta / t ** (delta + 1)

        wanted, _ = quad(product, 0, min(s, t), epsabs=1e-13)
        short, long = min(s, t), max(s, t)
        of_shorter = gamma if s < t else delta
        area = (gamma + 1) * (delta + 1) / (gamma + delta + 1)
        hints = {
            "the last factor still has the exponent of the profile that ends first": area
            / long
            * (short / long) ** of_shorter,
            "the last factor is missing": area / long,
            "divided by the shorter time instead of the longer": wanted * long / short,
        }
        where = f"the inner product for ({s:.2f}, {gamma:.2f}) and ({t:.2f}, {delta:.2f})"
        problem = compare_number(answer(s, gamma, t, delta), wanted, 1e-6, where, hints)
        if problem:
            return problem
    return None


@exercise("5.4")
def gigabytes(answer):
    """Check the size of 32 snapshots of two tracks of 50 million weights in 16 bits."""
    number = 50_000_000
    total = sum(np.zeros(1, np.float16).nbytes for _ in range(2 * 32)) * number / 1e9
    hints = {
        "16 bits are two bytes, not four": 2 * total,
        "16 bits are two bytes, not one": total / 2,
        "that is one snapshot of each track": total / 32,
        "that is in bits": 8 * total,
        "in gigabytes, 10^9 bytes": 1000 * total,
    }
    return compare_number(answer, total, 0.05, "the number of gigabytes", hints)


@exercise("5.5")
def averages_that_lag(answer):
    """Check a path of one weight whose averages are all further from 0 than its last value."""
    for n in (50, 400):
        path = answer(n)
        if not isinstance(path, torch.Tensor) or path.shape != (n,):
            return f"expected a tensor of shape [{n}]"
        path = path.double()
        last = abs(float(path[-1]))
        if not bool(path.isfinite().all()) or last == 0:
            return "expected finite values and a last one that is not 0"
        for width in (0.05, 0.1, 0.2):
            edges = (torch.arange(n + 1, dtype=torch.float64) / n) ** (exponent(width) + 1)
            average = abs(float(edges.diff() @ path))
            if average < last * (1 - 1e-9):
                return (
                    f"at length {width} the average is nearer to 0 than the last value: noise"
                    " around a place, or a path that moves away from 0, is what averages are"
                    " good for"
                )
            if average < 1.1 * last:
                return (
                    f"at length {width} the average is not a tenth further from 0 than the last"
                    " value; let the weight move more towards the end"
                )
    return None
