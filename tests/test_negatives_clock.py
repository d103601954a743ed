"""Wrong and blurred clocks: the laws, what is drawn when, and that the network is left whole."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from guidance_edu.denoisers import Denoiser
from guidance_edu.guidance import Guided, during
from guidance_edu.negatives import perturbed_time, wrong_level
from guidance_edu.negatives.clock import at_wrong_level, perturbed_embedding, vp_sigma, vp_time
from guidance_edu.samplers import noise_levels, sample
from toy_models import laws
from toy_models.set_transformer import constellation_denoiser
from toy_models.unet import image_denoiser
from toy_models.worlds import one_gaussian, three_blobs

BLOCKS = [f"network.blocks.{k}" for k in range(3)]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def stirred(make=constellation_denoiser, **options):
    torch.manual_seed(0)
    model = make(**options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def points(n=4):
    return torch.randn(n, 24, 2, generator=rng(9)), torch.arange(n) % 4


def hooks(model):
    return [h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]


# Time and noise level


@pytest.mark.parametrize("t", [0.0, 0.001, 0.2, 0.5, 0.8, 1.0])
def test_time_and_level_undo_each_other(t):
    assert float(vp_time(vp_sigma(t))) == pytest.approx(t, rel=1e-12, abs=1e-12)


def test_time_is_that_of_a_thousand_steps_of_ddpm():
    """Independent of the formula: the product of 1 - beta over the steps of DDPM."""
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha = (1 - beta).cumprod(0)
    sigma = ((1 - alpha) / alpha).sqrt()
    steps = torch.arange(1, 1001) / 1000
    # In continuous time 1 - beta becomes exp(-beta), which is larger by up to beta^2 / 2 a step.
    assert float((vp_time(sigma) - steps).abs().max()) < 0.004


@pytest.mark.parametrize("bad", [-0.1, math.inf, math.nan])
def test_levels_and_times_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match="expected finite sigma"):
        vp_time(bad)
    with pytest.raises(ValueError, match="expected a finite time"):
        vp_sigma(bad)


# The laws of a wrong level


def final_spread(negative, w, steps=200, top=80.0):
    world, levels = negative.model, noise_levels(steps, sigma_max=top)
    x = torch.special.ndtri((torch.arange(50, dtype=torch.float64) + 0.5) / 50)[:, None]
    start = levels[0] * x / x.std()
    plain = sample(world, start, levels).std()
    return float(sample(Guided(world, negative, w), start, levels).std() / plain)


@pytest.mark.parametrize("delta", [-0.4, 0.3])
@pytest.mark.parametrize("w", [0.5, 3.0])
def test_a_wrong_level_rescales_a_gaussian_as_the_laws_say(delta, w):
    world = one_gaussian(0.0, 0.5)
    clean = final_spread(wrong_level(world, delta), w)
    assert clean == pytest.approx(laws.wrong_level_factor(w, delta), rel=0.01)
    noise = final_spread(wrong_level(world, delta, "noise"), w)
    law = laws.wrong_level_noise_factor(w, delta, 0.5, 80.0)
    assert noise == pytest.approx(law, rel=0.01)
    assert (clean - 1) * (noise - 1) < 0, "the two work in opposite directions"


def test_the_law_for_noise_has_the_limits_that_it_states():
    law = laws.wrong_level_noise_factor
    assert law(1.0, 0.4, 0.5, 80.0) == law(3.0, 0.0, 0.5, 80.0) == 1
    small, large = (law(2.0, 0.3, 0.5, top) for top in (1e4, 1e5))
    assert large / small == pytest.approx(10 ** -(1 - math.exp(-0.3)), rel=1e-6)
    for bad in ((math.nan, 0.1, 1, 80), (2, math.inf, 1, 80), (2, 0.1, 0, 80), (2, 0.1, 1, 0)):
        with pytest.raises(ValueError, match="expected"):
            law(*bad)


def test_a_wrong_level_without_error_is_the_model():
    world, x = three_blobs(), torch.randn(20, 2, generator=rng(), dtype=torch.float64)
    labels, sigma = torch.arange(20) % 2, torch.rand(20, generator=rng(), dtype=torch.float64)
    for level in (0.7, sigma):
        plain = world(x, level, labels)
        assert torch.equal(wrong_level(world)(x, level, labels), plain)
        noise = wrong_level(world, predicts="noise")(x, level, labels)
        torch.testing.assert_close(noise, plain, rtol=1e-12, atol=1e-12)


def test_each_prediction_is_wrong_in_its_own_way():
    world, x = three_blobs(), torch.randn(20, 2, generator=rng(), dtype=torch.float64)
    sigma, told = 0.7, 0.7 * math.exp(0.3)
    torch.testing.assert_close(at_wrong_level(world, x, sigma, 0.3), world(x, told))
    epsilon = (x - world(x, told)) / told
    torch.testing.assert_close(at_wrong_level(world, x, sigma, 0.3, "noise"), x - sigma * epsilon)
    each = torch.linspace(-0.3, 0.3, 20, dtype=torch.float64)
    for predicts in ("clean", "noise"):
        together = at_wrong_level(world, x, sigma, each, predicts)
        alone = at_wrong_level(world, x[3:4], sigma, float(each[3]), predicts)
        torch.testing.assert_close(together[3:4], alone, rtol=1e-9, atol=1e-9)


def test_errors_with_a_spread_are_drawn_for_each_sample_at_each_evaluation():
    told = []

    def model(x, sigma, condition=None):
        told.append(sigma)
        return x

    negative = wrong_level(model, 0.2, spread=0.5, rng=rng())
    sample(negative, torch.zeros(4000, 1, dtype=torch.float64), [2.0, 1.0, 0.5])
    assert len(told) == 4 and all(t.shape == (4000,) for t in told)
    errors = [(t / s).log() for t, s in zip(told, (2.0, 1.0, 1.0, 0.5), strict=True)]
    for error in errors:
        assert float(error.mean()) == pytest.approx(0.2, abs=0.04)
        assert float(error.std()) == pytest.approx(0.5, rel=0.06)
    assert not torch.equal(errors[1], errors[2])


def test_wrong_levels_that_make_no_sense_are_refused():
    world = one_gaussian()
    with pytest.raises(ValueError, match="unknown prediction 'score'"):
        wrong_level(world, 0.1, "score")
    with pytest.raises(ValueError, match="unknown prediction 'v'"):
        at_wrong_level(world, torch.zeros(1, 1), 1.0, 0.1, "v")
    for delta, spread in ((math.inf, 0.0), (0.0, -1.0), (0.0, math.nan)):
        with pytest.raises(ValueError, match="expected finite delta and spread"):
            wrong_level(world, delta, spread=spread)
    with pytest.raises(TypeError, match="expected a torch.Generator on the CPU, got None"):
        wrong_level(world, spread=0.1)
    with pytest.raises(TypeError, match="expected a denoiser"):
        wrong_level(None)


# Noise on the clock of a network


def test_noise_comes_in_units_of_the_embeddings_own_spread():
    embedding = torch.randn(3, 500, generator=rng()) * torch.tensor([[0.1], [1.0], [5.0]])
    noise = torch.randn(3, 500, generator=rng(1))
    got = perturbed_embedding(embedding, noise, torch.tensor([0.0, 1.0, 2.0]))
    assert torch.equal(got[0], embedding[0])
    added = (got - embedding).std(1) / (embedding.std(1) * noise.std(1))
    assert added.tolist() == pytest.approx([0, 1, 2])
    torch.testing.assert_close(got[2:], perturbed_embedding(embedding[2:], noise[2:], 2.0))
    for bad in (torch.zeros(3, 4), torch.zeros(3)):
        with pytest.raises(ValueError, match=r"expected an embedding \[n, width\]"):
            perturbed_embedding(embedding, bad, 1.0)


def test_scale_zero_gives_no_guidance_bit_for_bit():
    model, (x, labels) = stirred(), points()
    for layers in (None, BLOCKS[:1]):
        guided = Guided(model, perturbed_time(model, 0.0, rng(), layers=layers), 5.0)
        assert torch.equal(guided(x, 0.5, labels), model(x, 0.5, labels))


def test_the_clock_is_perturbed_and_nothing_else():
    model, (x, labels) = stirred(), points()
    got = perturbed_time(model, 0.7, rng(3))(x, 0.5, labels)
    feature = torch.full((4,), math.log(0.5) / 4)
    clock = model.network.noise
    true = clock(feature)
    told = perturbed_embedding(true, torch.randn(true.shape, generator=rng(3)), 0.7)
    handle = clock.register_forward_hook(lambda module, inputs, output: told)
    wanted = model(x, 0.5, labels)
    handle.remove()
    torch.testing.assert_close(got, wanted)


def test_noise_is_drawn_for_each_sample_and_twice_in_a_heun_step():
    model, (x, labels) = stirred(), points()
    same, labels = x[:1].expand(4, 24, 2), torch.zeros(4).long()
    answers = perturbed_time(model, 1.0, rng())(same, 0.5, labels)
    assert not torch.allclose(answers[0], answers[1])
    negative, before = perturbed_time(model, 1.0, rng()), torch.get_rng_state()
    sample(negative, x, [2.0, 1.0, 0.5], labels)
    replay = rng()
    for _ in range(4):
        torch.randn(4, 64, generator=replay)
    assert torch.equal(replay.get_state(), negative.rng.get_state()), "one draw an evaluation"
    assert torch.equal(before, torch.get_rng_state())


def test_the_power_schedule_follows_time():
    model, (x, labels) = stirred(), points()
    low, high = vp_sigma(0.1), vp_sigma(0.9)
    for sigma, share in ((low, 0.1), (high, 0.9)):
        power = perturbed_time(model, 2.0, rng(), power=1.5)(x, sigma, labels)
        plain = perturbed_time(model, 2.0 * share**1.5, rng())(x, sigma, labels)
        torch.testing.assert_close(power, plain, rtol=1e-4, atol=1e-5)
    each = torch.tensor([low, high, low, high])
    together = perturbed_time(model, 2.0, rng(), power=1.5)(x, each, labels)
    noise = perturbed_time(model, 2.0 * 0.9**1.5, rng())(x, each, labels)
    torch.testing.assert_close(together[1::2], noise[1::2], rtol=1e-4, atol=1e-5)


def test_all_blocks_by_name_are_the_whole_network():
    model, (x, labels) = stirred(), points()
    whole = perturbed_time(model, 1.0, rng())(x, 0.5, labels)
    named = perturbed_time(model, 1.0, rng(), layers=BLOCKS)(x, 0.5, labels)
    torch.testing.assert_close(named, whole)
    first = perturbed_time(model, 1.0, rng(), layers=BLOCKS[:1])(x, 0.5, labels)
    assert not torch.allclose(first, whole) and not torch.allclose(first, model(x, 0.5, labels))


def test_it_reaches_the_clock_of_the_image_network_too():
    model = stirred(image_denoiser, channels=(8, 8, 12), heads=(0, 1, 2), width=16)
    x, labels = torch.randn(2, 3, 64, 64, generator=rng()), torch.tensor([1, 4])
    plain = model(x, 0.5, labels)
    for layers in (None, ["network.encoder.0.0", "network.middle"]):
        misled = perturbed_time(model, 1.0, rng(), layers=layers)(x, 0.5, labels)
        assert misled.shape == x.shape and not torch.allclose(misled, plain)
    assert torch.equal(model(x, 0.5, labels), plain) and not hooks(model)


@pytest.mark.parametrize("layers", [None, BLOCKS[1:]])
def test_the_network_is_whole_again_also_after_an_error(layers):
    model, (x, labels) = stirred(), points()
    plain, negative = model(x, 0.5, labels), perturbed_time(model, 1.0, rng(), layers=layers)
    negative(x, 0.5, labels)
    with pytest.raises(ValueError, match="expected classes from 0 to 4"):
        negative(x, 0.5, labels + 7)
    assert not hooks(model) and torch.equal(model(x, 0.5, labels), plain)


def test_it_is_a_denoiser_that_names_its_model():
    model = stirred()
    negative = perturbed_time(model, 1.0, rng())
    assert isinstance(negative, Denoiser) and negative.model is model
    assert during(negative, 1.0) is negative


def test_what_cannot_be_misled_is_refused_at_once():
    model = stirred()
    with pytest.raises(TypeError, match="expected a torch.Generator on the CPU, got 3"):
        perturbed_time(model, 1.0, 3)
    with pytest.raises(TypeError, match=r"expected a network \(torch.nn.Module\), got Gaussian"):
        perturbed_time(one_gaussian(), 1.0, rng())
    with pytest.raises(ValueError, match=r"part 'network.clock' not found; in 'network' there are"):
        perturbed_time(model, 1.0, rng(), clock="network.clock")
    for scale, power in ((-1.0, 0.0), (math.nan, 0.0), (1.0, -1.0), (1.0, math.inf)):
        with pytest.raises(ValueError, match="expected finite scale and power"):
            perturbed_time(model, scale, rng(), power)
    for layers in ([], "network.blocks.0"):
        with pytest.raises(ValueError, match="expected a list of at least one layer"):
            perturbed_time(model, 1.0, rng(), layers=layers)
    with pytest.raises(ValueError, match="part 'network.blocks.7' not found"):
        perturbed_time(model, 1.0, rng(), layers=["network.blocks.7"])
    with pytest.raises(ValueError, match="expected a network with embed"):
        perturbed_time(Plain(), 1.0, rng(), clock="first", layers=["second"])


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(1, 1), nn.Linear(1, 1)
