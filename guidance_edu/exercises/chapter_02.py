"""Checks of the exercises of chapter 02, classifier-free guidance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from guidance_edu.exercises.check import compare, compare_number, exercise
from guidance_edu.samplers import noise_levels, sample


def _spread(w: float, s: float, wide: float) -> float:
    """Integrate the distance of two guided particles down to no noise, numerically."""
    log_sigma = torch.linspace(math.log(1e-4), math.log(1e4), 40001, dtype=torch.float64)
    variance = (2 * log_sigma).exp()
    rate = w * variance / (s**2 + variance) - (w - 1) * variance / (wide**2 + variance)
    return math.exp(float(log_sigma[-1] - torch.trapezoid(rate, log_sigma)))


@exercise("2.1")
def predicted_std(answer):
    """Compare a number with the integrated flow."""
    hints = {
        "that is the sharpened density's, which narrows much more slowly": (7 / 0.25 - 6) ** -0.5,
        "count the powers: at w = 1 the std is that of the class": _spread(8, 0.5, 1),
        "count the powers: at w = 2 the std is already below that of the class": _spread(6, 0.5, 1),
        "that is a variance": _spread(7, 0.5, 1) ** 2,
    }
    wanted = _spread(7, 0.5, 1)
    return compare_number(answer, wanted, 3e-5, "the std of CFG at w = 7", hints)


@exercise("2.2")
def original_guide(function):
    """Compare on random tensors with a weighted sum of the two predictions."""
    rng = torch.Generator().manual_seed(22)
    for shape in ((5,), (4, 2), (2, 3, 4, 4)):
        positive, negative = torch.randn((2, *shape), generator=rng, dtype=torch.float64)
        for w in (0.3, 3.0, 6.5, 0.0):
            hints = {
                "this takes the book's weight; theirs is 0 without guidance": torch.lerp(
                    negative, positive, w
                ),
                "the sign is turned round: it walks towards the negative": torch.lerp(
                    positive, negative, w
                ),
                "positive and negative are swapped": torch.lerp(negative, positive, -w),
                "this adds one twice": torch.lerp(negative, positive, w + 2),
            }
            wanted = torch.lerp(negative, positive, w + 1)
            problem = compare(function(positive, negative, w), wanted, f"at weight {w}", hints)
            if problem:
                return problem
    return None


@exercise("2.3")
def interval_step(function):
    """Compare Euler steps inside, outside and across both ends of the interval."""
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]

    def positive(x: Tensor, sigma: float) -> Tensor:
        return 1 + 0.25 / (0.25 + sigma**2) * (x - 1)

    def negative(x: Tensor, sigma: float) -> Tensor:
        return x / (1 + sigma**2)

    w, low, high = 3.0, 0.3, 2.0
    # (sigma, target, is the step guided?, where)
    steps = (
        (1.0, 0.5, True, "for a step inside the interval"),
        (5.0, 3.0, False, "for a step above the interval"),
        (0.2, 0.1, False, "for a step below the interval"),
        (3.0, 1.5, False, "for a step that starts above the interval and ends inside"),
        (0.5, 0.2, True, "for a step that starts inside the interval and ends below"),
        (2.0, 1.0, True, "for a step that starts at the upper end, which belongs to the interval"),
        (0.3, 0.2, False, "for a step that starts at the lower end, which does not belong to it"),
    )
    for sigma, target, inside, where in steps:
        results = {}
        for name, weight in (("on", w), ("off", 1.0), ("sign", 2 - w)):
            mixed = torch.lerp(negative(x, sigma), positive(x, sigma), weight)
            results[name] = torch.lerp(mixed, x, target / sigma)
        got = function(positive, negative, x, sigma, target, w, low, high)
        hints = {
            "the guidance has the wrong sign": results["sign"],
            "it is not guided, but should be" if inside else "it is guided, but should not be": (
                results["off" if inside else "on"]
            ),
        }
        problem = compare(got, results["on" if inside else "off"], where, hints)
        if problem:
            return problem
    return None


@exercise("2.4")
def agreeing_world(function):
    """Compare the spread of the guided flow with the sharpened density's at several weights."""
    mean, s, wide = (float(value) for value in function())
    if not (s > 0 and wide > 0 and math.isfinite(mean + s + wide)):
        return f"expected finite m and positive s, S, got {mean, s, wide}"
    for w in (2.0, 4.0, 8.0):
        precision = w / s**2 - (w - 1) / wide**2
        if precision <= 0:
            return f"at w = {w:g} there is no sharpened density: its precision is not positive"
        flow, sharp = _spread(w, s, wide), precision**-0.5
        if abs(flow / sharp - 1) > 1e-3:
            return (
                f"at w = {w:g} CFG ends with std {flow:.4f}, the sharpened density has {sharp:.4f}"
            )
    if mean == 0:
        return "the two agree, but class and population are the same: guidance moves nothing"
    return None


def _two_modes(x: Tensor, sigma: float, means: list[float]) -> Tensor:
    """Denoise a mixture of equal modes of std 0.3 on the line."""
    centres, noisy = torch.tensor(means, dtype=torch.float64), 0.09 + sigma**2
    shares = (-((x - centres) ** 2) / (2 * noisy)).softmax(1)
    return (shares * (centres + 0.09 / noisy * (x - centres))).sum(1, keepdim=True)


def _ends(low: float, high: float) -> Tensor:
    """Guide the world of the lost mode at w = 8 inside an interval; return the samples."""
    places = (torch.arange(400, dtype=torch.float64) + 0.5) / 400

    class Model:
        guided = False

        def during(self, sigma: float) -> Model:
            step = Model()
            step.guided = low < sigma <= high
            return step

        def __call__(self, x: Tensor, sigma: float, condition: Tensor | None = None) -> Tensor:
            positive = _two_modes(x, sigma, [0.4, 2.0])
            if not self.guided:
                return positive
            return torch.lerp(_two_modes(x, sigma, [0.4, 2.0, -0.4, -2.0]), positive, 8.0)

    levels = noise_levels(60, 80.0, 0.002)
    return sample(Model(), levels[0] * torch.special.ndtri(places)[:, None], levels)[:, 0]


@exercise("2.5")
def interval_that_keeps_the_mode(function):
    """Run the guided flow in the answer's interval and count the inner mode."""
    low, high = (float(value) for value in function())
    if not 0 <= low < high:
        return f"expected an interval with 0 <= low < high, got {low, high}"
    ends = _ends(low, high)
    inner = ends[ends < 1.2]
    share = len(inner) / len(ends)
    if share < 0.4:
        return f"the inner mode keeps only {share:.3f}: guidance still acts while it is being lost"
    if share > 0.46:
        return f"the inner mode keeps {share:.3f}, nearly as much as unguided: guide a little more"
    if float(inner.mean()) < 0.5:
        return f"the inner mode ends at {float(inner.mean()):.3f}: it hardly feels guidance"
    return None
