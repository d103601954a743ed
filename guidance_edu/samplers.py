"""Noise levels and the three ways down them: Euler, Heun, stochastic.

Every sampler walks from pure noise to data along given noise levels and yields each state, so
that plots and tests need no callbacks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

from guidance_edu.denoisers import Denoiser
from guidance_edu.guidance import during
from guidance_edu.settings import progress

METHODS = ("euler", "heun", "stochastic")


class State(NamedTuple):
    """A stop on the way: samples x [n, ...] at a noise level, and the denoised estimate used."""

    sigma: float
    x: Tensor
    denoised: Tensor | None


def noise_levels(
    steps: int, sigma_max: float = 80.0, sigma_min: float = 0.002, rho: float = 7.0
) -> Tensor:
    """Return noise levels that fall from sigma_max to sigma_min, then a final 0.

    Shapes:  result [steps + 1], float64.
    Limits:  sigma_max and sigma_min are met exactly; rho = 1 spaces the levels evenly, rho ->
             infinity geometrically; steps = 1 gives [sigma_max, 0].
    Errors:  ValueError unless steps >= 1, rho >= 1 and 0 < sigma_min < sigma_max.
    Source:  Karras et al. 2022, eq. 5.
    Chapter: 01_denoisers_and_samplers
    """
    if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1:
        raise ValueError(f"expected a whole number of steps of at least 1, got {steps}")
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(f"expected 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
    if not 1 <= rho < math.inf:
        raise ValueError(f"expected finite rho of at least 1, got {rho}")
    position = torch.linspace(0, 1, int(steps), dtype=torch.float64)
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    levels = (top + position * (bottom - top)) ** rho
    levels[-1], levels[0] = sigma_min, sigma_max  # a rounded end could fall outside a window
    return torch.cat([levels, levels.new_zeros(1)])


def euler_step(denoiser: Denoiser, x: Tensor, sigma: float, target: float, condition=None):
    """Follow the tangent of the probability-flow ODE from sigma to target.

    Shapes:  x, result [n, ...]; sigma, target floats with sigma > target >= 0.
    Limits:  target = 0 returns the denoised x.
    Errors:  ValueError unless sigma > target >= 0.
    Source:  Karras et al. 2022, eq. 1 with sigma(t) = t, and algorithm 1 lines 4-5.
    Chapter: 01_denoisers_and_samplers
    """
    _check_step(sigma, target)
    slope = (x - denoiser(x, sigma, condition)) / sigma
    return x + (target - sigma) * slope


def heun_step(denoiser: Denoiser, x: Tensor, sigma: float, target: float, condition=None):
    """Follow the average of the tangents at both ends of the step.

    Shapes:  x, result [n, ...]; sigma, target floats with sigma > target >= 0.
    Limits:  target = 0 falls back to Euler, since the slope is not defined there.
    Errors:  ValueError unless sigma > target >= 0.
    Source:  Karras et al. 2022, algorithm 1.
    Chapter: 01_denoisers_and_samplers
    """
    _check_step(sigma, target)
    slope = (x - denoiser(x, sigma, condition)) / sigma
    ahead = x + (target - sigma) * slope
    if target == 0:
        return ahead
    slope_ahead = (ahead - denoiser(ahead, target, condition)) / target
    return x + (target - sigma) * (slope + slope_ahead) / 2


def sample_states(
    denoiser: Denoiser,
    x: Tensor,
    levels: Tensor | Sequence[float],
    condition: Tensor | None = None,
    method: str = "heun",
    churn: float = 0.4,
    rng: torch.Generator | None = None,
) -> Iterator[State]:
    """Yield the state at every noise level, from the start to the end.

    ``stochastic`` takes Heun steps, but first climbs from sigma to (1 + churn) sigma by adding
    fresh noise. Guidance windows are decided once a step, at the level where the step starts,
    before that climb.

    Shapes:  x [n, ...] already at noise level levels[0], for instance levels[0] times a standard
             normal; levels [steps + 1], strictly falling; condition None or [n].
    Limits:  churn = 0 makes the stochastic sampler Heun's.
    Errors:  ValueError for an unknown method, levels that do not fall or are not finite, x that is
             not finite, churn < 0, a stochastic sampler without ``rng``, or a denoiser that
             returns another shape; TypeError when x is no tensor.
    Source:  Karras et al. 2022, algorithms 1 and 2 (our churn is their gamma, with S_noise = 1;
             there is none before the last step, to 0).
    Chapter: 01_denoisers_and_samplers
    """
    levels = _check_levels(levels)
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
    if not isinstance(x, Tensor):
        raise TypeError(f"expected starting points x as a tensor, got {type(x).__name__}")
    if not x.isfinite().all():
        raise ValueError("expected finite starting points x, got NaN or infinity")
    drawn = isinstance(rng, torch.Generator) and rng.device.type == "cpu"
    if method == "stochastic" and not drawn:
        raise ValueError("the stochastic sampler needs rng, a torch.Generator on the CPU")
    if not 0 <= churn < math.inf:
        raise ValueError(f"expected finite churn of at least 0, got {churn}")
    return _walk(denoiser, x, levels, condition, method, churn, rng)


def sample(
    denoiser: Denoiser,
    x: Tensor,
    levels: Tensor | Sequence[float],
    condition: Tensor | None = None,
    method: str = "heun",
    churn: float = 0.4,
    rng: torch.Generator | None = None,
) -> Tensor:
    """Return the samples at the last noise level. Arguments as in :func:`sample_states`.

    Shapes:  x, result [n, ...]; x is already at noise level levels[0].
    Errors:  as sample_states.
    Chapter: 01_denoisers_and_samplers
    """
    states = sample_states(denoiser, x, levels, condition, method, churn, rng)
    for state in progress(states, "sampling", total=len(levels)):
        x = state.x
    return x


@torch.no_grad()
def _walk(denoiser, x, levels, condition, method, churn, rng) -> Iterator[State]:
    yield State(levels[0], x, None)
    step = euler_step if method == "euler" else heun_step
    for sigma, target in zip(levels[:-1], levels[1:], strict=True):
        recorder = _Recorder(during(denoiser, sigma))
        start = sigma
        if method == "stochastic" and churn > 0 and target > 0:
            start = sigma * (1 + churn)
            noise = torch.randn(x.shape, dtype=x.dtype, generator=rng).to(x.device)
            x = x + math.sqrt(start**2 - sigma**2) * noise
        x = step(recorder, x, start, target, condition)
        yield State(target, x, recorder.first)


class _Recorder:
    """Passes calls on and keeps the first answer, the estimate from which a step departs."""

    def __init__(self, denoiser: Denoiser):
        self.denoiser, self.first = denoiser, None

    def __call__(self, x: Tensor, sigma: float, condition: Tensor | None) -> Tensor:
        denoised = self.denoiser(x, sigma, condition)
        if not isinstance(denoised, Tensor) or denoised.shape != x.shape:
            got = list(denoised.shape) if isinstance(denoised, Tensor) else type(denoised).__name__
            raise ValueError(f"expected a denoised x of shape {list(x.shape)}, got {got}")
        self.first = denoised if self.first is None else self.first
        return denoised


def _check_step(sigma: float, target: float) -> None:
    if not sigma > target >= 0:
        raise ValueError(f"expected a step down to at least 0, got {sigma:g} to {target:g}")


def _check_levels(levels: Tensor | Sequence[float]) -> list[float]:
    levels = torch.as_tensor(levels, dtype=torch.float64)
    if levels.dim() != 1 or len(levels) < 2:
        raise ValueError(f"expected at least two noise levels, got shape {list(levels.shape)}")
    levels = levels.tolist()
    if not all(math.isfinite(level) and level >= 0 for level in levels):
        raise ValueError(f"expected finite noise levels of at least 0, got {levels}")
    for now, following in zip(levels[:-1], levels[1:], strict=True):
        if not following < now:
            raise ValueError(f"expected falling noise levels, got {now:g} before {following:g}")
    return levels
