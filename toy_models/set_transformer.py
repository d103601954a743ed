"""A small transformer that denoises sets of points: the network of the constellations."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guidance_edu.attention import SelfAttention, as_many
from guidance_edu.denoisers import Preconditioned
from toy_models.conditioning import add_class
from toy_models.constellations import POINTS, SHAPES, SIGMA_DATA
from toy_models.unet import NoiseEmbedding, zeroed


class Block(nn.Module):
    """Attention, then a network for each point; both scaled and shifted by the embedding.

    Shapes:  x, result [n, points, width]; embedding [n, width].
    """

    def __init__(self, width: int, heads: int, name: str):
        super().__init__()
        self.modulation = zeroed(nn.Linear(width, 4 * width))
        self.attention = SelfAttention(width, heads, name)
        self.first, self.second = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return the block's output."""
        size = x.shape[-1:]
        modulation = self.modulation(as_many(embedding, x))[:, None]
        scale, shift, scale2, shift2 = modulation.chunk(4, dim=-1)
        h = F.layer_norm(x, size) * (1 + scale) + shift
        # The points stand in a row; the order matters to a blur, not to attention itself.
        mixed = self.attention(h, (1, x.shape[1]))
        x = as_many(x, mixed) + mixed
        h = F.layer_norm(x, size) * (1 + as_many(scale2, x)) + as_many(shift2, x)
        return x + self.second(F.silu(self.first(h)))


class SetTransformer(nn.Module):
    """The raw network F of a denoiser of ordered points.

    The clock is the submodule ``noise``, the class the submodule ``label``, and the attention
    layers are named ``block.0``, ``block.1`` and so on.

    Shapes:  x, result [n, 24, 2]; noise [n]; condition None or [n] long, where ``classes`` is the
             null label of a network that has one.
    Units:   x at unit scale, as :class:`guidance_edu.Preconditioned` provides it.
    Limits:  at the start the result is 0.
    Errors:  ValueError on points of another number, a label out of range, ``condition=None`` where
             the network was trained without a null label, or a condition where it knows no classes.
    """

    def __init__(
        self,
        width: int = 64,
        layers: int = 3,
        heads: int = 4,
        classes: int = len(SHAPES),
        null: bool = True,
    ):
        super().__init__()
        self.classes = classes
        self.null_label = classes if null and classes else None
        self.noise = NoiseEmbedding(width)
        self.stem = nn.Linear(2, width)
        self.position = nn.Parameter(0.5 * torch.randn(POINTS, width))
        self.blocks = nn.ModuleList(Block(width, heads, f"block.{k}") for k in range(layers))
        self.out = zeroed(nn.Linear(width, 2))
        # Last, so that networks with and without classes start from the same other weights.
        known = classes + (self.null_label is not None)
        self.label = nn.Embedding(known, width) if classes else None
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=0.5)

    def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the raw prediction."""
        if x.dim() != 3 or x.shape[1:] != (POINTS, 2):
            raise ValueError(f"expected x of shape [n, {POINTS}, 2], got {list(x.shape)}")
        embedding = self.embed(noise, condition)
        h = self.stem(x) + self.position
        for block in self.blocks:
            h = block(h, embedding)
        return self.out(F.layer_norm(h, h.shape[-1:]))

    def embed(self, noise: Tensor, condition: Tensor | None) -> Tensor:
        """Return what every block is told: the noise level and the class. Shape [n, width]."""
        embedding = self.noise(noise)
        return F.silu(add_class(embedding, self.label, condition, self.classes, self.null_label))


def constellation_denoiser(**options) -> Preconditioned:
    """Return an untrained denoiser of constellations: a :class:`SetTransformer`, preconditioned.

    Shapes:  D(x [n, 24, 2], sigma float or [n], condition) -> [n, 24, 2].
    Errors:  those of :class:`SetTransformer`.
    """
    return Preconditioned(SetTransformer(**options), sigma_data=SIGMA_DATA)
