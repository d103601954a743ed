"""What negatives share that wrap a model and draw random numbers."""

from __future__ import annotations

import copy

import torch

from guidance_edu.denoisers import Denoiser


def with_model(negative, model: Denoiser):
    """Return the negative with another model, drawing from the same generator and memory.

    Chapter: 07_independent_condition
    """
    if model is negative.model:
        return negative
    other = copy.copy(negative)
    other.model = model
    return other


def check_generator(rng: object) -> None:
    """Errors: TypeError for anything but a random generator on the CPU."""
    if not isinstance(rng, torch.Generator) or rng.device.type != "cpu":
        raise TypeError(f"expected a torch.Generator on the CPU, got {rng!r}")
