"""Assignment 4."""

WRONG = {
    "t1": {
        "pixels are shuffled": """
def my_control(mask, rng):
    order = torch.rand(mask.shape, generator=rng).flatten(1).argsort(1)
    return mask.flatten(1).gather(1, order).view_as(mask)
""",
        "one shift for all": """
def my_control(mask, rng):
    down, right = (int(torch.randint(s, (), generator=rng)) for s in mask.shape[-2:])
    return mask.roll((down, right), (-2, -1))
""",
        "to the right alone": """
def my_control(mask, rng):
    right = torch.randint(mask.shape[-1], (len(mask),), generator=rng).tolist()
    return torch.stack([m.roll(r, -1) for m, r in zip(mask, right)])
""",
        "turned round": """
def my_control(mask, rng):
    down = torch.randint(mask.shape[-2], (len(mask),), generator=rng).tolist()
    right = torch.randint(mask.shape[-1], (len(mask),), generator=rng).tolist()
    return torch.stack([m.flip(-2, -1).roll(s, (-2, -1)) for m, *s in zip(mask, down, right)])
""",
        "draws from elsewhere": """
def my_control(mask, rng):
    moved = []
    for m in mask:
        down, right = (int(torch.randint(s, ())) for s in mask.shape[-2:])
        moved.append(m.roll((down, right), (-2, -1)))
    return torch.stack(moved)
""",
        "the mask itself": """
def my_control(mask, rng):
    return mask.clone()
""",
    },
    "t2": {
        "the others are broken": """
def my_rule(heads):
    def rule(queries, keys, values, grid=None):
        mixed = values.clone()
        mixed[:, heads] = attend(queries, keys, values)[:, heads]
        return mixed

    return rule
""",
        "tokens for heads": """
def my_rule(heads):
    def rule(queries, keys, values, grid=None):
        mixed = attend(queries, keys, values)
        mixed[:, :, heads] = values[:, :, heads]
        return mixed

    return rule
""",
        "logits without their scale": """
def my_rule(heads):
    def rule(queries, keys, values, grid=None):
        mixed = torch.softmax(queries @ keys.transpose(-1, -2), dim=-1) @ values
        mixed[:, heads] = values[:, heads]
        return mixed

    return rule
""",
        "the values are changed": """
def my_rule(heads):
    def rule(queries, keys, values, grid=None):
        mixed = attend(queries, keys, values)
        others = [h for h in range(values.shape[1]) if h not in heads]
        values[:, others] = mixed[:, others]
        return values

    return rule
""",
    },
    "t3": {
        "a kernel with its rows made to sum": """
def my_blur(size, sigma):
    at = torch.arange(size, dtype=torch.float64)
    kernel = torch.exp(-((at[:, None] - at) ** 2) / (2 * sigma**2))
    return kernel / kernel.sum(1, keepdim=True)
""",
        "a ring": """
def my_blur(size, sigma):
    flow = torch.eye(size, dtype=torch.float64)
    flow = flow.roll(1, 0) + flow.roll(-1, 0) - 2 * flow
    return torch.matrix_exp(sigma**2 / 2 * flow)
""",
        "twice the time": """
def my_blur(size, sigma):
    flow = torch.diag(torch.ones(size - 1), 1).double()
    flow = flow + flow.T
    return torch.matrix_exp(sigma**2 * (flow - torch.diag(flow.sum(1))))
""",
        "sigma for its square": """
def my_blur(size, sigma):
    flow = torch.diag(torch.ones(size - 1), 1).double()
    flow = flow + flow.T
    return torch.matrix_exp(sigma / 2 * (flow - torch.diag(flow.sum(1))))
""",
        "heat leaves at the ends": """
def my_blur(size, sigma):
    flow = torch.diag(torch.ones(size - 1), 1).double()
    return torch.matrix_exp(sigma**2 / 2 * (flow + flow.T - 2 * torch.eye(size)))
""",
    },
    "t4": {
        "noise anew for each layer": """
def my_damage(model, layers, clean, labels, sigma, rng):
    def error(denoiser):
        x = clean + sigma * torch.randn(clean.shape, generator=rng, dtype=clean.dtype)
        return float((denoiser(x, sigma, labels) - clean).square().mean())

    return {n: error(identity_attention(model, [n])) / error(model) for n in layers}
""",
        "the root": """
def my_damage(model, layers, clean, labels, sigma, rng):
    x = clean + sigma * torch.randn(clean.shape, generator=rng, dtype=clean.dtype)
    whole = (model(x, sigma, labels) - clean).norm()
    broken = {n: identity_attention(model, [n])(x, sigma, labels) for n in layers}
    return {n: float((b - clean).norm() / whole) for n, b in broken.items()}
""",
        "the rise": """
def my_damage(model, layers, clean, labels, sigma, rng):
    x = clean + sigma * torch.randn(clean.shape, generator=rng, dtype=clean.dtype)
    whole = (model(x, sigma, labels) - clean).square().mean()
    broken = {n: identity_attention(model, [n])(x, sigma, labels) for n in layers}
    return {n: float((b - clean).square().mean() / whole) - 1 for n, b in broken.items()}
""",
        "distance from the model": """
def my_damage(model, layers, clean, labels, sigma, rng):
    x = clean + sigma * torch.randn(clean.shape, generator=rng, dtype=clean.dtype)
    plain = model(x, sigma, labels)
    whole = (plain - clean).square().mean()
    broken = {n: identity_attention(model, [n])(x, sigma, labels) for n in layers}
    return {n: float((b - plain).square().mean() / whole) for n, b in broken.items()}
""",
        "no noise": """
def my_damage(model, layers, clean, labels, sigma, rng):
    def error(denoiser):
        return float((denoiser(clean, sigma, labels) - clean).square().mean())

    return {n: error(identity_attention(model, [n])) / error(model) for n in layers}
""",
    },
}
OTHER = ["SEED = 11", 'MODEL = "constellations-2"', "SIGMA = 0.6"]
