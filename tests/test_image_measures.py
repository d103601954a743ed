"""Measures of samples: what they must say about equal, damaged, missing and copied pictures."""

import copy
import json
import sys
import types

import pytest
import torch

from guidance_edu.metrics import frechet_distance
from toy_models import image_reference, memorisation
from toy_models.classifier import Classifier
from toy_models.fid import frechet, inception_features
from toy_models.image_measures import Measures, compare, measure, same_size, speckle, table
from toy_models.image_reference import (
    Reference,
    blurred,
    feature_distance,
    in_turn,
    jackknife,
    load_reference,
    moments_of,
    parts_of,
    store_reference,
)
from toy_models.imagenet64 import Images, to_pixels, to_range
from toy_models.memorisation import nearest, neighbour_figure


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("GUIDANCE_EDU_PROGRESS", "0")


def labels_of(n):
    return torch.arange(n) % 10


def pictures(n, seed=0):
    """Return n pictures of ten classes of colour, each smooth, with structure of its own."""
    rng = torch.Generator().manual_seed(seed)
    colours = torch.randn(10, 3, 1, 1, generator=torch.Generator().manual_seed(99))
    coarse = torch.randn(n, 3, 4, 4, generator=rng) * 0.3 + 0.4 * colours[labels_of(n)]
    x = torch.nn.functional.interpolate(coarse, 64, mode="bilinear")
    return x.clamp(-1, 1)


class Eyes(Classifier):
    """A classifier that needs no training: its features are coarse pixels and the grain."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.head = torch.nn.Linear(256, 200)

    def features(self, x):
        coarse = torch.nn.functional.adaptive_avg_pool2d(x, 8).flatten(1)
        grain = x.diff(dim=3).abs().mean((1, 2, 3))[:, None].expand(-1, 64)
        return torch.cat([coarse, grain], 1)


@pytest.fixture(scope="module")
def eyes():
    torch.manual_seed(0)
    return Eyes().requires_grad_(False)


@pytest.fixture(scope="module")
def reference(eyes):
    images = to_pixels(pictures(1000, seed=5))
    features = eyes.features(to_range(images)).double()
    centre, covariance = moments_of(features)
    values, axes = torch.linalg.eigh(covariance)
    basis = axes.flip(1)[:, :64] * (100 / float(values.flip(0)[:64].sum())) ** 0.5
    points = (features - centre) @ basis
    card = {"floor": {"300": {"fd": 0.5}, "1000": {"fd": 0.2}}, "classifier_sha256": "0" * 64}
    spread = image_reference.class_spread(points, labels_of(1000))
    return Reference(centre, basis, *moments_of(points), points, spread, card)


@pytest.fixture(scope="module")
def result(eyes, reference):
    return measure(pictures(300), labels_of(300), 0, eyes, reference)


def test_new_pictures_of_the_same_kind_score_well(result):
    assert result.fd < 5 and result.fd_noise > 0
    assert result.precision > 0.7 and result.recall > 0.7
    assert 0.9 < result.diversity < 1.1 and result.saturation == 0


def test_one_average_image_scores_the_variance_of_real_ones(reference):
    points = torch.zeros(20, 64, dtype=torch.float64)
    assert feature_distance(points, reference) == pytest.approx(100, rel=1e-6)


@pytest.mark.parametrize("damage", ["noise", "blur", "one class", "one colour"])
def test_every_dose_of_damage_raises_the_distance(eyes, reference, result, damage):
    x, labels = pictures(300), labels_of(300)
    distances = [result.fd]
    for dose in (1, 2):
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        worse = {
            "noise": x + 0.1 * dose * noise,
            "blur": blurred(x, 4.0 * dose),
            "one class": torch.where((labels < 3 * dose)[:, None, None, None], x[:1], x),
            "one colour": x * torch.tensor([1.0, 1 - 0.4 * dose, 1.0]).reshape(1, 3, 1, 1),
        }[damage]
        distances.append(measure(worse, labels, 0, eyes, reference).fd)
    assert distances == sorted(distances) and distances[2] > distances[0] + result.fd_noise


def test_copies_of_one_picture_have_no_diversity_and_no_recall(eyes, reference):
    x = pictures(300)[labels_of(300)]
    found = measure(x, labels_of(300), 0, eyes, reference)
    assert found.diversity < 1e-4 and found.recall < 0.1 and found.precision > 0.5


def test_samples_are_judged_as_they_are_seen(eyes, reference):
    x = pictures(300) * 1.5
    found = measure(x, labels_of(300), 0, eyes, reference)
    clipped = measure(x.clamp(-1, 1), labels_of(300), 0, eyes, reference)
    assert found.fd == clipped.fd and found.saturation > 0 == clipped.saturation


def test_accuracy_counts_the_ten_classes_alone(reference):
    class Right(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, features):
            known = torch.eye(10)[labels_of(len(features))]
            return torch.cat([known, torch.full((len(features), 190), 9.0)], 1)

    sure = Eyes()
    sure.head = Right()
    x, labels = pictures(300), labels_of(300)
    wrong = labels.roll(1)
    assert measure(x, labels, 0, sure, reference).accuracy == 1
    assert measure(x, wrong, 0, sure, reference).accuracy == 0


def test_a_result_names_its_noise_and_size(result):
    assert f"FD {result.fd:.2f} +- {result.fd_noise:.2f} (sweep of 300" in str(result)


@pytest.mark.parametrize(
    ("x", "labels", "message"),
    [
        (torch.zeros(299, 3, 64, 64), labels_of(299), "n = 300 .sweeps. or 1000 .tables."),
        (torch.zeros(300, 3, 32, 32), labels_of(300), "3, 64, 64"),
        (torch.zeros(300, 3, 64, 64), labels_of(200), "expected labels"),
        (torch.zeros(300, 3, 64, 64), torch.zeros(300).long(), "30 samples of each class"),
        (torch.zeros(300, 3, 64, 64), labels_of(300) + 1, "from 0 to 9"),
        (torch.full((300, 3, 64, 64), torch.nan), labels_of(300), "finite"),
    ],
)
def test_samples_that_cannot_be_measured_are_refused(eyes, reference, x, labels, message):
    with pytest.raises(ValueError, match=message):
        measure(x, labels, 0, eyes, reference)


def other(result, **changes):
    return Measures(**{**result.__dict__, **changes})


def test_results_of_two_sizes_are_never_mixed(result):
    long = other(result, n=1000)
    with pytest.raises(ValueError, match=r"300 \(sweep\), 1000 \(table\)"):
        table({"a": result, "b": long})
    with pytest.raises(ValueError, match="one size"):
        compare(result, long)
    with pytest.raises(ValueError, match="none"):
        same_size([])
    assert same_size([result, result]) == 300


def test_a_table_says_its_size_and_the_noise_of_each_row(result):
    lines = table({"main": result, "guided": result}).splitlines()
    assert lines[0].startswith("sweep: 300 samples") and "0.50" in lines[0]
    assert "noise" in lines[1] and f"{result.fd_noise:6.2f}" in lines[2]


def test_paired_results_differ_by_less_noise_than_two_alone(eyes, reference, result):
    x = pictures(300)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    noisy = measure(x + 0.3 * noise, labels_of(300), 0, eyes, reference)
    found = compare(noisy, result)
    assert found.fd == noisy.fd - result.fd and found.clear
    assert found.noise < (noisy.fd_noise**2 + result.fd_noise**2) ** 0.5
    nothing = compare(result, result)
    assert nothing.fd == nothing.noise == 0 and not nothing.clear
    with pytest.raises(ValueError, match="paired"):
        compare(result, other(result, seed=1))


def test_the_noise_is_that_of_repeated_draws(reference):
    # Points of the reference's own law: the FDs of fresh draws, against what one draw implies.
    rng = torch.Generator().manual_seed(0)
    root = torch.linalg.cholesky(reference.covariance + 1e-9 * torch.eye(64))
    found, implied = [], []
    for _ in range(30):
        points = torch.randn(300, 64, generator=rng, dtype=torch.float64) @ root.T + 0.3
        fd, without = image_reference.with_parts(points, labels_of(300), reference)
        found.append(fd)
        implied.append(jackknife(without))
    spread = float(torch.tensor(found).std())
    assert 0.6 * spread < sum(implied) / 30 < 1.6 * spread


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = torch.randn(10, generator=torch.Generator().manual_seed(0)).double()
    without = [float(values[torch.arange(10) != k].mean()) for k in range(10)]
    assert jackknife(without) == pytest.approx(float(values.std()) / 10**0.5)


def test_parts_and_turns_share_the_classes_out():
    labels = torch.arange(10).repeat_interleave(30)
    parts = parts_of(labels)
    for k in range(10):
        assert torch.bincount(labels[parts == k]).tolist() == [3] * 10
    order = in_turn(labels)
    assert labels[order].tolist() == labels_of(300).tolist()
    assert order.sort().values.tolist() == list(range(300))


def test_speckle_is_the_mean_step_between_neighbours():
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(32, 32).expand(2, 3, 64, 64)
    assert speckle(board) == 2 and speckle(torch.ones(1, 3, 64, 64)) == 0


def test_blur_keeps_the_mean_and_takes_the_grain():
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert blurred(x, 2.0).shape == x.shape
    assert float(blurred(x, 2.0).std()) < 0.2
    torch.testing.assert_close(blurred(torch.ones(1, 3, 64, 64), 2.0), torch.ones(1, 3, 64, 64))


def test_statistics_are_stored_and_checked(reference, tmp_path, monkeypatch):
    weights = tmp_path / "eyes.safetensors"
    weights.write_bytes(b"weights")
    path = store_reference(reference, weights, tmp_path / "statistics")
    again = load_reference(tmp_path / "statistics")
    torch.testing.assert_close(again.covariance, reference.covariance, rtol=1e-5, atol=1e-5)
    assert again.card["floor"] == reference.card["floor"] and path.stat().st_size < 1_000_000
    monkeypatch.setattr(image_reference, "STATISTICS", tmp_path / "statistics")
    load_reference.cache_clear()
    with pytest.raises(ValueError, match="another classifier"):
        load_reference(tmp_path / "statistics")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="sha256"):
        load_reference(tmp_path / "statistics")
    load_reference.cache_clear()


def test_any_extractor_serves_the_frechet_distance():
    first, second = (to_pixels(pictures(40, seed)) for seed in (1, 2))

    def corner(pixels):
        assert pixels.dtype == torch.uint8 and pixels.shape[1:] == (3, 64, 64)
        return pixels[:, :, 0, 0].float()

    expected = frechet_distance(first[:, 0, 0].double(), second[:, 0, 0].double())
    assert frechet(first, second, corner) == pytest.approx(expected, rel=1e-6)
    assert frechet(first, first, corner) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match=r"\[n, h, w, 3\] uint8"):
        frechet(first, second.float(), corner)


def test_inception_features_come_from_torchmetrics_where_it_is(monkeypatch, tmp_path):
    asked = {}

    class Metric:
        def __init__(self, feature, **options):
            asked.update(options, feature=feature)
            self.inception = torch.nn.Flatten()

    module = types.ModuleType("torchmetrics.image.fid")
    module.FrechetInceptionDistance = Metric
    monkeypatch.setitem(sys.modules, "torchmetrics", types.ModuleType("torchmetrics"))
    monkeypatch.setitem(sys.modules, "torchmetrics.image", types.ModuleType("torchmetrics.image"))
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", module)
    weights = tmp_path / "inception.pth"
    weights.write_bytes(b"")
    extractor = inception_features(weights)
    assert extractor(torch.zeros(2, 3, 4, 4, dtype=torch.uint8)).shape == (2, 48)
    assert asked == {"feature": 2048, "feature_extractor_weights_path": str(weights)}
    with pytest.raises(FileNotFoundError, match="Inception weights"):
        inception_features(tmp_path / "none.pth")


def test_without_torchmetrics_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(ModuleNotFoundError, match="torchmetrics and torch-fidelity"):
        inception_features()


def images(n, seed):
    return Images(to_pixels(pictures(n, seed)), labels_of(n), tuple(map(str, range(n))))


@pytest.mark.parametrize("space", ["pixels", "features"])
def test_copies_are_told_from_new_pictures(eyes, reference, space):
    with_eyes = {} if space == "pixels" else {"model": eyes, "reference": reference}
    training, validation = images(200, 1), images(100, 2)
    new = memorisation.memorisation(pictures(50, 3), training, validation, **with_eyes)
    copies = to_range(training.pixels[10:60].flip(2))
    old = memorisation.memorisation(copies, training, validation, **with_eyes)
    assert new.space == space and 0.8 < new.ratio < 1.2 and new.copies < 0.1
    assert old.ratio < 0.01 and old.copies == 1
    assert old.samples.row.tolist() == list(range(10, 60))
    assert bool(old.samples.mirrored.all()) and f"{old.copies:.3f} nearer" in str(old)


def test_pixel_distances_are_root_mean_squares():
    training = Images(
        torch.zeros(2, 64, 64, 3, dtype=torch.uint8), torch.zeros(2).long(), ("a", "b")
    )
    x = torch.zeros(1, 3, 64, 64)
    x[:, 0] = 1  # two of three channels are 1 from black, one is 2
    found = memorisation.memorisation(x, training, training)
    # 0 is stored as 128 of 255, which is half a step above the middle.
    assert float(found.samples.distance) == pytest.approx(2**0.5, rel=0.005)


def test_the_nearest_is_the_nearest():
    rng = torch.Generator().manual_seed(0)
    points, plain, mirrored = (torch.randn(n, 5, generator=rng) for n in (30, 40, 40))
    found = nearest(points, plain, mirrored, batch=7)
    whole = torch.cdist(points.double(), torch.cat([plain, mirrored]).double()).min(1)
    torch.testing.assert_close(found.distance.double(), whole.values, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.row + 40 * found.mirrored, whole.indices)


def test_wrong_input_to_memorisation_is_refused(eyes):
    training = images(10, 1)
    with pytest.raises(ValueError, match="finite samples"):
        memorisation.memorisation(torch.zeros(0, 3, 64, 64), training, training)
    with pytest.raises(ValueError, match="neither"):
        memorisation.memorisation(pictures(10), training, training, model=eyes)


def test_the_figure_shows_the_closest_in_order():
    training = images(30, 1)
    x = pictures(12, 3)
    found = memorisation.memorisation(x, training, images(30, 2)).samples
    fig = neighbour_figure(x, found, training, number=4)
    titles = [float(ax.get_title("center")) for ax in fig.axes if ax.get_title("center")]
    assert len(titles) == 4 and titles == sorted(titles)
    with pytest.raises(ValueError, match="samples"):
        neighbour_figure(x[:3], found, training)


shipped = pytest.mark.skipif(
    not (image_reference.STATISTICS / "manifest.json").exists(),
    reason="the statistics are not shipped yet",
)


@shipped
def test_the_shipped_statistics_pass_their_own_checks():
    reference = load_reference()
    card = copy.deepcopy(reference.card)
    checks, floor = card["checks"], card["floor"]
    assert card["images"] == 3000 and reference.real.shape == (1000, 64)
    assert float(reference.covariance.trace()) == pytest.approx(100, rel=1e-4)
    assert checks["as they are"] < 2 * floor["300"]["fd"]
    for kind, doses in {"noise": "0.05 0.1 0.2", "blur": "0.5 1 2", "contrast": "1.5 2"}.items():
        series = [checks["as they are"], *(checks[f"{kind} {dose}"] for dose in doses.split())]
        assert series == sorted(series), kind
    classes = [checks["as they are"], *(checks[f"{k} classes of ten"] for k in (7, 5, 2))]
    assert classes == sorted(classes)
    assert floor["1000"]["fd"] < floor["300"]["fd"]
    for n in ("300", "1000"):
        assert 0.5 < floor[n]["noise_by_parts"] / floor[n]["noise"] < 2
    assert json.dumps(card)
