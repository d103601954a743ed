"""Random inputs and known wrong versions of what chapter 12 builds."""

import torch


def two_sets(rng):
    """Two overlapping clouds; distances are drawn so that ties do not happen."""
    d, n, m = (int(torch.randint(low, 12, (1,), generator=rng)) for low in (1, 6, 7))
    real = torch.randn(n, d, generator=rng, dtype=torch.float64)
    fake = 0.7 * torch.randn(m, d, generator=rng, dtype=torch.float64) + 0.4
    return [real, fake, int(torch.randint(1, 4, (1,), generator=rng))]


INPUTS = {"guidance_edu.metrics.precision_recall": two_sets}

WRONG = {
    "guidance_edu.metrics.precision_recall": [
        ("neighbours + 1", "neighbours"),
        ("share(fake, real), share(real, fake)", "share(real, fake), share(fake, real)"),
        ("any(1)", "all(1)"),
    ]
}
