"""The average of weights over training that is used in place of the last weights."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

WIDEST = 1 / math.sqrt(12)  # the width of a flat profile (gamma = 0)


def exponent(sigma_rel: float) -> float:
    """Return the exponent gamma of the power-function profile of a given relative width.

    The profile p(t) ~ t^gamma on [0, T] has the standard deviation sigma_rel T.

    Units:   sigma_rel is a share of the training length.
    Limits:  sigma_rel -> 0 gives gamma -> infinity (the last weights); .2887 gives 0 (flat).
    Errors:  ValueError outside (0, 1 / sqrt(12)), where no profile has that width.
    Source:  Karras et al. 2024 (arXiv:2312.02696), sec. 3.1 and app. C.
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
    """

    def __init__(self, model: nn.Module, sigma_rel: float):
        self.gamma, self.updates = exponent(sigma_rel), 0
        self.weights = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after one more training step of constant length."""
        self.updates += 1
        keep = (1 - 1 / self.updates) ** (self.gamma + 1)
        torch._foreach_lerp_(self.weights, list(model.parameters()), 1 - keep)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Replace a model's weights by the average."""
        for parameter, average in zip(model.parameters(), self.weights, strict=True):
            parameter.copy_(average)
