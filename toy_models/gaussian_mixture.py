"""Worlds whose truth is known: mixtures of Gaussians, exact at every noise level.

Adding noise of standard deviation sigma turns N(mean, C) into N(mean, C + sigma^2 I), so density,
score, denoiser and samples have closed forms for every sigma. All sums over components run in log
space: nothing under- or overflows, however far a point lies from the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from guidance_edu.denoisers import check_condition, check_sigma

CHUNK = 2**19  # numbers in one [points, components] table; larger ones leave the cache
FLOOR = -60.0  # e^-60 = 1e-26, times 1e6 components, is below the rounding of a float64 sum


class GaussianMixture:
    """A mixture of K Gaussians in d dimensions; itself an exact, unconditional denoiser.

    Shapes:  weights [K]; means [K, d]; covariances [K, d, d]; x [n, d]; sigma float or [n].
    Units:   weights are relative and are normalised.
    Limits:  finite and correct at distance 1e4 from the data and for sigma from 1e-4 to 1e3;
             denoise(x, sigma) = x + sigma^2 score(x, sigma). It computes in its own dtype and on
             its own device; denoised samples and scores come back in those of x.
    Errors:  ValueError for an empty mixture, weights that are not positive, a covariance that is
             not symmetric positive definite, shapes that do not fit, or values not finite.
    Source:  Tweedie's formula: Robbins 1956; Efron 2011, eq. 1.4.
    Chapter: 01_denoisers_and_samplers
    """

    def __init__(
        self,
        weights: Tensor | Sequence,
        means: Tensor | Sequence,
        covariances: Tensor | Sequence,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ):
        weights, means, covariances = (
            torch.as_tensor(value, dtype=torch.float64, device="cpu")
            for value in (weights, means, covariances)
        )
        _check_parameters(weights, means, covariances)
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"expected a torch dtype, got {dtype!r}")
        self.dtype, self.device = dtype, torch.device(device)
        self._log_weights = (weights / weights.sum()).log()
        self._means, self._covariances = means, covariances
        self._variances, self._axes = torch.linalg.eigh(covariances)  # [K, d], [K, d, d]
        # A singular covariance has an eigenvalue of 0 up to rounding, on either side.
        rounding = means.shape[1] * torch.finfo(torch.float64).eps * self._variances[:, -1:]
        singular = (self._variances <= rounding.clamp_min(0)).any(1)
        if bool(singular.any()):
            bad = int(singular.nonzero()[0])
            raise ValueError(f"expected positive definite covariances; component {bad} is singular")

    def __repr__(self) -> str:
        """Say how many components live where."""
        kind = str(self.dtype).removeprefix("torch.")
        return f"GaussianMixture({self.components} components in {self.dimension}D, {kind})"

    @property
    def components(self) -> int:
        """Number of Gaussians."""
        return len(self._log_weights)

    @property
    def dimension(self) -> int:
        """Number of coordinates of a sample."""
        return self._means.shape[1]

    @property
    def weights(self) -> Tensor:
        """Normalised weights [K]."""
        return self._place(self._log_weights.exp())

    @property
    def means(self) -> Tensor:
        """Component means [K, d]."""
        return self._place(self._means)

    @property
    def covariances(self) -> Tensor:
        """Component covariances [K, d, d]."""
        return self._place(self._covariances)

    def to(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> GaussianMixture:
        """Return the same mixture that computes in another dtype or on another device."""
        return GaussianMixture(
            self._log_weights.exp(),
            self._means,
            self._covariances,
            dtype or self.dtype,
            device or self.device,
        )

    def select(self, components: Tensor | Sequence[int]) -> GaussianMixture:
        """Return the mixture of some components, with weights normalised again.

        Shapes:  components: indices, or a bool mask [K].
        Errors:  ValueError when none is selected.
        """
        chosen = torch.as_tensor(components).cpu()
        if chosen.numel() == 0:
            raise ValueError("expected at least one component, got none")
        return GaussianMixture(
            self._log_weights[chosen].exp(),
            self._means[chosen],
            self._covariances[chosen],
            self.dtype,
            self.device,
        )

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean [d] and covariance [d, d] of the whole mixture."""
        weights = self._log_weights.exp()
        mean = weights @ self._means
        centred = self._means - mean
        spread = torch.einsum("k,ki,kj->ij", weights, centred, centred)
        return self._place(mean), self._place(
            spread + torch.einsum("k,kij->ij", weights, self._covariances)
        )

    def sample(self, n: int, rng: torch.Generator, sigma: float | Tensor = 0.0) -> Tensor:
        """Draw n points from the mixture blurred by noise of standard deviation sigma.

        Shapes:  result [n, d]; sigma float or [n].
        Limits:  the same rng gives the same points on every device, in every dtype.
        Errors:  ValueError when n is below 1.
        """
        if n < 1:
            raise ValueError(f"expected to draw at least one point, got n = {n}")
        chosen = torch.multinomial(self._log_weights.exp(), n, replacement=True, generator=rng)
        unit = torch.randn(n, self.dimension, generator=rng, dtype=torch.float64)
        axes, spread = self._axes[chosen], self._variances[chosen].sqrt()
        x = self._means[chosen] + torch.einsum("nij,nj->ni", axes, spread * unit)
        noise = torch.randn(n, self.dimension, generator=rng, dtype=torch.float64)
        return self._place(x + check_sigma(x, torch.as_tensor(sigma).cpu()) * noise)

    def log_density(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """Return ln p(x; sigma) of the blurred mixture.

        Shapes:  x [n, d]; sigma float or [n]; result [n], in nats.
        """
        return self._over_components(x, sigma, lambda part: part.logits.logsumexp(-1))

    def responsibilities(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """Return the posterior probability of each component given x.

        Shapes:  x [n, d]; sigma float or [n]; result [n, K], rows sum to 1.
        """
        return self._over_components(x, sigma, lambda part: part.logits.softmax(-1))

    def nearest_component(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """Return the index of the most probable component. Shapes: x [n, d]; result [n] long."""
        return self._over_components(x, sigma, lambda part: part.logits.argmax(-1))

    def score(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """Return the gradient of ln p(x; sigma) with respect to x.

        Shapes:  x, result [n, d]; sigma float or [n].
        """
        return self._over_components(x, sigma, lambda part: part.score()).to(x)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Return the mean of the clean samples that may have become x.

        Shapes:  x, result [n, d]; sigma float or [n].
        Limits:  sigma = 0 returns x.
        """
        return self._over_components(x, sigma, lambda part: part.denoised()).to(x)

    def __call__(self, x: Tensor, sigma: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """Denoise; a plain mixture has no classes, so a condition is an error."""
        if condition is not None:
            raise ValueError("a plain mixture has no classes; expected condition=None")
        return self.denoise(x, sigma)

    def _place(self, value: Tensor) -> Tensor:
        return value.to(self.device, self.dtype)

    def _over_components(self, x: Tensor, sigma: float | Tensor, answer) -> Tensor:
        """Compute an answer chunk by chunk from the table of component logits."""
        if not isinstance(x, Tensor):
            raise TypeError(f"expected x as a tensor [n, {self.dimension}], got {type(x).__name__}")
        if x.dim() != 2 or x.shape[1] != self.dimension or not x.is_floating_point():
            raise ValueError(
                f"expected x of shape [n, {self.dimension}] in floating point,"
                f" got {list(x.shape)} {str(x.dtype).removeprefix('torch.')}"
            )
        x = x.to(self.device, self.dtype)
        if not bool(x.isfinite().all()):
            raise ValueError("expected finite x, got NaN or infinity")
        sigma = check_sigma(x, sigma)
        if sigma.dim() and len(sigma) and bool((sigma == sigma[0]).all()):
            sigma = sigma[0, 0]
        rows = max(1, CHUNK // (self.components * (1 if sigma.dim() == 0 else self.dimension)))
        if sigma.dim() == 0:
            level = _Level(self, sigma)
            parts = (answer(_Shared(level, chunk)) for chunk in x.split(rows))
        else:
            pairs = zip(x.split(rows), sigma.split(rows), strict=True)
            parts = (answer(_Direct(self, chunk, level)) for chunk, level in pairs)
        return torch.cat(list(parts))


class _Level:
    """Tables of a mixture at one noise level; they turn all components into matrix products."""

    def __init__(self, mixture: GaussianMixture, sigma: Tensor):
        level = sigma.double().cpu()
        noisy = mixture._variances + level**2  # [K, d]
        axes, place = mixture._axes, mixture._place
        # The origin of all products; centring keeps their rounding small near the data.
        centre = mixture._log_weights.exp() @ mixture._means
        offset = mixture._means - centre
        whiten = axes * noisy.rsqrt()[:, None, :]  # [K, d, d]: columns divided by their spread
        self.centre = place(centre)
        self.whiten = place(whiten.permute(2, 1, 0)).contiguous()  # [axis, d, K]
        self.minus_shift = place(-torch.einsum("ki,kij->jk", offset, whiten))  # [axis, K]
        log_norm = 0.5 * noisy.log().sum(-1) + 0.5 * mixture.dimension * math.log(2 * math.pi)
        self.log_scale = place(mixture._log_weights - log_norm)  # [K]
        self.mixture, self.noisy, self.offset = mixture, noisy, offset

    @cached_property
    def denoise_map(self) -> Tensor:
        """Each component's own estimate, as a map of x."""
        shrink = self._matrices(self.mixture._variances / self.noisy)
        own = self.offset - torch.einsum("kij,kj->ki", shrink, self.offset)
        return self.mixture._place(_affine(shrink, own))

    @cached_property
    def score_map(self) -> Tensor:
        """Each component's own score, as a map of x."""
        precision = self._matrices(1 / self.noisy)
        own = torch.einsum("kij,kj->ki", precision, self.offset)
        return self.mixture._place(_affine(-precision, own))

    def _matrices(self, along_axes: Tensor) -> Tensor:
        axes = self.mixture._axes
        return torch.einsum("kij,kj,klj->kil", axes, along_axes, axes)


class _Shared:
    """Many points that share one noise level. It gives one answer, which may use up the logits."""

    def __init__(self, level: _Level, x: Tensor):
        self.level, self.x = level, x - level.centre
        self.logits = level.log_scale  # [K], then [n, K]
        for axis in range(x.shape[1]):
            distance = torch.addmm(level.minus_shift[axis], self.x, level.whiten[axis])
            self.logits = torch.addcmul(self.logits, distance, distance, value=-0.5)

    def denoised(self) -> Tensor:
        return self._apply(self.level.denoise_map) + self.level.centre

    def score(self) -> Tensor:
        return self._apply(self.level.score_map)

    def _apply(self, affine: Tensor) -> Tensor:
        d = self.x.shape[1]
        # Shares do not depend on what all logits have in common, hence no gradient through it.
        share = self.logits.sub_(self.logits.detach().amax(-1, keepdim=True))
        # A share below e^FLOOR is below the rounding of the sum; as a denormal number it would
        # make exp and the product some ten times slower.
        mixed = share.clamp_(min=FLOOR).exp_() @ affine  # [n, d + d * d + 1]
        mixed = mixed[:, :-1] / mixed[:, -1:]
        return mixed[:, :d] + torch.einsum("nij,nj->ni", mixed[:, d:].reshape(-1, d, d), self.x)


class _Direct:
    """Points with a noise level each: every component is evaluated at every point."""

    def __init__(self, mixture: GaussianMixture, x: Tensor, sigma: Tensor):
        place = mixture._place
        self.axes, self.x, self.sigma = place(mixture._axes), x, sigma
        self.noisy = place(mixture._variances) + sigma[:, :, None] ** 2  # [n, K, d]
        offset = place(mixture._means) - x[:, None]  # [n, K, d]
        self.along = torch.einsum("kij,nki->nkj", self.axes, offset)
        log_norm = 0.5 * (self.noisy.log() + math.log(2 * math.pi)).sum(-1)
        distance = (self.along**2 / self.noisy).sum(-1)
        self.logits = place(mixture._log_weights) - log_norm - 0.5 * distance

    def denoised(self) -> Tensor:
        return self.x + self._mixed(self.sigma[:, :, None] ** 2 / self.noisy)

    def score(self) -> Tensor:
        return self._mixed(1 / self.noisy)

    def _mixed(self, factor: Tensor) -> Tensor:
        weights = self.logits.softmax(-1)
        return torch.einsum("nk,kij,nkj->ni", weights, self.axes, factor * self.along)


class ClassMixture:
    """Several mixtures, one for each class; an exact denoiser with and without a condition.

    Shapes:  classes: C mixtures; priors [C]; x [n, d]; condition None or [n] long.
    Limits:  condition = None denoises the marginal, the mixture of all classes.
    Errors:  ValueError for no class, classes of different dimension, priors that do not fit or
             are not positive and finite, or labels out of range.
    Chapter: 02_classifier_free_guidance
    """

    null_label = None

    def __init__(
        self, classes: Sequence[GaussianMixture], priors: Tensor | Sequence[float] | None = None
    ):
        if not classes:
            raise ValueError("expected at least one class, got none")
        dimensions = [mixture.dimension for mixture in classes]
        if len(set(dimensions)) > 1:
            raise ValueError(f"expected classes of one dimension, got {dimensions}")
        priors = [1.0] * len(classes) if priors is None else priors
        priors = torch.as_tensor(priors, dtype=torch.float64).cpu()
        if priors.shape != (len(classes),) or not bool(((priors > 0) & (priors < math.inf)).all()):
            raise ValueError(f"expected {len(classes)} positive priors, got {priors.tolist()}")
        self.classes, self.priors = tuple(classes), priors / priors.sum()
        first = self.classes[0]
        self.marginal = GaussianMixture(
            torch.cat(
                [p * c._log_weights.exp() for p, c in zip(self.priors, classes, strict=True)]
            ),
            torch.cat([c._means for c in classes]),
            torch.cat([c._covariances for c in classes]),
            first.dtype,
            first.device,
        )

    def __call__(self, x: Tensor, sigma: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the exact posterior mean, of the class of each sample where one is given."""
        condition = check_condition(x, condition, len(self.classes))
        if condition is None:
            return self.marginal.denoise(x, sigma)
        levels = check_sigma(x, sigma).flatten().expand(len(x))
        result = torch.empty_like(x)
        for label, mixture in enumerate(self.classes):
            rows = condition == label
            if bool(rows.any()):
                result[rows] = mixture.denoise(x[rows], levels[rows])
        return result


def _affine(matrix: Tensor, vector: Tensor) -> Tensor:
    """Put the map x -> matrix x + vector of each component into one row, then a 1 that counts."""
    return torch.cat([vector, matrix.flatten(1), torch.ones_like(vector[:, :1])], dim=1)


def _check_parameters(weights: Tensor, means: Tensor, covariances: Tensor) -> None:
    if weights.numel() == 0:
        raise ValueError("expected at least one component, got an empty mixture")
    if weights.dim() != 1 or means.dim() != 2 or len(means) != len(weights):
        raise ValueError(
            f"expected weights [K] and means [K, d], got {list(weights.shape)}"
            f" and {list(means.shape)}"
        )
    k, d = means.shape
    if covariances.shape != (k, d, d):
        raise ValueError(f"expected covariances [{k}, {d}, {d}], got {list(covariances.shape)}")
    for name, value in (("weights", weights), ("means", means), ("covariances", covariances)):
        if not bool(value.isfinite().all()):
            raise ValueError(f"expected finite {name}, got NaN or infinity")
    if not bool((weights > 0).all()):
        raise ValueError(f"expected positive weights, got {float(weights.min()):g}")
    # Relative to the largest entry: a correlation of 0 is itself a matter of rounding.
    size = covariances.abs().amax((1, 2), keepdim=True)
    if not bool(((covariances - covariances.mT).abs() <= 1e-9 * size).all()):
        raise ValueError("expected symmetric covariances")
