"""Negatives that break attention: what each rule does, its limits, and that work is shared."""

import math

import pytest
import torch
from torch.nn import functional as F

from guidance_edu.attention import attend, attention_layers, replaced
from guidance_edu.energy import blur_matrix, blur_tokens, kernel_size
from guidance_edu.guidance import Guided
from guidance_edu.negatives.attention import (
    average_values,
    blurred_weights,
    dropped_weights,
    identity_attention,
    keep_values,
    no_values,
    noisy_weights,
    perturbed_attention,
    smoothed_attention,
)
from tests.test_unet import batch, stirred

SIZES = [1, 2, 4, 7, 8, 16]


def qkv(tokens=16, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(3, 2, 2, tokens, 5, generator=rng, dtype=torch.float64)


@pytest.fixture(scope="module")
def model():
    return stirred().requires_grad_(False)


# The rules


def test_identity_attention_is_the_model_with_values_passed_on(model):
    x, labels = batch()
    with replaced(model, ["mid.8"], keep_values):
        expected = model(x, 0.5, labels)
    negative = identity_attention(model, ["mid.8"])
    assert torch.equal(negative(x, 0.5, labels), expected)
    assert not torch.allclose(expected, model(x, 0.5, labels))


def test_identity_is_the_limit_of_masking_all_but_the_diagonal():
    q, k, v = qkv()
    mask = torch.full((16, 16), -math.inf, dtype=torch.float64).fill_diagonal_(0)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(keep_values(q, k, v), expected)


@pytest.mark.parametrize("rule", [keep_values, average_values, blurred_weights(1.0)])
def test_one_token_leaves_nothing_to_break(rule):
    q, k, v = qkv(tokens=1)
    torch.testing.assert_close(rule(q, k, v, (1, 1)), attend(q, k, v))


def test_uniform_attention_is_attention_with_equal_logits():
    q, k, v = qkv()
    torch.testing.assert_close(average_values(q, k, v), attend(0 * q, k, v))


def test_no_attention_takes_nothing():
    q, k, v = qkv()
    assert no_values(q, k, v).count_nonzero() == 0


def test_dropping_goes_from_attention_to_nothing():
    q, k, v = qkv()
    rng = torch.Generator().manual_seed(0)
    torch.testing.assert_close(dropped_weights(0.0, rng)(q, k, v), attend(q, k, v))
    assert dropped_weights(1.0, rng)(q, k, v).count_nonzero() == 0
    half = dropped_weights(0.5, rng)
    mean = torch.stack([half(q, k, v) for _ in range(4000)]).mean(0)
    # Nothing is mended: half of the weight is lost on average. Standard error about .01.
    torch.testing.assert_close(mean, attend(q, k, v) / 2, atol=0.06, rtol=0)


def test_noise_on_the_weights_has_mean_zero_and_is_drawn_anew():
    q, k, v = qkv()
    rng = torch.Generator().manual_seed(0)
    torch.testing.assert_close(noisy_weights(0.0, rng)(q, k, v), attend(q, k, v))
    rule = noisy_weights(0.1, rng)
    draws = torch.stack([rule(q, k, v) for _ in range(4000)])
    assert not torch.equal(draws[0], draws[1])
    torch.testing.assert_close(draws.mean(0), attend(q, k, v), atol=0.05, rtol=0)
    expected = 0.1 * v.square().sum(-2, keepdim=True).sqrt().expand_as(v)
    torch.testing.assert_close(draws.std(0), expected, rtol=0.08, atol=0)


@pytest.mark.parametrize("make", [dropped_weights, noisy_weights])
def test_random_rules_repeat_with_their_generator(make):
    q, k, v = qkv()
    first, second = (make(0.3, torch.Generator().manual_seed(4))(q, k, v) for _ in range(2))
    assert torch.equal(first, second)


# Blur


@pytest.mark.parametrize("padding", ["reflect", "symmetric", "circular"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0, 100.0, math.inf])
def test_rows_of_a_blur_sum_to_one_and_columns_where_the_padding_allows(size, sigma, padding):
    matrix = blur_matrix(size, sigma, padding)
    one = torch.ones(size, dtype=torch.float64)
    assert bool((matrix >= 0).all())
    torch.testing.assert_close(matrix.sum(1), one)
    if padding != "reflect" or math.isinf(sigma):
        torch.testing.assert_close(matrix.sum(0), one)


def test_reflect_padding_does_not_keep_the_mean():
    assert float((blur_matrix(8, 1.0).sum(0) - 1).abs().max()) > 0.2


@pytest.mark.parametrize("grid", [(4, 4), (7, 5), (8, 3), (16, 16)])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_blurring_tokens_is_a_padded_convolution(grid, sigma):
    tokens = torch.randn(2, 3, grid[0] * grid[1], 5, dtype=torch.float64)
    image = tokens.permute(0, 1, 3, 2).reshape(2, 15, *grid)
    for dimension, size in enumerate(grid):
        taps = kernel_size(sigma, size)
        offsets = torch.linspace(-(taps - 1) / 2, (taps - 1) / 2, taps, dtype=torch.float64)
        kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
        kernel = (kernel / kernel.sum()).reshape(1, 1, *([-1, 1] if dimension == 0 else [1, -1]))
        side = [taps // 2] * 2
        pad = [0, 0, *side] if dimension == 0 else [*side, 0, 0]
        padded = F.pad(image, pad, mode="reflect")
        image = F.conv2d(padded, kernel.expand(15, 1, -1, -1), groups=15)
    expected = image.reshape(2, 3, 5, -1).permute(0, 1, 3, 2)
    torch.testing.assert_close(blur_tokens(tokens, grid, sigma), expected)


def test_kernel_sizes_are_those_of_the_published_code():
    # ceil(6 sigma) made odd: 3, 7, 13, 19, 31, 61, 601, where the line is long enough.
    wide = [kernel_size(s, 10_001) for s in (0.5, 1, 2, 3, 5, 10, 100)]
    assert wide == [3, 7, 13, 19, 31, 61, 601]
    assert [kernel_size(100, size) for size in (7, 8, 16)] == [7, 9, 17]


def test_a_blur_of_no_width_changes_nothing_and_of_all_width_leaves_the_mean():
    q, _, _ = qkv(tokens=12)
    torch.testing.assert_close(blur_tokens(q, (3, 4), 1e-3), q)
    mean = q.mean(-2, keepdim=True).expand_as(q)
    torch.testing.assert_close(blur_tokens(q, (3, 4), math.inf), mean)


@pytest.mark.parametrize("padding", ["reflect", "symmetric", "circular"])
def test_blurred_queries_are_blurred_logits(padding):
    q, k, _ = qkv(tokens=12)
    logits = q @ k.transpose(-1, -2)
    blurred = blur_tokens(q, (3, 4), 0.8, padding) @ k.transpose(-1, -2)
    torch.testing.assert_close(blurred, blur_tokens(logits, (3, 4), 0.8, padding))


def test_smoothed_attention_is_the_model_with_blurred_queries(model):
    x, labels = batch()

    def rule(queries, keys, values, grid):
        rows = torch.kron(blur_matrix(grid[0], 1.5), blur_matrix(grid[1], 1.5)).to(queries)
        return attend(rows @ queries, keys, values)

    with replaced(model, ["dec.16.0", "mid.8"], rule):
        expected = model(x, 0.5, labels)
    negative = smoothed_attention(model, ["dec.16.0", "mid.8"], sigma=1.5)
    torch.testing.assert_close(negative(x, 0.5, labels), expected, atol=1e-5, rtol=1e-5)


def test_smoothing_by_nothing_is_the_model_itself(model):
    x, labels = batch()
    negative = smoothed_attention(model, ["mid.8"], sigma=1e-3)
    torch.testing.assert_close(negative(x, 0.5, labels), model(x, 0.5, labels))


def test_blurring_weights_is_not_blurring_queries_but_shares_its_limit():
    q, k, v = qkv(tokens=16)
    blurred = blurred_weights(1.0)(q, k, v, (4, 4))
    queries = attend(blur_tokens(q, (4, 4), 1.0), k, v)
    assert not torch.allclose(blurred, queries, atol=1e-2)
    torch.testing.assert_close(blurred_weights(1e-3)(q, k, v, (4, 4)), attend(q, k, v))


# Guidance


@pytest.mark.parametrize("layers", [["mid.8"], ["enc.16.0", "dec.16.0"], [-1]])
@pytest.mark.parametrize("make", [identity_attention, smoothed_attention])
def test_the_shared_pass_gives_what_two_passes_give(model, layers, make):
    x, labels = batch()
    negative = make(model, layers)
    positive, other = negative.pair(x, 0.5, labels)
    torch.testing.assert_close(positive, model(x, 0.5, labels), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other, negative(x, 0.5, labels), atol=1e-5, rtol=1e-5)
    guided = Guided(model, negative, 2.5)(x, 0.5, labels)
    torch.testing.assert_close(guided, positive + 1.5 * (positive - other))


def test_guidance_of_one_is_the_model_bit_for_bit(model):
    x, labels = batch()
    negative = identity_attention(model, ["mid.8"])
    assert torch.equal(Guided(model, negative, 1.0)(x, 0.5, labels), model(x, 0.5, labels))


def test_guidance_calls_the_network_once(model):
    x, labels = batch()
    calls = []
    handle = model.network.register_forward_hook(lambda *_: calls.append(1))
    Guided(model, identity_attention(model, ["mid.8"]), 2.0)(x, 0.5, labels)
    handle.remove()
    assert len(calls) == 1


def test_the_model_is_whole_after_an_error(model):
    x, labels = batch()
    plain = model(x, 0.5, labels)

    def broken(queries, keys, values, grid):
        raise RuntimeError("broken on purpose")

    negative = perturbed_attention(model, ["mid.8"], broken)
    for call in (negative, negative.pair):
        with pytest.raises(RuntimeError, match="on purpose"):
            call(x, 0.5, labels)
    assert torch.equal(model(x, 0.5, labels), plain)


def test_the_rule_of_attention_itself_guides_nowhere(model):
    x, labels = batch()
    negative = perturbed_attention(model, list(attention_layers(model)), attend)
    guided = Guided(model, negative, 5.0)(x, 0.5, labels)
    torch.testing.assert_close(guided, model(x, 0.5, labels), atol=1e-5, rtol=1e-5)


# Errors


def test_wrong_models_layers_and_sizes_say_so(model):
    with pytest.raises(TypeError, match="expected a network with attention, got function"):
        identity_attention(lambda x, sigma, condition=None: x, ["mid.8"])
    with pytest.raises(ValueError, match="layer 'mid' not found; this network has: enc.16.0"):
        identity_attention(model, ["mid"])
    for sigma in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="expected sigma above 0"):
            smoothed_attention(model, ["mid.8"], sigma=sigma)
    with pytest.raises(ValueError, match="unknown padding 'zero'; expected one of reflect"):
        smoothed_attention(model, ["mid.8"], padding="zero")
    with pytest.raises(ValueError, match=r"grid \(height, width\) to blur"):
        blur_tokens(torch.zeros(1, 1, 4, 2), None, 1.0)
    with pytest.raises(ValueError, match=r"rate in \[0, 1\], got 1.5"):
        dropped_weights(1.5, torch.Generator())
    with pytest.raises(ValueError, match="finite size of at least 0, got -1"):
        noisy_weights(-1, torch.Generator())


def test_layers_may_come_from_a_generator():
    model, (x, labels) = stirred(), batch()
    named = ["dec.16.0"]
    wanted = identity_attention(model, named)(x, 1.0, labels)
    assert torch.equal(identity_attention(model, (name for name in named))(x, 1.0, labels), wanted)
