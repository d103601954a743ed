"""Negatives: where the second model is broken, and that nothing else is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guidance_edu.denoisers import Denoiser
from guidance_edu.guidance import Guided, during
from guidance_edu.negatives import without_condition
from toy_models.gaussian_mixture import ClassMixture
from toy_models.mlp import tree_denoiser
from toy_models.worlds import lost_mode, three_blobs

FEW = settings(max_examples=20, deadline=None, derandomize=True)


def noise(seed, *shape):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


class Recorded:
    """Answers x and remembers what it was asked."""

    def __init__(self, null_label=None):
        self.null_label, self.asked = null_label, []

    def __call__(self, x, sigma, condition=None):
        self.asked.append((x, sigma, condition))
        return x


# Without a condition


@FEW
@given(seed=st.integers(0, 10_000), power=st.floats(-2, 2))
def test_without_its_condition_an_exact_world_denoises_the_marginal(seed, power):
    world, x = three_blobs(), noise(seed, 4, 2)
    labels = torch.tensor([0, 1, 1, 0])
    got = without_condition(world)(x, 10**power, labels)
    assert torch.equal(got, world.marginal.denoise(x, 10**power))
    assert torch.equal(got, without_condition(world)(x, 10**power))


def test_the_marginal_is_the_mean_of_the_classes_by_their_posterior():
    """Independent of the code: D(x) = sum_c p(c | x) D(x, c)."""
    mixed = ClassMixture(lost_mode().classes, priors=[0.2, 0.8])
    x, sigma = noise(0, 50, 1), 0.6
    density = torch.stack([c.log_density(x, sigma).exp() for c in mixed.classes])
    share = density * torch.tensor([[0.2], [0.8]])
    share = share / share.sum(0)
    by_class = [mixed(x, sigma, torch.full((50,), c)) for c in (0, 1)]
    wanted = share[0, :, None] * by_class[0] + share[1, :, None] * by_class[1]
    torch.testing.assert_close(without_condition(mixed)(x, sigma), wanted, rtol=1e-12, atol=1e-12)


def test_the_model_gets_x_and_sigma_untouched_and_no_condition():
    model, x, sigma = Recorded(), noise(0, 3, 2), torch.tensor([0.1, 1.0, 2.0])
    without_condition(model)(x, sigma, torch.tensor([0, 1, 0]))
    ((got_x, got_sigma, got_condition),) = model.asked
    assert got_x is x and got_sigma is sigma and got_condition is None


@pytest.mark.parametrize("label", [0, 10])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_model_that_declares_a_null_label_gets_it_for_every_sample(label, n):
    model = Recorded(null_label=label)
    without_condition(model)(noise(0, n, 2), 1.0, torch.zeros(n, dtype=torch.long))
    condition = model.asked[0][2]
    assert condition.tolist() == [label] * n and condition.dtype == torch.long


def test_the_negative_is_a_denoiser_that_names_its_model():
    model = Recorded()
    negative = without_condition(model)
    assert isinstance(negative, Denoiser) and negative.model is model


def test_guidance_without_a_condition_does_nothing():
    world, x = three_blobs(), noise(0, 5, 2)
    guided = Guided(world, without_condition(world), 7.0)
    torch.testing.assert_close(guided(x, 0.5), world(x, 0.5), rtol=1e-13, atol=1e-13)


def test_a_model_without_windows_is_left_alone_in_a_step_and_one_with_windows_is_asked():
    world = three_blobs()
    negative = without_condition(world)
    assert during(negative, 1.0) is negative
    guided = Guided(world, negative, 2.0, window=(0.5, 2.0))
    assert len(during(without_condition(guided), 1.0).model.terms) == 1
    assert during(without_condition(guided), 4.0).model.terms == ()


def test_a_network_trained_without_a_null_condition_says_so():
    """The trees' network knows no classes at all: asked with one, it refuses."""
    network = tree_denoiser(hidden=4)
    assert without_condition(network)(torch.zeros(2, 2), 1.0).shape == (2, 2)
    with pytest.raises(ValueError, match="trained without classes; expected condition=None"):
        network(torch.zeros(2, 2), 1.0, torch.zeros(2).long())

    def needs_label(x, sigma, condition=None):
        if condition is None:
            raise ValueError("this model has no null condition")
        return x

    with pytest.raises(ValueError, match="this model has no null condition"):
        without_condition(needs_label)(torch.zeros(2, 2), 1.0, torch.zeros(2).long())


@pytest.mark.parametrize("bad", [None, 3, "model"])
def test_what_is_not_a_denoiser_is_refused(bad):
    with pytest.raises(TypeError, match=r"expected a denoiser D\(x, sigma, condition\), got"):
        without_condition(bad)
