"""Answers to the exercises of chapter 11: right ones, and the common mistakes."""

import math

import torch


def bend(z, c):
    p = 1 / (1 + math.exp(-c * z))
    return c * c * p * (1 - p)


def turning(c):
    low, high = 1e-3, 60.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if bend(middle, c) < bend(middle, 1) else (low, middle)
    return low


def smoothed(q, k, v, grid, rows, columns, late=False, swapped=False, keys=False, values=False):
    height, width = grid[::-1] if swapped else grid

    def blur(tokens):
        placed = tokens.unflatten(-2, (height, width))
        if swapped:
            placed = placed.transpose(-2, -3)
        mixed = torch.einsum("ij,kl,...jld->...ikd", rows, columns, placed)
        return (mixed.transpose(-2, -3) if swapped else mixed).flatten(-3, -2)

    k, v = (blur(k) if keys else k), (blur(v) if values else v)
    q = q if late else blur(q)
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (blur(weights) if late else weights) @ v


def peak(height):
    return lambda blur: torch.tensor([height, 0, 0, 0, 0, 0], dtype=torch.float64)


RIGHT = {"11.1": 2.5, "11.2": turning, "11.3": smoothed, "11.4": peak(12.0)}

WRONG = {
    "11.1": [
        (2.0, "if the border were repeated"),
        (10.0, "divide it by four"),
        (1.75, "read twice by the first"),
        ([2.5, 1], "expected a number"),
    ],
    "11.2": [
        (lambda c: 2 * math.log(1 / c) / (1 - c), "use cosh, not exp"),
        (lambda c: math.log(1 / c) / (1 - c), "enters squared"),
        (lambda c: 1.0, "still falls"),
        (lambda c: 50.0, "still rises"),
        (lambda c: -turning(c), "above 0"),
        (lambda c: [c], "expected a number"),
    ],
    "11.3": [
        (lambda *a: smoothed(*a, late=True), "the softmax came first"),
        (lambda *a: smoothed(*a, keys=True), "keys stay"),
        (lambda *a: smoothed(*a, values=True), "values stay"),
        (lambda *a: smoothed(*a, swapped=True), "height times width"),
    ],
    "11.4": [
        (peak(0.5), "too mild"),
        (peak(4.2), "three is asked for"),
        (peak(100.0), "only rounding"),
        (lambda blur: torch.zeros(4), "six logits"),
    ],
}
