"""Guidance and rescaling are those of diffusers, on random tensors, offline."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the package is imported

import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.guiders.guider_utils import rescale_noise_cfg

from guidance_edu import guide, rescale, to_w

SHAPES = [(2, 3, 16, 16), (1, 4, 8, 8), (3, 7, 5)]
# Their order of operations differs from ours by one rounding of numbers up to about 30.
CLOSE = {"rtol": 1e-6, "atol": 1e-5}


def predictions(shape, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng) for _ in range(2)]


def guider(scale, step=0, steps=10, **options):
    made = ClassifierFreeGuidance(guidance_scale=scale, **options)
    made.set_state(step, steps, torch.tensor(0))
    return made


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("w", [1.0, 3.0, 7.5])
def test_guidance_is_the_guider_in_its_native_form(shape, w):
    positive, negative = predictions(shape)
    theirs = guider(w).forward(positive, negative).pred
    torch.testing.assert_close(guide(positive, negative, to_w(w, "diffusers")), theirs, **CLOSE)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("g", [0.0, 1.0, 3.0, 7.5])
def test_guidance_is_the_guider_in_its_original_form(shape, g):
    positive, negative = predictions(shape)
    theirs = guider(g, use_original_formulation=True).forward(positive, negative).pred
    ours = guide(positive, negative, to_w(g, "diffusers-original"))
    torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("original", [False, True])
def test_the_two_forms_differ_at_one_number(original):
    positive, negative = predictions(SHAPES[0])
    theirs = guider(3.0, use_original_formulation=original).forward(positive, negative).pred
    other = "diffusers" if original else "diffusers-original"
    assert (guide(positive, negative, to_w(3.0, other)) - theirs).abs().max() > 0.1


@pytest.mark.parametrize(("scale", "original"), [(1.0, False), (0.0, True)])
def test_both_switch_off_to_the_positive_bit_for_bit(scale, original):
    positive, negative = predictions(SHAPES[0])
    theirs = guider(scale, use_original_formulation=original)
    convention = "diffusers-original" if original else "diffusers"
    assert theirs.num_conditions == 1
    assert torch.equal(theirs.forward(positive, negative).pred, positive)
    assert torch.equal(guide(positive, negative, to_w(scale, convention)), positive)


def test_start_and_stop_count_steps_from_the_first_included_to_the_last_excluded():
    positive, negative = predictions(SHAPES[0])
    for step in range(10):
        theirs = guider(3.0, step, start=0.2, stop=0.7).forward(positive, negative).pred
        w = 3.0 if 2 <= step < 7 else 1.0
        torch.testing.assert_close(guide(positive, negative, w), theirs, **CLOSE)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("strength", [0.0, 0.3, 0.7, 1.0])
def test_rescaling_is_theirs(shape, strength):
    positive, negative = predictions(shape, seed=1)
    guided = guide(positive, negative, 7.5)
    theirs = rescale_noise_cfg(guided, positive, strength)
    torch.testing.assert_close(rescale(guided, positive, strength), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("w", [1.0, 3.0, 7.5])
@pytest.mark.parametrize("original", [False, True])
def test_guiding_and_rescaling_in_one_go_is_the_guider(w, original):
    positive, negative = predictions(SHAPES[0], seed=2)
    options = {"guidance_rescale": 0.7, "use_original_formulation": original}
    theirs = guider(w, **options).forward(positive, negative).pred
    guided = guide(positive, negative, to_w(w, "diffusers-original" if original else "diffusers"))
    torch.testing.assert_close(rescale(guided, positive, 0.7), theirs, rtol=1e-5, atol=1e-5)


def test_the_prediction_space_does_not_matter_for_guidance_but_does_for_rescaling():
    positive, negative = predictions((4, 3, 8, 8), seed=3)
    x, sigma = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(4)), 2.0

    def noise(clean):
        return (x - clean) / sigma

    guided = guide(positive, negative, 3.0)
    torch.testing.assert_close(
        noise(guided), guide(noise(positive), noise(negative), 3.0), rtol=1e-5, atol=1e-5
    )
    in_clean = noise(rescale(guided, positive, 1.0))
    in_noise = rescale(noise(guided), noise(positive), 1.0)
    assert (in_clean - in_noise).abs().max() > 0.1
