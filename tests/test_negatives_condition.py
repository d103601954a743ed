"""Random conditions and conditions of noise: what is drawn, when, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from guidance_edu.denoisers import Denoiser
from guidance_edu.guidance import Guided, during
from guidance_edu.negatives import gaussian_condition, random_condition, without_condition
from guidance_edu.negatives.condition import matched_noise, random_labels
from guidance_edu.samplers import noise_levels, sample
from toy_models import laws
from toy_models.gaussian_mixture import ClassMixture
from toy_models.set_transformer import constellation_denoiser
from toy_models.worlds import line, three_blobs, two_classes


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


class Asked:
    """Answers x and remembers the conditions it was asked with."""

    def __init__(self):
        self.conditions = []

    def __call__(self, x, sigma, condition=None):
        self.conditions.append(condition)
        return x


def quantiles(n):
    return torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]


# What is drawn


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_every_class_has_its_share_of_the_draws(classes):
    draws = (torch.arange(3000) + 0.5) / 3000
    shares = torch.bincount(random_labels(draws, classes), minlength=classes) / 3000
    torch.testing.assert_close(shares, torch.full((classes,), 1 / classes), atol=1e-3, rtol=0)


@pytest.mark.parametrize("own", [0, 1, 2])
def test_an_avoided_class_is_never_drawn_and_the_others_are_alike(own):
    draws = (torch.arange(3000) + 0.5) / 3000
    labels = random_labels(draws, 3, torch.full((3000,), own))
    shares = (torch.bincount(labels, minlength=3) / 3000).tolist()
    assert shares.pop(own) == 0 and shares == pytest.approx([0.5, 0.5])


def test_a_draw_just_below_one_stays_a_class():
    almost = torch.nextafter(torch.ones(1), torch.zeros(1))
    assert random_labels(almost, 10**7).tolist() == [10**7 - 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2), 0), "expected a class to draw, got 0"),
        ((torch.zeros(2), 1, torch.zeros(2).long()), "expected a class to draw, got 1"),
        ((torch.ones(2), 3), r"expected draws in \[0, 1\)"),
        ((torch.full((2,), -0.1), 3), r"expected draws in \[0, 1\)"),
        ((torch.zeros(2), 3, torch.zeros(3).long()), r"to avoid of shape \[2\]"),
        ((torch.zeros(2), 3, torch.zeros(2)), "dtype long"),
    ],
)
def test_draws_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        random_labels(*arguments)


def test_noise_has_the_spread_of_each_embedding_and_nothing_else_of_it():
    embedding = torch.randn(3, 400, generator=rng()) * torch.tensor([[0.1], [1.0], [7.0]]) + 5
    noise = torch.randn(3, 400, generator=rng(1))
    got = matched_noise(embedding, noise)
    assert (got.std(1) / noise.std(1)).tolist() == pytest.approx(embedding.std(1).tolist())
    torch.testing.assert_close(matched_noise(embedding + 3, noise), got, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(matched_noise(2 * embedding, noise), 2 * got)
    torch.testing.assert_close(matched_noise(embedding[1:2], noise[1:2]), got[1:2])


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((2,), (2,)), ((2, 1), (2, 1))])
def test_noise_for_what_is_no_embedding_is_refused(shapes):
    with pytest.raises(ValueError, match="expected an embedding"):
        matched_noise(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


# When it is drawn


def test_labels_are_redrawn_at_each_evaluation_twice_in_a_heun_step():
    model = Asked()
    negative = random_condition(model, 1000, rng())
    sample(negative, torch.zeros(50, 1), [2.0, 1.0, 0.5], torch.zeros(50).long())
    assert len(model.conditions) == 4
    assert all(
        not torch.equal(a, b)
        for k, a in enumerate(model.conditions)
        for b in model.conditions[k + 1 :]
    )


def test_fixed_labels_are_drawn_once_also_where_windows_wrap_the_model_anew_each_step():
    asked = Asked()
    model = Guided(asked, lambda x, sigma, c=None: x, 2.0, window=(0.7, 5.0))
    negative = random_condition(model, 1000, rng(), fixed=True)
    sample(negative, torch.zeros(50, 1), [2.0, 1.0, 0.5], torch.zeros(50).long())
    assert len(asked.conditions) == 4
    assert all(torch.equal(c, asked.conditions[0]) for c in asked.conditions)
    with pytest.raises(ValueError, match="the 50 samples whose random labels are kept, got 20"):
        negative(torch.zeros(20, 1), 1.0)


def test_the_generator_decides_and_the_global_one_is_left_alone():
    x, before = torch.zeros(40, 1), torch.get_rng_state()
    drawn = []
    for seed in (0, 0, 1):
        model = Asked()
        random_condition(model, 7, rng(seed))(x, 1.0)
        drawn.append(model.conditions[0])
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert torch.equal(before, torch.get_rng_state())


def test_the_samples_own_class_is_left_out_on_request_alone():
    model, own = Asked(), torch.arange(300) % 3
    for _ in range(5):
        random_condition(model, 3, rng(), own=False)(torch.zeros(300, 1), 1.0, own)
    assert not any(bool((c == own).any()) for c in model.conditions)
    random_condition(model, 3, rng())(torch.zeros(300, 1), 1.0, own)
    assert bool((model.conditions[-1] == own).any())
    with pytest.raises(ValueError, match="its own class is not to be drawn"):
        random_condition(model, 3, rng(), own=False)(torch.zeros(3, 1), 1.0)


def test_one_class_gives_no_guidance_bit_for_bit():
    world = ClassMixture([line([1.0], [0.3])])
    x, labels = quantiles(9), torch.zeros(9).long()
    guided = Guided(world, random_condition(world, 1, rng()), 7.0)
    assert torch.equal(guided(x, 0.5, labels), world(x, 0.5, labels))


@pytest.mark.parametrize("fixed", [False, True])
def test_one_batch_or_two_passes_give_one_result(fixed):
    world, x = three_blobs(), torch.randn(30, 2, generator=rng(3), dtype=torch.float64)
    labels, results = torch.arange(30) % 2, []
    for batching in ("one", "two"):
        negative = random_condition(world, 2, rng(4), fixed=fixed)
        results.append(Guided(world, negative, 2.5, batching=batching)(x, 0.7, labels))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_the_negative_is_a_denoiser_and_left_alone_in_a_step():
    world = three_blobs()
    for negative in (random_condition(world, 2, rng()), gaussian_condition(world, rng())):
        assert isinstance(negative, Denoiser) and negative.model is world
        assert during(negative, 1.0) is negative


# The law


def run(negative, w, n=600, steps=96):
    world, levels = negative.model, noise_levels(steps)
    labels = torch.zeros(n, dtype=torch.long)
    return sample(Guided(world, negative, w), levels[0] * quantiles(n), levels, labels)


def test_samples_obey_the_laws_of_independent_condition_guidance():
    world = two_classes(0.3)
    redrawn = run(random_condition(world, 2, rng(1)), 2.0)
    # 1/2 a push for each of 192 draws: the mean of 600 samples is off by about 0.01.
    assert float(redrawn.mean()) == pytest.approx(laws.icg_mean(2, 1, (1, -1)), abs=0.05)
    assert 0.3 < float(redrawn.std()) < 0.4  # tends to 0.3 with finer steps
    kept = run(random_condition(world, 2, rng(2), fixed=True), 2.0)
    assert float(kept.std()) == pytest.approx(laws.icg_std_fixed(2, 0.3, (1, -1)), rel=0.04)
    others = run(random_condition(world, 2, rng(3), own=False), 2.0)
    # A start from N(0, 80^2) leaves out the share 0.3 / 80 of the mean.
    assert float(others.mean()) == pytest.approx(3 * (1 - 0.3 / 80), abs=0.003)
    assert float(others.std()) == pytest.approx(0.3, rel=0.02)


def test_a_random_class_is_not_the_lack_of_one():
    world = two_classes(0.3)
    plain = run(without_condition(world), 2.0)
    assert float(plain.mean()) == pytest.approx(1.189, abs=0.01)


# Gaussian conditions


def stirred(**options):
    torch.manual_seed(0)
    model = constellation_denoiser(**options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def test_a_condition_that_is_an_embedding_becomes_noise():
    model, embedding = Asked(), torch.randn(5, 8, generator=rng())
    negative = gaussian_condition(model, rng(1))
    negative(torch.zeros(5, 1), 1.0, embedding)
    negative(torch.zeros(5, 1), 1.0, embedding)
    first, second = model.conditions
    noise = torch.randn(5, 8, generator=rng(1))
    torch.testing.assert_close(first, matched_noise(embedding, noise))
    assert not torch.equal(first, second)


def test_the_embedding_inside_a_network_becomes_noise_for_this_call_alone():
    model = stirred(null=False)
    x, labels = torch.randn(6, 24, 2, generator=rng()), torch.arange(6) % 4
    plain = model(x, 0.5, labels)
    negative = gaussian_condition(model, rng(1), "network.label")
    first, second = negative(x, 0.5, labels), negative(x, 0.5, labels)
    assert not torch.allclose(first, plain) and not torch.allclose(first, second)
    kept = gaussian_condition(model, rng(1), "network.label", fixed=True)
    assert torch.equal(kept(x, 0.5, labels), first)
    assert torch.equal(kept(x, 0.5, labels), first)
    assert torch.equal(model(x, 0.5, labels), plain)
    with pytest.raises(ValueError, match="expected sigma"):
        negative(x, torch.ones(3), labels)
    assert torch.equal(model(x, 0.5, labels), plain)


def test_labels_are_no_embedding_and_the_message_says_what_to_do():
    for condition in (None, torch.zeros(3).long()):
        with pytest.raises(ValueError, match="embedding='network.label'"):
            gaussian_condition(Asked(), rng())(torch.zeros(3, 1), 1.0, condition)


def test_what_cannot_be_made_is_refused_at_once():
    for make in (lambda m, r: random_condition(m, 2, r), gaussian_condition):
        with pytest.raises(TypeError, match=r"expected a denoiser D\(x, sigma, condition\)"):
            make(3, rng())
        with pytest.raises(TypeError, match=r"expected a torch.Generator on the CPU, got None"):
            make(Asked(), None)
    with pytest.raises(ValueError, match="expected a class to draw, got 0"):
        random_condition(Asked(), 0, rng())
    with pytest.raises(ValueError, match="expected a class to draw, got 1"):
        random_condition(Asked(), 1, rng(), own=False)
    with pytest.raises(TypeError, match=r"expected a network \(torch.nn.Module\)"):
        gaussian_condition(Asked(), rng(), "label")
    with pytest.raises(
        ValueError, match=r"part 'network.labels' not found; in 'network' there are"
    ):
        gaussian_condition(stirred(), rng(), "network.labels")
    with pytest.raises(ValueError, match="there are: first"):
        gaussian_condition(Named(), rng(), "x")


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(1, 1)


@pytest.mark.parametrize("avoid", [7, 3, -1])
def test_a_class_to_avoid_that_does_not_exist_is_named(avoid):
    with pytest.raises(ValueError, match=f"from 0 to 2, got {avoid} to {avoid}"):
        random_labels(torch.rand(4), 3, avoid=torch.full((4,), avoid))
