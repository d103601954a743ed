"""Damaged networks: how much is broken, that nothing else is, and that it can be repeated."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guidance_edu.guidance import Guided
from guidance_edu.negatives.training import (
    dropped,
    noisy_weight,
    rounded_weight,
    with_dropout,
    with_low_bits,
    with_weight_noise,
)
from guidance_edu.samplers import noise_levels, sample
from toy_models.mlp import tree_denoiser

FEW = settings(max_examples=20, deadline=None, derandomize=True)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(seed, *shape):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def network(seed=0, hidden=16):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = tree_denoiser(hidden)
        torch.nn.init.normal_(model.network.out.weight, std=0.3)
    return model.requires_grad_(False)


X = noise(1, 200, 2).float()


# One tensor


@FEW
@given(seed=st.integers(0, 10_000), strength=st.floats(0, 3), scale=st.floats(-8, 8))
def test_noise_is_measured_in_units_of_the_weight(seed, strength, scale):
    weight, draws = noise(seed, 5, 7), noise(seed + 1, 5, 7)
    got = noisy_weight(weight, draws, strength)
    size = weight.norm() / weight.numel() ** 0.5
    torch.testing.assert_close(got, weight + strength * size * draws, rtol=1e-12, atol=1e-12)
    scaled = noisy_weight(10**scale * weight, draws, strength)
    torch.testing.assert_close(scaled, 10**scale * got, rtol=1e-9, atol=0)
    assert torch.equal(noisy_weight(weight, draws, 0.0), weight)


@FEW
@given(seed=st.integers(0, 10_000), bits=st.floats(1, 8), scale=st.integers(-25, 25))
def test_rounding_moves_no_entry_by_more_than_half_a_step(seed, bits, scale):
    weight = noise(seed, 5, 7)
    step = 2 * weight.abs().max() / (2**bits - 1)
    got = rounded_weight(weight, bits)
    assert (got - weight).abs().max() <= 0.5001 * step
    steps = got / step
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-9)
    assert len(got.unique()) <= 2**bits + 1
    # Powers of two scale without rounding, which would decide entries halfway between two steps.
    assert torch.equal(rounded_weight(2.0**scale * weight, bits), 2.0**scale * got)


def test_many_bits_and_a_weight_of_zeros_change_nothing():
    weight = noise(0, 4, 4)
    torch.testing.assert_close(rounded_weight(weight, 40), weight, rtol=0, atol=1e-11)
    assert torch.equal(rounded_weight(torch.zeros(3, 3), 2.5), torch.zeros(3, 3))


@FEW
@given(seed=st.integers(0, 10_000), rate=st.floats(0, 0.9))
def test_dropout_keeps_the_mean_and_silences_the_share(seed, rate):
    h, draws = torch.ones(200, 100), torch.rand(200, 100, generator=rng(seed))
    got = dropped(h, draws, rate)
    assert torch.equal(got == 0, draws < rate)
    assert got.mean() == pytest.approx(1.0, abs=6 * (rate / (1 - rate) / 20000) ** 0.5 + 1e-6)
    assert torch.equal(dropped(h, draws, 0.0), h)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: noisy_weight(X, X[:1], 0.1), "noise of shape"),
        (lambda: noisy_weight(X, X, -0.1), "strength"),
        (lambda: noisy_weight(X, X, float("nan")), "strength"),
        (lambda: rounded_weight(X, 0.5), "1 bit"),
        (lambda: rounded_weight(X, float("inf")), "1 bit"),
        (lambda: dropped(X, X[:1], 0.1), "draws of shape"),
        (lambda: dropped(X, X, 1.0), "rate"),
        (lambda: with_dropout(network(), -0.1, rng()), "rate"),
        (
            lambda: with_dropout(network(), 0.1, rng(), ["network.layer"]),
            r"not found.*network\.out",
        ),
        (lambda: with_dropout(network(), 0.1, rng(), []), "at least one layer"),
        (lambda: with_weight_noise(network(), -1.0, rng()), "strength"),
        (lambda: with_low_bits(torch.nn.Identity(), 4), "weight matrices"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_dropout_needs_a_generator_of_its_own():
    with pytest.raises(TypeError, match="Generator"):
        with_dropout(network(), 0.1, 0)


# A whole network

MAKERS = {
    "noise": lambda model: with_weight_noise(model, 0.1, rng(3)),
    "bits": lambda model: with_low_bits(model, 4),
    "dropout": lambda model: with_dropout(model, 0.2, rng(3)),
}
every_damage = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@every_damage
def test_the_network_itself_is_not_changed(make):
    model = network()
    before, weights = model(X, 0.3), [p.clone() for p in model.parameters()]
    damaged = make(model)
    assert not torch.equal(damaged(X, 0.3), before)
    assert torch.equal(model(X, 0.3), before)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))


@every_damage
def test_the_same_generator_gives_the_same_damage(make):
    assert torch.equal(make(network())(X, 0.3), make(network())(X, 0.3))


@every_damage
def test_a_damaged_network_guides_like_any_denoiser(make):
    model, levels = network(), noise_levels(4, 5.0)
    guided = Guided(model, make(model), 2.0)
    got = guided(X, 0.3)
    wanted = 2 * model(X, 0.3) - make(model)(X, 0.3)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    assert sample(Guided(model, make(model), 2.0), X, levels).isfinite().all()
    assert torch.equal(Guided(model, make(model), 1.0)(X, 0.3), model(X, 0.3))


@pytest.mark.parametrize(
    "none",
    [
        lambda model: with_weight_noise(model, 0.0, rng()),
        lambda model: with_low_bits(model, 50),
        lambda model: with_dropout(model, 0.0, rng()),
    ],
)
def test_no_damage_is_the_network(none):
    model = network()
    torch.testing.assert_close(none(model)(X, 0.3), model(X, 0.3), rtol=1e-5, atol=1e-6)


def test_noise_of_one_seed_is_one_direction_and_of_two_seeds_two():
    model = network()
    parts = [[p.flatten() for p in model.parameters() if p.dim() > 1]]
    for strength, seed in ((0.1, 3), (0.2, 3), (0.1, 4)):
        damaged = with_weight_noise(model, strength, rng(seed))
        parts.append([p.flatten() for p in damaged.parameters() if p.dim() > 1])
    whole, once, twice, other = (torch.cat(p) for p in parts)
    torch.testing.assert_close(twice - whole, 2 * (once - whole), rtol=1e-4, atol=1e-6)
    cosine = torch.cosine_similarity(once - whole, other - whole, dim=0)
    assert abs(float(cosine)) < 0.2
    assert float((once - whole).norm() / whole.norm()) == pytest.approx(0.1, rel=0.15)


def test_biases_are_left_alone():
    model = network()
    for damaged in (with_weight_noise(model, 0.5, rng()), with_low_bits(model, 2)):
        for name, value in model.named_parameters():
            same = torch.equal(damaged.get_parameter(name), value)
            assert same == name.endswith("bias"), name


def test_dropout_draws_anew_at_each_call_and_only_in_the_named_layers():
    model = network()
    silent = with_dropout(model, 0.3, rng())
    assert not torch.equal(silent(X, 0.3), silent(X, 0.3))
    assert silent.layers == [f"network.layers.{i}" for i in (1, 2, 3)] + ["network.out"]
    last = with_dropout(model, 0.5, rng(5), ["network.out"])
    draws = torch.rand(200, 16, generator=rng(5))
    h = {}
    hook = model.network.out.register_forward_pre_hook(lambda _, inputs: h.update(x=inputs[0]))
    plain = model(X, 0.3)
    hook.remove()
    layer = model.network.out
    change = layer(dropped(h["x"], draws, 0.5)) - layer(h["x"])
    scale = 0.3 * 0.5 / (0.3**2 + 0.5**2) ** 0.5  # c_out of the preconditioning
    torch.testing.assert_close(last(X, 0.3), plain + scale * change, rtol=1e-4, atol=1e-5)


def test_dropout_leaves_no_trace_after_an_error():
    model = network()
    before = model(X, 0.3)
    with pytest.raises(ValueError, match="condition"):
        with_dropout(model, 0.5, rng())(X, 0.3, torch.zeros(200, dtype=torch.long))
    assert torch.equal(model(X, 0.3), before)
