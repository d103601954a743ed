"""The contract of a denoiser, the four faces of a prediction, and the preconditioned network."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from guidance_edu.denoisers import (
    KINDS,
    Denoiser,
    Preconditioned,
    check_condition,
    check_sigma,
    convert,
)

FEW = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 10_000)
PAIRS = list(itertools.product(KINDS, KINDS))

# The name of a schedule, and alpha at a noise level below 1.
SCHEDULES = {
    "sigma": lambda sigma: 1.0,
    "variance-preserving": lambda sigma: math.sqrt(1 - sigma**2),
    "flow": lambda sigma: 1 - sigma,
}


def noise(seed, *shape):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def faces(x0, epsilon, sigma, alpha):
    """Every kind of prediction, from its definition."""
    return {
        "denoised": x0,
        "epsilon": epsilon,
        "score": -epsilon / sigma,
        "v": alpha * epsilon - sigma * x0,
        "flow": epsilon - x0,
    }


# Conversions


@pytest.mark.parametrize("schedule", SCHEDULES)
@FEW
@given(seed=seeds, sigma=st.floats(0.01, 0.99))
def test_every_kind_converts_to_every_other_exactly(schedule, seed, sigma):
    alpha = SCHEDULES[schedule](sigma)
    x0, epsilon = noise(seed, 4, 3), noise(seed + 1, 4, 3)
    x = alpha * x0 + sigma * epsilon
    known = faces(x0, epsilon, sigma, alpha)
    for source, target in PAIRS:
        got = convert(known[source], x, sigma, source, target, alpha)
        # Reading the noise off x, or the clean sample, divides its rounding by sigma or alpha;
        # a score is divided twice.
        size = 1 / min(sigma, alpha) ** (1 + (target == "score"))
        torch.testing.assert_close(got, known[target], rtol=1e-12, atol=1e-14 * size)


@pytest.mark.parametrize(("source", "target"), PAIRS)
@FEW
@given(seed=seeds, power=st.floats(-3, 3))
def test_there_and_back_is_the_identity(source, target, seed, power):
    sigma = 10**power
    x, value = noise(seed, 3, 2), noise(seed + 1, 3, 2)
    there = convert(value, x, sigma, source, target)
    back = convert(there, x, sigma, target, source)
    # What one number of the detour is rounded by, in units of the result.
    loss = max(1.0, sigma, 1 / sigma) ** 2
    torch.testing.assert_close(back, value, rtol=1e-12, atol=2e-15 * loss)


def test_one_kind_of_noise_becomes_another_without_loss_at_a_tiny_sigma():
    x, epsilon = noise(0, 5, 2), noise(1, 5, 2)
    score = convert(epsilon, x, 1e-9, "epsilon", "score")
    torch.testing.assert_close(score, -epsilon / 1e-9, rtol=1e-15, atol=0)
    torch.testing.assert_close(
        convert(score, x, 1e-9, "score", "epsilon"), epsilon, rtol=1e-15, atol=0
    )


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_each_sample_has_its_own_levels(source, target):
    x, value = noise(0, 3, 2, 2), noise(1, 3, 2, 2)
    sigma, alpha = torch.tensor([0.3, 0.5, 0.9]).double(), torch.tensor([0.9, 0.6, 0.2]).double()
    together = convert(value, x, sigma, source, target, alpha)
    for i in range(3):
        alone = convert(
            value[i : i + 1], x[i : i + 1], float(sigma[i]), source, target, float(alpha[i])
        )
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-14, atol=1e-14)


def test_the_same_kind_is_returned_untouched_even_without_noise():
    value = noise(0, 2, 2)
    for kind in KINDS:
        assert convert(value, noise(1, 2, 2), 0.0, kind, kind) is value


@pytest.mark.parametrize("kind", ["v", "flow"])
def test_velocities_are_defined_at_both_ends(kind):
    x0, epsilon = noise(0, 2, 3), noise(1, 2, 3)
    for sigma, alpha in ((0.0, 1.0), (1.0, 0.0)):
        x, known = alpha * x0 + sigma * epsilon, faces(x0, epsilon, sigma or 1.0, alpha)
        known["v"] = alpha * epsilon - sigma * x0
        for target in ("denoised", "epsilon"):
            got = convert(known[kind], x, sigma, kind, target, alpha)
            torch.testing.assert_close(got, known[target], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("size", [1e-8, 1e8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiny_and_huge_values_stay_finite_and_keep_their_dtype(size, dtype):
    x, value = (noise(i, 4, 2).to(dtype) * size for i in (0, 1))
    for source, target in PAIRS:
        got = convert(value, x, 0.5, source, target, alpha=0.5)
        assert got.dtype == dtype and got.isfinite().all()


def test_conversion_refuses_what_it_cannot_do():
    x = noise(0, 3, 2)
    with pytest.raises(ValueError, match="unknown prediction 'noise'; expected one of denoised, e"):
        convert(x, x, 1.0, "noise", "denoised")
    with pytest.raises(ValueError, match="unknown prediction 'eps'"):
        convert(x, x, 1.0, "denoised", "eps")
    with pytest.raises(ValueError, match=r"expected a value of shape \[3, 2\], got \[2, 2\]"):
        convert(x[:2], x, 1.0, "denoised", "score")
    for source, target in (("denoised", "epsilon"), ("denoised", "v"), ("epsilon", "score")):
        with pytest.raises(ValueError, match=f"sigma above 0 to convert {source} to {target}"):
            convert(x, x, torch.tensor([0.0, 1.0, 1.0]), source, target)
    for source in ("epsilon", "score"):
        with pytest.raises(ValueError, match=f"expected alpha above 0 .* from {source}, got 0"):
            convert(x, x, 1.0, source, "denoised", alpha=0.0)
    with pytest.raises(ValueError, match="alpha or sigma above 0, got 0 for both"):
        convert(x, x, 0.0, "v", "denoised", alpha=0.0)
    with pytest.raises(ValueError, match=r"expected alpha of shape \[\] or \[3\], got \[2\]"):
        convert(x, x, 1.0, "v", "denoised", alpha=torch.ones(2))
    with pytest.raises(ValueError, match="expected finite alpha of at least 0, got nan"):
        convert(x, x, 1.0, "v", "denoised", alpha=math.nan)
    with pytest.raises(ValueError, match="expected finite sigma of at least 0, got -1"):
        convert(x, x, -1.0, "v", "denoised")


# Checks of inputs


@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 3, 8, 8)])
def test_sigma_comes_back_ready_to_broadcast(shape):
    x = torch.zeros(shape)
    assert check_sigma(x, 2).shape == () and check_sigma(x, 2).dtype == x.dtype
    assert check_sigma(x, torch.tensor(2.0).double()).dtype == x.dtype
    each = check_sigma(x, torch.arange(4))
    assert each.shape == (4,) + (1,) * (len(shape) - 1)
    assert (x + each).shape == x.shape
    assert float(check_sigma(x, 0.0)) == 0


@pytest.mark.parametrize("shape", [(3,), (1,), (4, 1), (2, 4)])
def test_sigma_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected sigma of shape \[\] or \[4\], got \[\d"):
        check_sigma(torch.zeros(4, 2), torch.ones(shape))


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf, -math.inf])
def test_a_negative_or_infinite_sigma_is_refused_by_value(bad):
    for sigma in (bad, torch.tensor([1.0, bad])):
        with pytest.raises(ValueError, match=f"expected finite sigma of at least 0, got {bad}"):
            check_sigma(torch.zeros(2, 2), sigma)


@pytest.mark.parametrize("x", [torch.tensor(1.0), torch.zeros(3, dtype=torch.long)])
def test_x_without_samples_or_of_whole_numbers_is_refused(x):
    with pytest.raises(ValueError, match=r"expected x of shape \[n, ...\] in floating point, got"):
        check_sigma(x, 1.0)


def test_a_condition_is_none_or_one_label_for_each_sample():
    x = torch.zeros(3, 2)
    assert check_condition(x, None, 2) is None
    assert check_condition(x, torch.tensor([0, 1, 1]), 2).tolist() == [0, 1, 1]
    assert check_condition(x, [0, 1, 1], 2).dtype == torch.long
    assert len(check_condition(x[:0], torch.zeros(0, dtype=torch.long), 2)) == 0
    for bad in (torch.zeros(2).long(), torch.zeros(3), torch.zeros(3, 2).long(), 1):
        with pytest.raises(ValueError, match=r"expected condition of shape \[3\] and dtype long"):
            check_condition(x, bad, 2)
    for bad, what in (([0, 1, 2], "0 to 2"), ([-1, 0, 1], "-1 to 1")):
        with pytest.raises(ValueError, match=f"expected classes from 0 to 1, got {what}"):
            check_condition(x, torch.tensor(bad), 2)


# The preconditioned network


class Constant(nn.Module):
    """Returns one number everywhere and remembers what it was given."""

    def __init__(self, value=0.0, dtype=torch.float32):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=dtype))
        self.seen = None

    def forward(self, x, noise, condition=None):
        self.seen = (x, noise, condition)
        return self.value.expand(x.shape)


def test_functions_networks_and_preconditioned_networks_are_denoisers():
    assert isinstance(Preconditioned(Constant()), Denoiser)
    assert isinstance(lambda x, sigma, condition=None: x, Denoiser)
    assert not isinstance("a denoiser", Denoiser)


@FEW
@given(seed=seeds, power=st.floats(-4, 4), data=st.floats(0.1, 10))
def test_a_network_that_returns_0_gives_the_best_linear_denoiser(seed, power, data):
    sigma, x = 10**power, noise(seed, 4, 2)
    got = Preconditioned(Constant(dtype=torch.float64), data)(x, sigma)
    torch.testing.assert_close(got, x * data**2 / (data**2 + sigma**2), rtol=1e-12, atol=0)


@FEW
@given(seed=seeds, power=st.floats(-3, 2), data=st.floats(0.1, 3))
def test_inputs_and_targets_have_unit_size_at_every_level(seed, power, data):
    sigma, n = 10**power, 20_000
    x0, epsilon = data * noise(seed, n, 1), noise(seed + 1, n, 1)
    network = Constant(1.0, torch.float64)
    wrapped = Preconditioned(network, data)
    x = x0 + sigma * epsilon
    with torch.no_grad():
        one = wrapped(x, sigma)
        network.value.zero_()
        zero = wrapped(x, sigma)
    target = (x0 - zero) / (one - zero)  # what the network would have to return
    # Four standard errors of a standard deviation from 20000 numbers: 4 / sqrt(40000) = .02.
    assert abs(float(target.std()) - 1) < 0.02
    inputs, level, _ = network.seen
    assert abs(float(inputs.std()) - 1) < 0.02
    torch.testing.assert_close(level, torch.full((n,), math.log(sigma) / 4).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_noise_returns_x(dtype):
    x = noise(0, 5, 2).to(dtype)
    wrapped = Preconditioned(Constant(3.0), 0.5)
    assert torch.equal(wrapped(x, 0.0), x)
    for sigma in (1e-12, 1e-8, 1e-4):
        # c_out F = sigma 3 and the shrinkage is (sigma / .5)^2: both of first order at most.
        torch.testing.assert_close(wrapped(x, sigma), x, rtol=1e-6, atol=4 * sigma)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inner", [torch.float32, torch.float64])
def test_the_network_computes_in_its_own_dtype_and_the_result_in_that_of_x(dtype, inner):
    network = Constant(1.0, inner)
    x = noise(0, 3, 2).to(dtype)
    assert Preconditioned(network)(x, torch.tensor([0.1, 1.0, 10.0])).dtype == dtype
    assert {value.dtype for value in network.seen[:2]} == {inner}


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_a_sample_does_not_depend_on_its_batch(n):
    torch.manual_seed(0)

    class Net(nn.Linear):
        def forward(self, x, noise, condition):
            return super().forward(torch.cat([x, noise[:, None]], 1))

    wrapped = Preconditioned(Net(3, 2).double())
    x, sigma = noise(0, 3, 2)[:n], torch.tensor([0.1, 1.0, 10.0]).double()[:n]
    together = wrapped(x, sigma)
    assert together.shape == (n, 2)
    for i in range(n):
        torch.testing.assert_close(together[i], wrapped(x[i : i + 1], float(sigma[i]))[0])


@pytest.mark.parametrize("size", [1e-8, 1e8])
def test_tiny_and_huge_inputs_stay_finite(size):
    x = (noise(0, 4, 2) * size).float()
    for sigma in (size, 1e-8, 1.0, 1e8):
        assert Preconditioned(Constant(1.0))(x, sigma).isfinite().all()


def test_the_condition_reaches_the_network():
    network, labels = Constant(), torch.tensor([0, 1])
    Preconditioned(network)(noise(0, 2, 2), 1.0, labels)
    assert network.seen[2] is labels


def test_a_preconditioned_network_refuses_bad_input():
    wrapped, x = Preconditioned(Constant()), noise(0, 4, 2)
    with pytest.raises(ValueError, match=r"expected sigma of shape \[\] or \[4\], got \[2\]"):
        wrapped(x, torch.ones(2))
    for bad in (-1.0, math.nan):
        with pytest.raises(ValueError, match=f"expected finite sigma of at least 0, got {bad}"):
            wrapped(x, bad)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="expected finite x, got NaN or infinity"):
            wrapped(x * bad, 1.0)
    for data in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"expected sigma_data above 0, got {data}"):
            Preconditioned(Constant(), data)

    class Wide(nn.Module):
        def forward(self, x, noise, condition):
            return torch.cat([x, x], 1)

    with pytest.raises(ValueError, match=r"returned \[4, 4\] for x \[4, 2\]"):
        Preconditioned(Wide())(x, 1.0)


@pytest.mark.parametrize("sigma", [0.0, 1e-4, 1.0, 300.0, 5000.0])
def test_half_precision_samples_are_denoised_as_well_as_they_can_be_written(sigma):
    model = Preconditioned(Constant(0.7), 0.5)
    x = torch.linspace(-1, 1, 8)[:, None] * max(sigma, 1.0)
    found = model(x.half(), sigma)
    assert found.dtype == torch.float16
    wanted = model(x.half().float(), sigma)
    torch.testing.assert_close(found.float(), wanted, rtol=2e-3, atol=1e-6)
