"""From photographs to shipped weights: every recipe of the image models, on a tiny network."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from guidance_edu.checkpoints import read_manifest, read_safetensors
from guidance_edu.training import Settings
from toy_models import image_recipes
from toy_models.__main__ import main
from toy_models.image_recipes import (
    IMAGE_RECIPES,
    SHIFT,
    augmented,
    balanced_labels,
    image_levels,
    image_noise,
    load_image_model,
    moved_by,
    new_model,
    sample_images,
    train_image_model,
)
from toy_models.imagenet64 import Images, to_range
from toy_models.recipes import WEIGHTS, load

TINY = {"channels": (8, 8, 8), "heads": (0, 1, 1), "width": 8}


def photographs(folder=None, split="train", classes=None):
    rng = torch.Generator().manual_seed(len(split))
    pixels = torch.randint(256, (20, 64, 64, 3), generator=rng, dtype=torch.uint8)
    return Images(pixels, torch.arange(20) % 10, tuple(f"{split}/{k}" for k in range(20)))


@pytest.fixture
def tiny(monkeypatch):
    """The table of recipes with small networks, short runs, and images from nowhere."""
    table = {}
    for name, recipe in IMAGE_RECIPES.items():
        run = replace(recipe.run, images=64, batch=8, warmup=1)
        classes = {k: v for k, v in recipe.network.items() if k in {"null", "classes"}}
        table[name] = replace(recipe, run=run, network={**TINY, **classes})
    monkeypatch.setattr(image_recipes, "IMAGE_RECIPES", table)
    monkeypatch.setattr(image_recipes, "load", photographs)
    monkeypatch.setattr(image_recipes, "OWN_SAMPLES", 12)
    monkeypatch.setattr(image_recipes, "OWN_STEPS", 2)
    return table


def test_every_batch_says_what_was_done_to_its_images():
    images = photographs()
    x, labels, more = augmented(images)(torch.Generator().manual_seed(0), 64)
    told = more["augmentation"]
    assert x.shape == (64, 3, 64, 64) and told.shape == (64, 3)
    originals = to_range(images.pixels)
    for k in range(64):
        # Undone, each is the photograph of its label's class, away from the mirrored border.
        back = moved_by(x[k : k + 1], -(told[k : k + 1, 1:] * SHIFT).round().long())[0]
        back = back.flip(2) if told[k, 0] else back
        inner = slice(SHIFT, -SHIFT)
        same = [bool((o[:, inner, inner] == back[:, inner, inner]).all()) for o in originals]
        assert sum(same) == 1 and images.labels[same.index(True)] == labels[k]
    still = (told[:, 1:] == 0).all(1).float().mean()
    assert 0.3 < told[:, 0].mean() < 0.7 and 0.3 < still < 0.75
    assert told.abs().max() == 1


def test_a_move_of_nothing_is_the_image_itself():
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(moved_by(x, torch.zeros(2, 2, dtype=torch.long)), x)
    right = moved_by(x, torch.tensor([[2, 0], [0, -1]]))
    assert torch.equal(right[0, :, :, 2:], x[0, :, :, :-2])
    assert torch.equal(right[1, :, :-1], x[1, :, 1:])


def test_without_classes_no_label_is_given():
    assert augmented(photographs(), labelled=False)(torch.Generator(), 4)[1] is None


def test_samples_do_not_depend_on_the_batches_they_are_drawn_in(tiny):
    model = new_model(tiny["imagenet64-main"]).eval()
    model.network.bf16 = False
    labels = balanced_labels(7)
    drawn = [
        sample_images(model, labels, torch.Generator().manual_seed(5), steps=2, batch=batch)
        for batch in (7, 3)
    ]
    assert drawn[0].shape == (7, 3, 64, 64)
    torch.testing.assert_close(*drawn, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="expected labels, or a number n"):
        sample_images(model, None, torch.Generator())


def test_labels_are_balanced_and_noise_has_the_size_of_its_level():
    assert balanced_labels(30).bincount().tolist() == [3] * 10
    noise = image_noise(4, torch.Generator().manual_seed(0))
    # 49152 normal numbers: standard error of the deviation .3 %
    assert float(noise.std()) == pytest.approx(80, rel=0.02)
    levels = image_levels(8).tolist()
    assert (levels[0], levels[-2], levels[-1], len(levels)) == (80, 0.01, 0, 9)


def test_main_and_the_model_without_label_dropout_differ_in_nothing_else():
    first, second = IMAGE_RECIPES["imagenet64-main"], IMAGE_RECIPES["imagenet64-nodrop"]
    assert replace(first.run, drop=0.0) == second.run and first.run.drop == 0.1
    assert second.network == {"null": False} and first.network == {}
    ours, theirs = new_model(first).state_dict(), new_model(second).state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours | theirs)


def test_recipes_whose_models_are_made_apart_have_seeds_apart():
    seeds = [
        r.run.seed for r in IMAGE_RECIPES.values() if not r.of and r.network != {"null": False}
    ]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize(
    "name", ["imagenet64-main", "imagenet64-nodrop", "imagenet64-unconditional"]
)
def test_a_recipe_trains_stops_goes_on_and_ships(tiny, tmp_path, name):
    places = (tmp_path / "data", tmp_path / "runs", tmp_path / "weights")
    assert train_image_model(name, *places, until=3) is None
    assert not places[2].exists()
    path = train_image_model(name, *places)
    card = read_manifest(places[2])[name]
    assert path.stat().st_size == card["bytes"]
    assert card["images_seen"] == 64 and card["data_sha256"] == photographs().sha256()
    assert set(card["validation_losses"]) == {"0.1", "0.3", "1", "3", "10"}
    assert "non-commercial" in card["licence"] and 0 <= card["rounding_cost"] < 0.01
    assert {v.dtype for v in read_safetensors(path).values()} == {torch.float16}
    model = load_image_model(name, places[2])
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    stored = read_safetensors(path)
    assert all(torch.equal(v, stored[k].float()) for k, v in model.state_dict().items())


def test_an_early_average_is_taken_out_of_the_run_of_another(tiny, tmp_path):
    places = (tmp_path / "data", tmp_path / "runs", tmp_path / "weights")
    with pytest.raises(FileNotFoundError, match="000000008_0.050"):
        train_image_model("imagenet64-early", *places)
    train_image_model("imagenet64-main", *places)
    path = train_image_model("imagenet64-early", *places)
    assert read_manifest(places[2])["imagenet64-early"]["images_seen"] == 8
    early, late = read_safetensors(path), read_safetensors(path.with_stem("imagenet64-main"))
    assert early.keys() == late.keys() and not torch.equal(
        early["network.stem.weight"], late["network.stem.weight"]
    )


def test_the_sims_auxiliary_starts_from_main_and_learns_from_its_samples(tiny, tmp_path):
    places = (tmp_path / "data", tmp_path / "runs", tmp_path / "weights")
    with pytest.raises(FileNotFoundError):
        train_image_model("imagenet64-sims", *places)
    train_image_model("imagenet64-main", *places)
    run = image_recipes.begin("imagenet64-sims", *places)
    base = load_image_model("imagenet64-main", places[2]).state_dict()
    assert all(torch.equal(v, base[k]) for k, v in run.model.state_dict().items())
    own = read_safetensors(places[1] / "imagenet64-sims" / "own.safetensors")["pixels"]
    assert own.shape == (12, 64, 64, 3) and own.dtype == torch.uint8
    train_image_model("imagenet64-sims", *places)
    card = read_manifest(places[2])["imagenet64-sims"]
    assert card["data"] == "12 samples of imagenet64-main"
    assert card["data_sha256"] != photographs().sha256()


def test_the_command_trains_an_image_model_and_says_where_it_stopped(
    tiny, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("toy_models.__main__.IMAGE_RECIPES", tiny)
    places = ["--data", "x", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert main(["train", "imagenet64-guide", *places, "--until", "2"]) == 0
    assert "stopped at step 2; the same command goes on" in capsys.readouterr().out
    assert main(["train", "imagenet64-guide", *places]) == 0
    out = capsys.readouterr().out
    assert "imagenet64-guide.safetensors: validation loss" in out
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["imagenet64-guide"]["recipe"]["run"]["images"] == 64


def test_missing_images_are_named(tmp_path, capsys):
    places = ["--data", str(tmp_path / "none"), "--runs", str(tmp_path), "--out", str(tmp_path)]
    assert main(["train", "imagenet64-main", *places]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_an_unknown_image_recipe_says_what_there_is(tmp_path):
    with pytest.raises(KeyError, match="unknown image recipe 'imagenet64-big'; expected one of"):
        load_image_model("imagenet64-big", tmp_path)


def test_an_early_recipe_has_no_run_of_its_own(tmp_path):
    with pytest.raises(ValueError, match="taken out of that of imagenet64-main"):
        image_recipes.begin("imagenet64-early", tmp_path, tmp_path, tmp_path)


def test_a_shifted_seed_trains_no_image_model(tmp_path, monkeypatch):
    monkeypatch.setenv("GUIDANCE_EDU_SEED", "7")
    with pytest.raises(ValueError, match="expected GUIDANCE_EDU_SEED=0 to train imagenet64-main"):
        train_image_model("imagenet64-main", tmp_path, tmp_path, tmp_path)


def test_settings_of_the_long_runs_are_those_of_the_table():
    assert IMAGE_RECIPES["imagenet64-main"].run == Settings(
        600_000, keep=(1 / 32, *(k / 16 for k in range(1, 17)))
    )


# What is shipped


@pytest.mark.parametrize("name", IMAGE_RECIPES)
def test_a_shipped_model_loads_denoises_and_says_where_it_comes_from(name):
    card = read_manifest(WEIGHTS)[name]
    recipe = IMAGE_RECIPES[name]
    assert card["recipe"] == json.loads(json.dumps(asdict(recipe)))
    assert "non-commercial" in card["licence"] and len(card["data_sha256"]) == 64
    assert card["rounding_cost"] < 1e-3 and card["classes"][0] == "n01443537"
    assert list(card["validation_losses"]) == ["0.1", "0.3", "1", "3", "10"]
    assert all(0.1 < value < 0.8 for value in card["validation_losses"].values())
    model = load(name)
    labels = torch.tensor([0, 9]) if model.network.label is not None else None
    # A smooth picture under noise: every model finds more of it than the best linear guess does.
    slope = torch.linspace(-1, 1, 64).expand(2, 3, 64, 64)
    x = slope + 0.3 * torch.randn(slope.shape, generator=torch.Generator().manual_seed(0))
    error = (model(x, 0.3, labels) - slope).square().mean()
    linear = (x * 0.25 / (0.25 + 0.09) - slope).square().mean()
    assert float(error) < 0.5 * float(linear)
