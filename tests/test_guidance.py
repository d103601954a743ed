"""Guidance: the equation, the weights of other sources, and the object that applies them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from guidance_edu.denoisers import Denoiser, Preconditioned, convert
from guidance_edu.guidance import (
    CONVENTIONS,
    EVERYWHERE,
    Guided,
    cfg_plus_plus_w,
    during,
    guide,
    rescale,
    to_w,
)
from guidance_edu.negatives import without_condition
from guidance_edu.samplers import noise_levels, sample, sample_states
from toy_models.worlds import line, three_blobs

FEW = settings(max_examples=25, deadline=None, derandomize=True)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
seeds = st.integers(0, 10_000)


def noise(seed, *shape, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)


def same_bits(a, b):
    kind = BITS[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.view(kind), b.view(kind))


class Recorded:
    """A denoiser that writes down what it was asked; by default it shrinks x by its own factor."""

    def __init__(self, factor=0.5, answer=None):
        self.answer = answer or (lambda x, sigma, condition: factor * x)
        self.sigmas, self.sizes, self.conditions = [], [], []

    def __call__(self, x, sigma, condition=None):
        self.sigmas.append(sigma)
        self.sizes.append(len(x))
        self.conditions.append(condition)
        return self.answer(x, sigma, condition)


def never(x, sigma, condition=None):
    raise AssertionError("a negative that does not act was called")


def endless(x, sigma, condition=None):
    return torch.full_like(x, math.inf)


# The equation


@pytest.mark.parametrize("dtype", DTYPES)
@FEW
@given(seed=seeds, power=st.integers(-8, 8))
def test_w_1_is_the_positive_bit_for_bit(dtype, seed, power):
    positive = noise(seed, 3, 4, dtype=dtype) * 10.0**power
    positive[0, 0] = -0.0
    for negative in (noise(seed + 1, 3, 4, dtype=dtype), torch.full_like(positive, math.inf)):
        assert same_bits(guide(positive, negative, 1), positive)
        assert same_bits(guide(positive, negative, 1.0), positive)


@pytest.mark.parametrize("w", [0, 0.3, 2.5, 7.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@FEW
@given(seed=seeds)
def test_guidance_is_the_line_through_both_predictions(w, dtype, seed):
    positive, negative = noise(seed, 3, 2, dtype=dtype), noise(seed + 1, 3, 2, dtype=dtype)
    wanted = w * positive.double() + (1 - w) * negative.double()
    got = guide(positive, negative, w)
    assert got.dtype == dtype
    # Some roundings of numbers of size (1 + |w|) 3.
    torch.testing.assert_close(
        got.double(), wanted, rtol=0, atol=20 * (1 + abs(w)) * torch.finfo(dtype).eps
    )


@FEW
@given(seed=seeds, power=st.floats(-12, -1), side=st.sampled_from([-1, 1]))
def test_guidance_is_continuous_at_w_1(seed, power, side):
    positive, negative = noise(seed, 5, 2), noise(seed + 1, 5, 2)
    w = 1 + side * 10**power
    change = guide(positive, negative, w) - positive
    bound = abs(w - 1) * (positive - negative).abs() + 1e-15
    assert bool((change.abs() <= bound * (1 + 1e-9)).all())


@pytest.mark.parametrize("size", [1e-8, 1e8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiny_and_huge_predictions_stay_finite_and_scale(size, dtype):
    positive, negative = noise(0, 3, 4, dtype=dtype), noise(1, 3, 4, dtype=dtype)
    got = guide(positive * size, negative * size, 7.0)
    torch.testing.assert_close(got / size, guide(positive, negative, 7.0), rtol=1e-5, atol=1e-5)


@FEW
@given(seed=seeds, w=st.floats(-2, 8), sigma=st.floats(0.1, 0.9))
def test_one_w_serves_every_prediction_space(seed, w, sigma):
    x, positive, negative = (noise(seed + i, 3, 2) for i in range(3))
    alpha = math.sqrt(1 - sigma**2)
    wanted = guide(positive, negative, w)
    for kind in ("epsilon", "score", "v", "flow"):
        pair = [convert(d, x, sigma, "denoised", kind, alpha) for d in (positive, negative)]
        got = convert(guide(*pair, w), x, sigma, kind, "denoised", alpha)
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("w", [math.nan, math.inf, -math.inf, None, "2", True, [2.0]])
def test_a_weight_that_is_not_a_finite_number_is_refused_everywhere(w):
    x = noise(0, 2, 2)
    model = Recorded()
    for call in (
        lambda: guide(x, x, w),
        lambda: to_w(w, "book"),
        lambda: Guided(model, [(model, w)]),
    ):
        with pytest.raises(ValueError, match="expected a finite guidance weight w, got"):
            call()
    with pytest.raises(ValueError, match="expected a"):
        Guided(model, model, w)


def test_a_weight_may_be_a_tensor_of_one_number_but_not_of_several():
    x = noise(0, 2, 2)
    assert torch.equal(guide(x, 0 * x, torch.tensor(3.0)), guide(x, 0 * x, 3.0))
    with pytest.raises(ValueError, match="expected a finite guidance weight w"):
        guide(x, x, torch.ones(2))


def test_predictions_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"of one shape, got \[3, 2\] and \[1, 2\]"):
        guide(noise(0, 3, 2), noise(0, 1, 2), 2.0)
    wide = Recorded(answer=lambda x, sigma, condition: torch.cat([x, x], 1))
    with pytest.raises(ValueError, match=r"of one shape, got \[3, 2\] and \[3, 4\]"):
        Guided(Recorded(), wide, 2.0)(noise(0, 3, 2), 1.0)


# Weights of other papers and libraries

# convention, a value printed or shipped there, our w, the value that switches it off, and the
# formula as that source writes it: b is what guidance is added to (p itself where nothing else
# is), p and n the two predictions whose difference is used.
SOURCES = [
    ("book", 2.0, 2.0, 1.0, lambda b, p, n, v: n + v * (p - n)),
    ("ho2022", 4.0, 5.0, 0.0, lambda b, p, n, v: (1 + v) * p - v * n),
    ("imagen", 7.5, 7.5, 1.0, lambda b, p, n, v: n + v * (p - n)),
    ("diffusers", 5.0, 5.0, 1.0, lambda b, p, n, v: n + v * (p - n)),
    ("diffusers-original", 6.5, 7.5, 0.0, lambda b, p, n, v: p + v * (p - n)),
    ("edm2", 1.4, 1.4, 1.0, lambda b, p, n, v: n + v * (p - n)),
    ("interval", 2.0, 2.0, 1.0, lambda b, p, n, v: n + v * (p - n)),
    ("icg", 1.5, 1.5, 1.0, lambda b, p, n, v: n + v * (p - n)),
    ("tsg", 2.5, 2.5, 1.0, lambda b, p, n, v: n + v * (p - n)),
    ("autoguidance", 3.2, 3.2, 1.0, lambda b, p, n, v: v * p + (1 - v) * n),
    ("sag-paper", 0.1, 1.1, 0.0, lambda b, p, n, v: n + (1 + v) * (p - n)),
    ("sag-code", 1.5, 1.5, 1.0, lambda b, p, n, v: n + v * (p - n)),
    ("sag-diffusers", 0.75, 1.75, 0.0, lambda b, p, n, v: b + v * (p - n)),
    ("pag-paper", 3.0, 4.0, 0.0, lambda b, p, n, v: p + v * (p - n)),
    ("pag-code", 4.0, 4.0, 1.0, lambda b, p, n, v: n + v * (p - n)),
    ("pag-diffusers", 3.0, 4.0, 0.0, lambda b, p, n, v: b + v * (p - n)),
    ("seg-paper", 3.0, 3.0, 1.0, lambda b, p, n, v: v * p - (v - 1) * n),
    ("seg-with-cfg", 3.0, 4.0, 0.0, lambda b, p, n, v: (b - p) + (1 + v) * p - v * n),
    ("seg-code", 3.0, 4.0, 0.0, lambda b, p, n, v: p + v * (p - n)),
    ("sims", 1.5, 2.5, 0.0, lambda b, p, n, v: (1 + v) * p - v * n),
    ("neon", 0.5, 1.5, 0.0, lambda b, p, n, v: (1 + v) * p - v * n),
    ("swg", 0.1, 1.1, 0.0, lambda b, p, n, v: p + v * (p - n)),
    ("model-guidance", 0.5, 1.5, 0.0, lambda b, p, n, v: b + v * (p - n)),
    ("tpg", 3.0, 4.0, 0.0, lambda b, p, n, v: p + v * (p - n)),
    ("skip-layer", 2.8, 3.8, 0.0, lambda b, p, n, v: b + v * (p - n)),
    ("diffusers-guiders-alone", 2.8, 2.8, 1.0, lambda b, p, n, v: n + v * (p - n)),
    ("nag", 5.0, 5.0, 1.0, lambda b, p, n, v: v * p - (v - 1) * n),
]
# Those whose guidance comes on top of another prediction; seg-with-cfg writes b - p + p out as
# (1 - c) s_u + c s_c, with p = s_u.
ADDED = {"sag-diffusers", "pag-diffusers", "seg-with-cfg", "model-guidance", "skip-layer"}
every_source = pytest.mark.parametrize(
    ("name", "value", "w", "off", "formula"), SOURCES, ids=[row[0] for row in SOURCES]
)


def test_every_convention_is_in_the_table():
    assert [row[0] for row in SOURCES] == list(CONVENTIONS)


@every_source
def test_a_published_value_becomes_our_w_and_off_becomes_1(name, value, w, off, formula):
    assert to_w(value, name) == pytest.approx(w, rel=1e-15)
    assert to_w(off, name) == 1 and CONVENTIONS[name][1] == off


@every_source
@FEW
@given(seed=seeds, v=st.floats(-2, 10))
def test_the_formula_of_the_source_is_guidance_with_our_w(name, value, w, off, formula, seed, v):
    positive, negative, other = (noise(seed + i, 2, 3) for i in range(3))
    base = other if name in ADDED else positive
    wanted = formula(base, positive, negative, v)
    got = base + guide(positive, negative, to_w(v, name)) - positive
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(formula(base, positive, negative, off), base, rtol=0, atol=1e-14)


def test_segs_formula_with_cfg_is_cfg_plus_a_term_on_the_unconditional_branch():
    conditional, unconditional, blurred = (noise(i, 2, 3) for i in range(3))
    c, g = 2.0, 3.0
    paper = (1 - c + g) * unconditional + c * conditional - g * blurred
    cfg = guide(conditional, unconditional, to_w(c, "imagen"))
    term = guide(unconditional, blurred, to_w(g, "seg-with-cfg")) - unconditional
    torch.testing.assert_close(paper, cfg + term, rtol=1e-13, atol=1e-13)


def test_an_unknown_convention_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown convention 'sdxl'; expected one of book, ho2022"):
        to_w(5.0, "sdxl")


@FEW
@given(
    seed=seeds,
    strength=st.floats(0, 1),
    start=st.floats(0.05, 1.5),
    share=st.floats(0.0, 0.97),
)
def test_a_step_of_cfg_plus_plus_is_a_step_of_guidance_with_its_own_w(seed, strength, start, share):
    x, conditional, unconditional = (noise(seed + i, 3, 2) for i in range(3))
    # Variance preserving: alpha = cos, sigma = sin of an angle that falls.
    alpha, sigma = math.cos(start), math.sin(start)
    alpha_next, sigma_next = math.cos(start * share), math.sin(start * share)

    def noise_of(denoised):
        return (x - alpha * denoised) / sigma

    mixed = unconditional + strength * (conditional - unconditional)
    wanted = alpha_next * mixed + sigma_next * noise_of(unconditional)
    w = cfg_plus_plus_w(strength, alpha, sigma, alpha_next, sigma_next)
    guided = guide(conditional, unconditional, w)
    got = alpha_next * guided + sigma_next * noise_of(guided)
    # w grows as the step shrinks, and its rounding with it.
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-13 * max(1, abs(w)))


def test_cfg_plus_plus_at_strength_0_is_the_unconditional_model():
    assert cfg_plus_plus_w(0.0, 0.6, 0.8, 0.8, 0.6) == 0
    # The last step reaches the data: there, strength and w are one.
    assert cfg_plus_plus_w(0.6, 0.6, 0.8, 1.0, 0.0) == 0.6


def test_cfg_plus_plus_refuses_steps_that_do_not_go_down():
    with pytest.raises(ValueError, match="expected finite numbers, got"):
        cfg_plus_plus_w(math.nan, 0.6, 0.8, 0.8, 0.6)
    for step in ((0.6, 0.8, 0.6, 0.8), (0.8, 0.6, 0.6, 0.8), (0.0, 1.0, 0.8, 0.6)):
        with pytest.raises(ValueError, match="expected a step to a lower sigma / alpha, got"):
            cfg_plus_plus_w(0.5, *step)


# Rescaling


@FEW
@given(seed=seeds, strength=st.floats(0, 1))
def test_rescaling_moves_each_samples_deviation_towards_the_positives(seed, strength):
    guided, positive = 3 * noise(seed, 3, 2, 4), noise(seed + 1, 3, 2, 4)
    got = rescale(guided, positive, strength)
    wanted = strength * positive.std((1, 2)) + (1 - strength) * guided.std((1, 2))
    torch.testing.assert_close(got.std((1, 2)), wanted, rtol=1e-12, atol=0)
    alone = rescale(guided[1:2], positive[1:2], strength)
    torch.testing.assert_close(got[1:2], alone, rtol=1e-14, atol=0)


@pytest.mark.parametrize("size", [1e-8, 1.0, 1e8])
def test_rescaling_with_strength_0_returns_the_guided_prediction(size):
    guided, positive = noise(0, 3, 4) * size, noise(1, 3, 4)
    assert torch.equal(rescale(guided, positive, 0.0), guided)
    assert rescale(guided.float(), positive.float(), 1.0).isfinite().all()


def test_a_constant_sample_has_no_deviation_to_rescale():
    guided = torch.stack([torch.full((4,), 2.0), torch.tensor([1.0, 2.0, 3.0, 4.0])])
    got = rescale(guided, noise(0, 2, 4).float(), 1.0)
    assert torch.equal(got[0], guided[0]) and got.isfinite().all()
    assert not torch.equal(got[1], guided[1])


def test_rescaling_refuses_bad_input():
    x = noise(0, 3, 2)
    for bad in (x[:, :1], x[:2], x.reshape(3, 2, 1)):
        with pytest.raises(ValueError, match=r"expected two predictions of one shape .* got \[3"):
            rescale(x, bad)
    with pytest.raises(ValueError, match="at least two numbers a sample"):
        rescale(x[:, :1], x[:, :1])
    for strength in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="expected strength from 0 to 1, got"):
            rescale(x, x, strength)


# Guided


def test_a_guided_pair_is_a_denoiser():
    assert isinstance(Guided(Recorded(), Recorded(), 2.0), Denoiser)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("number", [1, 3])
def test_at_w_1_no_negative_is_called_and_the_positive_comes_back(dtype, size, number):
    x = noise(0, 4, 2, dtype=dtype) * size
    positive = Recorded(-0.0)
    guided = Guided(positive, [(never, 1.0)] * number)
    assert same_bits(guided(x, 0.5), positive(x, 0.5))
    assert same_bits(Guided(Recorded(), never, 1)(x, torch.full((4,), 0.5)), 0.5 * x)


def test_without_negatives_the_positive_comes_back():
    x = noise(0, 4, 2)
    assert same_bits(Guided(Recorded(), [])(x, 1.0), 0.5 * x)


@pytest.mark.parametrize("w", [0, 2.5, 7.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_guided_is_the_equation_for_each_sample_alone(w, dtype, n):
    world = three_blobs()
    guided = Guided(world, without_condition(world), w)
    x = noise(0, 3, 2, dtype=dtype)[:n]
    sigma = torch.tensor([0.1, 0.7, 3.0], dtype=dtype)[:n]
    labels = torch.tensor([0, 1, 0])[:n]
    positive = world(x.double(), sigma.double(), labels)
    wanted = w * positive + (1 - w) * world(x.double(), sigma.double())
    got = guided(x, sigma, labels)
    assert got.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)
    for i in range(n):
        alone = guided(x[i : i + 1], float(sigma[i]), labels[i : i + 1])
        torch.testing.assert_close(got[i : i + 1], alone, rtol=tolerance, atol=tolerance)


def test_the_condition_and_sigma_reach_every_model():
    models = [Recorded() for _ in range(3)]
    labels = torch.tensor([0, 1])
    Guided(models[0], [(models[1], 2.0), (models[2], 3.0)])(noise(0, 2, 2), 0.7, labels)
    for model in models:
        assert model.sigmas == [0.7] and model.conditions[0] is labels


def test_several_negatives_add_in_any_order():
    x = noise(0, 4, 2)
    factors, weights = (0.1, 0.9, -0.4), (2.0, 0.5, 3.5)
    terms = [(Recorded(f), w) for f, w in zip(factors, weights, strict=True)]
    wanted = 0.5 * x
    for f, w in zip(factors, weights, strict=True):
        wanted = wanted + (w - 1) * (0.5 * x - f * x)
    for order in itertools.permutations(terms):
        got = Guided(Recorded(), list(order))(x, 1.0)
        torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-13)


@FEW
@given(seed=seeds, w=st.floats(0, 6), share=st.floats(0, 1))
def test_a_weight_can_be_shared_between_two_negatives(seed, w, share):
    """The split of Karras et al. 2024, app. B.2: the parts of w - 1 add up."""
    x = noise(seed, 3, 2)
    first, second = Recorded(0.2), Recorded(0.8)
    terms = [(first, (1 - share) * (w - 1) + 1), (second, share * (w - 1) + 1)]
    mean = (1 - share) * 0.2 + share * 0.8
    wanted = Guided(Recorded(), Recorded(mean), w)(x, 1.0)
    torch.testing.assert_close(Guided(Recorded(), terms)(x, 1.0), wanted, rtol=1e-12, atol=1e-12)


def test_guidance_stacks_on_guidance_on_either_side():
    x = noise(0, 4, 2)
    inner = Guided(Recorded(0.5), Recorded(0.3), 2.0)  # .7 x
    assert_factor(Guided(inner, Recorded(0.1), 3.0), x, 0.7 + 2 * (0.7 - 0.1))
    assert_factor(Guided(Recorded(0.9), inner, 3.0), x, 0.9 + 2 * (0.9 - 0.7))


def assert_factor(denoiser, x, factor, sigma=1.0):
    torch.testing.assert_close(denoiser(x, sigma), factor * x, rtol=1e-13, atol=1e-13)


# Windows


@pytest.mark.parametrize(
    ("sigma", "acts"), [(0.2, False), (0.2001, True), (3.0, True), (3.001, False), (0.0, False)]
)
def test_a_window_leaves_its_low_end_out_and_takes_its_high_end_in(sigma, acts):
    x = noise(0, 2, 2)
    negative = Recorded(0.1)
    got = Guided(Recorded(), negative, 2.0, window=(0.2, 3.0))(x, sigma)
    assert len(negative.sigmas) == acts
    if acts:
        torch.testing.assert_close(got, 0.9 * x)
    else:
        assert same_bits(got, 0.5 * x)


@pytest.mark.parametrize("edge", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_edge_that_no_float32_can_hold_still_equals_itself(edge, dtype):
    x = noise(0, 2, 2, dtype=dtype)
    for sigma in (edge, torch.full((2,), edge, dtype=dtype)):
        assert same_bits(Guided(Recorded(), never, 2.0, (edge, 9.0))(x, sigma), 0.5 * x)
        torch.testing.assert_close(
            Guided(Recorded(), Recorded(0.1), 2.0, (0.0, edge))(x, sigma), 0.9 * x
        )


@FEW
@given(seed=seeds, levels=st.lists(st.sampled_from([0.1, 0.2, 0.5, 3.0, 9.0]), min_size=1))
def test_each_sample_is_in_or_out_of_the_window_by_its_own_sigma(seed, levels):
    x = noise(seed, len(levels), 2)
    x[0, 0] = -0.0
    sigma = torch.tensor(levels, dtype=x.dtype)
    inside = (sigma > 0.2) & (sigma <= 3.0)
    terms = [(Recorded(0.1), 2.0, (0.2, 3.0)), (Recorded(0.9), 3.0, None)]
    got = Guided(Recorded(), terms[:1])(x, sigma)
    torch.testing.assert_close(got[inside], 0.9 * x[inside], rtol=1e-14, atol=0)
    assert same_bits(got[~inside], 0.5 * x[~inside])
    both = Guided(Recorded(), terms)(x, sigma)
    wanted = (0.5 - 0.8 + 0.4 * inside.double())[:, None] * x
    torch.testing.assert_close(both, wanted, rtol=1e-12, atol=1e-15)


def test_a_negative_that_explodes_outside_its_window_does_no_harm():
    x, sigma = noise(0, 2, 2), torch.tensor([5.0, 1.0]).double()
    got = Guided(Recorded(), endless, 2.0, (0.2, 3.0))(x, sigma)
    assert same_bits(got[:1], 0.5 * x[:1]) and not got[1].isfinite().any()


@pytest.mark.parametrize(
    "window",
    [(1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (0.0, math.nan), (1.0,), 3.0, (0, 1, 2)],
)
def test_an_empty_or_malformed_window_is_refused(window):
    for call in (
        lambda: Guided(Recorded(), Recorded(), 2.0, window),
        lambda: Guided(Recorded(), [(Recorded(), 2.0, window)]),
    ):
        with pytest.raises(ValueError, match=r"expected a window \(low, high\)"):
            call()


def test_no_window_is_everywhere():
    for guided in (
        Guided(Recorded(), Recorded(), 2.0),
        Guided(Recorded(), Recorded(), 2.0, None),
        Guided(Recorded(), [(Recorded(), 2.0)]),
        Guided(Recorded(), [(Recorded(), 2.0, None)]),
    ):
        assert [term.window for term in guided.terms] == [EVERYWHERE]


# Windows inside samplers

LEVELS = [4.0, 2.0, 1.0, 0.5, 0.1, 0.0]
WINDOW = (0.6, 2.5)  # the steps that start at 2 and at 1


@pytest.mark.parametrize(
    ("method", "wanted"),
    [("euler", [2.0, 1.0]), ("heun", [2.0, 1.0, 1.0, 0.5]), ("stochastic", [2.5, 1.0, 1.25, 0.5])],
)
def test_a_window_never_opens_or_closes_inside_a_step(method, wanted):
    positive, negative = Recorded(), Recorded(0.4)
    guided = Guided(positive, negative, 2.0, WINDOW)
    rng = torch.Generator().manual_seed(0)
    sample(guided, noise(0, 3, 2), LEVELS, method=method, churn=0.25, rng=rng)
    assert negative.sigmas == wanted
    assert len(positive.sigmas) == (5 if method == "euler" else 9)


def nestings(negative):
    """Guidance with a window, hidden inside other denoisers."""
    inner = Guided(Recorded(), negative, 2.0, WINDOW)
    labelled = Guided(lambda x, sigma, condition=None: 0.6 * x, negative, 2.0, WINDOW)
    return {
        "positive": Guided(inner, Recorded(0.2), 3.0),
        "negative": Guided(Recorded(), inner, 3.0),
        "second negative": Guided(Recorded(), [(Recorded(), 2.0), (inner, 3.0)]),
        "twice": Guided(Guided(inner, Recorded(0.3), 2.0), Recorded(0.2), 3.0),
        "without condition": Guided(Recorded(), without_condition(labelled), 3.0),
        "deeper": Guided(Recorded(), without_condition(without_condition(labelled)), 3.0),
    }


@pytest.mark.parametrize("where", nestings(Recorded()))
def test_nor_does_a_window_of_guidance_inside_guidance(where):
    negative = Recorded(0.4)
    sample(nestings(negative)[where], noise(0, 3, 2), LEVELS)
    assert negative.sigmas == [2.0, 1.0, 1.0, 0.5]


def test_an_edge_on_a_level_belongs_to_the_step_that_starts_there():
    negative = Recorded(0.4)
    levels = noise_levels(8)
    sample(Guided(Recorded(), negative, 2.0, (float(levels[5]), 80.0)), noise(0, 3, 2), levels)
    assert negative.sigmas == [float(s) for i in range(5) for s in (levels[i], levels[i + 1])]


def test_outside_the_window_a_sampler_goes_the_way_of_the_positive():
    x = noise(0, 3, 2)
    guided = Guided(Recorded(), endless, 2.0, (5.0, 9.0))
    assert same_bits(sample(guided, x, LEVELS), sample(Recorded(), x, LEVELS))


def test_a_step_leaves_the_guided_pair_as_it_was():
    guided = Guided(Recorded(), Recorded(0.1), 2.0, WINDOW)
    before = guided.terms
    for _ in sample_states(guided, noise(0, 3, 2), LEVELS):
        assert guided.terms is before
    assert during(guided, 4.0).terms == ()
    assert [term.window for term in during(guided, 2.0).terms] == [EVERYWHERE]
    plain = Recorded()
    assert during(plain, 4.0) is plain


# Sharing work


class Labelled(nn.Module):
    """A small network with a label that stands for "no class"."""

    null_label = 3

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.labels, self.mix = nn.Embedding(4, 2).double(), nn.Linear(3, 2).double()
        self.calls = []

    def forward(self, x, sigma, condition=None):
        self.calls.append((len(x), None if condition is None else condition.tolist()))
        if condition is None:
            condition = torch.full((len(x),), self.null_label)
        level = torch.as_tensor(sigma, dtype=x.dtype).expand(len(x))
        h = torch.cat([x + self.labels(condition), level[:, None].log1p()], 1)
        return torch.tanh(self.mix(h))


@pytest.mark.parametrize("sigma", [0.5, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)])
@pytest.mark.parametrize("shape", ["shared", "each"])
def test_one_batch_and_two_passes_agree(sigma, shape):
    model, x, labels = Labelled(), noise(0, 3, 2), torch.tensor([0, 1, 2])
    negative = without_condition(model)
    two = Guided(model, negative, 2.5, batching="two")(x, sigma, labels)
    assert model.calls == [(3, [0, 1, 2]), (3, [3, 3, 3])]
    model.calls.clear()
    one = Guided(model, negative, 2.5, batching="one")(x, sigma, labels)
    assert model.calls == [(6, [0, 1, 2, 3, 3, 3])]
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    wanted = guide(model(x, sigma, labels), model(x, sigma), 2.5)
    torch.testing.assert_close(one, wanted, rtol=1e-12, atol=1e-12)


def test_a_cpu_takes_two_passes_unless_told():
    model = Labelled()
    Guided(model, without_condition(model), 2.5)(noise(0, 3, 2), 1.0, torch.tensor([0, 1, 2]))
    assert [size for size, _ in model.calls] == [3, 3]


def test_no_condition_and_labels_cannot_share_a_batch():
    world = three_blobs()  # an exact world has no label for "no class": its condition is None
    guided = Guided(world, without_condition(world), 2.5, batching="one")
    x, labels = noise(0, 3, 2), torch.tensor([0, 1, 0])
    wanted = guide(world(x, 0.5, labels), world(x, 0.5), 2.5)
    torch.testing.assert_close(guided(x, 0.5, labels), wanted, rtol=1e-12, atol=1e-12)
    model = Labelled()
    Guided(model, without_condition(model), 2.5, batching="one")(x, 0.5)
    assert [size for size, _ in model.calls] == [3, 3]


def test_two_calls_that_both_have_no_condition_share_a_batch():
    class Later:
        """The same model, told a higher noise level."""

        def __init__(self, model):
            self.model = model

        def inputs(self, x, sigma, condition):
            return x, 2 * sigma, condition

        def __call__(self, x, sigma, condition=None):
            return self.model(*self.inputs(x, sigma, condition))

    model, x = Labelled(), noise(0, 3, 2)
    one = Guided(model, Later(model), 2.5, batching="one")(x, 0.5)
    assert [size for size, _ in model.calls] == [6]
    two = Guided(model, Later(model), 2.5, batching="two")(x, 0.5)
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_only_the_positive_itself_shares_a_batch():
    model, other = Labelled(), Labelled()
    labels = torch.tensor([0, 1, 2])
    Guided(model, without_condition(other), 2.5, batching="one")(noise(0, 3, 2), 1.0, labels)
    assert [size for size, _ in model.calls + other.calls] == [3, 3]


class Paired:
    """A negative that computes both predictions in one go."""

    def __init__(self, model):
        self.model, self.pairs, self.calls = model, 0, 0

    def pair(self, x, sigma, condition):
        self.pairs += 1
        return 0.5 * x, 0.1 * x

    def __call__(self, x, sigma, condition=None):
        self.calls += 1
        return 0.1 * x


def test_a_pair_is_used_when_its_model_is_the_positive():
    x, positive = noise(0, 3, 2), Recorded()
    negative = Paired(positive)
    assert_factor(Guided(positive, negative, 2.0), x, 0.9)
    assert (negative.pairs, negative.calls, len(positive.sigmas)) == (1, 0, 0)


def test_a_pair_of_another_model_is_not_used():
    x, positive = noise(0, 3, 2), Recorded(0.7)
    negative = Paired(Recorded())
    assert_factor(Guided(positive, negative, 2.0), x, 0.7 + 0.6)
    assert (negative.pairs, negative.calls, len(positive.sigmas)) == (0, 1, 1)


def test_a_pair_is_not_used_where_it_does_not_act():
    x, positive = noise(0, 3, 2), Recorded()
    negative = Paired(positive)
    for guided in (Guided(positive, negative, 1.0), Guided(positive, negative, 2.0, (2.0, 3.0))):
        assert same_bits(guided(x, 1.0), 0.5 * x)
    assert (negative.pairs, negative.calls) == (0, 0)


def test_a_pair_is_still_used_inside_a_sampler_and_adds_to_other_terms():
    x, positive = noise(0, 3, 2), Recorded()
    negative = Paired(positive)
    guided = Guided(positive, [(negative, 2.0, WINDOW), (Recorded(0.3), 2.0)])
    assert_factor(guided, x, 0.5 + 0.4 + 0.2)
    sample(guided, x, LEVELS)
    assert (negative.pairs, negative.calls) == (1 + 4, 0)


# Bad input


def test_what_is_not_a_denoiser_is_refused():
    for call in (lambda: Guided(3, Recorded(), 2.0), lambda: Guided(Recorded(), "model", 2.0)):
        with pytest.raises(TypeError, match=r"expected a denoiser D\(x, sigma, condition\), got"):
            call()
    with pytest.raises(TypeError, match="got NoneType"):
        Guided(Recorded(), [(None, 2.0)])


def test_weights_stand_beside_one_negative_or_inside_the_list():
    model = Recorded()
    with pytest.raises(ValueError, match="expected a weight w beside a single negative"):
        Guided(model, model)
    for extra in ({"w": 2.0}, {"window": (0.0, 1.0)}):
        with pytest.raises(ValueError, match="give w and window inside the list"):
            Guided(model, [(model, 2.0)], **extra)
    for bad in ([model], [(model,)], (model, 2.0), [(model, 2.0, (0.0, 1.0), 3)]):
        with pytest.raises(ValueError, match=r"expected a list of \(negative, w\) or"):
            Guided(model, bad)
    with pytest.raises(ValueError, match="expected batching auto, one or two, got 'both'"):
        Guided(model, model, 2.0, batching="both")


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, torch.ones(2)])
def test_a_bad_sigma_is_refused_before_any_model_is_called(bad):
    with pytest.raises(ValueError, match="expected (finite )?sigma of"):
        Guided(never, never, 2.0)(noise(0, 3, 2), bad)


# The laws


@pytest.mark.parametrize("w", [0.0, 1.0, 2.5, 4.0])
def test_guidance_between_two_gaussians_gives_the_spread_of_the_law(w):
    """Guiding N(0, s^2) against N(0, S^2) gives the standard deviation s (s / S)^(w - 1)."""
    s, other, start = 0.5, 0.8, 80.0
    guided = Guided(line([0.0], [s]), line([0.0], [other]), w)
    x = torch.tensor([[start], [-start]], dtype=torch.float64)  # one standard deviation
    end = sample(guided, x, noise_levels(128, start, 1e-4))
    # The finite start costs (s / 80)^2; Heun's 128 steps cost 4.5e-3 at w = 4, less below.
    torch.testing.assert_close(end[0], -end[1], rtol=1e-12, atol=1e-12)
    assert float(end[0]) == pytest.approx(s * (s / other) ** (w - 1), rel=6e-3)


# Sharing work between the positive and a negative


class Declared:
    """A denoiser that declares its null label, counts its calls and knows its batches."""

    null_label = 3

    def __init__(self):
        self.sizes, self.conditions = [], []

    def __call__(self, x, sigma, condition=None):
        self.sizes.append(len(x))
        self.conditions.append(condition)
        return x / (1 + sigma**2) + (0 if condition is None else condition[:, None] / 10)


class Together:
    """A negative that is computed together with its model."""

    def __init__(self, model, log=None):
        self.model, self.log = model, [] if log is None else log

    def pair(self, x, sigma, condition=None):
        self.log.append("pair")
        return self.model(x, sigma, condition), 0.5 * x

    def during(self, sigma):
        return Together(during(self.model, sigma), self.log)

    def __call__(self, x, sigma, condition=None):
        self.log.append("call")
        return 0.5 * x


@pytest.mark.parametrize("batching", ["one", "two", "auto"])
def test_a_denoiser_written_for_one_noise_level_sees_one_in_every_batching_mode(batching):
    x, labels = torch.randn(4, 1, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    model = Declared()
    guided = Guided(model, without_condition(model), 2.0, batching=batching)
    got = guided(x, 2.0, labels)
    want = guide(x / 5 + labels[:, None] / 10, x / 5 + 0.3, 2.0)
    torch.testing.assert_close(got, want)
    assert model.sizes == ([8] if batching == "one" else [4, 4])


@pytest.mark.parametrize("wrap", [Preconditioned, lambda m: Guided(m, m, 1.5)])
def test_wrappers_pass_on_the_label_that_stands_for_no_class(wrap):
    class Network(torch.nn.Module):
        null_label = 3

        def __init__(self):
            super().__init__()
            self.seen = []

        def forward(self, x, noise, condition=None):
            self.seen.append(condition)
            return torch.zeros_like(x)

    network = Network()
    without_condition(wrap(network))(torch.zeros(2, 1), 1.0, torch.zeros(2, dtype=torch.long))
    assert all(c is not None and c.tolist() == [3, 3] for c in network.seen)


def test_a_pair_is_used_in_a_sampler_also_where_the_positive_is_itself_guided():
    inner = Guided(Declared(), Declared(), 1.5, window=(0.5, 2.0))
    paired = Together(inner)
    outer = Guided(inner, paired, 2.0)
    sample(outer, torch.ones(2, 1), [3.0, 1.0, 0.2, 0.0])
    assert paired.log == ["pair"] * 5  # two evaluations a Heun step, one in the last


def test_a_pair_is_used_also_where_another_negative_stands_before_it():
    model = Declared()
    paired = Together(model)
    guided = Guided(model, [(lambda x, sigma, c=None: 0 * x, 2.0), (paired, 3.0)])
    x = torch.ones(2, 1)
    positive = x / 2
    torch.testing.assert_close(guided(x, 1.0), positive + (positive - 0) + 2 * (positive - 0.5 * x))
    assert paired.log == ["pair"]


def test_conditions_that_do_not_stack_take_two_passes():
    class OneHot(Declared):
        def __call__(self, x, sigma, condition=None):
            self.sizes.append(len(x))
            return x / (1 + sigma**2)

    model = OneHot()
    guided = Guided(model, without_condition(model), 2.0, batching="one")
    guided(torch.ones(2, 1), 1.0, torch.eye(2))
    assert model.sizes == [2, 2]


def test_one_batch_is_the_choice_off_the_cpu():
    guided = Guided(Declared(), Declared(), 2.0)
    assert not guided._one_batch(torch.empty(1)) and guided._one_batch(
        torch.empty(1, device="meta")
    )


def test_a_weight_set_from_outside_is_an_error_and_not_ignored():
    guided = Guided(lambda x, s, c=None: x, lambda x, s, c=None: 0 * x, 2.0)
    with pytest.raises(AttributeError, match="'w'"):
        guided.w = 50.0


def test_terms_that_are_exchanged_count_in_the_next_run():
    x, levels = torch.ones(1, 1), [2.0, 0.0]
    guided = Guided(lambda x, s, c=None: 0.5 * x, lambda x, s, c=None: 0 * x, 2.0)
    assert float(sample(guided, x, levels)) == pytest.approx(1.0)
    other = Guided(lambda x, s, c=None: 0.5 * x, lambda x, s, c=None: 0 * x, 8.0)
    guided.terms = other.terms
    assert float(sample(guided, x, levels)) == pytest.approx(4.0)


def test_whole_numbers_are_no_predictions():
    pixels = torch.tensor([10, 20], dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"floating point, got torch\.uint8"):
        guide(pixels, pixels.flip(0), 2.0)


@pytest.mark.parametrize("window", [(0.2, None), ("a", "b")])
def test_a_window_of_other_things_than_numbers_is_named(window):
    with pytest.raises(ValueError, match="expected a window"):
        Guided(lambda x, s, c=None: x, lambda x, s, c=None: x, 2.0, window)
