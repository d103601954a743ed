"""The Frechet distance in any features: those of Inception too, where a reader has its weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from guidance_edu.metrics import frechet_distance_from_moments
from toy_models.classifier import load_classifier
from toy_models.image_reference import moments_of
from toy_models.imagenet64 import to_range

Extractor = Callable[[Tensor], Tensor]


def frechet(
    first: Tensor, second: Tensor, extractor: Extractor | None = None, batch: int = 50
) -> float:
    """Return the Frechet distance of two sets of pictures in the features of any network.

    With ``inception_features()`` this is the published FID of the two sets; by default, the
    classifier's features on all 256 axes, unscaled.

    Shapes:  first, second [n, 64, 64, 3] uint8; extractor maps [b, 3, 64, 64] uint8 to [b, d].
    Limits:  0 for equal sets; falls with larger sets: compare only equal n.
    Errors:  ValueError for other shapes or types, or features that are not [b, d].
    Source:  Heusel et al. 2017 (arXiv:1706.08500), with Inception features.
    """
    if extractor is None:
        model = load_classifier()

        def extractor(pixels: Tensor) -> Tensor:
            return model.features(to_range(pixels.permute(0, 2, 3, 1)))

    moments = []
    for name, pixels in (("first", first), ("second", second)):
        if pixels.dim() != 4 or pixels.shape[-1] != 3 or pixels.dtype != torch.uint8:
            raise ValueError(
                f"expected {name} of shape [n, h, w, 3] uint8, got {list(pixels.shape)}"
                f" {pixels.dtype}"
            )
        with torch.no_grad():
            parts = [extractor(part.permute(0, 3, 1, 2)) for part in pixels.split(batch)]
        moments += moments_of(torch.cat(parts).double())
    return frechet_distance_from_moments(*moments)


def inception_features(weights: str | Path | None = None) -> Extractor:
    """Return the features of FID, where torchmetrics, torch-fidelity and the weights are at hand.

    ``weights`` is the file of Inception weights; without it, the packages look for their own copy
    and may try to fetch it.

    Errors:  ModuleNotFoundError, with what to install, where a package is missing;
             FileNotFoundError for weights that are not there.
    Source:  Heusel et al. 2017 (arXiv:1706.08500), sec. 4: 2048 features of Inception-v3.
    """
    if weights is not None and not Path(weights).is_file():
        raise FileNotFoundError(f"no file {weights} with Inception weights")
    try:
        module = importlib.import_module("torchmetrics.image.fid")
        options = {} if weights is None else {"feature_extractor_weights_path": str(weights)}
        metric = module.FrechetInceptionDistance(feature=2048, **options)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"FID needs the packages torchmetrics and torch-fidelity ({error}); the book's own"
            " measures need neither"
        ) from error
    network: nn.Module = metric.inception.eval()
    return lambda pixels: network(pixels.contiguous())
