"""Checks of the exercises of chapter 07: what a random class does, and how strongly."""

from __future__ import annotations

import math

import torch

from guidance_edu.exercises.check import compare, compare_number, exercise


@exercise("7.1")
def random_class_mean(answer):
    """Check the mean of class 2 among classes at -1, 0 and 2, at weight 4."""
    # Independent of the formula: the average over the three draws of a kept random class.
    ends = [2 + 3 * (2 - m) for m in (-1, 0, 2)]
    wanted = sum(ends) / 3
    hints = {
        "that leaves the own class out; here it is drawn as well": (ends[0] + ends[1]) / 2,
        "the push is w - 1, not w": 2 + 4 * (2 - 1 / 3),
        "that is the push alone; it starts from the mean of the class": wanted - 2,
        "that pushes away from 0; the average of the three means is not 0": 2 + 3 * 2,
        "that walks towards the average class": 2 - 3 * (2 - 1 / 3),
    }
    return compare_number(answer, wanted, 0.01, "the mean", hints)


@exercise("7.2")
def weight_without_own(answer):
    """Check the weight that gives an equal push where the own class is left out."""
    for w, classes in ((1.5, 2), (4.0, 3), (1.1, 1000), (1.0, 5)):
        # Independent of the formula: average the push over all draws, own class last.
        pushes = [w - 1] * (classes - 1) + [0.0]
        wanted = 1 + sum(pushes) / classes
        hints = {
            "the other way round: without idle draws the same weight pushes more": 1
            + (w - 1) * classes / (classes - 1),
            "what shrinks is the push w - 1, not w": w * (classes - 1) / classes,
            "that is the push; add the 1 that stands for no guidance": wanted - 1,
        }
        where = f"the weight for w = {w} and {classes} classes"
        problem = compare_number(answer(w, classes), wanted, 1e-6, where, hints)
        if problem:
            return problem
    return None


@exercise("7.3")
def repaired_icg(answer):
    """Check one guided estimate with a class of its own for each sample."""
    rng = torch.Generator().manual_seed(73)
    means = torch.randn(5, 2, generator=rng, dtype=torch.float64)

    def model(x, sigma, condition):
        return means[condition] + (x - means[condition]) / (1 + sigma**2)

    for n, w in ((6, 2.5), (3, 1.0), (1, 4.0)):
        x = torch.randn(n, 2, generator=rng, dtype=torch.float64)
        labels = torch.randint(5, (n,), generator=rng)
        draws = torch.rand(n, generator=rng)
        slots = torch.bucketize(draws, torch.tensor([0.2, 0.4, 0.6, 0.8]), right=True)
        pos, neg = model(x, 0.7, labels), model(x, 0.7, slots)
        one = model(x, 0.7, slots[:1].expand(n))
        hints = {
            "one random class for the whole batch; every sample needs its own": torch.lerp(
                one, pos, w
            ),
            "w = 1 must return the positive; the push is w - 1": pos + w * (pos - neg),
            "both errors are still there": pos + w * (pos - one),
            "that walks towards the negative": pos - (w - 1) * (pos - neg),
        }
        got = answer(model, x, 0.7, labels, draws, 5, w)
        problem = compare(got, torch.lerp(neg, pos, w), f"for {n} samples at w = {w}", hints)
        if problem:
            return problem
    return None


@exercise("7.4")
def unmoved_class(answer):
    """Check a world in which a random class moves every class but the first."""
    try:
        means = [float(mean) for mean in answer()]
    except TypeError:
        return "expected a list of numbers"
    if len(means) < 3:
        return f"expected at least three means, got {len(means)}"
    if not all(map(math.isfinite, means)):
        return f"expected finite means, got {means}"
    near = min(abs(a - b) for k, a in enumerate(means) for b in means[k + 1 :])
    if near < 0.5:
        return f"two means are only {near:g} apart; expected at least 0.5"
    pushes = [sum(mean - other for other in means) / len(means) for mean in means]
    if abs(pushes[0]) > 1e-9:
        return f"class 0 is moved by {pushes[0]:g} per unit of w - 1; where is the average class?"
    if min(abs(push) for push in pushes[1:]) < 1e-9:
        return "another class is not moved either"
    return None
