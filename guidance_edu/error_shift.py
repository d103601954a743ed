"""Where a denoiser errs, where its negative errs, and which weight would cancel the error.

With a known truth D*, write D_pos = D* + e_pos and D_neg = D* + e_neg. The guided error is

    D_w - D* = e_pos + (w - 1) (e_pos - e_neg)

so that guidance helps exactly as far as the negative errs *in the same direction, but further*.
For e_neg = k e_pos the weight w = 1 + 1 / (k - 1) removes the error; for errors that have nothing
to do with one another the best weight is near 1 and nothing is gained.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from guidance_edu.denoisers import Denoiser, check_sigma


@dataclass(frozen=True)
class ErrorShift:
    """What error_shift measured over a set of points.

    Shapes:  error_positive, error_negative [n, ...], in data units, float64: D - D*.
    Units:   rms_positive and rms_negative: root mean square length of a sample's error, in units
             of sigma; that is the length of the error of the predicted noise.
    Limits:  ratio = rms_negative / rms_positive. ``cosine`` weighs points by their error lengths,
             ``median_cosine`` counts each point once (points where an error is 0 left out).
             Whatever is 0 / 0 is NaN, so that no comparison with it holds by accident.
    """

    n: int
    rms_positive: float
    rms_negative: float
    ratio: float
    cosine: float
    median_cosine: float
    best_w: float
    sigma: float | Tensor
    error_positive: Tensor = field(repr=False)
    error_negative: Tensor = field(repr=False)

    def region(self, mask: Tensor) -> ErrorShift:
        """Return the same measures for a part of the points.

        Shapes:  mask [n] bool.
        Errors:  ValueError for another shape or dtype, or a mask that selects nothing.
        """
        if mask.shape != (self.n,) or mask.dtype != torch.bool:
            raise ValueError(
                f"expected a mask of shape [{self.n}] and dtype bool, got {list(mask.shape)}"
                f" {str(mask.dtype).removeprefix('torch.')}"
            )
        if not bool(mask.any()):
            raise ValueError("expected a mask that selects at least one point, got none")
        mask = mask.to(self.error_positive.device)
        sigma = self.sigma[mask] if isinstance(self.sigma, Tensor) else self.sigma
        return _measure(self.error_positive[mask], self.error_negative[mask], sigma)


def best_weight(error_positive: Tensor, error_negative: Tensor) -> float:
    """Return the w that minimises the mean squared length of the guided error.

        w* = 1 - <e_pos, d> / |d|^2        d = e_pos - e_neg

    Without a known truth, take clean samples x0 and pass D_pos - x0 and D_neg - x0: the noise in
    x0 is on average orthogonal to d, so that many samples give the same w*.

    Shapes:  error_positive, error_negative [n, ...]; one w for all points.
    Limits:  e_neg = k e_pos gives 1 + 1 / (k - 1); e_pos = 0 gives 1; e_neg = 0 gives 0 (take the
             negative); orthogonal errors of equal length give 1/2; unchanged by rotation and scale.
             Equal errors give NaN: guidance does nothing at any w, so there is no best one.
    Errors:  ValueError for shapes that differ, no points, or values that are not finite.
    Source:  least squares on Karras et al. 2024 (arXiv:2406.02507), eq. 3.
    Chapter: 03_the_negative_term
    """
    _check_errors(error_positive, error_negative)
    scale = float(torch.maximum(error_positive.abs().max(), error_negative.abs().max()))
    if scale == 0:
        return math.nan
    # Divided by their size first: squares of errors of 1e-200 would vanish.
    positive, negative = error_positive.double() / scale, error_negative.double() / scale
    difference = positive - negative
    length = float(difference.square().sum())
    if length == 0:
        return math.nan
    return 1 - float((positive * difference).sum()) / length


def error_shift(
    positive: Denoiser,
    negative: Denoiser,
    truth: Denoiser,
    x: Tensor,
    sigma: float | Tensor,
    condition: Tensor | None = None,
) -> ErrorShift:
    """Compare the errors of a positive and a negative denoiser at given points.

    All three are called as D(x, sigma, condition), once each and without gradients.

    Shapes:  x [n, ...]; sigma a float above 0 or [n]; condition None or [n].
    Units:   see ErrorShift. Where sigma differs from point to point, errors count in units of
             their own sigma throughout, also for the cosine and the best weight.
    Limits:  negative = positive gives ratio 1, cosine 1 and best_w NaN; a positive without error
             gives best_w 1.
    Errors:  ValueError for a bad sigma, sigma = 0, no points, predictions of another shape than x,
             or predictions that are not finite.
    Source:  the quantities in words: Karras et al. 2024 (arXiv:2406.02507), sec. 3.
    Chapter: 03_the_negative_term
    """
    level = check_sigma(x, sigma)
    if not len(x):
        raise ValueError("expected at least one point, got none")
    if not bool((level > 0).all()):
        raise ValueError("expected sigma above 0: at sigma = 0 every denoiser returns x")
    with torch.no_grad():
        outputs = [model(x, sigma, condition) for model in (truth, positive, negative)]
    for name, output in zip(("truth", "positive", "negative"), outputs, strict=True):
        if output.shape != x.shape:
            raise ValueError(
                f"expected the {name} to return shape {list(x.shape)}, got {list(output.shape)}"
            )
        if not bool(output.isfinite().all()):
            raise ValueError(f"the {name} returned NaN or infinity")
    exact, good, bad = (output.double() for output in outputs)
    shared = level.dim() == 0
    return _measure(good - exact, bad - exact, float(sigma) if shared else level.flatten().double())


def by_region(
    positive: Denoiser,
    negative: Denoiser,
    truth: Denoiser,
    x: Tensor,
    sigma: float | Tensor,
    masks: Mapping[str, Tensor],
    condition: Tensor | None = None,
) -> dict[str, ErrorShift]:
    """Measure the error shift on several parts of the points, evaluating each model once.

    ``by_region(main, guide, world, x, .03, {"on data": inside, "astray": ~inside})``

    Shapes:  x [n, ...]; every mask [n] bool; masks may overlap.
    Limits:  a mask that is True everywhere gives what error_shift gives.
    Errors:  as error_shift; ValueError, naming the mask, for a mask of wrong shape or an empty one.
    Chapter: 03_the_negative_term
    """
    everywhere = error_shift(positive, negative, truth, x, sigma, condition)
    result = {}
    for name, mask in masks.items():
        try:
            result[name] = everywhere.region(mask)
        except ValueError as error:
            raise ValueError(f"region {name!r}: {error}") from None
    return result


def along(
    positive: Denoiser,
    negative: Denoiser,
    truth: Denoiser,
    states: Iterable[tuple],
    condition: Tensor | None = None,
    mask: Tensor | None = None,
) -> list[ErrorShift]:
    """Measure the error shift at each noise level of a sampling run.

    ``along(main, guide, world, trajectory, mask=astray)``: a mask chosen by where the samples end
    picks the same samples at every level.

    Shapes:  states: tuples that begin with sigma and x [n, ...], as the samplers yield them; mask
             None or [n] bool. The result keeps their order; each entry carries its sigma.
    Limits:  a state at sigma = 0 is passed over, since nothing is left to denoise.
    Errors:  as error_shift and ErrorShift.region; ValueError where no state has sigma above 0.
    Chapter: 03_the_negative_term
    """
    result = []
    for sigma, x, *_ in states:
        if float(sigma) == 0:
            continue
        chosen = slice(None)
        if mask is not None:
            if mask.shape != x.shape[:1] or mask.dtype != torch.bool or not bool(mask.any()):
                raise ValueError(
                    f"expected a mask of shape [{len(x)}] and dtype bool with a True, got"
                    f" {list(mask.shape)} {str(mask.dtype).removeprefix('torch.')}"
                )
            chosen = mask.to(x.device)
        labels = None if condition is None else condition.to(x.device)[chosen]
        result.append(error_shift(positive, negative, truth, x[chosen], float(sigma), labels))
    if not result:
        raise ValueError("expected at least one state with sigma above 0, got none")
    return result


def _measure(positive: Tensor, negative: Tensor, sigma: float | Tensor) -> ErrorShift:
    """Reduce two error fields to the few numbers that decide whether guidance can help."""
    level = sigma.reshape(-1, 1) if isinstance(sigma, Tensor) else sigma
    good, bad = positive.flatten(1) / level, negative.flatten(1) / level  # [n, d]
    length_good, length_bad = good.norm(dim=1), bad.norm(dim=1)
    products = (good * bad).sum(1)
    both = length_good * length_bad
    cosines = (products / both)[both > 0]
    rms_good = float(length_good.square().mean().sqrt())
    rms_bad = float(length_bad.square().mean().sqrt())
    return ErrorShift(
        n=len(good),
        rms_positive=rms_good,
        rms_negative=rms_bad,
        ratio=_divide(rms_bad, rms_good),
        cosine=_divide(float(products.mean()), rms_good * rms_bad),
        median_cosine=float(cosines.median()) if len(cosines) else math.nan,
        best_w=best_weight(good, bad),
        sigma=sigma,
        error_positive=positive,
        error_negative=negative,
    )


def _divide(top: float, bottom: float) -> float:
    if bottom == 0:
        return math.inf if top > 0 else math.nan
    return top / bottom


def _check_errors(positive: Tensor, negative: Tensor) -> None:
    if positive.shape != negative.shape or positive.dim() < 1 or not positive.numel():
        raise ValueError(
            f"expected two errors of one shape [n, ...] with n >= 1, got {list(positive.shape)}"
            f" and {list(negative.shape)}"
        )
    for name, value in (("positive", positive), ("negative", negative)):
        if not bool(value.isfinite().all()):
            raise ValueError(f"expected a finite error of the {name}, got NaN or infinity")
