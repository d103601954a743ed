"""The classifier: what it may see, how it is trained, stopped and gone on with, and stored."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from guidance_edu.checkpoints import load_weights, save_weights
from toy_models import classifier
from toy_models.classifier import (
    Classifier,
    augment,
    class_order,
    features_of,
    load_classifier,
    only,
    seen,
    train_classifier,
)
from toy_models.imagenet64 import BOOK, FIFTY, INDEX, PIXELS, load, to_range

OTHER = "n12267677"  # a class that is neither in the book nor among the fifty


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("GUIDANCE_EDU_PROGRESS", "0")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A packed file of ten classes and one more, a few images each, without any archive."""
    import json

    folder = tmp_path_factory.mktemp("packed")
    files, wnids = [], []
    for wnid in [*BOOK.values(), OTHER]:
        for number in (0, 99, 150, 200, 499):
            files.append(f"train/{wnid}_{number}.JPEG")
            wnids.append(wnid)
        files.append(f"val/val_{int(wnid[1:])}.JPEG")
        wnids.append(wnid)
    pixels = np.random.default_rng(0).integers(0, 256, (len(files), 64, 64, 3), dtype=np.uint8)
    np.save(folder / PIXELS, pixels)
    index = {"files": files, "wnids": wnids, "sha256": "0" * 64}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (f"train/{BOOK['goldfish']}_199.JPEG", True),
        (f"train/{BOOK['goldfish']}_200.JPEG", False),
        (f"train/{BOOK['alp']}_499.JPEG", False),
        (f"train/{FIFTY['pizza']}_499.JPEG", True),
        (f"train/{OTHER}_99.JPEG", True),
        (f"train/{OTHER}_100.JPEG", False),
        ("val/val_0.JPEG", False),
    ],
)
def test_what_the_classifier_may_see_follows_from_the_name(file, expected):
    assert seen(file) is expected


@pytest.mark.parametrize("file", ["n01443537_5.JPEG", "train/fish.JPEG", "test/n01443537_1.JPEG"])
def test_a_name_of_another_form_is_an_error_not_a_guess(file):
    with pytest.raises(ValueError, match="expected a name such as"):
        seen(file)


def test_training_takes_no_image_of_the_reference(packed, tmp_path, monkeypatch):
    shown = []
    inner = classifier.augment
    monkeypatch.setattr(classifier, "augment", lambda x, rng: shown.append(x) or inner(x, rng))
    train_classifier(packed, tmp_path, number=128, batch=64)
    train = load(packed, "train", class_order(packed))
    allowed = {p.numpy().tobytes() for p in to_range(only(train, seen).pixels)}
    used = {p.numpy().tobytes() for part in shown for p in part}
    assert used == allowed and len(allowed) == 10 * 3 + 2


def test_the_books_classes_come_first(packed):
    assert class_order(packed) == [*BOOK.values(), OTHER]


def test_features_and_logits_have_their_shapes():
    model = Classifier(200).eval()
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    features = model.features(x)
    assert features.shape == (2, 256) and bool((features >= 0).all())
    assert torch.equal(model(x), model.head(features))
    assert sum(p.numel() for p in model.parameters()) < 3_000_000


def test_pictures_are_judged_alone_whatever_the_batch():
    torch.manual_seed(0)
    model = Classifier(12).eval()
    pixels = torch.randint(0, 256, (5, 64, 64, 3), dtype=torch.uint8)
    whole, parts = features_of(model, pixels), features_of(model, pixels, batch=2)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_augmentation_only_mirrors_moves_and_covers():
    x = torch.rand(64, 3, 64, 64)
    out = augment(x, torch.Generator().manual_seed(0), hole=0)
    # Every pixel of an image comes from that image: nothing is resized, mixed or recoloured.
    for before, after in zip(x, out, strict=True):
        assert bool(torch.isin(after, before).all())
    assert not torch.equal(out, x)
    still = augment(x, torch.Generator().manual_seed(0), shift=0, hole=0)
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(still, x, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(still, x, strict=True)]
    assert all(a or b for a, b in zip(mirrored, kept, strict=True))
    assert 16 < sum(mirrored) < 48
    covered = (augment(x + 1, torch.Generator().manual_seed(0), shift=0) == 0).flatten(1).sum(1)
    assert int(covered.max()) <= 3 * 20 * 20 and int(covered.max()) > 0


def test_augmentation_repeats_with_its_generator():
    x = torch.rand(4, 3, 64, 64)
    one, other, third = (augment(x, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, other) and not torch.equal(one, third)


class Stop(Exception):
    pass


def test_a_run_that_was_killed_ends_as_an_unbroken_one(packed, tmp_path, monkeypatch):
    options = {"number": 64, "batch": 16, "keep_every": 1}
    whole, card = train_classifier(packed, tmp_path / "whole", **options)
    inner, calls = classifier._keep, []

    def killed(*arguments):
        inner(*arguments)
        calls.append(1)
        if len(calls) == 2:
            raise Stop

    monkeypatch.setattr(classifier, "_keep", killed)
    with pytest.raises(Stop):
        train_classifier(packed, tmp_path / "broken", **options)
    monkeypatch.setattr(classifier, "_keep", inner)
    again, _ = train_classifier(packed, tmp_path / "broken", **options)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    finished, same = train_classifier(packed, tmp_path / "whole", **options)
    assert same["training_loss"] == pytest.approx(card["training_loss"], abs=1e-3)
    assert torch.equal(finished.head.weight, whole.head.weight)
    assert card["images_seen"] == 64 and card["classes"] == class_order(packed)


def test_a_checkpoint_of_another_run_is_refused(packed, tmp_path):
    train_classifier(packed, tmp_path, number=16, batch=16)
    with pytest.raises(ValueError, match="another run"):
        train_classifier(packed, tmp_path, number=16, batch=16, seed=1)


def test_every_image_is_shown_once_a_turn():
    pool = torch.arange(10)
    rows = torch.cat([classifier._rows(pool, step, 4, seed=0) for step in range(5)])
    assert rows[:10].sort().values.tolist() == rows[10:].sort().values.tolist() == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()


def test_a_diverging_run_stops(packed, tmp_path):
    with pytest.raises(FloatingPointError, match="diverged"):
        train_classifier(packed, tmp_path, number=2048, batch=32, learning_rate=1e30)


def test_half_precision_weights_load_into_the_same_network(tmp_path):
    torch.manual_seed(0)
    model = Classifier(12)
    save_weights(tmp_path, "eyes", copy.deepcopy(model), {}, torch.float16)
    again = load_weights(tmp_path, "eyes", Classifier(12))
    for key, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="do not fit"):
        load_weights(tmp_path, "eyes", Classifier(200))


def test_a_checkpoint_holds_numbers_alone(packed, tmp_path):
    train_classifier(packed, tmp_path, number=16, batch=16)
    tensors = load_file(tmp_path / "classifier.safetensors")
    assert {"run", "step", "seconds"} < tensors.keys()
    save_file({"run": tensors["run"] + 1}, tmp_path / "classifier.safetensors")
    with pytest.raises(ValueError, match="another run"):
        train_classifier(packed, tmp_path, number=16, batch=16)


shipped = pytest.mark.skipif(
    not (classifier.WEIGHTS / f"{classifier.CLASSIFIER}.safetensors").exists(),
    reason="the classifier is not shipped yet",
)


@shipped
def test_the_shipped_classifier_knows_colours_from_each_other():
    model = load_classifier()
    assert model.head.out_features == 200 and not model.training
    orange = torch.tensor([240, 140, 20], dtype=torch.uint8).expand(4, 64, 64, 3)
    snow = torch.tensor([225, 235, 250], dtype=torch.uint8).expand(4, 64, 64, 3)
    names = list(BOOK)
    logits = features_of(model, torch.cat([orange, snow]))[1][:, :10]
    margin = logits[:, names.index("orange")] - logits[:, names.index("alp")]
    assert float(margin[:4].min()) > float(margin[4:].max())
