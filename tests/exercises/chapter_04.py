"""Answers to the exercises of chapter 04: right ones, and the common mistakes."""

import math

import torch


def weight_of_ramps(exact, main, guide):
    return (1 / exact - 1 / guide) / (1 / main - 1 / guide)


def noise_of(weight, rng):
    return weight.square().mean().sqrt() * torch.randn(weight.shape, generator=rng)


def one_draw(weight, h, rng):
    noise = noise_of(weight, rng)
    return weight + h * noise, weight + 2 * h * noise


def two_draws(weight, h, rng):
    return weight + h * noise_of(weight, rng), weight + 2 * h * noise_of(weight, rng)


def equal_strengths(weight, h, rng):
    noise = noise_of(weight, rng)
    return weight + h * noise, weight + h * noise


def not_relative(weight, h, rng):
    noise = torch.randn(weight.shape, generator=rng)
    return weight + 3 * h * noise, weight + 6 * h * noise


def bisect(error, target, low, high):
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if error(middle) < target else (low, middle)
    return math.sqrt(low * high)


def bisect_the_wrong_half(error, target, low, high):
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if error(middle) < target else (middle, high)
    return low


def bisect_the_other_end(error, target, low, high):
    return high if error(low) < target else low


def scan(error, target, low, high):
    tried = [low * (high / low) ** (i / 5000) for i in range(5001)]
    return min(tried, key=lambda s: abs(error(s) - target))


RIGHT = {
    "4.1": weight_of_ramps,
    "4.2": 3.28,
    "4.3": one_draw,
    "4.4": bisect,
    "4.5": 0.15,
}

WRONG = {
    "4.1": [
        (lambda e, m, g: weight_of_ramps(e, m, g) - 1, "push"),
        (lambda e, m, g: 1 + (e - m) / (m - g), "slopes subtract"),
        (lambda e, m, g: 1 + 1 / (g / m - 1), "ratio of the errors"),
        (lambda e, m, g: 2 - weight_of_ramps(e, m, g), "towards the guide"),
    ],
    "4.2": [
        (0.0328, "percent"),
        (12.5, "steps alone"),
        (26.2, "weights alone"),
        (6.25, "width x width"),
        (103.3, "what the guide adds"),
    ],
    "4.3": [
        (two_draws, "different directions"),
        (equal_strengths, "not twice"),
        (not_relative, "root mean squares"),
        (lambda weight, h, rng: weight, "pair"),
        (lambda weight, h, rng: [part[:2] for part in one_draw(weight, h, rng)], "shape"),
    ],
    "4.4": [
        (bisect_the_wrong_half, "lower end"),
        (bisect_the_other_end, "upper end"),
        (lambda error, target, low, high: target, "return the strength"),
        (scan, "each is a network's run"),
    ],
    "4.5": [
        (0.4, "softer ramp"),
        (0.2, "nothing becomes worse"),
        (-1.0, "above 0"),
    ],
}
