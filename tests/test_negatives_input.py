"""The negative of self-attention guidance: where it blurs, and the identities that it obeys."""

import math

import pytest
import torch
from torch.nn import functional as F

from guidance_edu.attention import Map, recorded
from guidance_edu.guidance import Guided
from guidance_edu.negatives.input import (
    answer_elsewhere,
    attention_mask,
    blur_image,
    blurred_input,
    detail,
    frequency_mask,
    random_mask,
    received_attention,
    square_mask,
    whole_mask,
)
from guidance_edu.samplers import noise_levels, sample
from tests.test_unet import batch, stirred


@pytest.fixture(scope="module")
def model():
    return stirred().requires_grad_(False)


def nothing(estimate, received):
    return torch.zeros_like(estimate[:, :1])


def test_the_steps_of_the_paper_give_the_negative(model):
    """Written out in noise, as published, with alpha = 1."""
    x, labels = batch()
    sigma = 0.7
    with recorded(model, ["mid.8"]) as maps:
        estimate = model(x, sigma, labels)
    noise = (x - estimate) / sigma
    weights = maps["mid.8"][0].weights
    received = weights.mean(1).sum(1).reshape(2, 1, 8, 8)
    mask = F.interpolate((received > 1).float(), size=(64, 64))
    assert 0.1 < mask.mean() < 0.9
    degraded = mask * blur_image(estimate, 2.0) + (1 - mask) * estimate
    shown = degraded + sigma * noise
    other = (shown - model(shown, sigma, labels)) / sigma
    guided = x - sigma * (other + 3.0 * (noise - other))
    ours = Guided(model, blurred_input(model, "mid.8", blur=2.0), 3.0)(x, sigma, labels)
    torch.testing.assert_close(ours, guided, atol=1e-5, rtol=1e-4)


def test_in_clean_samples_it_subtracts_what_the_model_repairs(model):
    """D_w = D + s (blurred estimate - D(shown)), with s = w - 1."""
    x, labels = batch()
    negative = blurred_input(model, "dec.16.0", blur=1.5)
    positive, other = negative.pair(x, 0.7, labels)
    with recorded(model, ["dec.16.0"]) as maps:
        model(x, 0.7, labels)
    mask = attention_mask(positive, received_attention(maps["dec.16.0"][0]))
    step = mask * (positive - blur_image(positive, 1.5))
    repaired = model(x - step, 0.7, labels)
    guided = Guided(model, negative, 1.8)(x, 0.7, labels)
    expected = positive + 0.8 * (positive - step - repaired)
    torch.testing.assert_close(guided, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(other, step + repaired, atol=1e-5, rtol=1e-4)


def test_a_mask_of_nothing_and_a_blur_of_nothing_guide_nowhere(model):
    x, labels = batch()
    plain = model(x, 0.5, labels)
    for negative in (
        blurred_input(model, "mid.8", mask=nothing),
        blurred_input(model, "mid.8", blur=1e-3),
    ):
        torch.testing.assert_close(negative(x, 0.5, labels), plain, atol=1e-6, rtol=1e-5)


def test_two_passes_and_no_more(model):
    x, labels = batch()
    calls = []
    handle = model.network.register_forward_hook(lambda *_: calls.append(1))
    Guided(model, blurred_input(model, "mid.8"), 2.0)(x, 0.5, labels)
    handle.remove()
    assert len(calls) == 2


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_law_of_blur_guidance_on_gaussian_data(strength):
    """A mode of which blur removes h ends narrower by exp(-s h / 2); here h is 0 to 1."""
    world = Stationary()
    negative = blurred_input(world, "only", blur=1.0, mask=whole_mask)
    guided = Guided(world, negative, 1 + strength)
    rng = torch.Generator().manual_seed(0)
    start = 50 * torch.randn(16, 1, 8, 8, generator=rng, dtype=torch.float64)
    levels = noise_levels(60, sigma_max=50, sigma_min=1e-3)
    ends = [torch.fft.fft2(sample(d, start, levels)) for d in (world, guided)]
    # A circular stand-in for the blur, so that every Fourier mode keeps to itself.
    removed = 1 - world.response()
    measured = ends[1].abs().square().mean((0, 1)) / ends[0].abs().square().mean((0, 1))
    torch.testing.assert_close(
        measured.sqrt(), torch.exp(-strength * removed / 2), atol=0.01, rtol=0
    )


class Stationary(torch.nn.Module):
    """The exact denoiser of white Gaussian images, with one attention layer to be read."""

    def __init__(self):
        super().__init__()
        from guidance_edu.attention import SelfAttention

        self.layer = SelfAttention(1, 1, "only").double()

    def forward(self, x, sigma, condition=None):
        self.layer(x.flatten(1).unsqueeze(-1), tuple(x.shape[-2:]))
        return x / (1 + sigma**2)

    def response(self):
        pulse = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
        pulse[..., 4, 4] = 1
        return torch.fft.fft2(blur_image(pulse, 1.0)).abs()[0, 0]


@pytest.fixture(autouse=True)
def circular_borders(request, monkeypatch):
    """The law holds mode by mode where the borders wrap around."""
    if "law_of_blur" in request.node.name:
        from guidance_edu import energy
        from guidance_edu.negatives import input as negatives

        monkeypatch.setattr(
            negatives,
            "blur_matrix",
            lambda size, sigma, taps=None: energy.blur_matrix(size, sigma, "circular", taps),
        )


# Attention, masks, blur


def test_received_attention_has_mean_one_and_is_one_where_attention_is_uniform():
    weights = torch.softmax(torch.randn(2, 3, 20, 20), -1)
    received = received_attention(Map(weights, (4, 5)))
    assert received.shape == (2, 4, 5)
    torch.testing.assert_close(received.mean((1, 2)), torch.ones(2))
    expected = weights[1, :, :, 7].sum() / 3
    torch.testing.assert_close(received[1, 1, 2], expected)


@pytest.mark.parametrize("side", [4, 6, 7, 8, 10, 12, 16])
def test_uniform_attention_marks_nothing_whatever_the_rounding(side):
    weights = torch.full((1, 2, side**2, side**2), 1 / side**2)
    received = received_attention(Map(weights, (side, side)))
    assert attention_mask(torch.zeros(1, 3, 64, 64), received).count_nonzero() == 0


def test_all_masks_of_the_ablation_mark_the_same_area():
    rng = torch.Generator().manual_seed(0)
    received = torch.rand(5, 8, 8, generator=rng) * 2
    estimate = torch.randn(5, 3, 64, 64, generator=rng)
    area = attention_mask(estimate, received).mean((1, 2, 3))
    assert area.unique().numel() > 1
    for mask in (square_mask, random_mask(rng), frequency_mask()):
        marked = mask(estimate, received)
        assert marked.shape == (5, 1, 64, 64)
        torch.testing.assert_close(marked.mean((1, 2, 3)), area)
    assert bool((whole_mask(estimate, received) == 1).all())


def test_the_square_is_in_the_middle_and_the_frequency_mask_on_the_detail():
    received = torch.full((1, 8, 8), 0.5)
    received[0, :2, :8] = 2.5
    estimate = torch.zeros(1, 3, 64, 64)
    middle = square_mask(estimate, received)[0, 0]
    assert bool((middle[16:48, 16:48] == 1).all()) and middle.mean() == 0.25
    estimate[0, :, 40:56, ::2] = 1
    fine = frequency_mask()(estimate, received)[0, 0]
    assert bool((fine[40:56] == 1).all()) and fine.mean() == 0.25


def test_detail_sees_stripes_and_not_slopes():
    slope = torch.linspace(-1, 1, 64).repeat(1, 1, 64, 1)
    waves = torch.cos(torch.arange(64) * math.pi * 0.8).repeat(1, 1, 64, 1)
    assert float(detail(waves, 0.25, (8, 8)).mean()) == pytest.approx(0.5**0.5, rel=0.05)
    assert float(detail(slope, 0.25, (8, 8))[0, 4, 3:5].max()) < 0.05


def test_random_masks_repeat_with_their_generator_and_are_drawn_anew():
    received, estimate = torch.rand(2, 8, 8) * 2, torch.zeros(2, 3, 64, 64)
    first, second = (random_mask(torch.Generator().manual_seed(3)) for _ in range(2))
    one = first(estimate, received)
    assert torch.equal(one, second(estimate, received))
    assert not torch.equal(one, first(estimate, received))


def test_blur_keeps_constants_and_has_the_limits_of_its_width():
    x = torch.randn(2, 3, 16, 12, dtype=torch.float64)
    torch.testing.assert_close(blur_image(torch.ones_like(x), 2.0), torch.ones_like(x))
    torch.testing.assert_close(blur_image(x, 1e-3), x)
    mean = x.mean((-2, -1), keepdim=True).expand_as(x)
    torch.testing.assert_close(blur_image(x, math.inf), mean)
    short = blur_image(x, 9.0, taps=3)
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    torch.testing.assert_close(short, F.avg_pool2d(padded, 3, 1), atol=0.02, rtol=0)


def test_wrong_models_layers_levels_and_kernels_say_so(model):
    x, labels = batch()
    with pytest.raises(TypeError, match="expected a network with attention"):
        blurred_input(lambda x, sigma, condition=None: x, "mid.8")
    with pytest.raises(ValueError, match="layer 'middle' not found"):
        blurred_input(model, "middle")
    with pytest.raises(ValueError, match="expected sigma above 0, got 0"):
        blurred_input(model, "mid.8", blur=0.0)
    with pytest.raises(ValueError, match="expected sigma above 0, got 0"):
        blurred_input(model, "mid.8")(x, 0.0, labels)
    with pytest.raises(ValueError, match="odd number of taps from 1 to 129, got 4"):
        blurred_input(model, "mid.8", taps=4)(x, 0.5, labels)
    with pytest.raises(ValueError, match="tokens are on a grid"):
        received_attention(Map(torch.ones(1, 1, 4, 4) / 4, None))
    with pytest.raises(ValueError, match="cutoff between 0 and .71"):
        frequency_mask(0.0)


def test_an_answer_from_elsewhere_is_a_difference_in_noise(model):
    x, labels = batch()
    sigma, shown = 0.7, x + 0.1
    noise = (shown - model(shown, sigma, labels)) / sigma
    found = answer_elsewhere(model, x, shown, sigma, labels)
    torch.testing.assert_close(found, x - sigma * noise, atol=1e-5, rtol=1e-4)
    assert torch.equal(answer_elsewhere(model, x, x, sigma, labels), model(x, sigma, labels))


def test_what_is_shown_differs_from_the_input_where_the_mask_is_and_nowhere_else(model):
    x, labels = batch()
    negative = blurred_input(model, "mid.8", mask=square_mask)
    positive, shown = negative.shown(x, 0.5, labels)
    torch.testing.assert_close(positive, model(x, 0.5, labels))
    changed = (shown != x).any(1)[:, 32, 32]
    assert bool(changed.all()) and bool((shown[..., 0, 0] == x[..., 0, 0]).all())
