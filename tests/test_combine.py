"""Several negatives at once: the pure form of the one equation, and the object that applies it."""

import math

import pytest
import torch

from guidance_edu.guidance import Guided, combine, guide


def tensors(number, seed=0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    return list(torch.randn(number, 5, 3, generator=rng, dtype=torch.float64).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_of_one_give_the_positive_bit_for_bit(dtype):
    positive, *negatives = tensors(4, dtype=dtype)
    assert torch.equal(combine(positive, negatives, [1.0, 1, 1.0]), positive)
    assert torch.equal(combine(positive, [], []), positive)


def test_a_negative_with_weight_one_does_not_count_even_where_it_is_not_finite():
    positive, negative = tensors(2)
    broken = torch.full_like(positive, math.nan)
    got = combine(positive, [broken, negative], [1.0, 2.5])
    assert torch.equal(got, guide(positive, negative, 2.5))


@pytest.mark.parametrize("w", [-1.0, 0.0, 0.5, 2.5, 7.0])
def test_one_negative_is_the_one_equation(w):
    positive, negative = tensors(2)
    assert torch.equal(combine(positive, [negative], [w]), guide(positive, negative, w))
    torch.testing.assert_close(
        combine(positive, [negative], [w]), torch.lerp(negative, positive, w)
    )


def test_pushes_add_in_any_order_and_a_split_weight_is_the_whole():
    positive, *negatives = tensors(4)
    weights = [2.0, -0.5, 4.0]
    wanted = positive + sum(
        (w - 1) * (positive - n) for n, w in zip(negatives, weights, strict=True)
    )
    torch.testing.assert_close(combine(positive, negatives, weights), wanted)
    torch.testing.assert_close(combine(positive, negatives[::-1], weights[::-1]), wanted)
    twice = combine(positive, [negatives[0]] * 2, [1.6, 2.4])
    torch.testing.assert_close(twice, guide(positive, negatives[0], 3.0))


def test_the_guided_object_computes_the_same():
    x, *outputs = tensors(4)
    positive, first, second = (lambda x, sigma, c=None, out=out: out for out in outputs)
    guided = Guided(positive, [(first, 2.0), (second, 0.3)])
    assert torch.equal(guided(x, 0.5), combine(outputs[0], outputs[1:], [2.0, 0.3]))


@pytest.mark.parametrize(
    ("negatives", "weights", "message"),
    [
        (2, [2.0], "expected 2 weights, got 1"),
        (1, [math.inf], "finite guidance weight"),
        (1, ["2"], "finite guidance weight"),
    ],
)
def test_bad_input_is_named(negatives, weights, message):
    positive, *rest = tensors(1 + negatives)
    with pytest.raises(ValueError, match=message):
        combine(positive, rest, weights)


def test_shapes_must_agree_even_where_a_weight_is_one():
    positive, negative = tensors(2)
    with pytest.raises(ValueError, match="one shape"):
        combine(positive, [negative[:2]], [1.0])
