"""Random inputs and known wrong versions of what chapter 10 builds."""

import torch


def heads(rng):
    n, count, tokens, width = (int(v) for v in torch.randint(1, 6, (4,), generator=rng))
    shape = (3, n, count, tokens + 1, width + 1)
    return list(torch.randn(shape, generator=rng, dtype=torch.float64))


INPUTS = {
    "guidance_edu.attention.attend": heads,
    "guidance_edu.negatives.attention.keep_values": heads,
    "guidance_edu.negatives.attention.average_values": heads,
}

WRONG = {
    "guidance_edu.attention.attend": [
        ("queries.shape[-1] ** 0.5", "queries.shape[-2] ** 0.5"),
        (" / queries.shape[-1] ** 0.5", ""),
        ("dim=-1", "dim=-2"),
        ("@ values", "@ keys"),
    ],
    "guidance_edu.negatives.attention.keep_values": [
        ("return values", "return queries"),
        ("return values", "return 0 * values"),
        ("return values", "return values.mean(-2, keepdim=True).expand_as(values)"),
    ],
    "guidance_edu.negatives.attention.average_values": [
        (".mean(-2", ".sum(-2"),
        (".mean(-2", ".mean(-1"),
        ("values.mean(-2, keepdim=True).expand_as(values)", "values"),
    ],
}
