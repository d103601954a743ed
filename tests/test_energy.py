"""The energy of attention: its step, its curvature, and what a blur does to both."""

import math

import pytest
import torch
from torch.autograd.functional import hessian

from guidance_edu.attention import attend
from guidance_edu.energy import (
    attention_energy,
    blur_matrix,
    curvature,
    energy_hessian,
    energy_surface,
    hopfield_energy,
    hopfield_step,
    largest_curvature,
)

PADDINGS = ["reflect", "symmetric", "circular"]
SIGMAS = [0.5, 1.0, 3.0, math.inf]


def randn(*shape, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


# Energy


def test_the_gradient_of_the_energy_is_minus_the_softmax():
    a = (3 * randn(4, 9)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(attention_energy(a).sum(), a)
    torch.testing.assert_close(gradient, -torch.softmax(a, -1))


def test_the_energy_has_its_limits():
    a = 3 * randn(5, 8)
    torch.testing.assert_close(attention_energy(a + 2), attention_energy(a) - 2)
    equal = attention_energy(a.mean(-1, keepdim=True).expand_as(a))
    torch.testing.assert_close(equal, -a.mean(-1) - math.log(8))
    assert bool((attention_energy(a) <= equal).all())
    top = a.amax(-1)
    assert bool((attention_energy(a) <= -top).all())
    assert bool((attention_energy(a) >= -top - math.log(8)).all())


def test_large_logits_stay_finite():
    a = 1e8 * randn(3, 4)
    assert bool(attention_energy(a).isfinite().all())
    assert bool(curvature(a).isfinite().all())


# The Hopfield step


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (2, 3, 6, 4)])
def test_a_step_down_the_hopfield_energy_is_softmax_attention(shape):
    q, k = randn(*shape), randn(*shape[:-2], shape[-2] + 1, shape[-1], seed=1)
    query = q.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(hopfield_energy(query, k).sum(), query)
    torch.testing.assert_close(hopfield_step(q, k), q - gradient)
    torch.testing.assert_close(hopfield_step(q, k), attend(q, k, k))


@pytest.mark.parametrize("size", [0.1, 1.0, 10.0])
def test_the_hopfield_energy_never_rises(size):
    q, k = size * randn(200, 6), size * randn(30, 6, seed=1)
    before = hopfield_energy(q, k)
    after = hopfield_energy(hopfield_step(q, k), k)
    assert bool((after <= before + 1e-9 * before.abs()).all())


def test_one_key_is_a_bowl_that_one_step_empties():
    q, k = randn(7, 5), randn(1, 5, seed=1)
    expected = (q - k).square().sum(-1) / 2 - k.square().sum(-1) / 2
    torch.testing.assert_close(hopfield_energy(q, k), expected)
    torch.testing.assert_close(hopfield_step(q, k), k.expand_as(q))


# Curvature


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_hessian_is_that_of_the_composed_energy(padding, sigma):
    blur, a = blur_matrix(6, sigma, padding), 2 * randn(6)
    found = energy_hessian(a, blur)
    torch.testing.assert_close(found, hessian(lambda z: attention_energy(blur @ z), a))
    torch.testing.assert_close(found @ torch.ones(6, dtype=torch.float64), 0 * a)
    assert float(torch.linalg.eigvalsh(found)[-1]) < 1e-12
    expected = torch.linalg.matrix_norm(found, 2)
    torch.testing.assert_close(curvature(a, blur), expected, atol=1e-12, rtol=1e-9)


def test_no_blur_is_the_identity_and_batches_are_rows():
    a = randn(3, 2, 5)
    torch.testing.assert_close(curvature(a), curvature(a, torch.eye(5, dtype=torch.float64)))
    torch.testing.assert_close(curvature(a)[1, 0], curvature(a[1, 0]))
    assert energy_hessian(a).shape == (3, 2, 5, 5)


def test_a_blur_may_raise_the_curvature_and_may_lower_it():
    # normalised, then wrapped round the circle: 7 taps
    blur = blur_matrix(4, 1.0, "circular", taps=7)
    torch.testing.assert_close(
        blur[0], torch.tensor([0.3991, 0.2465, 0.1080, 0.2465]).double(), atol=1e-4, rtol=0
    )
    sharp = torch.tensor([6.0, 0, 0, 0], dtype=torch.float64)
    soft = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    assert float(curvature(sharp)) == pytest.approx(0.00977, abs=1e-5)
    assert float(curvature(sharp, blur)) == pytest.approx(0.01780, abs=1e-5)
    assert float(curvature(soft)) == pytest.approx(0.3325, abs=1e-4)
    assert float(curvature(soft, blur)) == pytest.approx(0.0211, abs=1e-4)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("size", [2, 5, 8])
def test_no_curvature_exceeds_the_largest_and_it_is_approached(padding, sigma, size):
    blur = blur_matrix(size, sigma, padding)
    bound = largest_curvature(blur)
    assert bound <= 0.5 + 1e-12
    for scale in (0.1, 1.0, 10.0, 100.0):
        assert float(curvature(scale * randn(50, size), blur).max()) <= bound + 1e-12
    if math.isinf(sigma):
        assert bound == 0
    elif float(torch.linalg.cond(blur)) < 1e3:
        # logits whose blur is 0 at the two furthest rows and far below elsewhere
        pair = divmod(int(torch.cdist(blur, blur).argmax()), size)
        wanted = torch.full((size,), -60.0, dtype=torch.float64)
        wanted[list(pair)] = 0
        reached = curvature(torch.linalg.solve(blur, wanted), blur)
        assert float(reached) == pytest.approx(bound, rel=1e-4)


def test_the_largest_curvature_goes_by_rows():
    # reflect padding is not symmetric: its columns would give another number
    blur = blur_matrix(8, 1.0, "reflect")
    assert largest_curvature(blur) < 0.9 * largest_curvature(blur.T)
    assert largest_curvature(torch.eye(3)) == 0.5


def test_the_other_curvatures_multiply_to_the_product_of_the_weights():
    a = randn(7)
    values = torch.linalg.eigvalsh(-energy_hessian(a))
    assert abs(float(values[0])) < 1e-14
    torch.testing.assert_close(values[1:].prod(), 7 * torch.softmax(a, -1).prod())


def test_a_blur_of_another_size_says_so():
    with pytest.raises(ValueError, match=r"expected a blur of shape \[4, 4\], got \[3, 3\]"):
        curvature(torch.zeros(4), torch.eye(3))


# What a blur keeps


@pytest.mark.parametrize("padding", ["symmetric", "circular"])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_a_blur_that_keeps_the_mean_raises_the_energy_by_key_and_by_query(padding, sigma):
    logits = 4 * randn(8, 11)
    blurred = blur_matrix(8, sigma, padding) @ logits
    torch.testing.assert_close(blurred.mean(0), logits.mean(0))
    assert bool((blurred.var(0) <= logits.var(0) + 1e-12).all())
    assert bool((attention_energy(blurred.T) >= attention_energy(logits.T) - 1e-12).all())
    assert float(attention_energy(blurred).sum()) >= float(attention_energy(logits).sum())


def test_reflect_padding_may_lower_the_energy_but_by_no_more_than_its_columns_allow():
    blur = blur_matrix(8, 1.0, "reflect")
    columns = blur.sum(0)
    a = 0.1 * (columns - 1)
    assert float(attention_energy(blur @ a)) < float(attention_energy(a))
    many = 5 * randn(1000, 8)
    drop = attention_energy(many) - attention_energy(many @ blur.T)
    assert float(drop.max()) <= math.log(float(columns.max())) + 1e-12


# The surface


def test_the_surface_is_the_energy_of_the_changed_queries():
    q, k, u, v = (randn(2, 12, 5, seed=s) for s in range(4))
    blur = torch.kron(blur_matrix(3, 1.0), blur_matrix(4, 1.0))
    amounts = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    found = energy_surface(q, k, (u, v), amounts, blur)
    for i, a in enumerate(amounts):
        for j, b in enumerate(amounts):
            logits = blur @ (q + a * u + b * v) @ k.transpose(-1, -2) / math.sqrt(5)
            torch.testing.assert_close(found[i, j], attention_energy(logits).mean())


def test_a_direction_that_the_blur_removes_is_flat():
    q, k, v = randn(8, 5), randn(8, 5, seed=1), randn(8, 5, seed=2)
    ripple = (-1.0) ** torch.arange(8).double()[:, None] * randn(1, 5, seed=3)
    amounts = torch.linspace(-2, 2, 5, dtype=torch.float64)
    flat = energy_surface(q, k, (ripple, v), amounts, blur_matrix(8, math.inf))
    torch.testing.assert_close(flat, flat[:1].expand(5, 5))
    assert float(energy_surface(q, k, (ripple, v), amounts).std(0).max()) > 0.01
