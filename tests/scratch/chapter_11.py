"""Random inputs and known wrong versions of what chapter 11 builds."""

import math

import torch


def size(rng, low, high):
    return int(torch.randint(low, high, (1,), generator=rng))


def asked(rng):
    shape = (size(rng, 1, 4), size(rng, 1, 7), size(rng, 1, 9))
    queries = 2 * torch.randn(shape, generator=rng, dtype=torch.float64)
    keys = torch.randn(shape[0], size(rng, 1, 8), shape[2], generator=rng, dtype=torch.float64)
    return [queries, keys]


def map_of_tokens(rng):
    grid = size(rng, 1, 9), size(rng, 1, 9)
    shape = (size(rng, 1, 3), size(rng, 1, 4), grid[0] * grid[1], size(rng, 1, 5))
    sigma = (0.3, 0.5, 0.9, 1.0, 1.5, 3.0, 40.0, math.inf)[size(rng, 0, 8)]
    return [torch.randn(shape, generator=rng, dtype=torch.float64), grid, sigma]


def bent(rng):
    n, count = size(rng, 1, 4), size(rng, 2, 7)
    logits = 3 * torch.randn(n, count, generator=rng, dtype=torch.float64)
    blur = torch.rand(count, count, generator=rng, dtype=torch.float64)
    return [logits, blur / blur.sum(1, keepdim=True) if size(rng, 0, 4) else None]


INPUTS = {
    "guidance_edu.energy.hopfield_step": asked,
    "guidance_edu.energy.blur_tokens": map_of_tokens,
    "guidance_edu.energy.curvature": bent,
}

WRONG = {
    "guidance_edu.energy.hopfield_step": [
        ("/ root, -1)", ", -1)"),
        ("return queries - gradient", "return queries + gradient"),
        ("/ root, -1)", "/ root, -2)"),
    ],
    "guidance_edu.energy.blur_tokens": [
        ("math.ceil(6 * sigma)", "round(6 * sigma)"),
        ("size // 2 * 2 + 1)", "size - 1 + size % 2)"),
        ("kernel = kernel / kernel.sum()", "kernel = kernel / (sigma * math.sqrt(2 * math.pi))"),
        ("2 * (size - 1) - places", "2 * size - 1 - places"),
        ("tokens.transpose(-1, -2).reshape(n, heads", "tokens.reshape(n, heads"),
    ],
    "guidance_edu.energy.curvature": [
        ("logits @ blur.T, -1)", "logits, -1)"),
        ("blur.T @ covariance @ blur", "blur @ covariance @ blur.T"),
        ("[..., -1]", ".sum(-1)"),
    ],
}
