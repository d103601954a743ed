"""The smallest network of the book: a multilayer perceptron that denoises points of the plane."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from guidance_edu.denoisers import Preconditioned


class MLP(nn.Module):
    """Points and a noise feature in, points out.

    Shapes:  x, result [n, dimension]; noise [n]; there is no condition.
    Units:   x is expected at unit scale, as :class:`guidance_edu.Preconditioned` provides it.
    Limits:  at the start the result is 0, so that the denoiser is the best linear one.
    Errors:  ValueError for points of another dimension, or when a condition is given: this network
             was trained without one.
    """

    def __init__(self, hidden: int = 64, layers: int = 4, dimension: int = 2):
        super().__init__()
        widths = [dimension + 2, *[hidden] * layers]
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.out = nn.Linear(hidden, dimension)
        for layer in self.layers:
            # SiLU halves the size of its input; 1.4 keeps activations from fading with depth.
            nn.init.normal_(layer.weight, std=1.4 * layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the raw prediction."""
        if condition is not None:
            raise ValueError("this network was trained without classes; expected condition=None")
        if x.dim() != 2 or x.shape[1] != self.out.out_features:
            raise ValueError(f"expected x of shape [n, {self.out.out_features}], got {[*x.shape]}")
        h = torch.cat([x, noise[:, None], torch.ones_like(noise)[:, None]], dim=1)
        for layer in self.layers:
            h = nn.functional.silu(layer(h))
        return self.out(h)


def tree_denoiser(hidden: int = 64, layers: int = 4) -> Preconditioned:
    """Return an untrained denoiser for the trees: an MLP in EDM preconditioning.

    Shapes:  D(x [n, 2], sigma float or [n]) -> [n, 2].
    Errors:  ValueError when a condition is given.
    """
    return Preconditioned(MLP(hidden, layers), sigma_data=0.5)
