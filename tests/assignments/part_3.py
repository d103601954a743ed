"""Assignment 3."""

WRONG = {
    "t1": {
        "the own class left out": """
def my_average(model, x, sigma, labels, classes, w):
    positive = model(x, sigma, labels)
    every = torch.stack([model(x, sigma, (labels + c) % classes) for c in range(1, classes)])
    mean = positive + (w - 1) * (positive - every.mean(0))
    return mean, abs(w - 1) * (every - every.mean(0)).square().sum(-1).mean(0).sqrt()
""",
        "w for w - 1 in the noise": """
def my_average(model, x, sigma, labels, classes, w):
    positive = model(x, sigma, labels)
    every = torch.stack([model(x, sigma, torch.full_like(labels, c)) for c in range(classes)])
    mean = positive + (w - 1) * (positive - every.mean(0))
    return mean, abs(w) * (every - every.mean(0)).square().sum(-1).mean(0).sqrt()
""",
        "the noise of a sample, not of the draw": """
def my_average(model, x, sigma, labels, classes, w):
    positive = model(x, sigma, labels)
    every = torch.stack([model(x, sigma, torch.full_like(labels, c)) for c in range(classes)])
    mean = positive + (w - 1) * (positive - every.mean(0))
    return mean, abs(w - 1) * every.std(0).norm(dim=-1)
""",
        "one label for the batch": """
def my_average(model, x, sigma, labels, classes, w):
    positive = model(x, sigma, labels[:1].expand(len(x)))
    every = torch.stack([model(x, sigma, torch.full_like(labels, c)) for c in range(classes)])
    mean = positive + (w - 1) * (positive - every.mean(0))
    return mean, abs(w - 1) * (every - every.mean(0)).square().sum(-1).mean(0).sqrt()
""",
        "noise below w = 1 has a sign": """
def my_average(model, x, sigma, labels, classes, w):
    positive = model(x, sigma, labels)
    every = torch.stack([model(x, sigma, torch.full_like(labels, c)) for c in range(classes)])
    mean = positive + (w - 1) * (positive - every.mean(0))
    return mean, (w - 1) * (every - mean).square().sum(-1).mean(0).sqrt()
""",
    },
    "t2": {
        "every class alike": """
def my_unconditional(model, posterior, x, sigma, classes):
    labels = [torch.full((len(x),), c, dtype=torch.long) for c in range(classes)]
    return sum(model(x, sigma, c) for c in labels) / classes
""",
        "the likeliest class alone": """
def my_unconditional(model, posterior, x, sigma, classes):
    return model(x, sigma, posterior(x, sigma).argmax(1))
""",
        "one posterior for the batch": """
def my_unconditional(model, posterior, x, sigma, classes):
    share = posterior(x, sigma).mean(0)
    labels = [torch.full((len(x),), c, dtype=torch.long) for c in range(classes)]
    return sum(share[c] * model(x, sigma, labels[c]) for c in range(classes))
""",
    },
    "t3": {
        "the error of the clock, not its mending": """
def my_clock(model, clean, sigma, rng):
    x = clean + sigma * torch.randn(clean.shape, generator=rng, dtype=clean.dtype)
    deltas = [k / 50 for k in range(-35, 36)]
    return -min(deltas, key=lambda d: (model(x, sigma * math.exp(d)) - clean).square().mean())
""",
        "noise as the model is told": """
def my_clock(model, clean, sigma, rng):
    unit = torch.randn(clean.shape, generator=rng, dtype=clean.dtype)

    def error(delta):
        told = sigma * math.exp(delta)
        return (model(clean + told * unit, told) - clean).square().mean()

    return min((k / 50 for k in range(-35, 36)), key=error)
""",
        "compared with the noisy samples": """
def my_clock(model, clean, sigma, rng):
    x = clean + sigma * torch.randn(clean.shape, generator=rng, dtype=clean.dtype)
    deltas = [k / 50 for k in range(-35, 36)]
    return min(deltas, key=lambda d: (model(x, sigma * math.exp(d)) - x).square().mean())
""",
        "no noise": """
def my_clock(model, clean, sigma, rng):
    deltas = [k / 50 for k in range(-35, 36)]
    return min(deltas, key=lambda d: (model(clean, sigma * math.exp(d)) - clean).square().mean())
""",
        "too coarse": """
def my_clock(model, clean, sigma, rng):
    x = clean + sigma * torch.randn(clean.shape, generator=rng, dtype=clean.dtype)
    deltas = (-0.6, -0.3, 0.0, 0.3, 0.6)
    return min(deltas, key=lambda d: (model(x, sigma * math.exp(d)) - clean).square().mean())
""",
    },
    "t4": {
        "the level where a step ends": """
def my_passes(levels, window, method):
    low, high = window
    positive = negative = 0
    for sigma, target in zip(levels[:-1].tolist(), levels[1:].tolist()):
        asked = 2 if method == "heun" and target > 0 else 1
        positive += asked
        negative += asked if low < target <= high else 0
    return positive, negative
""",
        "the last step has no second half": """
def my_passes(levels, window, method):
    low, high = window
    asked = 2 if method == "heun" else 1
    inside = sum(low < sigma <= high for sigma in levels[:-1].tolist())
    return asked * (len(levels) - 1), asked * inside
""",
        "closed at the wrong end": """
def my_passes(levels, window, method):
    low, high = window
    positive = negative = 0
    for sigma, target in zip(levels[:-1].tolist(), levels[1:].tolist()):
        asked = 2 if method == "heun" and target > 0 else 1
        positive += asked
        negative += asked if low <= sigma < high else 0
    return positive, negative
""",
        "the negative is always asked": """
def my_passes(levels, window, method):
    steps = len(levels) - 1
    asked = 2 * steps - 1 if method == "heun" else steps
    return asked, asked
""",
    },
}
OTHER = ["SEED = 11", "CLASSES = 6", "RADIUS = 2.0", "SPREAD = 0.3"]
