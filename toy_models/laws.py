"""Closed-form laws that every implementation and every sampler of the book must reproduce.

Each law assumes exact denoisers of Gaussian data and the exact solution of the probability-flow
ODE dx / dsigma = (x - D_w(x, sigma)) / sigma, down to sigma = 0. Samplers with finitely many steps
approach it. All functions take and return plain numbers.

Conventions: w = 1 means no guidance. s, S are standard deviations of the conditional N(m, s^2) and
of the unconditional N(0, S^2); for an unconditional mean M subtract it from m and add it back.

With a finite ``sigma_max`` the samples start there in one of two ways:

``"noise"``        N(0, sigma_max^2): what samplers do in practice
``"conditional"``  N(m, s^2 + sigma_max^2): true noisy samples, which w = 1 carries back exactly

Both tend to one limit as sigma_max grows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scipy.integrate import quad

from guidance_edu.guidance import cfg_plus_plus_w

STARTS = ("noise", "conditional")


class Gaussian(NamedTuple):
    """Mean and standard deviation of a one-dimensional Gaussian."""

    mean: float
    std: float


def cfg_std(
    w: float, s: float, S: float, sigma_max: float = math.inf, start: str = "noise"
) -> float:
    """Return the standard deviation that classifier-free guidance ends with on Gaussians.

    For sigma_max -> infinity this is s (s / S)^(w - 1).

    Units:   data units.
    Limits:  w = 1 gives s (from noise at a finite sigma_max: s / sqrt(1 + s^2 / sigma_max^2));
             w = 0 gives S; s = S gives s at every w; falls exponentially in w where s < S.
    Errors:  ValueError for numbers that are not finite, s, S or sigma_max not above 0, or an
             unknown start.
    Source:  own derivation: the ODE is linear, and its solution a product of two powers.
    Chapter: 02_classifier_free_guidance
    """
    _check(w=w)
    _check_positive(s=s, S=S)
    _check_start(sigma_max, start)
    if sigma_max == math.inf:
        return s * (s / S) ** (w - 1)
    began = sigma_max if start == "noise" else math.hypot(s, sigma_max)
    return _shrink(w, s, S, sigma_max) * began


def cfg_mean(
    w: float, m: float, s: float, S: float, sigma_max: float = math.inf, start: str = "noise"
) -> float:
    """Return the mean that classifier-free guidance ends with on Gaussians.

    With u = s / sqrt(s^2 + sigma^2) as the clock, which runs from about 0 (noise) to 1 (data),

        mean = w m * integral from u(sigma_max) to 1 of (r + (1 - r) u^2)^((w - 1) / 2) du
               + (share of the starting mean that is left),        r = (s / S)^2

    Units:   data units.
    Limits:  w = 1 gives m, w = 0 gives 0, s = S gives w m (each at sigma_max = infinity, or at any
             sigma_max for w = 1 from the conditional start); proportional to m. For s < S it is
             not monotone in w and tends to ``cfg_mean_limit``.
    Errors:  as cfg_std.
    Source:  own derivation: variation of constants in the linear ODE, then the substitution above.
    Chapter: 02_classifier_free_guidance
    """
    _check(w=w, m=m)
    _check_positive(s=s, S=S)
    _check_start(sigma_max, start)
    gained = w * m * _mean_integral(w, s, S, sigma_max)
    if sigma_max == math.inf or start == "noise":
        return gained
    return gained + m * _shrink(w, s, S, sigma_max)


def cfg_mean_limit(m: float, s: float, S: float) -> float:
    """Return the mean that classifier-free guidance tends to as w grows without end.

    It is the mode of the ratio p(x | c) / p(x), to which the sharpened density tends as well.

    Units:   data units.
    Limits:  s < S: m S^2 / (S^2 - s^2). s >= S: the ratio has no mode and the mean grows without
             end (infinite, with the sign of m). m = 0: 0.
    Errors:  ValueError for numbers that are not finite, or s or S not above 0.
    Source:  own derivation: Laplace's method on the integral of ``cfg_mean``.
    Chapter: 02_classifier_free_guidance
    """
    _check(m=m)
    _check_positive(s=s, S=S)
    if m == 0:
        return 0.0
    return m / (1 - (s / S) ** 2) if s < S else math.copysign(math.inf, m)


def cfg_interval(w: float, m: float, s: float, S: float, low: float, high: float) -> Gaussian:
    """Return mean and std where guidance acts only for low < sigma <= high.

    The flow starts at sigma_max = infinity. Above ``high`` the unguided flow is exact; below
    ``low`` it shrinks the offset from m and the std alike.

    Units:   data units.
    Limits:  w = 1 or low = high gives N(m, s^2); (0, infinity) gives cfg_mean and cfg_std.
    Errors:  as cfg_std; ValueError unless 0 <= low <= high.
    Source:  own derivation; the interval is Kynkäänniemi et al. 2024 (arXiv:2404.07724).
    Chapter: 02_classifier_free_guidance
    """
    _check(w=w, m=m, low=low)
    _check_positive(s=s, S=S)
    if not 0 <= low <= high:
        raise ValueError(f"expected 0 <= low <= high, got low={low} and high={high}")
    if low == high:
        return Gaussian(m, s)
    # Seen from sigma = low, the data are the data blurred by low, and the rest of the noise
    # counts from there.
    at_low, wide = math.hypot(s, low), math.hypot(S, low)
    rest = math.sqrt(high**2 - low**2)
    mean = cfg_mean(w, m, at_low, wide, rest, "conditional")
    std = cfg_std(w, at_low, wide, rest, "conditional")
    return Gaussian(m + (mean - m) * s / at_low, std * s / at_low)


def sharpened(w: float, m: float, s: float, S: float) -> Gaussian:
    """Return mean and std of the sharpened density, p(x | c)^w p(x)^(1 - w) normalised.

    This is what guidance is often said to sample from.

    Units:   data units.
    Limits:  w = 1 gives N(m, s^2), w = 0 gives N(0, S^2); equals the guided flow for s = S. For
             s < S the std falls only as w^(-1/2).
    Errors:  ValueError where no such density exists (w / s^2 <= (w - 1) / S^2: it cannot be
             normalised), for numbers that are not finite, or s or S not above 0.
    Source:  product of two Gaussians; named and criticised in Bradley & Nakkiran 2024
             (arXiv:2408.09000).
    Chapter: 02_classifier_free_guidance
    """
    _check(w=w, m=m)
    _check_positive(s=s, S=S)
    precision = w / s**2 - (w - 1) / S**2
    if precision <= 0:
        raise ValueError(
            f"no sharpened density exists for w={w}, s={s}, S={S}: its precision would be"
            f" {precision:g}"
        )
    return Gaussian(w * m / s**2 / precision, precision**-0.5)


def bad_version_std(w: float, s2: float, h2: float, k: float) -> float:
    """Return the std of a blurred model guided by a version that is blurred k times as much.

    Data N(0, s2), main model N(0, s2 + h2), guide N(0, s2 + k h2): each exact for its own density.

    Units:   s2, h2 are variances, in squared data units; the result is a standard deviation.
    Limits:  w = 1 gives sqrt(s2 + h2), w = 0 gives sqrt(s2 + k h2); k = 1 changes nothing.
    Errors:  ValueError for numbers that are not finite, s2 not above 0, h2 or k below 0.
    Source:  own derivation: ``cfg_std`` with both means 0.
    Chapter: 03_the_negative_term
    """
    _check(w=w)
    main, guide = _blurred_variances(s2, h2, k)
    return cfg_std(w, math.sqrt(main), math.sqrt(guide))


def bad_version_best_weight(s2: float, h2: float, k: float) -> float:
    """Return the w at which the guided blurred model ends with the std of the data, exactly.

        w* = 1 + ln(v_main / s2) / ln(v_guide / v_main)

    Units:   s2, h2 are variances, in squared data units.
    Limits:  h2 -> 0: 1 + 1 / (k - 1), the rule for errors in proportion; k = 0 (the guide is
             right): 0; k < 1 (the guide is better): below 1; k -> infinity: 1.
    Errors:  as bad_version_std; ValueError for h2 = 0 (nothing to correct) or k = 1 (the guide
             equals the main model, and no weight helps).
    Source:  own derivation from ``bad_version_std``.
    Chapter: 03_the_negative_term
    """
    main, _ = _blurred_variances(s2, h2, k)
    if h2 == 0 or k == 1:
        raise ValueError(
            f"expected h2 above 0 and k other than 1, got h2={h2} and k={k}: no best weight exists"
        )
    # log1p: for h2 far below s2 the logarithms of the ratios would lose their digits.
    return 1 + math.log1p(h2 / s2) / math.log1p((k - 1) * h2 / main)


def linear_error_best_weight(k: float) -> float:
    """Return 1 + 1 / (k - 1), the w that removes an error that is k times as large in the negative.

    Limits:  k = 2 gives 2; k = 0 gives 0 (the negative is right); k -> infinity gives 1; k < 1
             gives w < 1.
    Errors:  ValueError for k = 1 (no weight helps) or k not finite.
    Source:  own derivation: e + (w - 1)(e - k e) = 0.
    Chapter: 03_the_negative_term
    """
    _check(k=k)
    if k == 1:
        raise ValueError("expected k other than 1: errors that are equal cannot cancel")
    return 1 + 1 / (k - 1)


def blur_guidance_factor(w: float, h: float) -> float:
    """Return the factor on the std of one Fourier mode under blur guidance: exp(-(w - 1) h / 2).

    Stationary Gaussian data. The negative predicts the noise at x - h D(x): the denoised estimate
    is blurred, which takes the share h of this mode, and the same noise is put back. Positive and
    negative are combined as predictions of the noise.

    Limits:  w = 1 or h = 0 gives 1; independent of the mode's power. Combined as denoised samples
             instead, the std grows as sigma_min^(-(w - 1) h), without end.
    Errors:  ValueError for numbers that are not finite, or h outside [0, 1].
    Source:  own derivation for Hong et al. 2023 (SAG), global blur; their scale is w - 1.
    Chapter: 09_self_attention_guidance
    """
    _check(w=w, h=h)
    if not 0 <= h <= 1:
        raise ValueError(f"expected a removed share h from 0 to 1, got {h}")
    return math.exp(-(w - 1) * h / 2)


def wrong_level_factor(w: float, delta: float) -> float:
    """Return the factor on the std where the negative believes the noise level is sigma e^delta.

    Any Gaussian data; both see the same x and are combined as denoised samples. The mean stays.

    Limits:  e^((w - 1) delta): 1 for w = 1 or delta = 0; a negative that believes in more noise
             (delta > 0) widens the samples. A single Gaussian only: mixtures change their shares
             too.
    Errors:  ValueError for numbers that are not finite.
    Source:  own derivation for Sadat et al. 2025 (time-step guidance): Frullani's integral.
    Chapter: 08_time_step_guidance
    """
    _check(w=w, delta=delta)
    return math.exp((w - 1) * delta)


def wrong_level_noise_factor(w: float, delta: float, s: float, sigma_max: float) -> float:
    """Return the factor on the std where a predictor of noise believes the level is sigma e^delta.

    The negative answers epsilon(x, sigma e^delta), and the sampler, which knows sigma, reads it as
    the clean sample x - sigma epsilon. Samples start from noise at sigma_max.

        sqrt((1 + r^2 e^(2 delta))^(1 / e^delta) / (1 + r^2))^(w - 1),     r = sigma_max / s

    Units:   s and sigma_max in data units.
    Limits:  1 for w = 1 or delta = 0. A negative that believes in more noise (delta > 0) narrows
             the samples, and the more the higher sigma_max is: its ten-fold multiplies the factor
             by 10^(-(w - 1)(1 - e^(-delta))), without end. Opposite to ``wrong_level_factor``.
    Errors:  ValueError for numbers that are not finite, or s or sigma_max not above 0.
    Source:  own derivation for Sadat et al. 2025 (time-step guidance); the ODE is linear.
    Chapter: 08_time_step_guidance
    """
    _check(w=w, delta=delta)
    _check_positive(s=s, sigma_max=sigma_max)
    log_ratio = 2 * math.log(sigma_max / s)
    told = math.exp(-delta) * _log_one_plus_exp(log_ratio + 2 * delta)
    return math.exp((w - 1) * (told - _log_one_plus_exp(log_ratio)) / 2)


def icg_mean(
    w: float, m: float, means: Sequence[float], weights: Sequence[float] | None = None
) -> float:
    """Return the mean under guidance by a random class: m + (w - 1)(m - average of means).

    Gaussian classes of one standard deviation; the sample's class has mean m; the random class is
    drawn from all classes, once per sample or again at every step.

    Units:   data units.
    Limits:  w = 1 gives m; a single class gives m at every w; grows with w without end, unlike
             classifier-free guidance. A start from N(0, sigma_max^2) shrinks it by
             1 - s / sqrt(s^2 + sigma_max^2).
    Errors:  ValueError for numbers that are not finite, no means, or weights that do not fit.
    Source:  own derivation for Sadat et al. 2025 (independent condition guidance).
    Chapter: 07_independent_condition
    """
    _check(w=w, m=m)
    average, _ = _class_moments(means, weights)
    return m + (w - 1) * (m - average)


def icg_std_fixed(
    w: float, s: float, means: Sequence[float], weights: Sequence[float] | None = None
) -> float:
    """Return the std under guidance by a random class that each sample keeps to the end.

        sqrt(s^2 + (w - 1)^2 variance of the means)

    Units:   data units.
    Limits:  w = 1 or a single class gives s. Redrawn at every step, the random pushes average out
             and the std tends to s as the steps grow finer.
    Errors:  as icg_mean; ValueError for s not above 0.
    Source:  own derivation for Sadat et al. 2025 (independent condition guidance).
    Chapter: 07_independent_condition
    """
    _check(w=w)
    _check_positive(s=s)
    _, variance = _class_moments(means, weights)
    return math.sqrt(s**2 + (w - 1) ** 2 * variance)


# CFG++ (Chung et al. 2025): its law is the weight at which one of its steps is a step of
# ordinary guidance. It serves as a weight convention too, so it lives there.
cfg_plus_plus_weight = cfg_plus_plus_w


@dataclass(frozen=True)
class DegenerateCase:
    """A setting in which a method must do nothing: its negative equals its positive.

    ``exact`` says that the two agree bit for bit; otherwise they agree up to rounding.
    """

    method: str
    setting: str
    reason: str
    exact: bool


DEGENERATE_CASES = (
    DegenerateCase("every method", "w = 1", "the negative is not evaluated", True),
    DegenerateCase("autoguidance", "guide = main model", "equal models", True),
    DegenerateCase("SIMS", "synthetic weights = real weights", "equal models", True),
    DegenerateCase("ICG", "random condition = condition", "equal conditions", True),
    DegenerateCase("TSG", "perturbation scale = 0", "equal time embeddings", True),
    DegenerateCase("SWG", "one crop of full size", "the crop is the image", True),
    DegenerateCase("PAG", "one token", "a softmax over one token is 1", True),
    DegenerateCase("PAG", "attention is already the identity", "nothing is replaced", False),
    DegenerateCase("SEG", "one token", "a blur of one token is itself", True),
    DegenerateCase("SEG", "all queries equal", "a blur that sums to 1 keeps constants", False),
    DegenerateCase("SEG", "blur sigma -> 0", "the kernel becomes its centre", False),
    DegenerateCase("SAG", "uniform attention", "no token receives more than the mean", False),
)


def _shrink(w: float, s: float, S: float, sigma_max: float) -> float:
    """Return x(0) / x(sigma_max) of the homogeneous guided ODE."""
    log_shrink = -w * math.log1p((sigma_max / s) ** 2) + (w - 1) * math.log1p((sigma_max / S) ** 2)
    return math.exp(log_shrink / 2)


def _mean_integral(w: float, s: float, S: float, sigma_max: float) -> float:
    ratio = (s / S) ** 2
    lowest = 0.0 if sigma_max == math.inf else s / math.hypot(s, sigma_max)
    # Large |w| makes a spike at one end or a jump near u = s / S; the break points find them.
    marks = (lowest, s / S, 1 - 10 / (10 + abs(w)), 10 / (10 + abs(w)))
    marks = sorted({mark for mark in marks if lowest < mark < 1})
    value, _ = quad(
        lambda u: (ratio + (1 - ratio) * u * u) ** ((w - 1) / 2),
        lowest,
        1.0,
        points=marks or None,
        limit=400,
        epsabs=0,
        epsrel=1e-11,
    )
    return value


def _blurred_variances(s2: float, h2: float, k: float) -> tuple[float, float]:
    _check(h2=h2, k=k)
    _check_positive(s2=s2)
    if h2 < 0 or k < 0:
        raise ValueError(f"expected h2 and k of at least 0, got h2={h2} and k={k}")
    return s2 + h2, s2 + k * h2


def _log_one_plus_exp(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def _class_moments(means: Sequence[float], weights: Sequence[float] | None) -> tuple[float, float]:
    means = [float(mean) for mean in means]
    weights = [1.0] * len(means) if weights is None else [float(weight) for weight in weights]
    if not means or len(weights) != len(means):
        raise ValueError(f"expected a weight for each mean, got {len(means)} and {len(weights)}")
    if not all(map(math.isfinite, means + weights)) or min(weights) < 0 or sum(weights) <= 0:
        raise ValueError(f"expected finite means and weights >= 0, got {means} and {weights}")
    total = math.fsum(weights)
    average = math.fsum(q * mean for q, mean in zip(weights, means, strict=True)) / total
    spread = math.fsum(q * (mean - average) ** 2 for q, mean in zip(weights, means, strict=True))
    return average, spread / total


def _check(**numbers: float) -> None:
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise ValueError(f"expected a finite {name}, got {number}")


def _check_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not (math.isfinite(number) and number > 0):
            raise ValueError(f"expected {name} above 0, got {number}")


def _check_start(sigma_max: float, start: str) -> None:
    if not sigma_max > 0:
        raise ValueError(f"expected sigma_max above 0, got {sigma_max}")
    if start not in STARTS:
        raise ValueError(f"unknown start {start!r}; expected one of {', '.join(STARTS)}")
