"""Answers to the exercises of chapter 05: right ones, and the common mistakes."""

import torch


def average(weights, images, gamma):
    result, before = 0.0, 0.0
    for weight, seen in zip(weights, images, strict=True):
        keep = (1 - (seen - before) / seen) ** (gamma + 1)
        result, before = keep * result + (1 - keep) * weight, seen
    return result


def steps_counted(weights, images, gamma):
    return average(weights, range(1, len(weights) + 1), gamma)


def one_less(weights, images, gamma):
    return average(weights, images, max(gamma - 1, -0.999))


def overlap(s, gamma, t, delta):
    last = max(s, t)
    of_longer = gamma if s > t else delta
    area = (gamma + 1) * (delta + 1) / ((gamma + delta + 1) * last)
    return area * (min(s, t) / last) ** of_longer


def broken(s, gamma, t, delta):
    last = max(s, t)
    exponent = gamma if s < t else delta
    area = (gamma + 1) * (delta + 1) / ((gamma + delta + 1) * last)
    return area * (min(s, t) / last) ** exponent


RIGHT = {
    "5.1": 1 - 0.9**7,
    "5.2": average,
    "5.3": overlap,
    "5.4": 6.4,
    "5.5": lambda n: torch.linspace(3.0, 0.5, n) ** 2,
}

WRONG = {
    "5.1": [
        (0.9**7, "before the last tenth"),
        (1 - 0.9**6, "gamma + 1"),
        (0.1, "plain mean"),
        (0.7, "it falls towards the past"),
    ],
    "5.2": [
        (steps_counted, "not images"),
        (one_less, "gamma + 1"),
        (lambda w, i, g: w[-1], "that is the last weight"),
        (lambda w, i, g: sum(w) / len(w), "plain mean over steps"),
    ],
    "5.3": [
        (broken, "profile that ends first"),
        (lambda s, g, t, d: (g + 1) * (d + 1) / ((g + d + 1) * max(s, t)), "factor is missing"),
        (lambda s, g, t, d: overlap(s, g, t, d) * max(s, t) / min(s, t), "the shorter time"),
    ],
    "5.4": [
        (12.8, "not four"),
        (3.2, "not one"),
        (0.2, "one snapshot of each"),
        (6400, "in gigabytes"),
    ],
    "5.5": [
        (lambda n: torch.arange(1, n + 1) / n, "moves away from 0"),
        (lambda n: torch.randn(n, generator=torch.Generator().manual_seed(1)), "length"),
        (lambda n: torch.ones(n), "not a tenth further"),
        (lambda n: torch.ones(n + 1), "expected a tensor of shape"),
        (lambda n: 1 - torch.arange(1, n + 1) / n, "a last one that is not 0"),
    ],
}
