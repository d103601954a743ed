"""Random inputs and known wrong versions of what chapter 09 builds."""

import torch

from guidance_edu.attention import Map


def whole(rng, low, high):
    return int(torch.randint(low, high, (1,), generator=rng))


def attended(rng):
    n, heads, height, width = whole(rng, 1, 4), whole(rng, 2, 4), whole(rng, 2, 4), whole(rng, 4, 6)
    tokens = height * width
    logits = torch.randn(n, heads, tokens, tokens, generator=rng)
    return [Map((2 * logits).softmax(-1), (height, width))]


def received(rng):
    n, height, width = whole(rng, 1, 4), whole(rng, 2, 4), whole(rng, 4, 6)
    estimate = torch.randn(n, 3, 4 * height, 2 * width, generator=rng, dtype=torch.float64)
    seen = 1 + torch.randn(n, height, width, generator=rng)
    seen[:, 0, :2] = torch.tensor([1.0, 1 + 1e-6])
    seen[:, 1, :2] = torch.tensor([1.5, 0.5])
    return [estimate, seen]


def picture(rng):
    n, height, width = whole(rng, 1, 4), whole(rng, 8, 12), whole(rng, 12, 16)
    x = torch.randn(n, 3, height, width, generator=rng, dtype=torch.float64)
    return [x, 0.5 + 2 * float(torch.rand(1, generator=rng)), 2 * whole(rng, 1, 4) + 1]


def elsewhere(rng):
    n, d = whole(rng, 1, 6), whole(rng, 1, 6)
    matrix = torch.randn(d, d, generator=rng, dtype=torch.float64)
    x, shown = torch.randn(2, n, d, generator=rng, dtype=torch.float64)

    def model(x, sigma, condition):
        return torch.tanh(x @ matrix) / (1 + sigma) + (condition or 0)

    return [model, x, shown, 0.1 + float(torch.rand(1, generator=rng)), 1]


INPUTS = {
    "guidance_edu.negatives.input.received_attention": attended,
    "guidance_edu.negatives.input.attention_mask": received,
    "guidance_edu.negatives.input.blur_image": picture,
    "guidance_edu.negatives.input.answer_elsewhere": elsewhere,
}

WRONG = {
    "guidance_edu.negatives.input.received_attention": [
        (".sum(2)", ".sum(3)"),
        (".mean(1)", ".sum(1)"),
        ("seen.grid)", "seen.grid[::-1])"),
    ],
    "guidance_edu.negatives.input.attention_mask": [
        ("received > 1 + 1e-5", "received > 1"),
        ("received >", "received <"),
        ('mode="nearest"', 'mode="bilinear"'),
    ],
    "guidance_edu.negatives.input.blur_image": [
        ("-0.5 * (offsets", "-(offsets"),
        ("kernel / kernel.sum()", "kernel"),
        ('mode="reflect"', 'mode="replicate"'),
        ("unfold(3, taps, 1) @ kernel", "unfold(3, taps, 1).mean(-1)"),
    ],
    "guidance_edu.negatives.input.answer_elsewhere": [
        ("x - shown + model", "model"),
        ("x - shown +", "shown - x +"),
        ("sigma, condition)", "sigma, None)"),
    ],
}
