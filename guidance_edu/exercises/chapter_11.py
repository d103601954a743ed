"""Checks of the exercises of chapter 11: padding, thresholds, blurred queries, sharp logits."""

from __future__ import annotations

import math

import torch
from torch.autograd.functional import hessian

from guidance_edu.exercises.check import compare, compare_number, exercise


@exercise("11.1")
def mirrored_mean(answer):
    """Check the mean of (0, 8, 0, 0) after a mirrored blur with weights 1/4, 1/2, 1/4."""
    line = torch.nn.functional.pad(torch.tensor([[0.0, 8.0, 0.0, 0.0]]), (1, 1), mode="reflect")
    wanted = float((line.unfold(1, 3, 1) * torch.tensor([0.25, 0.5, 0.25])).sum(-1).mean())
    hints = {
        "that would be so if the border were repeated, or the line a circle": 2.0,
        "that is the sum of the four; divide it by four": 4 * wanted,
        "the second token is read twice by the first, not once": 1.75,
    }
    return compare_number(answer, wanted, 0.01, "the mean", hints)


def _bend(z: float, c: float) -> float:
    """Curvature of two logits (z, 0) under a blur that multiplies their difference by c."""
    return c * c / (2 * math.cosh(min(c * z, 700.0) / 2) ** 2)


@exercise("11.2")
def turning_point(answer):
    """Check the difference of two logits beyond which a blur raises the curvature."""
    for c in (0.5, 0.3, 0.8, 0.95):
        try:
            z = float(answer(c))
        except TypeError:
            return "expected a number"
        if not math.isfinite(z) or z <= 0:
            return f"expected a difference above 0 for c = {c}, got {z:g}"
        if abs(_bend(z, c) / _bend(z, 1.0) - 1) < 1e-4:
            continue
        if abs(math.exp((1 - c) * z) * c * c - 1) < 1e-4:
            return f"near for sharp logits, but not exact for c = {c}: use cosh, not exp"
        if abs(math.exp((1 - c) * z) * c - 1) < 1e-3:
            return f"not for c = {c}: the factor of the blur enters squared"
        side = "falls" if _bend(z, c) < _bend(z, 1.0) else "rises"
        return f"not for c = {c}: at your difference the curvature still {side}"
    return None


def _gaussian(size: int, sigma: float) -> torch.Tensor:
    """Blur a circle of tokens with a Gaussian that is wrapped around it. Shape [size, size]."""
    offset = torch.arange(size)[:, None] - torch.arange(size)
    turns = torch.arange(-9, 10)[:, None, None] * size
    weights = torch.exp(-0.5 * ((offset + turns).double() / sigma) ** 2).sum(0)
    return weights / weights.sum(1, keepdim=True)


@exercise("11.3")
def repaired_attention(answer):
    """Check attention with blurred queries on a grid that is not square."""
    rng = torch.Generator().manual_seed(113)
    for heads, height, width in ((1, 2, 3), (2, 3, 5), (3, 4, 4)):
        shape = (2, heads, height * width, 4)
        q, k, v = (torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(3))
        rows, columns = _gaussian(height, 0.8), _gaussian(width, 0.8)

        def attended(queries, keys, values):
            return (queries @ keys.transpose(-1, -2) / 2).softmax(-1) @ values

        whole = torch.kron(rows, columns)
        wanted = attended(whole @ q, k, v)
        weights = (q @ k.transpose(-1, -2) / 2).softmax(-1)
        placed = q.reshape(2, heads, width, height, 4)
        turned = torch.einsum("ij,kl,bhljd->bhkid", rows, columns, placed).reshape(shape)
        hints = {
            "the softmax came first; blur what enters the product": whole @ weights @ v,
            "the grid is height times width, in row order": attended(turned, k, v),
            "keys stay as they are": attended(whole @ q, whole @ k, v),
            "values stay as they are": attended(whole @ q, k, whole @ v),
        }
        where = f"for {heads} heads on a grid of {height} x {width}"
        problem = compare(answer(q, k, v, (height, width), rows, columns), wanted, where, hints)
        if problem:
            return problem
    return None


@exercise("11.4")
def raised_curvature(answer):
    """Check logits whose curvature a blur multiplies by at least 3."""
    for sigma in (0.5, 0.7, 1.0):
        blur = _gaussian(6, sigma)
        logits = answer(blur)
        if not isinstance(logits, torch.Tensor) or logits.shape != (6,):
            return "expected a tensor of six logits"
        logits = logits.double()
        if not bool(logits.isfinite().all()):
            return "expected finite logits"
        if float(logits.max() - logits.min()) > 40:
            return "expected logits within 40 of each other: beyond that they are only rounding"

        def energy(a, mix):
            return torch.logsumexp(mix @ a, 0)

        bends = [
            float(torch.linalg.matrix_norm(hessian(lambda a, m=mix: energy(a, m), logits), 2))
            for mix in (torch.eye(6, dtype=torch.float64), blur)
        ]
        ratio = bends[1] / bends[0]
        if ratio < 1:
            return f"at blur {sigma} the curvature falls, to {ratio:.2g} of what it was: too mild"
        if ratio < 3:
            return f"at blur {sigma} it is multiplied by {ratio:.2g} only; three is asked for"
    return None
