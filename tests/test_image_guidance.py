"""Rows of the 64x64 sweeps: reproducible by their first samples, comparable in pairs."""

import math

import pytest
import torch

from toy_models import sweeps
from toy_models.image_recipes import image_noise
from toy_models.sweeps import image_guidance


def test_the_first_fifty_samples_of_a_row_can_be_drawn_alone():
    few = image_noise(image_guidance.FIRST, torch.Generator().manual_seed(3))
    many = image_noise(3 * image_guidance.FIRST, torch.Generator().manual_seed(3))
    torch.testing.assert_close(few, many[: image_guidance.FIRST], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["image_training", "image_condition", "image_attention"])
def test_a_row_is_measured_again_by_its_first_samples(name, monkeypatch):
    monkeypatch.setenv("GUIDANCE_EDU_PROGRESS", "0")
    row = sweeps.record(name).pick()
    again = sweeps.measure(name, row | {"n": image_guidance.FIRST})
    assert set(again) == {"first_size", "first_speckle"}
    # CPUs sum 16-bit products in another order, and eight steps carry that on
    assert all(math.isclose(value, row[key], rel_tol=0.03) for key, value in again.items())


def test_the_unguided_row_is_the_unguided_model():
    masks = sweeps.record("image_masks").where(w=1.0)
    alone = sweeps.record("image_models_small").where(model=image_guidance.MAIN)
    fd = {row["seed"]: row["fd"] for row in alone}
    assert all(math.isclose(row["fd"], fd[row["seed"]], rel_tol=0.03) for row in masks)


def test_two_rows_of_one_seed_are_compared_in_pairs():
    rows = sweeps.record("image_models_small").where(seed=1000)
    main, early = (
        next(row for row in rows if row["model"] == f"imagenet64-{name}")
        for name in ("main", "early")
    )
    fd, noise = image_guidance.paired(early, main)
    assert fd == pytest.approx(early["fd"] - main["fd"])
    assert 0 < noise < abs(fd)
    assert image_guidance.paired(main, main) == (0.0, 0.0)
    with pytest.raises(ValueError, match="seeds"):
        image_guidance.paired(main, main | {"seed": 2000})


def test_the_mean_over_seeds_compares_each_row_with_the_other_of_its_seed():
    rows = sweeps.record("image_models_small")
    early, main = (rows.where(model=f"imagenet64-{name}") for name in ("early", "main"))
    pairs = [image_guidance.paired(*both) for both in zip(early, main, strict=True)]
    fd, noise = image_guidance.paired_mean(early, main[::-1])
    assert fd == pytest.approx(sum(fd for fd, _ in pairs) / 3)
    assert noise == pytest.approx(math.sqrt(sum(noise**2 for _, noise in pairs)) / 3)
    assert image_guidance.paired_mean(early[1:2], main) == pytest.approx(pairs[1])


@pytest.mark.parametrize(
    "rows, others", [([], [0]), ([0, 1000], [0]), ([0, 0], [0]), ([0], [0, 0, 1000])]
)
def test_a_mean_over_seeds_wants_one_row_a_seed(rows, others):
    rows, others = ([{"seed": seed} for seed in seeds] for seeds in (rows, others))
    with pytest.raises(ValueError, match="expected a row a seed"):
        image_guidance.paired_mean(rows, others)


def test_an_unknown_method_names_the_known_ones():
    with pytest.raises(KeyError, match=r"unknown method 'pga'.*icg"):
        image_guidance.guided("pga", 2.0)


@pytest.mark.parametrize("cycles", [2, 9, 30])
def test_a_wave_has_all_its_power_in_the_ring_of_its_frequency(cycles):
    wave = torch.cos(2 * math.pi * cycles * torch.arange(64) / 64)
    power = image_guidance.radial_power(wave.expand(2, 3, 64, 64) + 5.0)
    ring = int(cycles / 64 * 2 * image_guidance.BANDS)
    others = [k for k in range(image_guidance.BANDS) if k != ring]
    assert power[ring] > 0.5
    assert power[others].max() < 1e-9


def test_white_noise_has_equal_power_in_every_ring():
    x = torch.randn(50, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    power = image_guidance.radial_power(x)
    # the coarsest ring averages 12 waves of 150 channels: a spread of 2 %, so five of them
    torch.testing.assert_close(power, torch.ones(8, dtype=torch.float64), rtol=0, atol=0.12)
