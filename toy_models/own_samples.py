"""A model that learns from its own samples, and so becomes a guide for itself."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from guidance_edu.denoisers import Denoiser, Preconditioned
from guidance_edu.ema import PowerEMA
from guidance_edu.samplers import noise_levels, sample
from guidance_edu.settings import device
from toy_models.pool import noisy_pool, training_steps

SIGMA_MAX = 5.0


def own_samples(model: Denoiser, data: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """Draw samples from a model: 32 Heun steps down from training points under noise of 5.

    At this noise level, ten times the spread of the data, nothing of the points is left but their
    mean.

    Shapes:  data [m, 2], the points that the model was trained on; result [n, 2] on the CPU.
    Errors:  ValueError for no data, or n below 1.
    Chapter: 06_own_samples
    """
    if not len(data) or n < 1:
        raise ValueError(f"expected data and n >= 1, got {len(data)} points and n = {n}")
    start = data[torch.randint(len(data), (n,), generator=rng)].float()
    start = start + SIGMA_MAX * torch.randn(start.shape, generator=rng)
    return sample(model, start.to(device()), noise_levels(32, sigma_max=SIGMA_MAX)).cpu()


def fine_tune(
    model: Preconditioned,
    points: Tensor,
    steps: int,
    rng: torch.Generator,
    learning_rate: float = 1e-3,
    batch: int = 1024,
    decay: float = math.inf,
) -> Preconditioned:
    """Return a copy of a model, trained further on given points by ordinary denoising.

    Each point is used under eight noises; the learning rate is constant unless ``decay`` is given,
    and the weights are averaged with a width of 0.1 of the fine-tuning.

    Shapes:  points [n, 2].
    Limits:  the model itself stays as it is. ``steps`` = 0 returns a plain copy.
    Errors:  ValueError for no points or a negative number of steps.
    Source:  Alemohammad et al. 2024 (arXiv:2408.16333), the auxiliary model of SIMS.
    Chapter: 06_own_samples
    """
    if steps < 0:
        raise ValueError(f"expected steps of at least 0, got {steps}")
    result = copy.deepcopy(model).cpu().requires_grad_(True)
    pool = noisy_pool(points, rng)
    if steps:
        average = PowerEMA(result, 0.1)
        options = {"learning_rate": learning_rate, "decay": decay}
        for _ in training_steps(result, pool, steps, rng, min(batch, len(pool.x)), **options):
            average.update(result)
        average.copy_to(result)
    return result.eval().requires_grad_(False).to(device())


def extrapolate_weights(main: list[Tensor], auxiliary: list[Tensor], w: float) -> list[Tensor]:
    """Step away from an auxiliary model in the space of weights instead of predictions.

    Shapes:  main, auxiliary, result: one tensor a parameter, in one order.
    Limits:  w = 1 gives the main weights exactly, w = 0 the auxiliary's up to rounding. For a
             model that is linear in its weights, and to first order in their difference for any
             model, this is guidance with the same w.
    Errors:  ValueError when number or shapes differ.
    Source:  Alemohammad et al. 2025 (Neon, arXiv:2510.03597), whose w is ours minus 1.
    Chapter: 06_own_samples
    """
    if [p.shape for p in main] != [p.shape for p in auxiliary]:
        raise ValueError("expected weights of one model, got different numbers or shapes")
    return [p + (w - 1) * (p - q) for p, q in zip(main, auxiliary, strict=True)]
