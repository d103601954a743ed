"""Random inputs and known wrong versions of what chapter 03 builds."""

import torch


def size(rng, low, high):
    return int(torch.randint(low, high, (1,), generator=rng))


def combine_inputs(rng):
    shape = (size(rng, 1, 5), *[size(rng, 1, 4) for _ in range(size(rng, 0, 3))])
    number = size(rng, 0, 4)
    values = torch.randn(number + 1, *shape, generator=rng, dtype=torch.float64)
    weights = (6 * torch.rand(number, generator=rng) - 1).tolist()
    return [values[0], list(values[1:]), weights]


def errors(rng):
    shape = (size(rng, 2, 9), *[size(rng, 1, 4) for _ in range(size(rng, 0, 3))])
    positive, other = torch.randn(2, *shape, generator=rng, dtype=torch.float64)
    return [positive, 2 * positive + other]


INPUTS = {
    "guidance_edu.guidance.combine": combine_inputs,
    "guidance_edu.error_shift.best_weight": errors,
}

WRONG = {
    "guidance_edu.guidance.combine": [
        ("(w - 1)", "w"),
        ("(positive - negative)", "(negative - positive)"),
        ("(positive - negative)", "(result - negative)"),
    ],
    "guidance_edu.error_shift.best_weight": [
        ("1 - float(along)", "1 + float(along)"),
        ("1 - float(along)", "-float(along)"),
        (".square()", ".abs()"),
        ("(error_positive * difference)", "(error_negative * difference)"),
    ],
}
