"""What real photographs of the book's ten classes look like to the classifier, in one small file.

The reference are the 300 training images of each class that the classifier has not seen
(:func:`toy_models.classifier.seen`). From them come the principal axes of the features, mean and
covariance, and how far a Frechet distance is from 0 even between photographs: its floor.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save as write_tensors
from torch import Tensor

from guidance_edu.checkpoints import MANIFEST, read_manifest, read_safetensors, write_whole
from guidance_edu.metrics import frechet_distance_from_moments
from guidance_edu.settings import progress
from toy_models.classifier import CLASSIFIER, WEIGHTS, Classifier, features_of, only, seen
from toy_models.imagenet64 import BOOK, Images, load, to_pixels, to_range

STATISTICS = Path(__file__).resolve().parent / "statistics"
NAME = "imagenet64-book"
SIZES = {300: "sweep", 1000: "table"}
AXES = 64  # principal axes of the features that are kept
UNITS = 100.0  # the variance of real photographs: what a single average image would score
GROUPS = 10  # parts that are left out in turn, for the noise of a result


@dataclass(frozen=True)
class Reference:
    """Stored statistics of the real photographs.

    Shapes:  centre [256], basis [256, 64]; mean [64], covariance [64, 64] of the reference;
             real [1000, 64] some of its features, class by class in turn; spread [10], the mean
             distance of two photographs of a class.
    """

    centre: Tensor
    basis: Tensor
    mean: Tensor
    covariance: Tensor
    real: Tensor
    spread: Tensor
    card: dict

    def project(self, features: Tensor) -> Tensor:
        """Return features on the principal axes. Shapes: features [n, 256]; result [n, 64]."""
        return (features.double() - self.centre) @ self.basis


def moments_of(points: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and covariance. Shapes: points [n, d]; results [d] and [d, d].

    Errors:  ValueError for fewer than two points, or another shape.
    """
    if points.dim() != 2 or len(points) < 2:
        raise ValueError(f"expected points of shape [n, d] with n >= 2, got {list(points.shape)}")
    rest = points - points.mean(0)
    return points.mean(0), rest.T @ rest / (len(points) - 1)


def feature_distance(points: Tensor, reference: Reference) -> float:
    """Return the FD of points in feature space, of any number and any mix of classes.

    Shapes:  points [n, 64], as :meth:`Reference.project` gives them.
    Units:   percent of the variance of real photographs.
    """
    return frechet_distance_from_moments(*moments_of(points), reference.mean, reference.covariance)


def class_spread(points: Tensor, labels: Tensor) -> Tensor:
    """Return the mean distance of two samples of a class, for each class.

    Shapes:  points [n, d], labels [n]; result [10]. NaN for a class of fewer than two samples.
    """
    return torch.stack([torch.pdist(points[labels == label]).mean() for label in range(len(BOOK))])


def parts_of(labels: Tensor, parts: int = GROUPS) -> Tensor:
    """Return a part from 0 to ``parts`` - 1 for each sample, each with as many of every class.

    Shapes:  labels [n]; result [n] long.
    """
    part = torch.empty_like(labels)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        part[rows] = torch.arange(len(rows)) % parts
    return part


def in_turn(labels: Tensor) -> Tensor:
    """Return an order in which the classes take turns. Shapes: labels [n]; result [n] long."""
    place = torch.empty_like(labels)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        place[rows] = torch.arange(len(rows))
    return torch.argsort(place * (int(labels.max()) + 1) + labels)


def jackknife(values: tuple[float, ...] | list[float]) -> float:
    """Return the standard deviation that the values without each part imply for the whole.

    Limits:  0 where leaving out a part never matters.
    Source:  Efron & Stein 1981 (The jackknife estimate of variance), for parts of equal size.
    """
    middle = sum(values) / len(values)
    return math.sqrt((len(values) - 1) / len(values) * sum((v - middle) ** 2 for v in values))


def with_parts(
    points: Tensor, labels: Tensor, reference: Reference
) -> tuple[float, tuple[float, ...]]:
    """Return the FD of points, and what it is without each tenth of them.

    Shapes:  points [n, 64]; labels [n].
    """
    part = parts_of(labels)
    without = tuple(feature_distance(points[part != k], reference) for k in range(GROUPS))
    return feature_distance(points, reference), without


@cache
def load_reference(folder: Path = STATISTICS) -> Reference:
    """Return the stored statistics.

    Errors:  FileNotFoundError or ValueError where they are missing, damaged, or belong to another
             classifier than the shipped one.
    """
    card = read_manifest(folder)[NAME]
    tensors = read_safetensors(folder / f"{NAME}.safetensors", card["sha256"])
    shipped = read_manifest(WEIGHTS).get(CLASSIFIER, {}).get("sha256")
    if folder == STATISTICS and card["classifier_sha256"] != shipped:
        raise ValueError(f"{NAME} was made with another classifier than the shipped one")
    names = ("centre", "basis", "mean", "covariance", "real", "spread")
    return Reference(*(tensors[name].double() for name in names), card)


def make_reference(data: str | Path, model: Classifier) -> Reference:
    """Measure the photographs that the classifier has not seen.

    Errors:  FileNotFoundError where the data are not packed; ValueError where images are missing.
    """
    images = only(load(data, "train", tuple(BOOK)), lambda file: not seen(file))
    if not len(images) or len(set(torch.bincount(images.labels).tolist())) != 1:
        raise ValueError(f"expected as many unseen images of each class, got {len(images)}")
    features = features_of(model, images.pixels)[0].double()
    centre, covariance = moments_of(features)
    variances, axes = torch.linalg.eigh(covariance)
    variances, axes = variances.flip(0)[:AXES], axes.flip(1)[:, :AXES]
    # The sign of an axis is arbitrary and would differ between machines.
    axes = axes * axes.sum(0).sign()
    basis = axes * math.sqrt(UNITS / float(variances.sum()))
    points = (features - centre) @ basis
    order = in_turn(images.labels)
    card = {
        "images": len(images),
        "images_sha256": images.sha256(),
        "variance_kept": round(float(variances.sum() / covariance.trace()), 4),
    }
    mean, covariance = moments_of(points)
    spread = class_spread(points, images.labels)
    rows = order[: max(SIZES)]
    reference = Reference(centre, basis, mean, covariance, points[rows], spread, card)
    card["floor"] = {str(n): _floor(points, images.labels, reference, n) for n in SIZES}
    card["checks"] = sanity(load(data, "val", tuple(BOOK)), model, reference)
    return reference


def store_reference(reference: Reference, classifier: Path, folder: Path = STATISTICS) -> Path:
    """Write the statistics and their card; ``classifier`` is the file of weights behind them."""
    names = ("centre", "basis", "mean", "covariance", "real", "spread")
    tensors = {name: getattr(reference, name).float().contiguous() for name in names}
    content = write_tensors(tensors)
    card = {
        **reference.card,
        "classifier_sha256": hashlib.sha256(classifier.read_bytes()).hexdigest(),
        "licence": "statistics of ImageNet photographs: non-commercial research and teaching",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    path = folder / f"{NAME}.safetensors"
    text = json.dumps({NAME: card}, indent=2) + "\n"
    write_whole({path: content, folder / MANIFEST: text.encode()})
    return path


def sanity(images: Images, model: Classifier, reference: Reference) -> dict[str, float]:
    """Return the FD of photographs, and of the same after five kinds of damage.

    A distance that means something is small for the first and grows with each dose of the others.

    Errors:  ValueError for no images.
    """
    if not len(images):
        raise ValueError("expected photographs, got none")
    rng = torch.Generator().manual_seed(0)
    x = to_range(images.pixels)
    noise = torch.randn(x.shape, generator=rng)
    pictures = {"as they are": x}
    pictures |= {f"noise {s:g}": x + s * noise for s in (0.05, 0.1, 0.2)}
    pictures |= {f"blur {s:g}": blurred(x, s) for s in (0.5, 1.0, 2.0)}
    pictures |= {f"contrast {s:g}": x * s for s in (1.5, 2.0)}
    grey = x.mean(1, keepdim=True)
    pictures |= {f"colour {s:g}": grey + (x - grey) * s for s in (0.5, 0.0)}
    found, of_class = {}, {}
    for name, picture in pictures.items():
        features, logits = features_of(model, to_pixels(picture))
        points = reference.project(features)
        found[name] = round(feature_distance(points, reference), 3)
        right = (logits[:, : len(BOOK)].argmax(1) == images.labels).double().mean()
        found[f"accuracy, {name}"] = round(float(right), 3)
        of_class[name] = points
    points = of_class["as they are"]
    for classes in (7, 5, 2):
        kept = points[images.labels < classes]
        found[f"{classes} classes of ten"] = round(feature_distance(kept, reference), 3)
    return found


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Return pictures after a Gaussian blur, with mirrored borders.

    Shapes:  x [n, 3, h, w].
    Units:   sigma in pixels.
    """
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).reshape(1, 1, -1, 1).repeat(3, 1, 1, 1)
    x = F.conv2d(F.pad(x, (0, 0, reach, reach), mode="reflect"), kernel, groups=3)
    return F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="reflect"), kernel.mT, groups=3)


def _floor(
    points: Tensor, labels: Tensor, reference: Reference, n: int, repeats: int = 20
) -> dict[str, float]:
    """Return the FD of n photographs from all others, over many draws of equal share a class."""
    found, implied = [], []
    for repeat in progress(range(repeats), f"FD of {n} photographs"):
        shuffled = torch.randperm(len(points), generator=torch.Generator().manual_seed(repeat))
        order = shuffled[in_turn(labels[shuffled])]
        chosen, rest = order[:n], order[n:]
        others = Reference(
            *(getattr(reference, k) for k in ("centre", "basis")),
            *moments_of(points[rest]),
            reference.real,
            reference.spread,
            {},
        )
        fd, without = with_parts(points[chosen], labels[chosen], others)
        found.append(fd)
        implied.append(jackknife(without))
    values = torch.tensor(found)
    return {
        "fd": round(float(values.mean()), 3),
        "noise": round(float(values.std()), 3),
        "noise_by_parts": round(sum(implied) / repeats, 3),
        "draws": repeats,
    }
