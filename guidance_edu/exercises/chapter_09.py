"""Checks of the exercises of chapter 09: blurred waves, wrong spaces and masks of attention."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from guidance_edu.exercises.check import compare, compare_number, exercise


@exercise("9.1")
def faded_wave(answer):
    """Check the spread of a wave under blur guidance at weight 2.5."""
    # Independent of the formula: sum the pushes over a fine grid of ln sigma.
    u = torch.linspace(-25, 25, 200001, dtype=torch.float64)
    variance, noise = 1.44, torch.exp(2 * u)
    push = 0.8 * variance * noise / (variance + noise).square()
    total = float(torch.trapezoid(push, u))
    wanted = 1.2 * math.exp(-1.5 * total)
    hints = {
        "the push is w - 1, not w": 1.2 * math.exp(-2.5 * total),
        "in noise, guidance fades the wave": 1.2 * math.exp(1.5 * total),
        "that is the factor; multiply the spread of the data by it": math.exp(-1.5 * total),
        "that fades the power; the spread is its root": 1.2 * math.exp(-3 * total),
        "four fifths are lost, one fifth is left": 1.2 * math.exp(-1.5 * total / 4),
    }
    return compare_number(answer, wanted, 0.002, "the spread", hints)


@exercise("9.2")
def divergence(answer):
    """Check the factor in clean samples against a sum over noise levels."""
    for s, h, power, low in ((1.0, 0.5, 1.0, 0.01), (0.5, 1.0, 4.0, 0.1), (2.0, 0.3, 0.2, 0.02)):
        try:
            got = float(answer(s, h, power, low))
        except TypeError:
            return "expected a number"
        u = torch.linspace(math.log(low), 25, 200001, dtype=torch.float64)
        gain = power / (power + torch.exp(2 * u))
        total = s * h * float(torch.trapezoid(gain.square(), u))
        first = s * h * float(torch.trapezoid(gain, u))
        in_noise = s * h * float(torch.trapezoid(gain * (1 - gain), u))
        where = f"for s = {s}, h = {h}, P = {power}, down to {low}"
        hints = {
            f"the wave grows, it does not fade, {where}": math.exp(-total),
            f"that is the factor on the power {where}; the spread is its root": math.exp(2 * total),
            f"the model acts twice on the blurred part: g squared, not g, {where}": math.exp(first),
            f"that is the factor of the difference taken in noise {where}": math.exp(-in_noise),
            f"that is its logarithm {where}": total,
        }
        slack = 1e-4 * math.exp(total)
        problem = compare_number(got, math.exp(total), slack, f"the factor {where}", hints)
        if problem:
            return problem
    return None


@exercise("9.3")
def repaired_mask(answer):
    """Check the mask of attention received, on grids that are not square."""
    rng = torch.Generator().manual_seed(93)
    for n, heads, grid in ((2, 3, (4, 6)), (1, 2, (5, 3)), (3, 1, (4, 4))):
        tokens, size = grid[0] * grid[1], (4 * grid[0], 4 * grid[1])
        logits = 2 * torch.randn(n, heads, 1, tokens, generator=rng, dtype=torch.float64)
        logits = logits + torch.randn(n, heads, tokens, tokens, generator=rng, dtype=torch.float64)
        weights = logits.softmax(-1)

        def spread(received, grid=grid, size=size):
            marked = (received.reshape(-1, 1, *grid) > 1).double()
            return F.interpolate(marked, size=size)

        received = torch.einsum("nhij->nj", weights) / heads
        hints = {
            "you sum over the tokens that are looked at, which gives 1 each": torch.zeros_like(
                spread(received)
            ),
            "you sum over the tokens that are looked at; rounding decides": spread(
                weights.mean(1).sum(2)
            ),
            "rows and columns of the grid are exchanged": spread(received, grid[::-1]),
            "this marks what receives little": 1 - spread(received),
            "average over the heads; a sum of heads is above 1 nearly everywhere": spread(
                received * heads + 1e-9
            ),
        }
        if grid[0] == grid[1]:
            del hints["rows and columns of the grid are exchanged"]
        if heads == 1:
            del hints["average over the heads; a sum of heads is above 1 nearly everywhere"]
        where = f"for a grid of {grid[0]} x {grid[1]} tokens"
        problem = compare(answer(weights, grid, size), spread(received), where, hints)
        if problem:
            return problem
    uniform = torch.full((1, 2, 144, 144), 1 / 144)
    if torch.as_tensor(answer(uniform, (12, 12), (24, 24))).count_nonzero():
        return "uniform attention on 12 x 12 tokens marks some: rounding; leave a margin above 1"
    return None


@exercise("9.4")
def guided_velocity(answer):
    """Check the guided velocity against the same step written for clean samples."""
    rng = torch.Generator().manual_seed(94)
    mixing = torch.randn(6, 6, generator=rng, dtype=torch.float64)

    def model(x):
        return torch.tanh(x @ mixing)

    def blur(clean):
        return 0.5 * clean + 0.5 * clean.roll(1, -1)

    for alpha, s in ((0.8, 0.7), (0.3, 1.5), (0.95, 0.0)):
        beta = math.sqrt(1 - alpha**2)
        x_t = torch.randn(4, 6, generator=rng, dtype=torch.float64)
        clean = alpha * x_t - beta * model(x_t)
        shown = x_t - alpha * (clean - blur(clean))
        there = alpha * shown - beta * model(shown)
        # eq. 9.4: D + s (blurred - D(shown)); then back from the clean sample to the velocity
        wanted = (alpha * x_t - clean - s * (blur(clean) - there)) / beta
        in_velocity = model(x_t) + s * (model(x_t) - model(shown))
        in_clean = (alpha * x_t - clean - s * (clean - there)) / beta
        own = (alpha * x_t - clean + s * (blur(clean) - there)) / beta
        hints = {
            "taken in velocities; turn each into noise with the picture that it saw": in_velocity,
            "the difference is taken in clean samples": in_clean,
            "the sign: step away from the second answer": own,
            "that is the noise; turn it into a velocity at the end": (beta * x_t + alpha * wanted),
        }
        where = f"for alpha = {alpha}, s = {s}"
        problem = compare(answer(model, x_t, alpha, blur, s), wanted, where, hints if s else {})
        if problem:
            return problem
    return None
