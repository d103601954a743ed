"""Checks of the exercises of chapter 10: what deaf points agree on, and how to make them deaf."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from guidance_edu.exercises.check import compare, compare_number, exercise


def _grown(positive: float, negative: float, w: float) -> float:
    """Return the variance of a Gaussian of variance ``positive`` guided by one of ``negative``."""
    # Independent of any closed form: the pushes are summed over a fine grid of ln sigma.
    u = torch.linspace(-25, 25, 100001, dtype=torch.float64)
    keep, other = (v / (v + torch.exp(2 * u)) for v in (positive, negative))
    return positive * math.exp(2 * (w - 1) * float(torch.trapezoid(keep - other, u)))


@exercise("10.1")
def agreement(answer):
    """Check the correlation of two points at 0.6 and weight 2."""

    def correlation(w: float) -> float:
        shared, apart = 1.6, _grown(0.4, 1.6, w)
        return (shared - apart) / (shared + apart)

    hints = {
        "that is the correlation of the data": 0.6,
        "the odds are raised to the power w, not multiplied by w": (8 - 1) / (8 + 1),
        "that is w = 3": correlation(3.0),
        "those are the odds; turn them back into a correlation": 16.0,
        "correlations themselves are not raised to a power": 0.36,
    }
    return compare_number(answer, correlation(2.0), 0.002, "the correlation", hints)


@exercise("10.2")
def spread_beside_the_best(answer):
    """Check the spread of a point pushed away from the best estimate of lone points."""
    for rho, w in ((0.5, 2.0), (0.2, 3.0), (0.8, 1.5), (0.0, 4.0), (0.6, 1.0)):
        shared, apart = (_grown(v, 1.0, w) for v in (1 + rho, 1 - rho))
        deaf = _grown(1 - rho, 1 + rho, w)
        hints = {
            "that is the law of identity attention; here the shared part is pushed too": math.sqrt(
                (1 + rho + deaf) / 2
            ),
            "that is the variance; take the root": (shared + apart) / 2,
            "a point has half of each variance": math.sqrt(shared + apart),
            "the push is w - 1, but a variance v ends as v^w, not v^(w - 1)": math.sqrt(
                (shared / (1 + rho) + apart / (1 - rho)) / 2
            ),
        }
        where = f"the spread for rho = {rho}, w = {w}"
        wanted = math.sqrt((shared + apart) / 2)
        try:
            got = answer(rho, w)
        except TypeError:
            return "expected a function of rho and w"
        problem = compare_number(got, wanted, 1e-3 * wanted, where, hints)
        if problem:
            return problem
    return None


@exercise("10.3")
def joint_identity(answer):
    """Check the rule for joint attention, one query at a time."""
    rng = torch.Generator().manual_seed(103)
    for heads, tokens, text in ((2, 7, 3), (1, 5, 1), (3, 6, 0), (2, 4, 4)):
        queries, keys, values = torch.randn(
            3, 2, heads, tokens, 4, generator=rng, dtype=torch.float64
        )
        everyone = range(tokens)
        hears = {
            "wanted": lambda i, t=text, a=everyone: [j for j in a if i < t or j < t or j == i],
            "text must keep hearing the image": lambda i, t=text, a=everyone: (
                [j for j in a if j < t or j == i]
            ),
            "image tokens must keep hearing the text": lambda i, t=text, a=everyone: (
                [j for j in a if i < t or j == i]
            ),
            "an image token must hear itself": lambda i, t=text, a=everyone: (
                [j for j in a if i < t or j < t] or [i]
            ),
            "nobody is deaf; that is attention": lambda i, a=everyone: list(a),
        }
        made = {name: _heard(queries, keys, values, rule) for name, rule in hears.items()}
        wanted = made.pop("wanted")
        where = f"for {tokens} tokens, {text} of them text"
        problem = compare(answer(queries, keys, values, text), wanted, where, made)
        if problem:
            return problem
    return None


@exercise("10.4")
def repaired_identity(answer):
    """Check that each token keeps its own value, and that nothing else is done to it."""
    rng = torch.Generator().manual_seed(104)
    for tokens in (5, 1, 8):
        queries, keys, values = torch.randn(3, 2, 2, tokens, 4, generator=rng, dtype=torch.float64)
        logits = queries @ keys.transpose(-1, -2) / 2
        eye = torch.eye(tokens, dtype=torch.float64)
        hints = {
            "a logit of 0 still has weight: the others are heard": (
                torch.softmax(logits * eye, -1) @ values
            ),
            "the softmax of an identity matrix is not the identity": (
                torch.softmax(eye, -1) @ values
            ),
            "the others are gone, but a token keeps only a part of itself": (
                (torch.softmax(logits, -1) * eye) @ values
            ),
            "that is attention": torch.softmax(logits, -1) @ values,
        }
        where = f"for {tokens} tokens"
        problem = compare(answer(queries, keys, values), values, where, hints)
        if problem:
            return problem
    return None


@exercise("10.5")
def worst_correlation(answer):
    """Check at which correlation a point loses most of its spread, by search."""

    def variance(rho: float, w: float = 3.0) -> float:
        return (1 + rho + (1 - rho) * ((1 - rho) / (1 + rho)) ** (w - 1)) / 2

    def least(w: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(200):  # one minimum, so that thirds close in on it
            a, b = low + (high - low) / 3, high - (high - low) / 3
            low, high = (low, b) if variance(a, w) < variance(b, w) else (a, high)
        return (low + high) / 2

    hints = {
        "there a point keeps its whole spread": 1.0,
        "independent points are left alone": 0.0,
        "that is the worst one at w = 2": least(2.0),
        "that is the spread that is left; which correlation has it?": math.sqrt(
            variance(least(3.0))
        ),
    }
    return compare_number(answer, least(3.0), 0.01, "the correlation", hints)


def _heard(queries: Tensor, keys: Tensor, values: Tensor, hears) -> Tensor:
    """Attend one query at a time, to the tokens that it hears."""
    result = torch.empty_like(values)
    for i in range(values.shape[-2]):
        ours = hears(i)
        logits = (keys[..., ours, :] * queries[..., i : i + 1, :]).sum(-1)
        shares = (logits / math.sqrt(queries.shape[-1])).exp()
        shares = shares / shares.sum(-1, keepdim=True)
        result[..., i, :] = (shares[..., None] * values[..., ours, :]).sum(-2)
    return result
