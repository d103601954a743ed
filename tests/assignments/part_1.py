"""Assignment 1."""

WRONG = {
    "t1": {
        "twice the variance is missing": """
def my_denoiser(points, x, sigma):
    distance = ((x[:, None] - points[None]) ** 2).sum(-1)
    return torch.softmax(-distance / sigma**2, dim=1) @ points
""",
        "it underflows": """
def my_denoiser(points, x, sigma):
    distance = ((x[:, None] - points[None]) ** 2).sum(-1)
    likelihood = torch.exp(-distance / (2 * sigma**2))
    return likelihood @ points / likelihood.sum(1, keepdim=True)
""",
        "shares sum to one over the samples": """
def my_denoiser(points, x, sigma):
    distance = ((x[:, None] - points[None]) ** 2).sum(-1)
    return torch.softmax(-distance / (2 * sigma**2), dim=0) @ points
""",
        "a distance that is not squared": """
def my_denoiser(points, x, sigma):
    return torch.softmax(-torch.cdist(x, points) / (2 * sigma**2), dim=1) @ points
""",
        "always the nearest point": """
def my_denoiser(points, x, sigma):
    return points[torch.cdist(x, points).argmin(1)]
""",
    },
    "t2": {
        "Euler": """
def my_sampler(denoiser, x, levels):
    for sigma, target in zip(levels[:-1].tolist(), levels[1:].tolist()):
        x = x + (target - sigma) * (x - denoiser(x, sigma)) / sigma
    return x
""",
        "Heun": """
def my_sampler(denoiser, x, levels):
    return sample(denoiser, x, levels)
""",
        "the old slope has the wrong sign": """
def my_sampler(denoiser, x, levels):
    before = None
    for sigma, target in zip(levels[:-1].tolist(), levels[1:].tolist()):
        slope, step = (x - denoiser(x, sigma)) / sigma, target - sigma
        mixed = slope if before is None else slope + (before - slope) / 2
        x, before = x + step * mixed, slope
    return x
""",
        "the first slope is kept for good": """
def my_sampler(denoiser, x, levels):
    first = None
    for sigma, target in zip(levels[:-1].tolist(), levels[1:].tolist()):
        slope = (x - denoiser(x, sigma)) / sigma
        first = slope if first is None else first
        x = x + (target - sigma) * (1.5 * slope - 0.5 * first)
    return x
""",
    },
    "t3": {
        "from the sharpened density": """
def my_weight(s, S, ratio):
    return ((ratio * s) ** -2 - S**-2) / (s**-2 - S**-2)
""",
        "off by one": """
def my_weight(s, S, ratio):
    return math.log(ratio) / math.log(s / S)
""",
        "upside down": """
def my_weight(s, S, ratio):
    return 1 + math.log(s / S) / math.log(ratio)
""",
        "ratio is of variances": """
def my_weight(s, S, ratio):
    return 1 + math.log(ratio) / (2 * math.log(s / S))
""",
    },
    "t4": {
        "both scales taken for w": """
def my_reguide(first, scale_first, second, scale_second, w):
    if scale_first == scale_second:
        raise ValueError
    return first + (w - scale_first) / (scale_second - scale_first) * (second - first)
""",
        "translated the wrong way": """
def my_reguide(first, scale_first, second, scale_second, w):
    a, b = scale_first - 1, scale_second
    if a == b:
        raise ValueError
    return first + (w - a) / (b - a) * (second - first)
""",
        "anchored at the second": """
def my_reguide(first, scale_first, second, scale_second, w):
    a, b = scale_first + 1, scale_second
    if a == b:
        raise ValueError
    return second + (w - a) / (b - a) * (second - first)
""",
        "no error": """
def my_reguide(first, scale_first, second, scale_second, w):
    a, b = scale_first + 1, scale_second
    return first + (w - a) / (b - a) * (second - first)
""",
    },
}
OTHER = ["SEED = 11", "MODES = [-3.0, 0.0, 1.0, 5.0]", "SPREAD = 0.5"]
