"""Random inputs and known wrong versions of what the appendix builds."""

import torch


def two_sets_of_moments(rng):
    d = int(torch.randint(1, 17, (1,), generator=rng))
    roots = torch.randn(2, d, d + 3, generator=rng, dtype=torch.float64)
    means = torch.randn(2, d, generator=rng, dtype=torch.float64)
    covariances = roots @ roots.mT / d
    return [means[0], covariances[0], means[1], covariances[1]]


INPUTS = {"guidance_edu.metrics.frechet_distance_from_moments": two_sets_of_moments}

WRONG = {
    "guidance_edu.metrics.frechet_distance_from_moments": [
        ("- 2 * roots.sum()", "- roots.sum()"),
        ("clamp_min(0).sqrt()", "clamp_min(0)"),
        (".square().sum() + spread", ".square().sum().sqrt() + spread"),
    ]
}
