"""Checks of the exercises of chapter 04: soft borders, the cost of a guide, and fair controls."""

from __future__ import annotations

import math

import torch

from guidance_edu.exercises.check import compare, compare_number, exercise


@exercise("4.1")
def ramps(answer):
    """Check the weight that sharpens the main model's border to the exact one."""
    for exact, main, guide in ((0.1, 0.15, 0.4), (0.05, 0.2, 0.25), (0.3, 0.4, 1.2)):
        x = 0.5 * exact  # inside all three ramps
        first, second = x / main, x / guide
        wanted = 1 + (x / exact - first) / (first - second)
        hints = {
            "that is the push w - 1; add the 1 that stands for no guidance": wanted - 1,
            "slopes subtract, widths do not: the slope of a ramp is 1 / width": 1
            + (exact - main) / (main - guide),
            "k is the ratio of the errors, not of the widths": 1 + 1 / (guide / main - 1),
            "that walks towards the guide": 2 - wanted,
        }
        where = f"the weight for widths {exact:g}, {main:g} and {guide:g}"
        problem = compare_number(answer(exact, main, guide), wanted, 1e-6, where, hints)
        if problem:
            return problem
    return None


@exercise("4.2")
def cost_of_training(answer):
    """Check the extra training cost of the guide, in percent of the main model's."""

    def parameters(width):
        inputs, outputs = 4, 2
        widths = [inputs, width, width, width, width, outputs]
        return sum((a + 1) * b for a, b in zip(widths[:-1], widths[1:], strict=True))

    weights, steps = parameters(32) / parameters(64), 384 / 3072
    wanted = 100 * weights * steps
    hints = {
        "a share, and right; the question asks for percent": wanted / 100,
        "that counts the steps alone; a step of the guide is cheaper too": 100 * steps,
        "that counts the weights alone; the guide also trains for fewer steps": 100 * weights,
        "half the width is not half the weights: hidden layers are width x width": 100 * steps / 2,
        "that is the total; the question asks for what the guide adds": 100 + wanted,
    }
    return compare_number(answer, wanted, 0.15 * wanted, "the extra training cost", hints)


@exercise("4.3")
def one_direction(answer):
    """Check that guide and main model carry one damage, at strengths h and 2 h."""
    for seed, shape, h in ((1, (4, 3), 0.05), (2, (7, 7), 0.2)):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(40 + seed))
        state = torch.Generator().manual_seed(seed)
        result = answer(weight, h, state)
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            return "expected a pair (weight of the main model, weight of the guide)"
        main, guide = result
        if main.shape != weight.shape or guide.shape != weight.shape:
            return f"expected two weights of shape {list(shape)}"
        first, second = main - weight, guide - weight
        cosine = float((first * second).sum() / (first.norm() * second.norm()).clamp_min(1e-12))
        if not cosine > 0.999:
            return (
                f"the two damages point in different directions (cosine {cosine:.2f}); every draw"
                " moves the generator on"
            )
        size = float(first.norm() / weight.norm() / h)
        length = float(second.norm() / first.norm())
        if abs(length - 2) > 1e-3:
            return f"the guide's damage is {length:.3g} times the main model's, not twice"
        if not 0.4 < size < 1.8:
            return (
                f"the main model's damage is {size:.2g} h in units of the weight; the strength"
                " counts in root mean squares of the weight"
            )
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        expected = h * weight.square().mean().sqrt() * noise
        problem = compare(first, expected, f"for a weight of shape {list(shape)}", {})
        if problem:
            return problem
    return None


@exercise("4.4")
def matched(answer):
    """Check the search for the strength at which a damage reaches a given error."""
    for power, target, low, high in ((1.0, 0.3, 1e-3, 1.0), (2.0, 0.05, 1e-2, 5.0)):
        asked = []

        def error(strength, power=power, asked=asked):
            asked.append(strength)
            return 0.02 + 0.7 * strength**power

        wanted = ((target - 0.02) / 0.7) ** (1 / power)
        found = answer(error, target, low, high)
        if isinstance(found, (int, float)) and math.isclose(error(found), target, rel_tol=0.02):
            if len(asked) > 200:
                return f"right, but it asked for {len(asked)} errors, and each is a network's run"
            if min(asked) < low / 1.001 or max(asked) > high * 1.001:
                return f"it tried strengths outside [{low:g}, {high:g}]"
            continue
        hints = {
            "that is the lower end; the half that holds the target was thrown away": low,
            "that is the upper end; the half that holds the target was thrown away": high,
            "that is the error that was asked for; return the strength": target,
        }
        where = f"the strength with error {target:g} between {low:g} and {high:g}"
        return compare_number(found, wanted, 0.02 * wanted, where, hints)
    return None


@exercise("4.5")
def a_bad_signpost(answer):
    """Check that guidance by this ramp makes the main model's border softer."""
    exact, main, x, w = 0.1, 0.2, 0.05, 2.0
    if isinstance(answer, bool) or not isinstance(answer, (int, float)) or not answer > 0:
        return f"expected the half-width of the guide's ramp, a number above 0, got {answer!r}"

    def climb(width):
        return max(-1.0, min(1.0, x / width))

    if math.isclose(answer, main, rel_tol=1e-9):
        return "that guide is the main model: the difference is 0, and nothing becomes worse"
    guided = climb(main) + (w - 1) * (climb(main) - climb(answer))
    if abs(guided - climb(exact)) <= abs(climb(main) - climb(exact)):
        return (
            f"guided by it, the estimate at x = {x} is {guided:.3f}, no worse than the main"
            f" model's {climb(main):.3f}: a softer ramp is a signpost; what would mislead?"
        )
    return None
