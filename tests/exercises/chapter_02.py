"""Right and wrong answers to the exercises of chapter 02."""


def original(positive, negative, w):
    return (1 + w) * positive - w * negative


def step(sign=1, at="start", low_closed=False, high_closed=True, inverted=False):
    """Make an interval step with the given mistakes."""

    def interval_step(positive, negative, x, sigma, target, w, low, high):
        tested = sigma if at == "start" else target
        above = low <= tested if low_closed else low < tested
        under = tested <= high if high_closed else tested < high
        guided = positive(x, sigma)
        if (above and under) != inverted:
            guided = guided + sign * (w - 1) * (guided - negative(x, sigma))
        return x + (target - sigma) * (x - guided) / sigma

    return interval_step


RIGHT = {
    "2.1": 0.5**7,
    "2.2": original,
    "2.3": step(),
    "2.4": lambda: (-2.0, 0.3, 0.3),
    "2.5": lambda: (0.2, 0.8),
}

WRONG = {
    "2.1": [
        (22**-0.5, "sharpened density"),
        (0.5**8, "at w = 1 the std is that of the class"),
        (0.5**6, "at w = 2 the std is already below"),
        (0.5**14, "a variance"),
        ("small", "expected a number"),
    ],
    "2.2": [
        (lambda p, n, w: p + (w - 1) * (p - n), "the book's weight"),
        (lambda p, n, w: p + w * (n - p), "the sign is turned round"),
        (lambda p, n, w: (1 + w) * n - w * p, "swapped"),
        (lambda p, n, w: p + (w + 1) * (p - n), "adds one twice"),
        (lambda p, n, w: p[0] + w * (p - n)[0], "expected shape"),
    ],
    "2.3": [
        (step(sign=-1), "wrong sign"),
        (step(at="end"), "starts above the interval and ends inside"),
        (step(inverted=True), "not guided, but should be"),
        (step(high_closed=False), "upper end"),
        (step(low_closed=True), "lower end"),
    ],
    "2.4": [
        (lambda: (1.0, 0.5, 1.0), "the sharpened density has"),
        (lambda: (0.0, 1.0, 1.0), "guidance moves nothing"),
        (lambda: (1.0, 2.0, 1.0), "no sharpened density"),
        (lambda: (1.0, -1.0, -1.0), "positive s, S"),
    ],
    "2.5": [
        (lambda: (0.0, 80.0), "still acts while it is being lost"),
        (lambda: (0.3, 2.0), "still acts while it is being lost"),
        (lambda: (0.0, 1.0), "still acts while it is being lost"),
        (lambda: (0.0, 0.3), "guide a little more"),
        (lambda: (1.0, 0.5), "low < high"),
    ],
}
