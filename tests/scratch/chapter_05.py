"""Random inputs and known wrong versions of what chapter 05 builds."""

import torch


def lengths_and_gammas(rng, n):
    lengths = torch.rand(n, generator=rng, dtype=torch.float64) * 4000 + 10
    return lengths, 20 * torch.rand(n, generator=rng, dtype=torch.float64)


def width(rng):
    return [0.004 + 0.28 * float(torch.rand(1, generator=rng))]


def two_profiles(rng):
    n = int(torch.randint(1, 6, (1,), generator=rng))
    return [*lengths_and_gammas(rng, n), *lengths_and_gammas(rng, n)]


def stored_and_wanted(rng):
    """Snapshots as they are taken: equally spaced, two tracks. Arbitrary ones are nearly singular.

    The wanted profile lies between the tracks or above, where the coefficients are well defined.
    """
    n = int(torch.randint(1, 9, (1,), generator=rng))
    length = float(torch.randint(10, 5000, (1,), generator=rng))
    ends = torch.arange(1, n + 1, dtype=torch.float64).repeat_interleave(2) * length / n
    gammas = torch.tensor([17.0, 6.9], dtype=torch.float64).repeat(n)
    return [ends, gammas, length, 1.0 + 20 * float(torch.rand(1, generator=rng))]


INPUTS = {
    "guidance_edu.ema.exponent": width,
    "guidance_edu.ema.overlap": two_profiles,
    "guidance_edu.ema.coefficients": stored_and_wanted,
}

WRONG = {
    "guidance_edu.ema.exponent": [
        ("if width > sigma_rel", "if width < sigma_rel"),
        ("(gamma + 1) / (gamma + 3)", "(gamma + 1)"),
        ("1 / sigma_rel", "1 / sigma_rel / 2"),
    ],
    "guidance_edu.ema.overlap": [
        ("torch.where(s > t, a, b)", "torch.where(s > t, b, a)"),
        ("(a + b + 1)", "(a + b + 2)"),
        ("ratio**of_longer", "1.0"),
        ("* longest) *", ") *"),
    ],
    "guidance_edu.ema.coefficients": [
        (" / (x / size).sum()", ""),
        ("return (x / size) /", "return x /"),
        ("ratio**of_longer", "ratio**(-of_longer)"),
    ],
}
