"""What chapter 12 adds: weights, a model without classes, and errors of guides on the tree."""

from dataclasses import replace

import pytest
import torch

from guidance_edu.settings import generator
from toy_models import side_by_side
from toy_models.imagenet64 import Images
from toy_models.side_by_side import METHODS
from toy_models.sweeps import chapter_12, record
from toy_models.sweeps.image_guidance import ALONE, louder
from toy_models.sweeps.images import cached

ADDED = sorted(set(chapter_12.MORE) & set(METHODS))


@pytest.mark.parametrize("name", ADDED)
def test_more_weights_were_tried_at_the_setting_that_is_chosen(name):
    chosen = {k: v for k, v in side_by_side.chosen(name).items() if k != "w"}
    setting = chapter_12.MORE[name][1]
    assert chosen == {key: setting[key] for key in chosen}
    tried = {row["w"] for row in record("image_weights").where(method=name)}
    assert tried < set(side_by_side.by_weight(name))
    assert all(len(rows) == 3 for rows in side_by_side.by_weight(name).values())


@pytest.mark.parametrize("name", ADDED)
def test_the_rows_of_further_weights_come_from_the_model_that_the_comparison_draws(name):
    build, setting = chapter_12.MORE[name]
    x = torch.randn(2, 3, 64, 64, generator=generator(1))
    labels = torch.tensor([0, 5])
    with torch.no_grad():
        ours = build(w=1.25, **setting)(x, 0.5, labels)
        theirs = side_by_side.denoiser(name, w=1.25)(x, 0.5, labels)
    torch.testing.assert_close(ours, theirs)


def test_two_negatives_at_the_weights_of_the_record_of_pairs():
    row = record("image_pairs").where(first="cfg", second="sims", seed=0)[0]
    build, setting = chapter_12.MORE["CFG and SIMS"]
    with_sims = build(w=row["w"], **setting)
    assert [term.w for term in with_sims.terms] == [row["w"], row["v"]]


def test_the_control_pushes_away_from_the_noisy_input():
    x = torch.randn(2, 3, 64, 64, generator=generator(1))
    with torch.no_grad():
        found = cached(ALONE)(x, 0.5)
        pushed = louder(1.02, ALONE)(x, 0.5)
    torch.testing.assert_close(x - pushed, 1.02 * (x - found))


@pytest.fixture
def short(monkeypatch):
    """Training of two steps on four images, in place of its own samples."""
    pixels = torch.randint(256, (4, 64, 64, 3), dtype=torch.uint8, generator=generator(1))
    images = Images(pixels, torch.arange(4), tuple("abcd"))
    named = chapter_12.image_recipe_named

    def shortened(name):
        recipe = named(name)
        return replace(recipe, run=replace(recipe.run, images=8, batch=4))

    asked = []
    monkeypatch.setattr(chapter_12, "own_images", lambda model, _: asked.append(model) or images)
    monkeypatch.setattr(chapter_12, "image_recipe_named", shortened)
    chapter_12.taught_by_itself.cache_clear()
    yield asked
    chapter_12.taught_by_itself.cache_clear()


def test_the_model_without_classes_is_taught_by_itself_alike_at_every_seed(short, monkeypatch):
    before = [parameter.clone() for parameter in cached(ALONE).parameters()]
    first = [parameter.clone() for parameter in chapter_12.taught_by_itself().parameters()]
    assert all(map(torch.equal, before, cached(ALONE).parameters()))
    assert not all(map(torch.equal, before, first))
    chapter_12.taught_by_itself.cache_clear()
    monkeypatch.setenv("GUIDANCE_EDU_SEED", "1000")
    assert all(map(torch.equal, first, chapter_12.taught_by_itself().parameters()))
    x = torch.randn(2, 3, 64, 64, generator=generator(1))
    with torch.no_grad():  # it draws its own samples without the labels that it is given
        assert torch.equal(short[0](x, 0.5, torch.tensor([1, 2])), cached(ALONE)(x, 0.5))


def test_a_row_of_the_tree_is_measured_where_the_record_of_errors_looks():
    row = record("tree_errors").where(guide="smaller", seed=1000, sigma=0.03)[0]
    known = record("errors").where(guide="smaller and less trained", seed=1000, sigma=0.03)[0]
    same = [key for key in known if key.endswith("_main")]
    assert {key: row[key] for key in same} == {key: known[key] for key in same}
