"""Random inputs and known wrong versions of what chapter 08 builds."""

import torch


def number(rng, low, high):
    return low + (high - low) * float(torch.rand(1, generator=rng))


def lied_to(rng):
    n, d = (int(v) for v in torch.randint(1, 6, (2,), generator=rng))
    matrix = torch.randn(d, d, generator=rng, dtype=torch.float64)
    x = torch.randn(n, d, generator=rng, dtype=torch.float64)

    def model(x, sigma, condition):
        return torch.tanh(x @ matrix) / (1 + sigma) + (condition or 0)

    predicts = ("clean", "noise")[int(torch.randint(2, (1,), generator=rng))]
    return [model, x, number(rng, 0.1, 3.0), number(rng, -1.0, 1.0), predicts, 1]


def perturbed(rng):
    n, width = (int(v) for v in torch.randint(2, 9, (2,), generator=rng))
    embedding, noise = torch.randn(2, n, width, generator=rng, dtype=torch.float64)
    strength = torch.rand(n, generator=rng) if n % 2 else number(rng, 0.0, 3.0)
    return [2 * embedding + 1, noise, strength]


INPUTS = {
    "guidance_edu.negatives.clock.at_wrong_level": lied_to,
    "guidance_edu.negatives.clock.perturbed_embedding": perturbed,
}

WRONG = {
    "guidance_edu.negatives.clock.at_wrong_level": [
        ("sigma * epsilon", "told * epsilon"),
        ("(x - clean) / told", "(x - clean) / sigma"),
        ("math.exp(delta)", "math.exp(-delta)"),
        ("told, condition", "told, None"),
    ],
    "guidance_edu.negatives.clock.perturbed_embedding": [
        ("embedding.std(1, keepdim=True)", "embedding.std(0, keepdim=True)"),
        ("embedding + strength", "embedding * strength"),
        (" * embedding.std(1, keepdim=True)", ""),
    ],
}
