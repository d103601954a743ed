"""The attention of the book is that of diffusers 0.42.1: plain, and perturbed as PAG does it."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the package is imported

import pytest
import torch

from guidance_edu.attention import SelfAttention, attention_weights, replaced
from guidance_edu.negatives.attention import keep_values

diffusers = pytest.importorskip("diffusers", minversion="0.36")

from diffusers.models.attention_processor import (  # noqa: E402
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    PAGCFGIdentitySelfAttnProcessor2_0,
    PAGIdentitySelfAttnProcessor2_0,
)

from tests.parity.networks import draw  # noqa: E402

pytestmark = pytest.mark.skipif(
    diffusers.__version__ != "0.42.1", reason="the chapter speaks of diffusers 0.42.1"
)

DOUBLE, SINGLE = torch.float64, torch.float32
# Sums in another order: of numbers up to 10, with 53 and 24 binary digits.
CLOSE = {DOUBLE: {"rtol": 0, "atol": 1e-13}, SINGLE: {"rtol": 0, "atol": 1e-5}}
SHAPES = [
    (32, 1, 16),
    (32, 4, 16),
    (32, 4, 256),
    (48, 3, 35),
    (16, 2, 1),
]  # channels, heads, tokens

every_dtype = pytest.mark.parametrize("dtype", [DOUBLE, SINGLE], ids=["float64", "float32"])
every_shape = pytest.mark.parametrize(("channels", "heads", "tokens"), SHAPES)


def both(channels, heads, dtype=SINGLE):
    """Return our layer and theirs with the same random weights."""
    ours = SelfAttention(channels, heads, "layer").requires_grad_(False)
    for number, parameter in enumerate(ours.parameters()):
        size = channels**-0.5
        parameter.copy_(size * draw(*parameter.shape, seed=number))
    theirs = Attention(channels, heads=heads, dim_head=channels // heads, bias=True)
    theirs.requires_grad_(False)
    parts = (theirs.to_q, theirs.to_k, theirs.to_v)
    for part, weight, bias in zip(
        parts, ours.qkv.weight.chunk(3), ours.qkv.bias.chunk(3), strict=True
    ):
        part.weight.copy_(weight)
        part.bias.copy_(bias)
    theirs.to_out[0].weight.copy_(ours.out.weight)
    theirs.to_out[0].bias.copy_(ours.out.bias)
    return ours.to(dtype), theirs.eval().to(dtype)


@every_shape
@every_dtype
@pytest.mark.parametrize("processor", [AttnProcessor2_0, AttnProcessor])
def test_attention_is_theirs(channels, heads, tokens, processor, dtype):
    ours, theirs = both(channels, heads, dtype)
    theirs.set_processor(processor())
    x = 2 * draw(3, tokens, channels, seed=1, dtype=dtype)
    torch.testing.assert_close(ours(x), theirs(x), **CLOSE[dtype])


@every_shape
@every_dtype
def test_the_weights_are_those_that_they_compute_when_asked(channels, heads, tokens, dtype):
    _, theirs = both(channels, heads, dtype)
    x = 2 * draw(3, tokens, channels, seed=1, dtype=dtype)
    queries, keys = (
        part(x).unflatten(-1, (heads, -1)).transpose(1, 2) for part in (theirs.to_q, theirs.to_k)
    )
    scores = theirs.get_attention_scores(queries.flatten(0, 1), keys.flatten(0, 1))
    torch.testing.assert_close(
        attention_weights(queries, keys).flatten(0, 1), scores, **CLOSE[dtype]
    )


@every_shape
@every_dtype
@pytest.mark.parametrize("parts", [2, 3])
def test_identity_attention_is_the_one_of_their_pag(channels, heads, tokens, parts, dtype):
    """diffusers 0.42.1: [plain, perturbed] without CFG, [unconditional, plain, perturbed] with."""
    ours, theirs = both(channels, heads, dtype)
    made = PAGIdentitySelfAttnProcessor2_0 if parts == 2 else PAGCFGIdentitySelfAttnProcessor2_0
    theirs.set_processor(made())
    x = 2 * draw(2 * parts, tokens, channels, seed=1, dtype=dtype)
    rows = slice(2 * parts - 2, None)
    with replaced(ours, ["layer"], keep_values, rows):
        expected = ours(x)
    torch.testing.assert_close(theirs(x), expected, **CLOSE[dtype])
    alone = theirs.to_out[0](theirs.to_v(x[rows]))
    torch.testing.assert_close(expected[rows], alone, **CLOSE[dtype])
    if tokens > 1:
        assert (expected[rows] - ours(x[rows])).abs().max() > 0.01


def test_half_precision_differs_by_its_own_rounding():
    ours, theirs = both(32, 4)
    x = 2 * draw(3, 64, 32, seed=1)
    exact = ours(x)
    ours, theirs = ours.to(torch.bfloat16), theirs.to(torch.bfloat16)
    x = x.to(torch.bfloat16)
    size = exact.abs().max().item()
    for layer in (ours, theirs):  # bfloat16 keeps 8 binary digits
        torch.testing.assert_close(layer(x).float(), exact, rtol=0, atol=0.03 * size)
