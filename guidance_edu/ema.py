"""The average of weights over training that is used in place of the last weights.

How long an average should reach back is known only when training is over. A few stored averages
of two fixed lengths are enough to make that choice afterwards: any other length is a combination
of theirs, found by least squares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

WIDEST = 1 / math.sqrt(12)  # the width of a flat profile (gamma = 0)
TRACKS = (0.05, 0.10)  # the two widths that are worth storing
# Singular values below this share of the largest are rounding of the overlaps, not profiles.
CUTOFF = 1e-12


def exponent(sigma_rel: float) -> float:
    """Return the exponent gamma of the power-function profile of a given relative width.

    The profile p(t) ~ t^gamma on [0, T] has the standard deviation sigma_rel T.

    Units:   sigma_rel is a share of the training length.
    Limits:  sigma_rel -> 0 gives gamma -> infinity (the last weights); .2887 gives 0 (flat).
    Errors:  ValueError outside (0, 1 / sqrt(12)), where no profile has that width.
    Source:  Karras et al. 2024 (arXiv:2312.02696), sec. 3.1 and app. C.
    Chapter: 05_posthoc_ema
    """
    if not 0 < sigma_rel < WIDEST:
        raise ValueError(f"expected sigma_rel between 0 and {WIDEST:.4f}, got {sigma_rel}")
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


class PowerEMA:
    """A running average of a model's weights with a profile that grows with training.

    Limits:  after the first update the average is the current weights.
    Errors:  ValueError for a width outside the range of :func:`exponent`.
    Source:  Karras et al. 2024 (arXiv:2312.02696), sec. 3.1.
    Chapter: 05_posthoc_ema
    """

    def __init__(self, model: nn.Module, sigma_rel: float):
        self.gamma, self.updates = exponent(sigma_rel), 0
        self.weights = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after one more training step of constant length."""
        weights = list(model.parameters())
        if [w.shape for w in weights] != [w.shape for w in self.weights]:
            raise ValueError("expected the network whose weights are averaged, got another one")
        self.updates += 1
        keep = (1 - 1 / self.updates) ** (self.gamma + 1)
        torch._foreach_lerp_(self.weights, weights, 1 - keep)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Replace a model's weights by the average."""
        for parameter, average in zip(model.parameters(), self.weights, strict=True):
            parameter.copy_(average)


class Snapshot(NamedTuple):
    """An average of weights as it stood after some number of updates, stored."""

    updates: int
    gamma: float
    weights: list[Tensor]


def take_snapshot(average: PowerEMA, dtype: torch.dtype = torch.float16) -> Snapshot:
    """Copy a running average as it stands now, by default in half the bytes.

    Units:   float16 keeps 11 binary digits: every weight above 6e-5 to one part in 2048, smaller
             ones to 3e-8. It limits what can be reconstructed to about 1e-4 of the weights.
    Limits:  later updates of the average leave the snapshot alone.
    Errors:  ValueError before the first update, or where a weight is too large for the dtype.
    Source:  Karras et al. 2024 (arXiv:2312.02696), sec. 3.2 (two tracks, float16).
    Chapter: 05_posthoc_ema
    """
    if average.updates < 1:
        raise ValueError("expected an average with at least one update, got none")
    stored = [weight.detach().to(dtype, copy=True) for weight in average.weights]
    for weight, small in zip(average.weights, stored, strict=True):
        if bool(weight.isfinite().all()) and not bool(small.isfinite().all()):
            largest = float(weight.abs().max())
            raise ValueError(f"expected weights that {dtype} can hold, got one of {largest:g}")
    return Snapshot(average.updates, average.gamma, stored)


def overlap(length: Tensor, gamma: Tensor, other_length: Tensor, other_gamma: Tensor) -> Tensor:
    """Return the inner product of two power-function profiles, the integral of p(t) q(t).

    Each profile is (gamma + 1) t^gamma / length^(gamma + 1) on [0, length] and 0 beyond.

    Shapes:  four tensors that broadcast against each other; result float64.
    Units:   lengths in updates (or images, or any other unit of training), result in its inverse.
    Limits:  symmetric; of a profile with itself (gamma + 1)^2 / ((2 gamma + 1) length); two flat
             profiles of one length: 1 / length.
    Errors:  ValueError for a length that is not positive or a gamma that is negative.
    Source:  Karras et al. 2024 (arXiv:2312.02696), app. C.
    Chapter: 05_posthoc_ema
    """
    length, gamma, other_length, other_gamma = (
        torch.as_tensor(value, dtype=torch.float64)
        for value in (length, gamma, other_length, other_gamma)
    )
    if not bool((length > 0).all() and (other_length > 0).all()):
        raise ValueError("expected lengths above 0")
    if not bool((gamma >= 0).all() and (other_gamma >= 0).all()):
        raise ValueError("expected exponents gamma of at least 0")
    # The product lives where both do, up to the shorter length; the longer profile is still low
    # there, which is the last factor.
    longer = torch.where(length > other_length, gamma, other_gamma)
    shortest, longest = torch.minimum(length, other_length), torch.maximum(length, other_length)
    area = (gamma + 1) * (other_gamma + 1) / ((gamma + other_gamma + 1) * longest)
    return area * (shortest / longest) ** longer


def coefficients(lengths: Tensor, gammas: Tensor, length: float, gamma: float) -> Tensor:
    """Return the combination of stored profiles that comes closest to a wanted one.

    Closest means the smallest integral of the squared difference, over all of training. The result
    is then scaled to sum to 1, so that weights that never moved are reproduced exactly.

    Shapes:  lengths and gammas [m], one entry a stored average; result [m], float64.
    Units:   lengths and length in updates.
    Limits:  a wanted profile that is stored gets 1, all others 0; the order of the stored ones
             does not matter.
    Errors:  ValueError for no stored average, shapes that differ, or as :func:`overlap`.
    Source:  Karras et al. 2024 (arXiv:2312.02696), sec. 3.2 and app. C.
    Chapter: 05_posthoc_ema
    """
    lengths, gammas = (torch.as_tensor(v, dtype=torch.float64) for v in (lengths, gammas))
    if lengths.dim() != 1 or lengths.shape != gammas.shape or not len(lengths):
        raise ValueError(
            f"expected lengths and gammas of one shape [m], got {list(lengths.shape)} and"
            f" {list(gammas.shape)}"
        )
    among = overlap(lengths[:, None], gammas[:, None], lengths, gammas)
    with_wanted = overlap(lengths, gammas, length, gamma)
    # Profiles of unit size: without it, rounding is judged by the longest profile alone.
    size = among.diagonal().sqrt()
    among, with_wanted = among / size[:, None] / size, with_wanted / size
    solution = torch.linalg.lstsq(among, with_wanted[:, None], rcond=CUTOFF, driver="gelsd")
    result = solution.solution[:, 0] / size
    return result / result.sum()


def misfit(lengths: Tensor, gammas: Tensor, length: float, gamma: float) -> float:
    """Return how far the best combination of stored profiles stays from a wanted one.

    It needs no weights: what can be reconstructed is known before training starts.

    Shapes:  lengths and gammas [m].
    Units:   the root of the integral of the squared difference, as a share of that of the wanted
             profile; lengths in updates.
    Limits:  0 (up to rounding, about 1e-6) where the wanted profile is stored.
    Errors:  as :func:`coefficients`.
    Chapter: 05_posthoc_ema
    """
    mix = coefficients(lengths, gammas, length, gamma)
    lengths, gammas = (torch.as_tensor(v, dtype=torch.float64) for v in (lengths, gammas))
    among = overlap(lengths[:, None], gammas[:, None], lengths, gammas)
    own = overlap(length, gamma, length, gamma)
    square = own - 2 * mix @ overlap(lengths, gammas, length, gamma) + mix @ among @ mix
    return math.sqrt(max(float(square / own), 0.0))


def reconstruct(
    snapshots: Sequence[Snapshot], sigma_rel: float, updates: int | None = None
) -> list[Tensor]:
    """Return the average of a width that was never tracked, after any number of updates.

    Sums run in float64; one snapshot at a time is widened.

    Shapes:  one float64 tensor a parameter, of its shape.
    Units:   sigma_rel is a share of the training length ``updates`` (None: that of the longest
             snapshot).
    Limits:  a width and a time that are stored give the snapshot itself. See :func:`misfit` for
             what to expect elsewhere.
    Errors:  ValueError for no snapshots, snapshots of different models, an impossible width, or a
             time outside (0, the longest snapshot].
    Source:  Karras et al. 2024 (arXiv:2312.02696), sec. 3.2.
    Chapter: 05_posthoc_ema
    """
    if not snapshots:
        raise ValueError("expected at least one snapshot, got none")
    lengths = torch.tensor([float(snapshot.updates) for snapshot in snapshots])
    gammas = torch.tensor([snapshot.gamma for snapshot in snapshots], dtype=torch.float64)
    end = float(lengths.max())
    length = end if updates is None else float(updates)
    if not 0 < length <= end:
        raise ValueError(f"expected updates between 1 and {end:.0f}, got {updates}")
    shapes = {tuple(tuple(w.shape) for w in snapshot.weights) for snapshot in snapshots}
    if len(shapes) > 1:
        raise ValueError("expected snapshots of one model, got weights of different shapes")
    mix = coefficients(lengths, gammas, length, exponent(sigma_rel))
    result = [torch.zeros_like(weight, dtype=torch.float64) for weight in snapshots[0].weights]
    for share, snapshot in zip(mix.tolist(), snapshots, strict=True):
        for total, weight in zip(result, snapshot.weights, strict=True):
            total.add_(weight.double(), alpha=share)
    return result


@torch.no_grad()
def set_weights(model: nn.Module, weights: Sequence[Tensor]) -> None:
    """Put an average into a model, in the model's own dtype; buffers stay as they are.

    Shapes:  one tensor a parameter, in the model's order.
    Errors:  ValueError when number or shapes differ from the model's.
    Chapter: 05_posthoc_ema
    """
    parameters = list(model.parameters())
    wanted, got = [list(p.shape) for p in parameters], [list(w.shape) for w in weights]
    if wanted != got:
        raise ValueError(f"expected weights of shapes {wanted}, got {got}")
    for parameter, weight in zip(parameters, weights, strict=True):
        parameter.copy_(weight)
