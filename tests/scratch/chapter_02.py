"""Random inputs and known wrong versions for what chapter 02 builds."""

import torch


def shape(rng):
    """Return a random shape with at least two numbers a sample."""
    sizes = [(1, 2), (3, 2), (7, 5), (2, 3, 4, 4), (4, 1, 9)]
    return sizes[int(torch.randint(len(sizes), (1,), generator=rng))]


def tensors(rng):
    """Return two tensors of one random shape, in float32 or float64."""
    size = shape(rng)
    dtype = (torch.float32, torch.float64)[int(torch.randint(2, (1,), generator=rng))]
    return [torch.randn(size, generator=rng, dtype=dtype) for _ in range(2)]


def uniform(rng, low, high):
    """Return a random number."""
    return float(torch.empty(()).uniform_(low, high, generator=rng))


INPUTS = {
    "guidance_edu.guidance.guide": lambda rng: [*tensors(rng), uniform(rng, -2, 9)],
    "guidance_edu.guidance.rescale": lambda rng: [*tensors(rng), uniform(rng, 0, 1)],
}

WRONG = {
    "guidance_edu.guidance.guide": [
        ("(w - 1)", "w"),  # Ho & Salimans' form with the book's weight
        ("positive - negative", "negative - positive"),
        ("return positive +", "return negative +"),
        ("(w - 1) *", "(w + 1) *"),
    ],
    "guidance_edu.guidance.rescale": [
        ("range(1, guided.dim())", "range(0, guided.dim())"),  # one deviation for the whole batch
        ("keepdim=True) / guided", "keepdim=True) * guided"),
        ("+ 1 - strength", ""),  # forgets to mix
        ("strength * ratio + 1 - strength", "ratio"),
        ("guided * (strength", "positive * (strength"),
        ("positive.std(axes, keepdim=True)", "positive.std(axes, keepdim=True, correction=0)"),
    ],
}
