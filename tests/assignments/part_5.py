"""Assignment 5."""

WRONG = {
    "t1": {
        "not in units of the noise": """
def my_scores(denoiser, clean, labels, levels, seed):
    draws, total = torch.Generator().manual_seed(seed), 0
    for sigma in levels:
        x = clean + sigma * torch.randn(clean.shape, generator=draws, dtype=clean.dtype)
        total = total + (denoiser(x, sigma, labels) - clean).square().sum(1)
    return total / len(levels)
""",
        "one noise for all levels": """
def my_scores(denoiser, clean, labels, levels, seed):
    draws, total = torch.Generator().manual_seed(seed), 0
    noise = torch.randn(clean.shape, generator=draws, dtype=clean.dtype)
    for sigma in levels:
        x = clean + sigma * noise
        total = total + (denoiser(x, sigma, labels) - clean).square().sum(1) / sigma**2
    return total / len(levels)
""",
        "noise anew at each call": """
def my_scores(denoiser, clean, labels, levels, seed):
    total = 0
    for sigma in levels:
        x = clean + sigma * torch.randn(clean.shape, dtype=clean.dtype)
        total = total + (denoiser(x, sigma, labels) - clean).square().sum(1) / sigma**2
    return total / len(levels)
""",
        "compared with the noisy samples": """
def my_scores(denoiser, clean, labels, levels, seed):
    draws, total = torch.Generator().manual_seed(seed), 0
    for sigma in levels:
        x = clean + sigma * torch.randn(clean.shape, generator=draws, dtype=clean.dtype)
        total = total + (denoiser(x, sigma, labels) - x).square().sum(1) / sigma**2
    return total / len(levels)
""",
        "labels forgotten": """
def my_scores(denoiser, clean, labels, levels, seed):
    draws, total = torch.Generator().manual_seed(seed), 0
    for sigma in levels:
        x = clean + sigma * torch.randn(clean.shape, generator=draws, dtype=clean.dtype)
        total = total + (denoiser(x, sigma, None) - clean).square().sum(1) / sigma**2
    return total / len(levels)
""",
    },
    "t2": {
        "not paired": """
def my_difference(first, second):
    error = math.sqrt((float(first.var()) + float(second.var())) / len(first))
    return float(second.mean() - first.mean()), error
""",
        "the spread of one sample": """
def my_difference(first, second):
    return float((second - first).mean()), float((second - first).std())
""",
        "the other way round": """
def my_difference(first, second):
    gap = first - second
    return float(gap.mean()), float(gap.std()) / math.sqrt(len(gap))
""",
        "divided twice": """
def my_difference(first, second):
    return float((second - first).mean()), float((second - first).std()) / len(first)
""",
    },
    "t3": {
        "always classifier-free guidance": """
def my_choice(model, negatives, clean, labels, levels, seed):
    return "no condition", 1.6
""",
        "always autoguidance": """
def my_choice(model, negatives, clean, labels, levels, seed):
    return "earlier checkpoint", 2.0
""",
        "never": """
def my_choice(model, negatives, clean, labels, levels, seed):
    return next(iter(negatives)), 1.0
""",
        "the worst negative, at w = 2": """
def my_choice(model, negatives, clean, labels, levels, seed):
    x = clean + 0.4 * torch.randn(clean.shape, generator=rng(1), dtype=clean.dtype)

    def error(name):
        return float((negatives[name](x, 0.4, labels) - clean).square().mean())

    return max(negatives, key=error), 2.0
""",
        "the best negative in place of the model": """
def my_choice(model, negatives, clean, labels, levels, seed):
    x = clean + 0.4 * torch.randn(clean.shape, generator=rng(1), dtype=clean.dtype)

    def error(name):
        return float((negatives[name](x, 0.4, labels) - clean).square().mean())

    return min(negatives, key=error), 0.0
""",
    },
    "t4": {
        "judged by the tuning data": """
def my_report(choose, scores, model, negatives, tuning, judging, seed):
    name, w = choose(model, negatives, *tuning, seed)
    gap = scores(Guided(model, negatives[name], w), *tuning, seed) - scores(model, *tuning, seed)
    error = float(gap.std()) / math.sqrt(len(gap))
    return {"name": name, "w": w, "difference": float(gap.mean()), "error": error}
""",
        "chosen by the judging data": """
def my_report(choose, scores, model, negatives, tuning, judging, seed):
    name, w = choose(model, negatives, *judging, seed)
    gap = scores(Guided(model, negatives[name], w), *judging, seed) - scores(model, *judging, seed)
    error = float(gap.std()) / math.sqrt(len(gap))
    return {"name": name, "w": w, "difference": float(gap.mean()), "error": error}
""",
        "two seeds": """
def my_report(choose, scores, model, negatives, tuning, judging, seed):
    name, w = choose(model, negatives, *tuning, seed)
    guided = Guided(model, negatives[name], w)
    gap = scores(guided, *judging, seed + 1) - scores(model, *judging, seed + 2)
    error = float(gap.std()) / math.sqrt(len(gap))
    return {"name": name, "w": w, "difference": float(gap.mean()), "error": error}
""",
        "a gain for a difference": """
def my_report(choose, scores, model, negatives, tuning, judging, seed):
    name, w = choose(model, negatives, *tuning, seed)
    gap = scores(model, *judging, seed) - scores(Guided(model, negatives[name], w), *judging, seed)
    error = float(gap.std()) / math.sqrt(len(gap))
    return {"name": name, "w": w, "difference": float(gap.mean()), "error": error}
""",
    },
}
OTHER = ["SEED = 11", 'FAULT = "clock"', "LEVELS = [0.15, 0.3, 0.6]"]
