"""Negatives that break the attention: identity (PAG), blur (SEG), and what they are compared with.

The negative is the same model, asked the same question, with another rule in some self-attention
layers. Everything before the first of these layers is computed once for both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from guidance_edu.attention import (
    Attend,
    attend,
    attention_weights,
    chosen_layers,
    forked,
    replaced,
)
from guidance_edu.denoisers import Denoiser
from guidance_edu.energy import blur_tokens, check_blur


class PerturbedAttention:
    """A model in which some attention layers follow another rule.

    Made by :func:`perturbed_attention` and its relatives.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str | int], rule: Attend):
        self.model, self.layers, self.rule = model, list(layers), rule

    def __call__(self, x: Tensor, sigma: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the negative's estimate of the clean sample."""
        with replaced(self.model, self.layers, self.rule):
            return self.model(x, sigma, condition)

    def pair(
        self, x: Tensor, sigma: float | Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return positive and negative from one pass, which parts at the first chosen layer.

        Shapes:  as for a denoiser, twice.
        """
        with forked(self.model, self.layers, self.rule, len(x)):
            both = self.model(x, sigma, condition)
        return both[: len(x)], both[len(x) :]


def perturbed_attention(
    model: Denoiser, layers: Iterable[str | int], rule: Attend
) -> PerturbedAttention:
    """Return the negative in which some layers follow ``rule`` instead of attention.

    Shapes:  ``rule(queries, keys, values, grid)`` as :func:`guidance_edu.attention.attend`; the
             result is a denoiser.
    Limits:  the rule ``attend`` gives the model itself.
    Errors:  TypeError for a model that is no torch module; ValueError for layers that it has not.
    Source:  the family in Ahn et al. 2024 (arXiv:2403.17377), sec. 4.
    Chapter: 10_perturbed_attention
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a network with attention, got {type(model).__name__}")
    if not isinstance(layers, str):  # a single name is refused below, with the names there are
        layers = [layers] if isinstance(layers, int) else list(layers)
    chosen_layers(model, layers)
    return PerturbedAttention(model, layers, rule)


def identity_attention(model: Denoiser, layers: Iterable[str | int]) -> PerturbedAttention:
    """Return the negative of perturbed-attention guidance: every token attends to itself alone.

    Shapes:  the result is a denoiser.
    Limits:  with one token, or attention that is the identity already, it is the model itself.
    Errors:  as :func:`perturbed_attention`.
    Source:  Ahn et al. 2024 (arXiv:2403.17377), sec. 4.1.
    Chapter: 10_perturbed_attention
    """
    return perturbed_attention(model, layers, keep_values)


def smoothed_attention(
    model: Denoiser,
    layers: Iterable[str | int],
    sigma: float = math.inf,
    padding: str = "reflect",
) -> PerturbedAttention:
    """Return the negative of smoothed-energy guidance: queries blurred over the token grid.

    Units:   sigma in tokens; infinity gives all tokens the mean query.
    Shapes:  the result is a denoiser.
    Limits:  sigma -> 0, one token, or equal queries give the model itself.
    Errors:  as :func:`perturbed_attention`; ValueError for sigma or padding out of range, and when
             a chosen layer has no token grid.
    Source:  Hong 2024 (arXiv:2408.00760), sec. 4; reflect padding is that of the published code,
             only the other two keep the mean of the logits.
    Chapter: 11_smoothed_energy
    """
    check_blur(sigma, padding)
    return perturbed_attention(model, layers, partial(_blurred_queries, sigma=sigma, pad=padding))


def keep_values(queries: Tensor, keys: Tensor, values: Tensor, grid=None) -> Tensor:
    """Identity attention: each token keeps its own value.

    Shapes:  as :func:`guidance_edu.attention.attend`.
    Chapter: 10_perturbed_attention
    """
    return values


def no_values(queries: Tensor, keys: Tensor, values: Tensor, grid=None) -> Tensor:
    """No attention: each token takes nothing, not even its own value.

    Shapes:  as :func:`guidance_edu.attention.attend`.
    Chapter: 10_perturbed_attention
    """
    return torch.zeros_like(values)


def average_values(queries: Tensor, keys: Tensor, values: Tensor, grid=None) -> Tensor:
    """Uniform attention: each token takes the average of all.

    Shapes:  as :func:`guidance_edu.attention.attend`.
    Chapter: 10_perturbed_attention
    """
    return values.mean(-2, keepdim=True).expand_as(values)


def dropped_weights(rate: float, rng: torch.Generator) -> Attend:
    """Return the rule that loses each attention weight with probability ``rate``, without mending.

    Limits:  rate = 0 is attention; rate = 1 is :func:`no_values`.
    Errors:  ValueError for a rate outside [0, 1].
    Source:  an ablation of Ahn et al. 2024 (arXiv:2403.17377), sec. 6.
    Chapter: 10_perturbed_attention
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"expected a rate in [0, 1], got {rate}")

    def rule(queries: Tensor, keys: Tensor, values: Tensor, grid=None) -> Tensor:
        weights = attention_weights(queries, keys)
        kept = torch.rand(weights.shape, generator=rng) >= rate
        return (weights * kept.to(weights)) @ values

    return rule


def noisy_weights(size: float, rng: torch.Generator) -> Attend:
    """Return the rule that adds normal noise to the attention weights.

    Units:   size is the standard deviation of the noise; the weights of a row sum to 1.
    Limits:  size = 0 is attention.
    Errors:  ValueError for a negative or infinite size.
    Source:  an ablation of Ahn et al. 2024 (arXiv:2403.17377), sec. 6.
    Chapter: 10_perturbed_attention
    """
    if not 0 <= size < math.inf:
        raise ValueError(f"expected a finite size of at least 0, got {size}")

    def rule(queries: Tensor, keys: Tensor, values: Tensor, grid=None) -> Tensor:
        weights = attention_weights(queries, keys)
        noise = size * torch.randn(weights.shape, generator=rng)
        return (weights + noise.to(weights)) @ values

    return rule


def blurred_weights(sigma: float, padding: str = "reflect") -> Attend:
    """Return the rule that blurs the attention weights over the query's place, after the softmax.

    Not the same as blurring queries: the softmax lies between.

    Units:   sigma in tokens.
    Limits:  sigma -> 0 is attention; equal rows stay.
    Errors:  ValueError for sigma or padding out of range; where the layer has no token grid.
    Chapter: 11_smoothed_energy
    """
    check_blur(sigma, padding)

    def rule(queries: Tensor, keys: Tensor, values: Tensor, grid=None) -> Tensor:
        weights = attention_weights(queries, keys)
        return blur_tokens(weights, grid, sigma, padding) @ values

    return rule


def _blurred_queries(queries, keys, values, grid, sigma: float, pad: str) -> Tensor:
    return attend(blur_tokens(queries, grid, sigma, pad), keys, values, grid)
