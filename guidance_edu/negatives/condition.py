"""Negatives that break the condition."""

from __future__ import annotations

import torch
from torch import Tensor

from guidance_edu.denoisers import Denoiser
from guidance_edu.guidance import during


class WithoutCondition:
    """A model asked without its condition. Made by :func:`without_condition`."""

    def __init__(self, model: Denoiser):
        self.model = model

    def inputs(
        self, x: Tensor, sigma: float | Tensor, condition: Tensor | None
    ) -> tuple[Tensor, float | Tensor, Tensor | None]:
        """Return the inputs on which the model gives the negative.

        Shapes:  as for a denoiser. The condition is None, or the label [n] that stands for "no
                 class" where the model declares one as ``null_label``.
        """
        label = getattr(self.model, "null_label", None)
        if label is None:
            return x, sigma, None
        return x, sigma, torch.full((len(x),), label, dtype=torch.long, device=x.device)

    def __call__(self, x: Tensor, sigma: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the model's unconditional estimate of the clean sample."""
        return self.model(*self.inputs(x, sigma, condition))

    def during(self, sigma: float) -> WithoutCondition:
        """Return the negative for one solver step that starts at sigma."""
        model = during(self.model, sigma)
        return self if model is self.model else WithoutCondition(model)


def without_condition(model: Denoiser) -> WithoutCondition:
    """Return the negative of classifier-free guidance: the same model with no condition.

    Shapes:  the result is a denoiser; the condition it is given is ignored.
    Limits:  with ``condition=None`` positive and negative coincide, and guidance does nothing.
    Errors:  those of ``model(x, sigma, None)``: a network trained without a null condition raises.
    Source:  Ho & Salimans 2022 (arXiv:2207.12598), algorithm 2.
    Chapter: 02_classifier_free_guidance
    """
    if not callable(model):
        raise TypeError(f"expected a denoiser D(x, sigma, condition), got {type(model).__name__}")
    return WithoutCondition(model)
