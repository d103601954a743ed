"""Blur over a grid of tokens, and what it does to the energy landscape of attention.

A layer of attention has logits a = q k / sqrt(d). Their energy is -log sum exp a, its gradient is
minus the softmax, and smoothed-energy guidance blurs the logits over the places of the queries.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PADDINGS = ("reflect", "symmetric", "circular")


def blur_tokens(
    tokens: Tensor, grid: tuple[int, int] | None, sigma: float, padding: str = "reflect"
) -> Tensor:
    """Blur a map of tokens over its grid with a Gaussian.

    Shapes:  tokens, result [n, heads, height * width, width]; grid (height, width).
    Units:   sigma in tokens; infinity gives each token the mean of all.
    Limits:  sigma -> 0 changes nothing; a constant map stays.
    Errors:  ValueError where there is no grid, or sigma or padding are out of range.
    Source:  Hong 2024 (arXiv:2408.00760), sec. 4.
    Chapter: 11_smoothed_energy
    """
    check_blur(sigma, padding)
    if grid is None:
        raise ValueError("expected tokens on a grid (height, width) to blur, got tokens without")
    rows, columns = (blur_matrix(size, sigma, padding).to(tokens) for size in grid)
    placed = tokens.unflatten(-2, grid)
    return torch.einsum("ij,kl,...jlc->...ikc", rows, columns, placed).flatten(-3, -2)


def blur_matrix(
    size: int, sigma: float, padding: str = "reflect", taps: int | None = None
) -> Tensor:
    """Return the matrix that blurs a line of tokens.

    Shapes:  result [size, size], float64; every row sums to 1.
    Units:   sigma in tokens. ``taps`` is the length of the kernel, an odd number; by default the
             one next to 6 sigma, at most ``size`` (size + 1 where that is even).
    Limits:  infinity gives 1 / size everywhere. Circular and symmetric padding give columns that
             sum to 1 as well (mean kept); reflect padding does not.
    Errors:  ValueError for sigma or padding out of range, an even number of taps, or one that
             reaches beyond what the padding can mirror.
    Source:  Hong 2024 (arXiv:2408.00760), published code (kernel size, reflect padding).
    Chapter: 11_smoothed_energy
    """
    check_blur(sigma, padding)
    longest = 2 * size + 1
    if taps is not None and (taps < 1 or taps % 2 == 0 or taps > longest):
        raise ValueError(f"expected an odd number of taps from 1 to {longest}, got {taps}")
    if math.isinf(sigma) or size == 1:
        return torch.full((size, size), 1 / size, dtype=torch.float64)
    taps = kernel_size(sigma, size) if taps is None else taps
    reach = taps // 2
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for row in range(size):
        for offset, weight in zip(offsets.long().tolist(), kernel.tolist(), strict=True):
            matrix[row, _place(row + offset, size, padding)] += weight
    return matrix


def kernel_size(sigma: float, size: int) -> int:
    """Return how many taps a blur has: the next odd number to 6 sigma, not beyond the line.

    Source:  Hong 2024 (arXiv:2408.00760), published code.
    Chapter: 11_smoothed_energy
    """
    wanted = math.ceil(6 * sigma) + 1 - math.ceil(6 * sigma) % 2
    return min(wanted, size - (size % 2 - 1))


def _place(index: int, size: int, padding: str) -> int:
    """Return where a place beyond the end of a line is read."""
    if padding == "circular":
        return index % size
    period = 2 * size if padding == "symmetric" else 2 * (size - 1)
    index %= period
    last = period - 1 if padding == "symmetric" else period
    return index if index < size else last - index


def attention_energy(logits: Tensor) -> Tensor:
    """Return the energy of logits: minus the logarithm of the sum of their exponentials.

    Its gradient is minus the softmax of the logits, so attention follows it.

    Shapes:  logits [..., n]; result [...].
    Limits:  n equal logits a give -a - log n, the highest energy of all logits with their mean;
             c added to all logits lowers it by c; it lies between -max - log n and -max.
    Source:  Hong 2024 (arXiv:2408.00760), sec. 3.2, without its sum over places.
    Chapter: 11_smoothed_energy
    """
    return -torch.logsumexp(logits, -1)


def hopfield_energy(queries: Tensor, keys: Tensor) -> Tensor:
    """Return the energy of each query among stored keys, of which attention is one descent step.

        |q|^2 / 2 - sqrt(d) log sum_j exp(q k_j / sqrt(d))

    Shapes:  queries [..., tokens, width], keys [..., stored, width]; result [..., tokens].
    Limits:  one key k gives |q - k|^2 / 2 - |k|^2 / 2: a bowl around the key.
    Source:  Ramsauer et al. 2021 (arXiv:2008.02217), eq. 2, up to a constant.
    Chapter: 11_smoothed_energy
    """
    root = math.sqrt(queries.shape[-1])
    logits = queries @ keys.transpose(-1, -2) / root
    return queries.square().sum(-1) / 2 + root * attention_energy(logits)


def hopfield_step(queries: Tensor, keys: Tensor) -> Tensor:
    """Return the queries after one gradient step of length 1 down their Hopfield energy.

    Shapes:  queries, result [..., tokens, width]; keys [..., stored, width].
    Limits:  it is softmax attention whose values are the keys; the energy never rises.
    Source:  Ramsauer et al. 2021 (arXiv:2008.02217), eq. 3 and sec. 3.
    Chapter: 11_smoothed_energy
    """
    root = math.sqrt(queries.shape[-1])
    weights = torch.softmax(queries @ keys.transpose(-1, -2) / root, -1)
    gradient = queries - weights @ keys
    return queries - gradient


def energy_hessian(logits: Tensor, blur: Tensor | None = None) -> Tensor:
    """Return the second derivatives of the energy of blurred logits, by the logits before the blur.

        H = -B^T (diag(p) - p p^T) B,   p = softmax(B a)

    Shapes:  logits [..., n]; blur [n, n] or None; result [..., n, n].
    Limits:  no blur is the identity; H is symmetric and never positive; where the rows of B sum
             to 1, adding a constant to all logits is a direction without curvature, so that
             det H = 0.
    Errors:  ValueError for a blur of another shape.
    Source:  the chain rule; Hong 2024 (arXiv:2408.00760), app. A.3 keeps the diagonal alone.
    Chapter: 11_smoothed_energy
    """
    size = logits.shape[-1]
    if blur is None:
        blur = torch.eye(size, dtype=logits.dtype, device=logits.device)
    if blur.shape != (size, size):
        raise ValueError(f"expected a blur of shape [{size}, {size}], got {list(blur.shape)}")
    p = torch.softmax(logits @ blur.T, -1)
    middle = torch.diag_embed(p) - p[..., :, None] * p[..., None, :]
    return -(blur.T @ middle @ blur)


def curvature(logits: Tensor, blur: Tensor | None = None) -> Tensor:
    """Return how strongly the energy bends in the direction in which it bends most.

    Shapes:  as :func:`energy_hessian`; result [...], the spectral norm of the Hessian.
    Limits:  never above :func:`largest_curvature`. A blur may lower it or raise it.
    Errors:  as :func:`energy_hessian`.
    Chapter: 11_smoothed_energy
    """
    return torch.linalg.eigvalsh(-energy_hessian(logits, blur))[..., -1]


def largest_curvature(blur: Tensor) -> float:
    """Return what the curvature never exceeds, whatever the logits: max_ij |b_i - b_j|^2 / 4.

    It is the supremum where the blur can be inverted, so that every p comes from some logits, and
    where no direction spreads the other rows further. The b are the rows of the blur:
    v^T B^T (diag(p) - p p^T) B v is the variance of the numbers b_i v under p, which is largest
    where p halves between the two that lie furthest apart.

    Shapes:  blur [n, n].
    Limits:  no blur gives 1/2; any matrix whose rows are averages gives at most 1/2, and less where
             any two rows have a place in common; equal rows give 0.
    Source:  Popoviciu's inequality on variances, applied to the Hessian.
    Chapter: 11_smoothed_energy
    """
    difference = blur[:, None] - blur
    return float(difference.square().sum(-1).max() / 4)


def energy_surface(
    queries: Tensor,
    keys: Tensor,
    directions: tuple[Tensor, Tensor],
    amounts: Tensor,
    blur: Tensor | None = None,
) -> Tensor:
    """Return the energy of a map of queries when two patterns are added to it.

    Shapes:  queries, keys and both directions [..., tokens, width]; amounts [m], the same for both
             directions; blur [tokens, tokens], acting on the queries, or None. Result [m, m]: entry
             [i, j] belongs to amounts[i] of the first and amounts[j] of the second direction.
    Units:   the mean over all tokens (and heads) of the energy of a token's logits.
    Limits:  a direction that the blur removes leaves the energy as it is.
    Source:  the figures of Hong 2024 (arXiv:2408.00760), sec. 3, made a measurement.
    Chapter: 11_smoothed_energy
    """
    scale = queries.shape[-1] ** -0.5

    def logits(part: Tensor) -> Tensor:
        part = part if blur is None else blur.to(part) @ part
        return part @ keys.transpose(-1, -2) * scale

    base, first, second = (logits(part) for part in (queries, *directions))
    rows = [
        torch.stack([attention_energy(base + a * first + b * second).mean() for b in amounts])
        for a in amounts
    ]
    return torch.stack(rows)


def check_blur(sigma: float, padding: str) -> None:
    """Errors: ValueError for sigma that is not positive, or an unknown padding."""
    if not sigma > 0:
        raise ValueError(f"expected sigma above 0, got {sigma}")
    if padding not in PADDINGS:
        raise ValueError(f"unknown padding {padding!r}; expected one of {', '.join(PADDINGS)}")
