"""The comparison: chosen on one seed, judged on others, paired with the unguided model."""

import math

import pytest

from toy_models import side_by_side
from toy_models.side_by_side import METHODS
from toy_models.sweeps.image_guidance import JUDGING, TUNING, paired
from toy_models.sweeps.images import cached


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_chosen_and_judged(name):
    setting = side_by_side.chosen(name)
    rows = side_by_side.judged(name)
    assert sorted(row["seed"] for row in rows) == sorted(JUDGING)
    assert all(row[knob] == value for row in rows for knob, value in setting.items())
    assert all(row["w"] > 1 for row in side_by_side.tried(name))
    tuned = [row for row in side_by_side.tried(name) if row["seed"] in TUNING]
    best = next(r for r in tuned if all(r[k] == v for k, v in setting.items()))
    assert best["fd"] == min(row["fd"] for row in tuned)


def test_rows_of_further_records_say_what_went_without_saying_there():
    rows = [row for row in side_by_side.tried("SEG") if row["seed"] in TUNING]
    middle = {row["w"]: row for row in rows if row["layers"] == "mid.8 dec.8.0"}
    assert {1.25, 1.5, 2.0, 3.0} == set(middle)
    assert {row["sigma"] for row in middle.values()} == {"inf"}
    stored = side_by_side.record("image_middle").where(layers="mid.8 dec.8.0", w=1.5, seed=0)[0]
    assert middle[1.5]["fd"] == stored["fd"]


def test_luck_is_what_the_tuning_seed_promises_above_what_the_judges_find():
    alone = side_by_side.unguided("imagenet64-main")[0]["fd"]
    best = min(row["fd"] for row in side_by_side.tried("CFG") if row["seed"] in TUNING)
    expected = alone - best - side_by_side.gain("CFG")[0]
    assert side_by_side.luck("CFG") == pytest.approx(expected)


def test_the_choice_does_not_look_at_the_seeds_that_judge(monkeypatch):
    rows = side_by_side.tried("CFG")
    changed = [row | {"fd": -row["fd"]} if row["seed"] in JUDGING else row for row in rows]
    before = side_by_side.chosen("CFG")
    monkeypatch.setattr(side_by_side, "tried", lambda name: changed)
    assert side_by_side.chosen("CFG") == before


def test_rows_by_weight_keep_the_chosen_layer_and_start_without_guidance():
    rows = side_by_side.by_weight("PAG")
    assert list(rows) == [1.0, 1.25, 1.5, 2.0, 3.0]
    assert all(len(same) == len(JUDGING) + len(TUNING) for same in rows.values())
    layer = side_by_side.chosen("PAG")["layers"]
    assert all(row["layers"] == layer for w, same in rows.items() if w > 1 for row in same)


def test_a_gain_is_the_fall_of_fd_against_the_unguided_model():
    alone = side_by_side.unguided("imagenet64-main")
    rows = side_by_side.judged("CFG")
    expected = sum(alone[row["seed"]]["fd"] - row["fd"] for row in rows) / len(rows)
    fd, noise = side_by_side.gain("CFG")
    assert fd == pytest.approx(expected) and 0 < noise < abs(fd)
    assert side_by_side.mean("CFG", "fd") == pytest.approx(sum(r["fd"] for r in rows) / len(rows))


def test_a_gain_has_the_noise_of_the_paired_comparison():
    alone = side_by_side.unguided("imagenet64-main")
    noises = [paired(alone[row["seed"]], row)[1] for row in side_by_side.judged("SIMS")]
    expected = math.sqrt(sum(noise**2 for noise in noises)) / len(noises)
    assert side_by_side.gain("SIMS")[1] == pytest.approx(expected)


@pytest.mark.parametrize("other", ["CFG", "ICG"])
def test_a_lead_is_the_difference_of_two_gains(other):
    gap = side_by_side.gain("SIMS")[0] - side_by_side.gain(other)[0]
    fd, noise = side_by_side.lead("SIMS", other)
    assert fd == pytest.approx(gap) and noise > 0
    assert side_by_side.lead(other, "SIMS") == pytest.approx((-fd, noise))
    assert side_by_side.lead(other, other) == (0.0, 0.0)


def test_a_lead_on_one_model_is_the_paired_difference_of_the_rows():
    theirs = {row["seed"]: row for row in side_by_side.judged("CFG")}
    pairs = [paired(theirs[row["seed"]], row) for row in side_by_side.judged("SIMS")]
    fd, noise = side_by_side.lead("SIMS", "CFG")
    assert fd == pytest.approx(sum(fd for fd, _ in pairs) / len(pairs))
    assert noise == pytest.approx(math.hypot(*[noise for _, noise in pairs]) / len(pairs))


def test_the_guide_test_is_a_mean_over_fine_noise_levels():
    assert set(side_by_side.TESTED) <= set(METHODS)
    rows = {r["sigma"]: r for r in side_by_side.record("guide_test").where(negative="sims")}
    assert side_by_side.tested("SIMS", 0.1) == (rows[0.1]["rise"], rows[0.1]["w"])
    expected = sum(rows[sigma]["w"] for sigma in (0.1, 0.3, 1.0)) / 3
    assert side_by_side.tested("SIMS")[1] == pytest.approx(expected)


def test_arithmetic_is_counted():
    model = cached("imagenet64-main")
    assert side_by_side.cost(model, model) == 1
    assert side_by_side.cost(side_by_side.denoiser("CFG"), model) == pytest.approx(2)
    assert 1 < side_by_side.cost(side_by_side.denoiser("PAG"), model) < 1.2


def test_an_unknown_method_names_the_known_ones():
    with pytest.raises(KeyError, match=r"unknown method 'PGA'.*SIMS"):
        side_by_side.chosen("PGA")
