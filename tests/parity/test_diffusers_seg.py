"""Smoothed attention is attention with queries blurred by convolution, padded by reflection.

The guider of diffusers 0.42.1 does nothing (test_published_behaviour.py); its hook holds the blur
of the published code, for square grids. Other grids are compared with a convolution in torch.
"""

import math
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the package is imported

import pytest
import torch
from torch.nn import functional as F

from guidance_edu.attention import SelfAttention, attend, replaced
from guidance_edu.energy import blur_tokens, kernel_size
from guidance_edu.negatives.attention import smoothed_attention

diffusers = pytest.importorskip("diffusers", minversion="0.36")

from diffusers.hooks.smoothed_energy_guidance_utils import (  # noqa: E402
    SmoothedEnergyGuidanceHook,
)

from tests.parity.networks import draw  # noqa: E402

pytestmark = pytest.mark.skipif(
    diffusers.__version__ != "0.42.1", reason="the chapter speaks of diffusers 0.42.1"
)

GRIDS = [(4, 4), (7, 7), (8, 8), (16, 16), (4, 7), (8, 12), (2, 16), (5, 3)]
SIGMAS = [0.5, 1.0, 2.0, 10.0, math.inf]
CLOSE = {"rtol": 1e-10, "atol": 1e-10}  # float64

every_grid = pytest.mark.parametrize("grid", GRIDS, ids=str)
every_sigma = pytest.mark.parametrize("sigma", SIGMAS)


def convolved(maps, sigma):
    """Blur maps [..., h, w] with torch's padding and convolution alone, one axis at a time."""
    if math.isinf(sigma):
        return maps.mean((-2, -1), keepdim=True).expand_as(maps)
    shape = maps.shape
    for axis in (-2, -1):
        size = shape[axis]
        taps = math.ceil(6 * sigma) + 1 - math.ceil(6 * sigma) % 2  # the next odd number
        taps = min(taps, size - (size % 2 - 1))
        places = torch.arange(taps, dtype=maps.dtype) - (taps - 1) / 2
        kernel = torch.exp(-(places**2) / (2 * sigma**2))
        kernel = kernel / kernel.sum()
        lines = maps.movedim(axis, -1).reshape(-1, 1, size)
        lines = F.conv1d(F.pad(lines, (taps // 2, taps // 2), mode="reflect"), kernel[None, None])
        maps = lines.reshape(maps.movedim(axis, -1).shape).movedim(-1, axis)
    return maps


def matrix(grid, sigma):
    """Return the whole blur as one matrix [tokens, tokens]: what it makes of every single token."""
    count = grid[0] * grid[1]
    single = torch.eye(count, dtype=torch.float64).unflatten(-1, grid)
    return convolved(single, sigma).flatten(-2).T


def qkv(grid, heads=3, width=5, seed=0):
    return 1.5 * draw(3, 2, heads, grid[0] * grid[1], width, seed=seed, dtype=torch.float64)


@every_grid
@every_sigma
def test_tokens_are_blurred_as_by_convolution(grid, sigma):
    queries, _, _ = qkv(grid)
    expected = convolved(queries.mT.unflatten(-1, grid), sigma).flatten(-2).mT
    torch.testing.assert_close(blur_tokens(queries, grid, sigma), expected, **CLOSE)


@every_grid
@every_sigma
def test_smoothed_attention_is_the_softmax_of_blurred_logits(grid, sigma):
    """The blur over queries, as one matrix B on the logits: softmax(B Q K^T / sqrt(d)) V."""
    queries, keys, values = qkv(grid)
    logits = queries @ keys.mT / queries.shape[-1] ** 0.5
    expected = torch.softmax(matrix(grid, sigma) @ logits, -1) @ values
    layer = SelfAttention(15, 3, "layer")
    rule = smoothed_attention(torch.nn.Sequential(layer), ["layer"], sigma).rule
    torch.testing.assert_close(rule(queries, keys, values, grid), expected, **CLOSE)
    if grid[0] * grid[1] > 15:
        assert (expected - attend(queries, keys, values)).abs().max() > 1e-3


@pytest.mark.parametrize("grid", [(4, 4), (7, 7), (8, 8), (16, 16)], ids=str)
@every_sigma
@pytest.mark.parametrize("heads", [1, 3])
def test_on_a_square_a_whole_layer_is_the_one_with_the_published_blur(grid, sigma, heads):
    """diffusers 0.42.1: the hook on queries, called so that it does the blur that it is asked for.

    It takes the finite kernel where sigma is *above* its threshold, and the mean elsewhere.
    """
    layer = SelfAttention(12, heads, "layer").double().requires_grad_(False)
    for number, parameter in enumerate(layer.parameters()):
        parameter.copy_(0.5 * draw(*parameter.shape, seed=number))
    x = draw(2, grid[0] * grid[1], 12, seed=9, dtype=torch.float64)
    infinite = math.isinf(sigma)
    hook = SmoothedEnergyGuidanceHook(1.0 if infinite else sigma, 9999.0 if infinite else 0.0)
    queries, keys, values = layer.qkv(x).chunk(3, -1)
    queries = hook.post_forward(None, queries.clone())
    parts = (p.unflatten(-1, (heads, -1)).transpose(1, 2) for p in (queries, keys, values))
    expected = layer.out(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))
    rule = smoothed_attention(layer, ["layer"], sigma).rule
    with replaced(layer, ["layer"], rule):
        # The hook computes its kernel in float32.
        torch.testing.assert_close(layer(x, grid), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("sigma", "taps"), [(0.5, 3), (1, 7), (2, 13), (3, 19), (5, 31), (10, 61)])
def test_the_kernel_has_the_published_number_of_taps(sigma, taps):
    assert kernel_size(sigma, 1000) == taps
    assert [kernel_size(sigma, size) for size in (2, 3)] == [3, 3]  # H + 1 where H is even
