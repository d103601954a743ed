"""Answers to the exercises of chapter 09: right ones, and the common mistakes."""

import math

import torch
from torch.nn import functional as F


def grown(s, h, power, low, sign=1, times=1.0):
    total = power + low**2
    return math.exp(sign * times * s * h / 2 * (math.log(total / low**2) - power / total))


def first_power(s, h, power, low):
    return ((power + low**2) / low**2) ** (s * h / 2)


def mask(weights, grid, size, axis=1, above=1 + 1e-5, heads="mean"):
    received = getattr(weights, heads)(1).sum(axis).reshape(-1, 1, *grid)
    return F.interpolate((received > above).double(), size=size)


def velocity(model, x_t, alpha, blur, s, sign=1, end=True, point="shown"):
    beta = math.sqrt(1 - alpha**2)
    v = model(x_t)
    clean, epsilon = alpha * x_t - beta * v, beta * x_t + alpha * v
    shown = alpha * blur(clean) + beta * epsilon
    other = beta * (shown if point == "shown" else x_t) + alpha * model(shown)
    guided = epsilon + sign * s * (epsilon - other)
    return (guided - beta * x_t) / alpha if end else guided


def in_velocities(model, x_t, alpha, blur, s):
    beta = math.sqrt(1 - alpha**2)
    clean = alpha * x_t - beta * model(x_t)
    shown = x_t - alpha * (clean - blur(clean))
    return model(x_t) + s * (model(x_t) - model(shown))


def in_clean_samples(model, x_t, alpha, blur, s):
    beta = math.sqrt(1 - alpha**2)
    clean = alpha * x_t - beta * model(x_t)
    shown = x_t - alpha * (clean - blur(clean))
    guided = clean + s * (clean - (alpha * shown - beta * model(shown)))
    return (alpha * x_t - guided) / beta


RIGHT = {
    "9.1": 1.2 * math.exp(-0.6),
    "9.2": grown,
    "9.3": mask,
    "9.4": velocity,
}

WRONG = {
    "9.1": [
        (1.2 * math.exp(-1.0), "the push is w - 1"),
        (1.2 * math.exp(0.6), "fades the wave"),
        (math.exp(-0.6), "that is the factor"),
        (1.2 * math.exp(-1.2), "the spread is its root"),
        (1.2 * math.exp(-0.15), "four fifths are lost"),
    ],
    "9.2": [
        (lambda *a: grown(*a, sign=-1), "the wave grows"),
        (lambda *a: grown(*a, times=2), "the spread is its root"),
        (first_power, "g squared, not g"),
        (lambda s, h, power, low: math.exp(-s * h / 2), "the factor"),
        (lambda *a: math.log(grown(*a)), "its logarithm"),
        (lambda *a: [a], "expected a number"),
    ],
    "9.3": [
        (lambda w, g, z: mask(w, g, z, axis=2), "looked at, which gives 1 each"),
        (lambda w, g, z: mask(w, g, z, axis=2, above=1), "tokens that are looked at"),
        (lambda w, g, z: mask(w, g[::-1], z), "rows and columns"),
        (lambda w, g, z: 1 - mask(w, g, z), "receives little"),
        (lambda w, g, z: mask(w, g, z, heads="sum"), "average over the heads"),
        (lambda w, g, z: mask(w, g, z, above=1 - 1e-5), "leave a margin"),
    ],
    "9.4": [
        (in_velocities, "taken in velocities"),
        (in_clean_samples, "taken in clean samples"),
        (lambda *a: velocity(*a, sign=-1), "step away"),
        (lambda *a: velocity(*a, end=False), "turn it into a velocity"),
        (lambda *a: velocity(*a, point="x_t"), "the picture that it saw"),
        (lambda model, x_t, alpha, blur, s: torch.zeros_like(x_t), "alpha = 0.8"),
    ],
}
