"""The average of weights over training has the profile that its width promises."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from guidance_edu.ema import WIDEST, PowerEMA, exponent

FEW = settings(max_examples=25, deadline=None, derandomize=True)


class Number(nn.Module):
    """A model of one weight, and a buffer that is no weight."""

    def __init__(self, value=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value], dtype=torch.float64))
        self.register_buffer("steps", torch.tensor(5))


def average_of(values, sigma_rel):
    model = Number()
    ema = PowerEMA(model, sigma_rel)
    for value in values:
        with torch.no_grad():
            model.weight.fill_(value)
        ema.update(model)
    return float(ema.weights[0])


@pytest.mark.parametrize(
    ("sigma_rel", "gamma"),
    [(0.05, 16.972), (0.10, 6.937), (0.13, 4.604), (0.20, 1.826), (0.25, 0.720), (0.01, 96.995)],
)
def test_the_exponent_of_a_width_is_the_published_one(sigma_rel, gamma):
    assert exponent(sigma_rel) == pytest.approx(gamma, abs=6e-4)


@FEW
@given(st.floats(1e-4, WIDEST - 1e-4))
def test_the_profile_has_the_width_that_was_asked_for(sigma_rel):
    gamma = exponent(sigma_rel)
    width = math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))
    assert gamma > 0 and width == pytest.approx(sigma_rel, rel=1e-7)


def test_the_widest_profile_is_flat():
    assert exponent(WIDEST - 1e-9) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("bad", [0.0, -0.1, WIDEST, 0.3, math.inf, math.nan])
def test_a_width_that_no_profile_has_is_refused(bad):
    with pytest.raises(ValueError, match=r"expected sigma_rel between 0 and 0\.2887, got"):
        exponent(bad)
    with pytest.raises(ValueError, match="expected sigma_rel"):
        PowerEMA(Number(), bad)


@pytest.mark.parametrize("sigma_rel", [0.01, 0.28])
def test_after_the_first_update_the_average_is_the_weights(sigma_rel):
    assert average_of([0.7], sigma_rel) == 0.7


@FEW
@given(sigma_rel=st.floats(0.02, 0.28), value=st.floats(-5, 5))
def test_weights_that_stand_still_are_their_own_average(sigma_rel, value):
    assert average_of([value] * 20, sigma_rel) == pytest.approx(value, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.25])
def test_each_step_counts_as_the_power_profile_says(sigma_rel):
    """Step i of n covers ((i - 1) / n, i / n], so its share is a difference of t^(gamma + 1)."""
    n, gamma = 40, exponent(sigma_rel)
    for i in (1, 7, 40):
        share = average_of([float(step == i) for step in range(1, n + 1)], sigma_rel)
        wanted = (i / n) ** (gamma + 1) - ((i - 1) / n) ** (gamma + 1)
        assert share == pytest.approx(wanted, rel=1e-10, abs=1e-15)


def test_the_average_is_put_into_a_model_and_leaves_its_source_and_buffers_alone():
    source, target = Number(3.0), Number(0.0)
    target.steps.fill_(9)
    ema = PowerEMA(source, 0.1)
    ema.update(source)
    with torch.no_grad():
        source.weight.fill_(8.0)
    ema.copy_to(target)
    assert (target.weight.item(), target.steps.item(), source.weight.item()) == (3.0, 9, 8.0)
    assert target.weight.requires_grad and not ema.weights[0].requires_grad


def test_another_model_is_refused():
    ema = PowerEMA(Number(), 0.1)
    with pytest.raises(ValueError, match="zip"):
        ema.copy_to(nn.Linear(1, 1))
