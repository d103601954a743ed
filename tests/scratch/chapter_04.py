"""Random inputs and known wrong versions of what chapter 04 builds."""

import torch


def tensor(rng):
    shape = torch.randint(1, 6, (2,), generator=rng).tolist()
    size = 10 ** (4 * torch.rand(1, generator=rng, dtype=torch.float64) - 2)
    return size * torch.randn(*shape, generator=rng, dtype=torch.float64)


def noisy(rng):
    weight = tensor(rng)
    noise = torch.randn(weight.shape, generator=rng, dtype=torch.float64)
    return [weight, noise, float(torch.rand(1, generator=rng))]


def rounded(rng):
    weight = tensor(rng)
    if torch.rand(1, generator=rng) < 0.1:
        weight = torch.zeros_like(weight)
    return [weight, float(1 + 7 * torch.rand(1, generator=rng))]


def silenced(rng):
    h = tensor(rng)
    draws = torch.rand(h.shape, generator=rng, dtype=torch.float64)
    return [h, draws, float(0.9 * torch.rand(1, generator=rng))]


INPUTS = {
    "guidance_edu.negatives.training.noisy_weight": noisy,
    "guidance_edu.negatives.training.rounded_weight": rounded,
    "guidance_edu.negatives.training.dropped": silenced,
}

WRONG = {
    "guidance_edu.negatives.training.noisy_weight": [
        (".square().mean().sqrt()", ".abs().mean()"),
        ("strength * size * noise", "strength * noise"),
        ("weight + ", "weight * (1 + strength) + "),
    ],
    "guidance_edu.negatives.training.rounded_weight": [
        ("(2**bits - 1)", "2**bits"),
        ("2 * largest", "largest"),
        (".round()", ".floor()"),
        ("weight.abs().max()", "weight.max()"),
    ],
    "guidance_edu.negatives.training.dropped": [
        ("draws < rate", "draws > rate"),
        ("h / (1 - rate)", "h"),
        ("(1 - rate)", "rate"),
    ],
}
