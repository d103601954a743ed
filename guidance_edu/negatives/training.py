"""Negatives whose training is broken, and networks that are damaged after it.

Autoguidance needs nothing from this module: its negative is simply another denoiser, a network
trained less, or smaller, on the same data with the same condition. The functions here make the
guides it is compared with: a finished network, damaged by hand.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def noisy_weight(weight: Tensor, noise: Tensor, strength: float) -> Tensor:
    """Add noise to a weight, in units of the weight's own root mean square.

    Shapes:  weight, noise, result of one shape.
    Limits:  strength = 0 changes nothing; scaling the weight scales the result.
    Errors:  ValueError for shapes that differ, or a strength below 0 or not finite.
    Chapter: 04_autoguidance
    """
    if weight.shape != noise.shape:
        raise ValueError(f"expected noise of shape {[*weight.shape]}, got {[*noise.shape]}")
    _check_strength(strength)
    return weight + strength * weight.square().mean().sqrt() * noise


def rounded_weight(weight: Tensor, bits: float) -> Tensor:
    """Round a weight to a grid of 2^bits - 1 steps between minus and plus its largest entry.

    A fraction of a bit is allowed: what counts is the step, 2 max|weight| / (2^bits - 1).

    Shapes:  weight, result of one shape.
    Limits:  many bits change nothing; no entry moves by more than half a step; a weight of zeros
             stays; scaling the weight scales the result (up to rounding, which decides entries
             halfway between two steps).
    Errors:  ValueError for fewer than 1 bit.
    Chapter: 04_autoguidance
    """
    if not 1 <= bits < math.inf:
        raise ValueError(f"expected at least 1 bit, got {bits}")
    step = 2 * weight.abs().max() / (2.0 ** min(bits, 99) - 1)
    return torch.where(step > 0, (weight / step).round() * step, weight)


def dropped(h: Tensor, draws: Tensor, rate: float) -> Tensor:
    """Set a share of the entries to zero and scale up the rest, so that the mean stays.

    Shapes:  h, draws, result of one shape; draws are uniform in [0, 1).
    Limits:  rate = 0 changes nothing; the mean over draws is h.
    Errors:  ValueError for shapes that differ, or a rate outside [0, 1).
    Source:  Srivastava et al. 2014 (dropout), in its scaled form.
    Chapter: 04_autoguidance
    """
    if h.shape != draws.shape:
        raise ValueError(f"expected draws of shape {[*h.shape]}, got {[*draws.shape]}")
    if not 0 <= rate < 1:
        raise ValueError(f"expected a dropout rate of at least 0 and below 1, got {rate}")
    return torch.where(draws >= rate, h / (1 - rate), 0)


def with_weight_noise(model: nn.Module, strength: float, rng: torch.Generator) -> nn.Module:
    """Return a copy of a network with noise on its weight matrices, drawn once.

    Two copies made with equal ``rng`` states differ in the strength of one and the same damage.

    Limits:  strength = 0 gives an equal network; the model itself is not changed; biases and other
             parameters with a single axis are left alone.
    Errors:  ValueError for a strength below 0 or not finite, or a network without weight matrices.
    Source:  one of the damages that no guidance gains from: Karras et al. 2024 (arXiv:2406.02507),
             sec. 4, degrades a finished network likewise.
    Chapter: 04_autoguidance
    """
    _check_strength(strength)

    def change(weight: Tensor) -> Tensor:
        noise = torch.randn(weight.shape, generator=rng, dtype=weight.dtype)  # on the CPU
        return noisy_weight(weight, noise.to(weight.device), strength)

    return _changed(model, change)


def with_low_bits(model: nn.Module, bits: float) -> nn.Module:
    """Return a copy of a network with its weight matrices rounded to few bits each.

    Limits:  many bits give an equal network; the model itself is not changed; biases stay.
    Errors:  ValueError for fewer than 1 bit, or a network without weight matrices.
    Chapter: 04_autoguidance
    """
    return _changed(model, lambda weight: rounded_weight(weight, bits))


class WithDropout:
    """A network some of whose units fall silent. Made by :func:`with_dropout`."""

    def __init__(
        self, model: nn.Module, rate: float, rng: torch.Generator, layers: Sequence[str] | None
    ):
        dropped(torch.zeros(0), torch.zeros(0), rate)  # refuses a bad rate now, not mid-sampling
        self.model, self.rate, self.rng = model, rate, rng
        known = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
        self.layers = known[1:] if layers is None else list(layers)
        for name in self.layers:
            if name not in known:
                raise ValueError(f"layer {name!r} not found; this network has: {', '.join(known)}")
        if not self.layers:
            raise ValueError("expected at least one layer behind the first")

    def __call__(self, x: Tensor, sigma: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the damaged network's estimate of the clean sample; draws new units each time."""
        hooks = []
        try:
            for name in self.layers:
                layer = self.model.get_submodule(name)
                hooks.append(layer.register_forward_pre_hook(self._silence))
            return self.model(x, sigma, condition)
        finally:
            for hook in hooks:
                hook.remove()

    def _silence(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, *rest = inputs
        draws = torch.rand(h.shape, generator=self.rng, dtype=h.dtype)  # on the CPU, then moved
        return dropped(h, draws.to(h.device), self.rate), *rest


def with_dropout(
    model: nn.Module, rate: float, rng: torch.Generator, layers: Sequence[str] | None = None
) -> WithDropout:
    """Return a network whose linear layers lose some of their inputs, drawn anew at each call.

    Shapes:  the result is a denoiser; ``layers`` names linear layers exactly, and by default takes
             all of them but the first, which reads the point itself.
    Limits:  rate = 0 gives the network's own predictions; the model is not changed, and sees no
             dropout when it is called itself, also after an error.
    Errors:  ValueError for a rate outside [0, 1) or a layer that is not there; TypeError for a
             random generator that is none or not on the CPU.
    Source:  Karras et al. 2024 (arXiv:2406.02507), sec. 4: dropout 5 % guided by dropout 10 %.
    Chapter: 04_autoguidance
    """
    if not isinstance(rng, torch.Generator) or rng.device.type != "cpu":
        raise TypeError(f"expected a torch.Generator on the CPU, got {rng!r}")
    return WithDropout(model, rate, rng, layers)


def _changed(model: nn.Module, change) -> nn.Module:
    copied = copy.deepcopy(model)
    matrices = [p for p in copied.parameters() if p.dim() > 1]
    if not matrices:
        raise ValueError("expected a network with weight matrices, got none")
    with torch.no_grad():
        for weight in matrices:
            weight.copy_(change(weight))
    return copied


def _check_strength(strength: float) -> None:
    if not 0 <= strength < math.inf:
        raise ValueError(f"expected a finite strength of at least 0, got {strength}")
