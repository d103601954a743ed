"""Answers to the exercises of chapter 12: right ones, and the common mistakes."""

import math


def choose(fd, tuning, by=None, judge=None, best=min):
    """A choice on the seeds ``by``, judged on the seeds ``judge``."""
    others = [seed for seed in fd if seed not in tuning]
    by = {None: tuning, "all": list(fd), "others": others}[by]
    judge = {None: others, "tuning": tuning, "all": list(fd)}[judge]
    w = best(fd[0], key=lambda v: sum(fd[seed][v] for seed in by))
    return w, sum(fd[seed][w] for seed in judge) / len(judge)


def jackknife(values, factor=True, root=True):
    middle = sum(values) / len(values)
    total = sum((v - middle) ** 2 for v in values)
    variance = total * (len(values) - 1) / len(values) if factor else total / len(values)
    return math.sqrt(variance) if root else variance


def paired(first, second, **options):
    return jackknife([a - b for a, b in zip(first, second, strict=True)], **options)


RIGHT = {
    "12.1": 2.16,
    "12.2": choose,
    "12.3": paired,
    "12.4": lambda share, price: 1 + share * (price - 1),
}

WRONG = {
    "12.1": [
        (0.0, "not the best of forty"),
        (1.1, "forty reach further"),
        (3.1, "hundreds of settings"),
        ("two", "expected a number"),
    ],
    "12.2": [
        (lambda fd, t: choose(fd, t, best=max), "the smallest is wanted"),
        (lambda fd, t: choose(fd, t, by="all"), "with a look at the seeds"),
        (lambda fd, t: choose(fd, t, by="others"), "with a look at the seeds"),
        (lambda fd, t: choose(fd, t, judge="tuning"), "comes from the seeds on which"),
        (lambda fd, t: choose(fd, t, judge="all"), "over the other seeds is not"),
        (lambda fd, t: (9.0, 10.0), "expected the weight"),
        (lambda fd, t: choose(fd, t)[0], "expected two results"),
    ],
    "12.3": [
        (lambda a, b: math.hypot(jackknife(a), jackknife(b)), "what is shared cancels"),
        (lambda a, b: paired(a, b, factor=False), "far less than the whole"),
        (lambda a, b: paired(a, b, root=False), "take the root"),
    ],
    "12.4": [
        (lambda share, price: share * price, "still cost one pass"),
        (lambda share, price: 1 + share * price, "already holds"),
        (lambda share, price: price, "expected"),
    ],
}
