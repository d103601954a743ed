"""Answers to the exercises of chapter 06: right ones, and the common mistakes."""

import copy
import math


def loop(variance, added, w, generations):
    for _ in range(generations):
        base, auxiliary = variance + added, variance + 2 * added
        variance = base**w / auxiliary ** (w - 1)
    return variance


def never_chained(variance, added, w, generations):
    return loop(variance, added, w, min(generations, 1))


def one_addition(variance, added, w, generations):
    return variance + generations * added


def sims(model, train, x, w):
    second = copy.deepcopy(model)
    train(second)
    return model(x) + (w - 1) * (model(x) - second(x))


def broken(model, train, x, w):
    auxiliary = model
    train(auxiliary)
    return model(x) + (w - 1) * (model(x) - auxiliary(x))


def towards(model, train, x, w):
    second = copy.deepcopy(model)
    train(second)
    return model(x) + (w - 1) * (second(x) - model(x))


def a_step_too_far(model, train, x, w):
    return sims(model, train, x, w + 1)


def shallow(model, train, x, w):
    second = copy.copy(model)  # a new object that holds the same tensor
    train(second)
    return model(x) + (w - 1) * (model(x) - second(x))


RIGHT = {
    "6.1": 1.53,
    "6.2": loop,
    "6.3": sims,
    "6.4": (1.0, 2.0, 1.5),
}

WRONG = {
    "6.1": [
        (2.0, "adds twice as much"),
        (1.5, "in proportion"),
        (0.53, "that is w - 1"),
        (1 + math.log(1.04) / math.log(1.12), "the auxiliary model with the base"),
    ],
    "6.2": [
        (never_chained, "not from the real data"),
        (one_addition, "two additions"),
        (lambda v, a, w, g: v + g * a * w, "is not the variance"),
    ],
    "6.3": [
        (broken, "the base model was changed"),
        (shallow, "the base model was changed"),
        (towards, "towards the auxiliary"),
        (a_step_too_far, "not w - 1"),
        (lambda model, train, x, w: model(x), "without guidance"),
    ],
    "6.4": [
        ((0.25, 0.27, 0.29), "narrows"),
        ((0.25, 0.24, 0.23), "too wide"),
        ((0.25, 0.27), "expected three variances"),
        ((0.25, 0.27, -1.0), "above 0"),
        ((0.25, 0.27, 0.27), "does not make it worse"),
    ],
}
