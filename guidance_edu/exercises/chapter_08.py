"""Checks of the exercises of chapter 08: what a wrong clock does, and how to break one."""

from __future__ import annotations

import math

import torch

from guidance_edu.exercises.check import compare, compare_number, exercise


@exercise("8.1")
def slow_clock(answer):
    """Check the spread under a clock slow by 0.2 at weight 4."""
    # Independent of the formula: sum the pushes over a fine grid of ln sigma.
    u = torch.linspace(-25, 25, 200001, dtype=torch.float64)

    def shrink(v):
        return 0.25 / (0.25 + torch.exp(2 * v))

    total = float(torch.trapezoid(shrink(u) - shrink(u - 0.2), u))
    wanted = 0.5 * math.exp(3 * total)
    hints = {
        "the push is w - 1, not w": 0.5 * math.exp(4 * total),
        "a slow clock narrows, a fast one widens": 0.5 * math.exp(-3 * total),
        "that is the factor; multiply the spread of the data by it": math.exp(3 * total),
        "pushes add up in the logarithm": 0.5 * (1 + 3 * total),
    }
    return compare_number(answer, wanted, 0.002, "the spread", hints)


@exercise("8.2")
def second_clock(answer):
    """Check that two wrong clocks cancel on a Gaussian."""
    for w1, delta1, w2 in ((3.0, 0.3, 2.0), (1.5, -0.4, 4.0), (2.0, 0.1, 2.0), (1.0, 0.5, 3.0)):
        try:
            got = float(answer(w1, delta1, w2))
        except TypeError:
            return "expected a number"
        where = f"for w1 = {w1}, delta1 = {delta1}, w2 = {w2}"
        left = (w1 - 1) * delta1 + (w2 - 1) * got
        if abs(left) <= 1e-9:
            continue
        if abs((w1 - 1) * delta1 - (w2 - 1) * got) <= 1e-9:
            return f"the two add up {where}; the second must undo the first"
        if abs(w1 * delta1 + w2 * got) <= 1e-9:
            return f"off {where}: the push is w - 1, not w"
        return f"the spread is multiplied by {math.exp(left):.3g} {where}"
    return None


@exercise("8.3")
def repaired_noise(answer):
    """Check noise of each embedding's own spread."""
    rng = torch.Generator().manual_seed(83)
    for n, width, strength in ((5, 8, 0.7), (3, 16, 2.0), (2, 4, 0.0)):
        embedding, noise = torch.randn(2, n, width, generator=rng, dtype=torch.float64)
        embedding = embedding * torch.arange(1, n + 1)[:, None] + 2
        spread = (embedding - embedding.mean(1, keepdim=True)).square().sum(1) / (width - 1)
        own, batch = spread.sqrt()[:, None], embedding.std(0, keepdim=True)
        hints = {
            "the spread of the batch; at one noise level all embeddings are equal and it is 0": (
                embedding + strength * batch * noise
            ),
            "one noise for the whole batch": embedding + strength * own * noise[:1],
            "both errors are still there": embedding + strength * batch * noise[:1],
            "noise is measured in units of the embedding's spread": embedding + strength * noise,
            "the embedding itself is missing": strength * own * noise,
        }
        wanted = torch.addcmul(embedding, own.expand_as(noise), noise, value=strength)
        where = f"for {n} embeddings at strength {strength}"
        problem = compare(answer(embedding, noise, strength), wanted, where, hints)
        if problem:
            return problem
    return None


@exercise("8.4")
def window_of_steps(answer):
    """Check a window of noise levels against the continuous schedule."""
    for first, last in ((200, 800), (100, 900), (1, 1000)):
        try:
            low, high = (float(value) for value in answer(first, last))
        except (TypeError, ValueError):
            return "expected two noise levels"
        if low > high:
            return "expected the lower level first"
        for step, got in ((first, low), (last, high)):
            # Independent: the schedule in continuous time, which the steps follow within 4 %
            # (and within a step's width at its start).
            log = 19.9 * (step / 1000) ** 2 / 2 + 0.1 * step / 1000
            wanted = math.sqrt(math.expm1(log))
            slack = 0.05 * wanted + 0.002
            hints = {
                "that is the share of noise, not divided by that of the signal": math.sqrt(
                    -math.expm1(-log)
                ),
                "that is a variance; take the root": math.expm1(log),
            }
            problem = compare_number(got, wanted, slack, f"the level after step {step}", hints)
            if problem:
                return problem
    return None
