"""Random inputs and known wrong versions of what chapter 06 builds."""

import torch


def two_sets_of_weights(rng):
    number = int(torch.randint(1, 4, (1,), generator=rng))
    shapes = torch.randint(1, 5, (number, 2), generator=rng).tolist()
    pair = [
        [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]
        for _ in range(2)
    ]
    return [*pair, float(6 * torch.rand(1, generator=rng) - 1)]


INPUTS = {"toy_models.own_samples.extrapolate_weights": two_sets_of_weights}

WRONG = {
    "toy_models.own_samples.extrapolate_weights": [
        ("(w - 1)", "w"),
        ("(p - q)", "(q - p)"),
        ("p + (w", "q + (w"),
    ],
}
