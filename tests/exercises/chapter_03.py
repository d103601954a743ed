"""Answers to the exercises of chapter 03: right ones, and the common mistakes."""

import math

import torch


def merge(negatives, weights):
    push = sum(w - 1 for w in weights)
    average = sum((w - 1) * n for n, w in zip(negatives, weights, strict=True)) / push
    return average, 1 + push


def repaired(model, x, sigma, delta, w):
    clean, lied = model(x, sigma), model(x, sigma * math.exp(delta))
    return clean + (w - 1) * (clean - lied)


def broken(model, x, sigma, delta, w):
    told = sigma * math.exp(delta)
    noise_pos = (x - model(x, sigma)) / sigma
    noise_neg = (x - model(x, told)) / told
    return x - sigma * (noise_pos + (w - 1) * (noise_pos - noise_neg))


def guided_noise(model, x, sigma, delta, w):
    return (x - repaired(model, x, sigma, delta, w)) / sigma


def read_off_with_the_told_level(model, x, sigma, delta, w):
    told = sigma * math.exp(delta)
    noise_pos = (x - model(x, sigma)) / sigma
    noise_neg = (x - model(x, told)) / told
    return x - told * (noise_pos + (w - 1) * (noise_pos - noise_neg))


def towards_the_negative(model, x, sigma, delta, w):
    clean, lied = model(x, sigma), model(x, sigma * math.exp(delta))
    return clean + (w - 1) * (lied - clean)


def a_step_too_far(model, x, sigma, delta, w):
    clean, lied = model(x, sigma), model(x, sigma * math.exp(delta))
    return clean + w * (clean - lied)


def turned(error):
    return 3 * torch.stack([-error[:, 1], error[:, 0]], 1)


RIGHT = {
    "3.1": 4 / 3,
    "3.2": merge,
    "3.3": repaired,
    "3.4": (5.0, 3.0, 4.0),
    "3.5": turned,
}

WRONG = {
    "3.1": [
        (4.0, "length ratio itself"),
        (1 / 3, "that is the step w - 1"),
        (1.25, "not by k"),
        (2 / 3, "towards the guide"),
        (3.0, "inverse of it"),
    ],
    "3.2": [
        (lambda n, w: (merge(n, w)[0], sum(w) + 0.0 if len(w) > 1 else 7.0), "weight"),
        (lambda n, w: (merge(n, w)[0], merge(n, w)[1] - 1), "add 1"),
        (lambda n, w: (torch.stack(n).mean(0), merge(n, w)[1]), "a plain mean"),
        (lambda n, w: (merge(n, w)[0] * (merge(n, w)[1] - 1), merge(n, w)[1]), "not divided"),
        (lambda n, w: (merge(n, w)[0], max(w)), "the largest weight"),
        (lambda n, w: (merge(n, w)[0], math.prod(w)), "is not the merged weight"),
        (lambda n, w: merge(n, w)[0][:, :1].sum(), "expected a pair"),
    ],
    "3.3": [
        (broken, "divided by the level it was told"),
        (guided_noise, "that is guided noise"),
        (read_off_with_the_told_level, "read off with the level"),
        (towards_the_negative, "wrong sign"),
        (a_step_too_far, "the push is w - 1"),
    ],
    "3.4": [
        ((4, 3, 4), "one too small"),
        ((5, 4, 4), "one too large"),
        ((5, 3, 3), "one too small"),
        ((5, 3), "expected three numbers"),
        (5.0, "a list of three numbers"),
    ],
    "3.5": [
        (lambda error: 2 * error, "turn its direction"),
        (lambda error: 0.5 * error, "err more than the main model"),
        (lambda error: error, "err more than the main model"),
        (lambda error: error.norm(dim=1), "expected errors of shape"),
        (lambda error: error / 0, "expected finite errors"),
    ],
}
