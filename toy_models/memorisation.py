"""Are samples copies? The nearest training image of each, against the same for new photographs.

A model that has learned by heart gives samples that lie nearer to a training image than a
photograph does that was never trained on. How near photographs lie is measured on the validation
images, so the verdict needs no threshold taken from elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from guidance_edu.figures import figure
from toy_models.classifier import Classifier, features_of
from toy_models.image_reference import Reference
from toy_models.imagenet64 import Images, to_pixels, to_range

RARE = 0.01  # the share of photographs that lie as near as what counts as a copy


@dataclass(frozen=True)
class Nearest:
    """The nearest training image of each picture.

    Shapes:  row [n] long, into the training images; distance [n]; mirrored [n] bool.
    Units:   distance: root mean square difference of pixels in -1 .. 1, or distance in features.
    """

    row: Tensor
    distance: Tensor
    mirrored: Tensor


@dataclass(frozen=True)
class Memorisation:
    """Nearest training images of samples and of validation images, in one space.

    ``ratio`` is the median distance of samples over that of validation images: near 1 for a model
    that makes new pictures, near 0 for one that copies. ``copies`` is the share of samples nearer
    than all but 1 % of the validation images: 0.01 for new photographs, 1 for copies.
    """

    space: str
    samples: Nearest
    validation: Nearest

    @property
    def ratio(self) -> float:
        """Median distance of the samples over that of the validation images."""
        return float(self.samples.distance.median() / self.validation.distance.median())

    @property
    def copies(self) -> float:
        """Share of samples nearer to a training image than nearly all new photographs are."""
        limit = self.validation.distance.double().quantile(RARE)
        return float((self.samples.distance.double() < limit).double().mean())

    def __str__(self) -> str:
        """Return one line for both numbers."""
        return (
            f"nearest training image in {self.space}: {self.ratio:.2f} of the distance of"
            f" validation images, {self.copies:.3f} nearer than all but {RARE:g} of them"
        )


def memorisation(
    x: Tensor,
    training: Images,
    validation: Images,
    model: Classifier | None = None,
    reference: Reference | None = None,
) -> Memorisation:
    """Find the nearest training images of samples; in pixels, or with both, in features.

    Training images count as they are and mirrored, since a model is trained on both.

    Shapes:  x [n, 3, 64, 64]; the images are those that the model was trained on, and new ones.
    Errors:  ValueError for no samples, or samples that are not finite; or where only one of
             classifier and reference is given.
    """
    if x.dim() != 4 or not len(x) or not bool(x.isfinite().all()):
        raise ValueError(f"expected finite samples [n, 3, h, w], got {list(x.shape)}")
    if (model is None) != (reference is None):
        raise ValueError("expected classifier and reference, or neither (for distances of pixels)")
    if model is None:
        scale = to_range(training.pixels[:1]).numel() ** 0.5

        def points(pixels: Tensor) -> Tensor:
            return to_range(pixels).flatten(1) / scale
    else:

        def points(pixels: Tensor) -> Tensor:
            return reference.project(features_of(model, pixels)[0]).float()

    plain, mirrored = points(training.pixels), points(training.pixels.flip(2))
    sets = (points(to_pixels(x)), points(validation.pixels))
    found = (nearest(each, plain, mirrored) for each in sets)
    return Memorisation("pixels" if model is None else "features", *found)


def nearest(points: Tensor, plain: Tensor, mirrored: Tensor, batch: int = 250) -> Nearest:
    """Return the nearest of two lists of candidates.

    Shapes:  points [n, d]; plain, mirrored [m, d].
    """
    rows, distances, turned = [], [], []
    for part in points.split(batch):
        both = torch.stack([torch.cdist(part, plain), torch.cdist(part, mirrored)])
        distance, row = both.min(2)
        kind = distance.argmin(0)
        rows.append(row.gather(0, kind[None])[0])
        # Matrix products lose half the digits of a small distance, and copies have one.
        candidates = torch.where(kind[:, None] == 1, mirrored[rows[-1]], plain[rows[-1]])
        distances.append((part - candidates).norm(dim=1))
        turned.append(kind == 1)
    return Nearest(torch.cat(rows), torch.cat(distances), torch.cat(turned))


def neighbour_figure(x: Tensor, found: Nearest, training: Images, number: int = 10) -> Figure:
    """Show the samples that lie nearest to a training image, each above that image.

    Nothing is chosen by hand: these are the ``number`` smallest distances, in order.

    Shapes:  x [n, 3, 64, 64]; found as for these samples.
    Errors:  ValueError where samples and neighbours are not of one number.
    """
    if len(x) != len(found.row):
        raise ValueError(f"expected {len(found.row)} samples, got {len(x)}")
    order = found.distance.argsort()[:number]
    fig, axes = figure(columns=len(order), rows=2, width=8.0, height=1.0, squeeze=False)
    for ax, row in zip(axes.T, order.tolist(), strict=True):
        near = training.pixels[found.row[row]]
        near = near.flip(1) if bool(found.mirrored[row]) else near
        for place, pixels in zip(ax, (to_pixels(x[row : row + 1])[0], near), strict=True):
            place.imshow(pixels.numpy(), interpolation="nearest")
            place.axis("off")
        ax[0].set_title(f"{float(found.distance[row]):.2f}", fontsize=8, loc="center")
    fig.suptitle("Samples nearest to a training image (above) and that image (below)", x=0.02,
                 ha="left", fontsize=11, fontweight="bold")  # fmt: skip
    return fig
