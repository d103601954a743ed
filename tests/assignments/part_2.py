"""Assignment 2."""

WRONG = {
    "t1": {
        "each guide by itself": """
def my_two_weights(positive, first, second, clean):
    def best(guide):
        push = positive - guide
        return 1 + float(((clean - positive) * push).sum() / push.square().sum())

    return best(first), best(second)
""",
        "pushes for weights": """
def my_two_weights(positive, first, second, clean):
    pushes = torch.stack([(positive - first).flatten(), (positive - second).flatten()], dim=1)
    best = torch.linalg.pinv(pushes) @ (clean - positive).flatten()
    return float(best[0]), float(best[1])
""",
        "nothing for equal guides": """
def my_two_weights(positive, first, second, clean):
    a = torch.stack([(positive - first).flatten(), (positive - second).flatten()], dim=1)
    best = torch.inverse(a.T @ a) @ a.T @ (clean - positive).flatten()
    return 1 + float(best[0]), 1 + float(best[1])
""",
        "the sign of the error": """
def my_two_weights(positive, first, second, clean):
    pushes = torch.stack([(positive - first).flatten(), (positive - second).flatten()], dim=1)
    best = torch.linalg.pinv(pushes) @ (positive - clean).flatten()
    return 1 + float(best[0]), 1 + float(best[1])
""",
    },
    "t2": {
        "width taken for a half-life": """
def my_decay(width, steps):
    return 2 ** (-1 / (width * steps))
""",
        "only for long averages": """
def my_decay(width, steps):
    return 1 - 1 / (width * steps)
""",
        "steps forgotten": """
def my_decay(width, steps):
    return math.exp(-1 / width)
""",
        "the mean age instead of its spread": """
def my_decay(width, steps):
    return width * steps / (1 + width * steps)
""",
    },
    "t3": {
        "upside down": """
def my_share(variance, added, limit):
    if limit < variance + added:
        raise ValueError
    return (limit - variance) / added
""",
        "relative to the limit": """
def my_share(variance, added, limit):
    if limit < variance + added:
        raise ValueError
    return added / limit
""",
        "one generation only": """
def my_share(variance, added, limit):
    if limit < variance + added:
        raise ValueError
    return max(0.0, 1 - (limit - variance - added) / added)
""",
        "no error": """
def my_share(variance, added, limit):
    return min(1.0, added / max(1e-9, limit - variance))
""",
    },
    "t4": {
        "the guide that differs most": """
def my_guide(main, guides, clean, sigma, rng):
    x = clean + sigma * torch.randn(clean.shape, generator=rng, dtype=clean.dtype)
    push = {name: (main(x, sigma) - guide(x, sigma)).norm() for name, guide in guides.items()}
    return max(push, key=push.get), 2.0
""",
        "the guide that errs most, at w = 2": """
def my_guide(main, guides, clean, sigma, rng):
    x = clean + sigma * torch.randn(clean.shape, generator=rng, dtype=clean.dtype)
    return max(guides, key=lambda name: float((clean - guides[name](x, sigma)).norm())), 2.0
""",
        "no guidance at all": """
def my_guide(main, guides, clean, sigma, rng):
    return next(iter(guides)), 1.0
""",
        "a better guide is walked away from": """
def my_guide(main, guides, clean, sigma, rng):
    x = clean + sigma * torch.randn(clean.shape, generator=rng, dtype=clean.dtype)
    positive, found = main(x, sigma), []
    for name, guide in guides.items():
        push = positive - guide(x, sigma)
        weight = abs(float(((clean - positive) * push).sum() / push.square().sum()))
        found.append((weight**2 * float(push.square().sum()), name, 1 + weight))
    return max(found)[1:]
""",
        "no noise on what the models see": """
def my_guide(main, guides, clean, sigma, rng):
    positive, found = main(clean, sigma), []
    for name, guide in guides.items():
        push = positive - guide(clean, sigma)
        weight = float(((clean - positive) * push).sum() / push.square().sum())
        found.append((weight**2 * float(push.square().sum()), name, 1 + weight))
    return max(found)[1:]
""",
    },
}
OTHER = ["SEED = 11", "BLOBS = [[0.0, 0.0], [2.0, 0.0]]", "SPREAD = 0.3", "BLUR = 0.25"]
