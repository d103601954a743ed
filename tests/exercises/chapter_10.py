"""Answers to the exercises of chapter 10: right ones, and the common mistakes."""

import math

import torch


def point(rho, w):
    return math.sqrt(((1 + rho) ** w + (1 - rho) ** w) / 2)


def shared_kept(rho, w):
    return math.sqrt((1 + rho + (1 - rho) * ((1 - rho) / (1 + rho)) ** (w - 1)) / 2)


def joint(queries, keys, values, text, rows=True, columns=True, itself=True, softmax=True):
    tokens = queries.shape[-2]
    logits = queries @ keys.mT / math.sqrt(queries.shape[-1])
    mask = torch.zeros(tokens, tokens, dtype=torch.bool)
    mask[(text if rows else 0) :, (text if columns else 0) :] = True
    own = torch.arange(tokens)
    if itself:
        mask[own, own] = False
    if not softmax:
        return torch.softmax(logits, -1) @ values
    return torch.softmax(logits.masked_fill(mask, -math.inf), -1) @ values


def own_values(queries, keys, values, text):
    result = torch.softmax(queries @ keys.mT / math.sqrt(queries.shape[-1]), -1) @ values
    result[:, :, text:] = values[:, :, text:]
    return result


def deaf(queries, keys, values, how):
    eye = torch.eye(values.shape[-2], dtype=values.dtype)
    logits = queries @ keys.mT / math.sqrt(queries.shape[-1])
    weights = {
        "times": lambda: torch.softmax(logits * eye, -1),
        "softmax": lambda: torch.softmax(eye, -1),
        "part": lambda: torch.softmax(logits, -1) * eye,
        "whole": lambda: torch.softmax(logits, -1),
    }
    return weights[how]() @ values


RIGHT = {
    "10.1": 15 / 17,
    "10.2": point,
    "10.3": joint,
    "10.4": lambda queries, keys, values: values,
    "10.5": 1 / 3,
}

WRONG = {
    "10.1": [
        (0.6, "that is the correlation of the data"),
        (7 / 9, "not multiplied by w"),
        (16.0, "those are the odds"),
        (0.36, "not raised to a power"),
        (63 / 65, "that is w = 3"),
    ],
    "10.2": [
        (shared_kept, "law of identity attention"),
        (lambda rho, w: point(rho, w) ** 2, "take the root"),
        (lambda rho, w: math.sqrt(2) * point(rho, w), "half of each"),
        (lambda rho, w: point(rho, w - 1), "not v^(w - 1)"),
        (lambda rho: 1.0, "a function of rho and w"),
    ],
    "10.3": [
        (lambda *a: joint(*a, rows=False), "text must keep hearing the image"),
        (lambda *a: joint(*a, columns=False), "image tokens must keep hearing the text"),
        (lambda *a: joint(*a, itself=False), "must hear itself"),
        (lambda *a: joint(*a, softmax=False), "nobody is deaf"),
        (own_values, "image tokens must keep hearing the text"),
    ],
    "10.4": [
        (lambda q, k, v: deaf(q, k, v, "times"), "a logit of 0 still has weight"),
        (lambda q, k, v: deaf(q, k, v, "softmax"), "is not the identity"),
        (lambda q, k, v: deaf(q, k, v, "part"), "only a part of itself"),
        (lambda q, k, v: deaf(q, k, v, "whole"), "that is attention"),
    ],
    "10.5": [
        (0.0, "left alone"),
        (1.0, "keeps its whole spread"),
        (math.sqrt(2) - 1, "at w = 2"),
    ],
}
