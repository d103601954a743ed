"""Answers to the exercises of chapter 08: right ones, and the common mistakes."""

import math

import torch


def window(first, last, squared=False, share=False):
    kept = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    level = (1 - kept) / (1 if share else kept)
    level = level if squared else level.sqrt()
    return float(level[first - 1]), float(level[last - 1])


def perturb(embedding, noise, strength, axis=1, one=False):
    noise = noise[:1] if one else noise
    return embedding + strength * embedding.std(axis, keepdim=True) * noise


RIGHT = {
    "8.1": 0.5 * math.exp(-0.6),
    "8.2": lambda w1, d1, w2: (1 - w1) / (w2 - 1) * d1,
    "8.3": perturb,
    "8.4": window,
}

WRONG = {
    "8.1": [
        (0.5 * math.exp(-0.8), "the push is w - 1"),
        (0.5 * math.exp(0.6), "a slow clock narrows"),
        (math.exp(-0.6), "that is the factor"),
        (0.5 * 0.4, "in the logarithm"),
    ],
    "8.2": [
        (lambda w1, d1, w2: (w1 - 1) * d1 / (w2 - 1), "undo the first"),
        (lambda w1, d1, w2: -w1 * d1 / w2, "the push is w - 1"),
        (lambda w1, d1, w2: -d1, "the spread is multiplied by"),
        (lambda w1, d1, w2: [d1], "expected a number"),
    ],
    "8.3": [
        (lambda e, n, s: perturb(e, n, s, axis=0), "the spread of the batch"),
        (lambda e, n, s: perturb(e, n, s, one=True), "one noise for the whole batch"),
        (lambda e, n, s: perturb(e, n, s, axis=0, one=True), "both errors"),
        (lambda e, n, s: e + s * n, "units of the embedding's spread"),
        (lambda e, n, s: perturb(e, n, s) - e, "the embedding itself"),
    ],
    "8.4": [
        (lambda a, b: window(a, b, squared=True), "take the root"),
        (lambda a, b: window(a, b, share=True), "not divided by that of the signal"),
        (lambda a, b: window(a, b)[::-1], "the lower level first"),
        (lambda a, b: 3.0, "expected two noise levels"),
    ],
}
