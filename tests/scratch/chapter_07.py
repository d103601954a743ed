"""Random inputs and known wrong versions of what chapter 07 builds."""

import torch


def size(rng, low, high):
    return int(torch.randint(low, high, (1,), generator=rng))


def labels(rng):
    n, classes = size(rng, 1, 60), size(rng, 2, 7)
    avoid = torch.randint(classes, (n,), generator=rng) if size(rng, 0, 2) else None
    return [torch.rand(n, generator=rng), classes, avoid]


def noise(rng):
    shape = (size(rng, 1, 5), *[size(rng, 2, 6) for _ in range(size(rng, 1, 3))])
    embedding, draws = torch.randn(2, *shape, generator=rng, dtype=torch.float64)
    return [3 * embedding + 1, draws]


INPUTS = {
    "guidance_edu.negatives.condition.random_labels": labels,
    "guidance_edu.negatives.condition.matched_noise": noise,
}

WRONG = {
    "guidance_edu.negatives.condition.random_labels": [
        ("labels >= avoid", "labels > avoid"),
        ("classes - (avoid is not None)", "classes"),
        ("labels + (labels >= avoid)", "labels"),
        ("draws * left", "draws * (left - 1)"),
    ],
    "guidance_edu.negatives.condition.matched_noise": [
        ("noise * embedding.std", "embedding + noise * embedding.std"),
        ("embedding.std(axes, keepdim=True)", "embedding.std()"),
        ("embedding.std(axes, keepdim=True)", "embedding.var(axes, keepdim=True)"),
    ],
}
