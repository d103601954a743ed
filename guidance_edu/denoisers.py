"""The contract that every model in the book keeps, and the four faces of a prediction.

A *denoiser* answers one question: given a clean sample plus noise of standard deviation sigma,
what is the mean of the clean samples it may have been?

    D(x, sigma, condition=None) -> x0_hat

An exact mixture, a trained network, a guided pair and a published checkpoint behind an adapter
are all denoisers, so every experiment runs on any of them.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

KINDS = ("denoised", "epsilon", "score", "v", "flow")


@runtime_checkable
class Denoiser(Protocol):
    """Anything that can be called as ``D(x, sigma, condition=None)``.

    Shapes:  x, result [n, ...]; sigma a float or [n]; condition None or [n] long (a network may
             document another form).
    Errors:  ValueError on a wrong shape, a negative or non-finite sigma, or ``condition=None``
             where the network was trained without a null condition.
    """

    def __call__(self, x: Tensor, sigma: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the estimate of the clean sample."""
        ...


def check_sigma(x: Tensor, sigma: float | Tensor) -> Tensor:
    """Return sigma as a tensor that broadcasts over x.

    Shapes:  x [n, ...]; sigma a float, [] or [n]; result [] or [n, 1, ...], dtype and device of x.
    Limits:  sigma = 0 is allowed here: a denoiser returns x for it.
    Errors:  TypeError when x is not a tensor; ValueError when it has no sample axis, or when sigma
             has another shape, is negative or is not finite.
    """
    return _check_level(x, sigma, "sigma")


def check_condition(x: Tensor, condition: Tensor | None, classes: int) -> Tensor | None:
    """Check class labels against the number of samples and classes.

    Shapes:  x [n, ...]; condition None or [n] long with values in 0 .. classes - 1.
    Errors:  ValueError naming what was expected and what came.
    """
    if condition is None:
        return None
    condition = torch.as_tensor(condition, device=x.device)
    if condition.shape != x.shape[:1] or condition.dtype != torch.long:
        raise ValueError(
            f"expected condition of shape [{len(x)}] and dtype long, got {_describe(condition)}"
        )
    if len(condition) and not 0 <= int(condition.min()) <= int(condition.max()) < classes:
        raise ValueError(
            f"expected classes from 0 to {classes - 1}, got {int(condition.min())}"
            f" to {int(condition.max())}"
        )
    return condition


def convert(
    value: Tensor,
    x: Tensor,
    sigma: float | Tensor,
    source: str,
    target: str,
    alpha: float | Tensor = 1.0,
) -> Tensor:
    """Rewrite one prediction as another: clean sample, noise, score or velocity.

    Every kind is an affine function of the clean sample with coefficients that depend on the
    noise level alone, for a noisy sample x = alpha x0 + sigma epsilon:

        denoised  x0                        epsilon  (x - alpha x0) / sigma
        score     (alpha x0 - x) / sigma^2  v        alpha epsilon - sigma x0
        flow      epsilon - x0

    Shapes:  value, x, result [n, ...]; sigma and alpha floats or [n].
    Units:   score in 1/data units; all others in data units.
    Limits:  there and back is the identity up to rounding; alpha = 1 is the parametrisation of
             the book; alpha^2 + sigma^2 = 1 is the variance-preserving one; alpha = 1 - sigma is
             rectified flow.
    Errors:  ValueError for an unknown kind, mismatched shapes, sigma = 0 where the noise would
             have to be read off x or divided by it, or alpha = 0 where the clean sample would
             have to be read off x.
    Source:  Karras et al. 2022, eq. 3 (score and denoiser); Salimans & Ho 2022, app. D (v);
             Lipman et al. 2023, sec. 4.1 (flow; their time runs the other way).
    Chapter: 01_denoisers_and_samplers
    """
    for kind in (source, target):
        if kind not in KINDS:
            raise ValueError(f"unknown prediction {kind!r}; expected one of {', '.join(KINDS)}")
    if value.shape != x.shape:
        raise ValueError(f"expected a value of shape {list(x.shape)}, got {list(value.shape)}")
    sigma, alpha = check_sigma(x, sigma), _check_level(x, alpha, "alpha")
    if source == target:
        return value
    if (source == "denoised" or target == "score") and bool((sigma == 0).any()):
        raise ValueError(f"expected sigma above 0 to convert {source} to {target}, got 0")
    noise_known = source in {"epsilon", "score"}
    if noise_known and target not in {"epsilon", "score"} and bool((alpha == 0).any()):
        raise ValueError(f"expected alpha above 0 to recover a clean sample from {source}, got 0")
    if not noise_known and bool((alpha + sigma == 0).any()):
        raise ValueError("expected alpha or sigma above 0, got 0 for both")
    x0, noise = _parts(value, x, sigma, alpha, source)
    if target == "denoised":
        return x0
    if target == "epsilon":
        return noise
    if target == "score":
        return -noise / sigma
    return alpha * noise - sigma * x0 if target == "v" else noise - x0


def _parts(
    value: Tensor, x: Tensor, sigma: Tensor, alpha: Tensor, source: str
) -> tuple[Tensor, Tensor]:
    """Return the clean sample and the noise, neither by way of the other where both are known.

    At a small sigma the detour from one kind of noise to another would cost most of the digits.
    """
    if source == "denoised":
        return value, (x - alpha * value) / sigma
    if source == "v":
        total = alpha**2 + sigma**2
        return (alpha * x - sigma * value) / total, (sigma * x + alpha * value) / total
    if source == "flow":
        total = alpha + sigma
        return (x - sigma * value) / total, (x + alpha * value) / total
    noise = -sigma * value if source == "score" else value
    return (x - sigma * noise) / alpha, noise


class Preconditioned(nn.Module):
    """A raw network wrapped so that its inputs and targets have unit size at every noise level.

        D(x; sigma) = c_skip x + c_out F(c_in x, ln(sigma) / 4, condition)

    Shapes:  x, result [n, ...]; sigma float or [n]; the network receives the scaled x, the noise
             feature [n] and the condition.
    Units:   sigma_data is the standard deviation of the data.
    Limits:  sigma -> 0 gives x; a network that returns 0 gives the best linear denoiser of
             N(0, sigma_data^2). The network computes in its own dtype and on its own device,
             what surrounds it in float32 at least; the result has the dtype of x.
    Errors:  ValueError on a bad sigma, a non-positive sigma_data, or non-finite x.
    Source:  Karras et al. 2022, table 1 (right column) and app. B.6.
    Chapter: 01_denoisers_and_samplers
    """

    def __init__(self, network: nn.Module, sigma_data: float = 0.5):
        super().__init__()
        if not (math.isfinite(sigma_data) and sigma_data > 0):
            raise ValueError(f"expected sigma_data above 0, got {sigma_data}")
        self.network, self.sigma_data = network, float(sigma_data)

    @property
    def null_label(self) -> int | None:
        """The label that stands for "no class" in the network, where it declares one."""
        return getattr(self.network, "null_label", None)

    def forward(
        self, x: Tensor, sigma: float | Tensor, condition: Tensor | None = None, **extra: Tensor
    ) -> Tensor:
        """Return the denoised x; what else the network takes is handed on by name."""
        check_sigma(x, 0.0)  # x itself: a tensor of samples in floating point
        if not bool(x.isfinite().all()):
            raise ValueError("expected finite x, got NaN or infinity")
        dtype = x.dtype
        x = x.to(torch.promote_types(dtype, torch.float32))  # sigma**2 leaves float16 at 256
        sigma = check_sigma(x, sigma).expand(len(x), *[1] * (x.dim() - 1))  # [n, 1, ...]
        total = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / total
        c_out = sigma * self.sigma_data * total.rsqrt()
        # sigma = 0 multiplies the network by c_out = 0; the floor only keeps ln finite there.
        c_noise = sigma.clamp_min(1e-12).log().flatten() / 4
        weight = next(self.network.parameters(), x)
        if condition is not None:
            condition = condition.to(weight.device)
        inputs = (x * total.rsqrt()).to(weight), c_noise.to(weight), condition
        raw = self.network(*inputs, **extra).to(x)
        skipped = c_skip * x
        if raw.shape == x.shape:
            return (skipped + c_out * raw).to(dtype)
        # A network may answer k times in one pass (guidance_edu.attention.forked): [k n, ...].
        if raw.shape[1:] != x.shape[1:] or not len(x) or len(raw) % len(x):
            raise ValueError(f"the network returned {list(raw.shape)} for x {list(x.shape)}")
        return (skipped + c_out * raw.unflatten(0, (-1, len(x)))).flatten(0, 1).to(dtype)


def _check_level(x: Tensor, level: float | Tensor, name: str) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"expected x as a tensor of shape [n, ...], got {type(x).__name__}")
    if x.dim() < 1 or not x.is_floating_point():
        raise ValueError(f"expected x of shape [n, ...] in floating point, got {_describe(x)}")
    level = torch.as_tensor(level, dtype=x.dtype, device=x.device)
    if level.dim() > 1 or (level.dim() == 1 and len(level) != len(x)):
        raise ValueError(f"expected {name} of shape [] or [{len(x)}], got {list(level.shape)}")
    if not bool(((level >= 0) & (level < math.inf)).all()):
        raise ValueError(f"expected finite {name} of at least 0, got {_worst(level)}")
    return level.reshape(-1, *[1] * (x.dim() - 1)) if level.dim() else level


def _describe(value: Tensor) -> str:
    return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _worst(sigma: Tensor) -> float:
    bad = sigma[~((sigma >= 0) & (sigma < math.inf))]
    return float(bad.flatten()[0])
