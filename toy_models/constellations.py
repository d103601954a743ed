"""The smallest world in which attention carries structure: ordered points on a few shapes.

A sample is 24 points on a heart, a figure-eight, a spiral or a star, turned, scaled and shifted.
Whether a sample is right is seen at a glance, and its distance to the data is known in closed form:
the best turn, scale and place of a shape is a Procrustes problem. The exact denoiser is known too,
up to an integral in two dimensions.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from guidance_edu.denoisers import check_condition, check_sigma

SHAPES = ("heart", "figure-eight", "spiral", "star")
POINTS = 24
TURN = 0.35  # the largest turn, in radians
SMALLEST, LARGEST = 0.45, 0.9  # scales: the logarithm is uniform between theirs
SHIFT = 0.25  # standard deviation of the place, in each direction
SIGMA_DATA = 0.53  # standard deviation of a coordinate
INTACT = 0.05  # relative residual below which a shape looks whole
NODES = 20  # of the quadrature, in each direction
REACH, FOLDINGS = 7.0, 25.0  # where a posterior ends: standard deviations, e-foldings


class Fit(NamedTuple):
    """The member of the data nearest to each sample.

    Shapes:  shape [n] long; residual, scale, turn, size [n]; nearest [n, 24, 2].
    Units:   residual is the root mean square distance of a point to its place, divided by the scale
             of the nearest member; turn in radians. ``size`` is the scale of best fit without the
             bounds of the data: it shows shapes that are too large.
    """

    shape: Tensor
    residual: Tensor
    scale: Tensor
    turn: Tensor
    size: Tensor
    nearest: Tensor


@cache
def _templates() -> Tensor:
    t = np.linspace(0, 1, 4001) * 2 * np.pi
    heart = 16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t)
    heart = heart[0], heart[1] - np.cos(4 * t)
    eight = np.sin(t), 0.6 * np.sin(2 * t)
    radius = 0.15 + 0.85 * t / (2 * np.pi)
    spiral = radius * np.cos(2 * t), radius * np.sin(2 * t)
    corner = np.arange(13) * np.pi / 6 + np.pi / 2
    reach = np.where(np.arange(13) % 2 == 0, 1.0, 0.5)
    star = reach * np.cos(corner), reach * np.sin(corner)
    closed = np.arange(POINTS) / POINTS
    opened = np.arange(POINTS) / (POINTS - 1)
    shapes = []
    for (x, y), share in ((heart, closed), (eight, closed), (spiral, opened), (star, closed)):
        length = np.concatenate([[0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
        at = share * length[-1]
        z = np.interp(at, length, x) + 1j * np.interp(at, length, y)
        z = z - z.mean()
        shapes.append(z / np.sqrt((np.abs(z) ** 2).mean()))
    return torch.tensor(np.array(shapes))


def templates() -> Tensor:
    """Return the four shapes, their points evenly spaced along the line, centred at 0.

    Shapes:  result [4, 24, 2], float64.
    Units:   the root mean square distance of a shape's points from its centre is 1.
    """
    return torch.view_as_real(_templates()).clone()


class Constellations:
    """The world of the four shapes; itself an exact denoiser, with and without a condition.

    Shapes:  x [n, 24, 2]; sigma float or [n]; condition None or [n] long, 0 .. 3.
    Units:   turns are uniform in -.35 .. .35 radians, log scales between those of .45 and .9, the
             place is N(0, .25^2) in each direction; all shapes are equally frequent.
    Limits:  sigma = 0 gives x; sigma -> infinity the mean of the data. The integral over turn and
             scale is exact to 1e-6 on noisy data and to 1e-5 for a shape other than the sample's,
             unless that one fits best upside down: both ends of the turn then count, and only the
             likelier one is seen.
    Errors:  ValueError for points of another number or dimension, or labels out of range.
    """

    null_label = None

    def sample(self, n: int, rng: torch.Generator, condition: Tensor | None = None):
        """Draw samples; return them with their labels.

        Shapes:  x [n, 24, 2] float32; labels [n] long.
        Errors:  ValueError for labels out of range or of another number.
        """
        labels = torch.randint(len(SHAPES), (n,), generator=rng)
        turn = TURN * (2 * torch.rand(n, generator=rng, dtype=torch.float64) - 1)
        span = math.log(LARGEST / SMALLEST)
        scale = SMALLEST * torch.exp(span * torch.rand(n, generator=rng, dtype=torch.float64))
        place = SHIFT * torch.randn(n, 1, 2, generator=rng, dtype=torch.float64)
        if condition is not None:  # drawn in any case, so that the rest does not depend on it
            labels = check_condition(labels, condition, len(SHAPES)).cpu()
        posed = torch.polar(scale, turn)[:, None] * _templates()[labels]
        return (torch.view_as_real(posed) + place).float(), labels

    def __call__(self, x: Tensor, sigma: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the exact posterior mean, of the shape of each sample where one is given."""
        _check_points(x)
        condition = check_condition(x, condition, len(SHAPES))
        levels = check_sigma(x, sigma).flatten().expand(len(x)).double().cpu()
        points = x.double().cpu()
        wanted = None if condition is None else condition.cpu()
        parts = [
            _denoised(points[a : a + 256], levels[a : a + 256], _rows(wanted, a))
            for a in range(0, len(x), 256)
        ]
        return torch.cat(parts).to(x) if parts else x


def _rows(condition: Tensor | None, start: int) -> Tensor | None:
    return None if condition is None else condition[start : start + 256]


def _denoised(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Tensor:
    """Place and pose separate: the mean of the points knows the one, their rest the other."""
    level = sigma.clamp_min(1e-6)
    place = x.mean(1, keepdim=True)
    ours = SHIFT**2 / (SHIFT**2 + level**2 / POINTS)
    amplitude = _amplitude(x)  # [n, 4]: best turn and scale, unbounded, as a complex number
    spread = (level / POINTS**0.5)[:, None]  # that of the amplitude, in each direction
    log_weight, mean = _pose(amplitude, spread.expand_as(amplitude.real))
    if condition is not None:
        only = torch.arange(len(SHAPES)) == condition[:, None]
        log_weight = log_weight.masked_fill(~only, -math.inf)
    mixed = log_weight.softmax(1) * mean  # [n, 4]
    shape = torch.view_as_real(mixed @ _templates())
    result = ours[:, None, None] * place + shape
    return torch.where(sigma[:, None, None] == 0, x, result)


def _pose(amplitude: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """Integrate over turn and scale; return ln of the integral and the mean amplitude, [n, 4]."""
    nearest, size = _nearest(amplitude), amplitude.abs()
    scale, off = nearest.abs(), amplitude.angle() - nearest.angle()
    # The windows follow the posterior, which is far narrower than the data where sigma is small:
    # ln of it bends with the first number below, and at an edge falls with the second.
    across = size * scale / spread**2
    about = _reach(across * off.cos(), across * off.sin().abs())
    turn = _window(nearest.angle(), about, -TURN, TURN)
    slope = scale * (scale - size * off.cos()).abs() / spread**2
    log_scale = _window(
        scale.log(), _reach((scale / spread) ** 2, slope), math.log(SMALLEST), math.log(LARGEST)
    )
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(NODES))
    theta = turn[0][..., None] + turn[1][..., None] * nodes  # [n, 4, nodes]
    s = (log_scale[0][..., None] + log_scale[1][..., None] * nodes).exp()
    cosine = (theta - amplitude.angle()[..., None]).cos()
    # |a - alpha|^2 less |a|^2, which tells shapes apart
    square = s[..., None, :] ** 2
    square = square - 2 * s[..., None, :] * (size[..., None] * cosine)[..., None]
    logits = -0.5 * square / spread[..., None, None] ** 2
    top = logits.amax((-2, -1), keepdim=True)
    mass = (logits - top).exp() * weights * weights[:, None]
    total = mass.sum((-2, -1))
    mean = mass * torch.polar(s[..., None, :].expand_as(mass), theta[..., None].expand_as(mass))
    log_total = total.log() + top[..., 0, 0] + (turn[1] * log_scale[1]).log()
    return log_total, mean.sum((-2, -1)) / total


def _reach(bend: Tensor, slope: Tensor) -> Tensor:
    """Return how far from its peak a posterior counts: 7 standard deviations, or 25 e-foldings."""
    bend, slope = bend.clamp_min(1e-9), slope.clamp_min(1e-9)
    return torch.minimum(REACH / bend.sqrt(), FOLDINGS / slope)


def _window(centre: Tensor, reach: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Return middle and half width of what lies around the centre and inside the bounds."""
    left, right = (centre - reach).clamp(low, high), (centre + reach).clamp(low, high)
    return (left + right) / 2, (right - left) / 2


def fit(x: Tensor, condition: Tensor | None = None) -> Fit:
    """Find the nearest member of the data: of each sample's class, or of all where none is given.

    Shapes:  x [n, 24, 2]; condition None or [n] long.
    Limits:  a true sample has residual 0 (1e-7 in float32) and its own shape, scale and turn.
    Errors:  ValueError for points of another number or dimension, values that are not finite, or
             labels out of range.
    Source:  Procrustes analysis (Gower 1975) in complex numbers; turn and scale are bounded.
    """
    _check_points(x)
    condition = check_condition(x, condition, len(SHAPES))
    points = x.detach().double().cpu()
    if not bool(points.isfinite().all()):
        raise ValueError("expected finite x, got NaN or infinity")
    place = torch.view_as_complex(points.contiguous()).mean(1, keepdim=True)
    amplitude = _amplitude(points)  # [n, 4]
    best = _nearest(amplitude)
    members = best[..., None] * _templates() + place[..., None]  # [n, 4, 24]
    gap = torch.view_as_complex(points.contiguous())[:, None] - members
    distance = gap.abs().square().mean(2).sqrt()
    shape = distance.argmin(1) if condition is None else condition.cpu()
    rows = torch.arange(len(points))
    chosen, scale = best[rows, shape], best[rows, shape].abs()
    return Fit(
        shape,
        distance[rows, shape] / scale,
        scale,
        chosen.angle(),
        amplitude[rows, shape].abs(),
        torch.view_as_real(members[rows, shape]).to(x.dtype),
    )


def _amplitude(x: Tensor) -> Tensor:
    """Return the least-squares turn and scale of every shape as a complex number, [n, 4]."""
    z = torch.view_as_complex(x.contiguous())
    return (z - z.mean(1, keepdim=True)) @ _templates().conj().T / POINTS


def _nearest(amplitude: Tensor) -> Tensor:
    """Return the nearest allowed turn and scale: a point of a sector of a ring."""
    angle = amplitude.angle().clamp(-TURN, TURN)
    along = (amplitude * torch.polar(torch.ones_like(angle), -angle)).real
    # Inside the sector this is the distance from 0, beyond its sides the foot on the side.
    radius = torch.where(amplitude.angle().abs() <= TURN, amplitude.abs(), along)
    return torch.polar(radius.clamp(SMALLEST, LARGEST), angle)


def _check_points(x: Tensor) -> None:
    if not isinstance(x, Tensor) or x.dim() != 3 or x.shape[1:] != (POINTS, 2):
        got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"expected x of shape [n, {POINTS}, 2], got {got}")
