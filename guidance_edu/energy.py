"""Blur over a grid of tokens, and what it does to the energy landscape of attention."""

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


def check_blur(sigma: float, padding: str) -> None:
    """Errors: ValueError for sigma that is not positive, or an unknown padding."""
    if not sigma > 0:
        raise ValueError(f"expected sigma above 0, got {sigma}")
    if padding not in PADDINGS:
        raise ValueError(f"unknown padding {padding!r}; expected one of {', '.join(PADDINGS)}")
