"""Diffusion guidance from scratch: every method is a function from denoisers to a denoiser.

from guidance_edu import Guided, noise_levels, sample, without_condition

guided = Guided(model, without_condition(model), w=2.0, window=(0.2, 3.0))
levels = noise_levels(32)
samples = sample(guided, levels[0] * noise, levels, condition=labels)
"""

from guidance_edu.denoisers import Denoiser, Preconditioned, convert
from guidance_edu.guidance import Guided, guide, rescale, to_w
from guidance_edu.negatives import without_condition
from guidance_edu.samplers import noise_levels, sample, sample_states

__all__ = [
    "Denoiser",
    "Guided",
    "Preconditioned",
    "convert",
    "guide",
    "noise_levels",
    "rescale",
    "sample",
    "sample_states",
    "to_w",
    "without_condition",
]
