"""Answers to the exercises of chapter 07: right ones, and the common mistakes."""


def icg(model, x, sigma, labels, draws, classes, w, one=False, step=-1, sign=1):
    random = (draws * classes).long()
    random = random[:1].expand(len(x)) if one else random
    positive, negative = model(x, sigma, labels), model(x, sigma, random)
    return positive + sign * (w + step) * (positive - negative)


RIGHT = {
    "7.1": 7.0,
    "7.2": lambda w, classes: 1 + (w - 1) * (1 - 1 / classes),
    "7.3": icg,
    "7.4": lambda: [1.0, 3.0, 0.5, -0.5],
}

WRONG = {
    "7.1": [
        (9.5, "leaves the own class out"),
        (2 + 4 * 5 / 3, "the push is w - 1"),
        (5.0, "the push alone"),
        (8.0, "the average of the three means is not 0"),
        (-3.0, "towards the average class"),
    ],
    "7.2": [
        (lambda w, c: 1 + (w - 1) * c / (c - 1), "the other way round"),
        (lambda w, c: w * (c - 1) / c, "what shrinks is the push"),
        (lambda w, c: (w - 1) * (c - 1) / c, "add the 1"),
    ],
    "7.3": [
        (lambda *a: icg(*a, one=True), "one random class for the whole batch"),
        (lambda *a: icg(*a, step=0), "w = 1 must return the positive"),
        (lambda *a: icg(*a, one=True, step=0), "both errors"),
        (lambda *a: icg(*a, sign=-1), "towards the negative"),
    ],
    "7.4": [
        (lambda: [0.0, 1.0, 2.0], "class 0 is moved"),
        (lambda: [0.0, 0.0, 0.0], "apart"),
        (lambda: [0.0, 1.0], "at least three"),
        (lambda: 3.0, "list of numbers"),
        (lambda: [0.0, float("inf"), float("-inf")], "expected finite means"),
        (lambda: [float("nan")] * 3, "expected finite means"),
        (lambda: [0.0, -2.0, -0.9, 0.9, 2.0][:0] + [0.0, -1.0, 1.0, 0.4], "apart"),
    ],
}
