"""Checks of the exercises of chapter 12: choosing honestly, and knowing the noise."""

from __future__ import annotations

import math

import torch

from guidance_edu.exercises.check import compare_number, exercise


@exercise("12.1")
def winners_luck(answer):
    """Check how lucky the best of forty equal settings looks."""
    # By integration, not by formula: the mean of the largest of 40 standard normal numbers.
    z = torch.linspace(-9, 9, 40001, dtype=torch.float64)
    below = torch.special.ndtr(z)
    wanted = float(torch.trapezoid(40 * z * below**39 * torch.exp(-z * z / 2), z)) / math.sqrt(
        2 * math.pi
    )
    hints = {
        "that is one setting, not the best of forty": 0.0,
        "that is the largest of a few numbers; forty reach further": 1.2,
        "that would take hundreds of settings": 3.0,
    }
    return compare_number(answer, wanted, 0.3, "the luck of the best of forty", hints)


@exercise("12.2")
def honest_choice(answer):
    """Check that a weight is chosen on some seeds and judged on the others."""
    rng = torch.Generator().manual_seed(122)
    weights, tuning = [1.25, 1.5, 2.0, 3.0], [0, 1]
    picked, problem = {"worst": 0, "everywhere": 0, "elsewhere": 0}, None
    for _ in range(20):
        fd = {s: dict(zip(weights, v, strict=True)) for s, v in _table(rng, weights).items()}
        got = answer(fd, tuning)
        if not isinstance(got, tuple) or len(got) != 2:
            return "expected two results: the weight, and the mean FD that judges it"
        others = [seed for seed in fd if seed not in tuning]
        rows = {"best": tuning, "worst": tuning, "everywhere": list(fd), "elsewhere": others}
        wanted = {}
        for name, seeds in rows.items():
            pick = max if name == "worst" else min
            wanted[name] = pick(weights, key=lambda w, s=seeds: sum(fd[seed][w] for seed in s))
        for name in picked:
            picked[name] += got[0] == wanted[name]
        w, judged = wanted["best"], float(got[1])
        if got[0] != w:
            problem = problem or f"expected the weight {w}, best on the tuning seeds, got {got[0]}"
        elif abs(judged - sum(fd[seed][w] for seed in others) / len(others)) > 1e-9:
            if abs(judged - sum(fd[seed][w] for seed in tuning) / len(tuning)) < 1e-9:
                return "the FD comes from the seeds on which the weight was chosen"
            return "the weight is right, its mean FD over the other seeds is not"
    if problem and picked["worst"] == 20:
        return "a low FD is good: the smallest is wanted"
    if problem and 20 in (picked["everywhere"], picked["elsewhere"]):
        return "the weight was chosen with a look at the seeds that are to judge it"
    return problem


def _table(rng: torch.Generator, weights: list[float]) -> dict[int, list[float]]:
    values = 10 + 3 * torch.randn(5, len(weights), generator=rng, dtype=torch.float64)
    return dict(enumerate(values.tolist()))


@exercise("12.3")
def noise_of_a_difference(answer):
    """Check the jackknife noise of a paired difference."""
    rng = torch.Generator().manual_seed(123)
    for parts in (10, 10, 20, 5):
        shared, one, two = torch.randn(3, parts, generator=rng, dtype=torch.float64)
        first, second = 17 + 3 * shared + 0.3 * one, 12 + 3 * shared + 0.3 * two
        got = float(answer(first.tolist(), second.tolist()))
        gap = first - second
        # (m - 1)^2 / m times the sample variance: the same as (m - 1) / m times a sum of squares
        wanted = (parts - 1) / math.sqrt(parts) * float(gap.std())
        unpaired = (parts - 1) / math.sqrt(parts) * float((first.var() + second.var()).sqrt())
        if abs(got - wanted) <= 1e-8:
            continue
        if abs(got - unpaired) <= 1e-8:
            return "that adds two noises: subtract part by part first, what is shared cancels"
        if min(abs(got - float(gap.std(correction=k))) for k in (0, 1)) <= 1e-8:
            return (
                "that is the spread of the values; they share nine tenths of their samples, so"
                " they vary far less than the whole does"
            )
        if abs(got - wanted**2) <= 1e-8:
            return "that is the variance: take the root"
        return f"expected {wanted:.4f} on random parts, got {got:.4f}"
    return None


@exercise("12.4")
def cost_of_a_window(answer):
    """Check the cost of guidance that acts in a part of the calls only."""
    for share, price in ((0.4, 2.0), (0.25, 1.3), (1.0, 2.0), (0.0, 2.0), (0.6, 1.08)):
        try:
            got = float(answer(share, price))
        except TypeError:
            return "expected a number"
        if abs(got - ((1 - share) + share * price)) <= 1e-9:
            continue
        where = f"for a share of {share} and a price of {price}"
        if abs(got - share * price) <= 1e-9:
            return f"the calls outside the window still cost one pass {where}"
        if abs(got - (1 + share * price)) <= 1e-9:
            return f"inside the window the price already holds the positive's pass {where}"
        return f"expected {(1 - share) + share * price:g} {where}, got {got:g}"
    return None
