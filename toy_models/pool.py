"""Exact targets, computed once: the reason why the 2D models of the book train in seconds.

A network that learns to denoise sees noisy targets: one clean point of many that fit. Where the
truth is known, it can be shown the mean of them all. A pool holds noisy points with this mean; all
models of a world learn from one pool.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from guidance_edu.ema import PowerEMA
from guidance_edu.settings import progress
from toy_models.gaussian_mixture import GaussianMixture

LOG_SIGMA_MEAN, LOG_SIGMA_STD = -2.3, 1.5


@dataclass(frozen=True)
class Pool:
    """Noisy points, their noise levels, and their exact denoised values.

    Shapes:  x, target [n, 2]; sigma [n].
    Source:  noise levels as in Karras et al. 2024 (arXiv:2406.02507), app. C: ln sigma is normal
             with mean -2.3 and standard deviation 1.5.
    """

    x: Tensor
    sigma: Tensor
    target: Tensor


def log_normal_levels(number: int, rng: torch.Generator) -> Tensor:
    """Draw one noise level from each of equally probable strata. Shapes: result [number]."""
    share = (torch.arange(number) + torch.rand(number, generator=rng)) / number
    # Rounding may reach 0 or 1, where the normal quantile is infinite.
    share = share.double().clamp(1e-9, 1 - 1e-8)
    return (LOG_SIGMA_MEAN + LOG_SIGMA_STD * torch.special.ndtri(share)).exp()


def make_pool(
    world: GaussianMixture, rng: torch.Generator, levels: int = 1024, per_level: int = 256
) -> Pool:
    """Draw noisy points from a world and compute their exact targets, one level at a time.

    Shapes:  the pool holds levels * per_level points.
    """
    world = world.to(torch.float32)
    sigmas = log_normal_levels(levels, rng)
    points, targets = [], []
    for sigma in progress(sigmas.tolist(), "exact targets"):
        points.append(world.sample(per_level, rng, sigma))
        targets.append(world.denoise(points[-1], sigma))
    return Pool(torch.cat(points), sigmas.float().repeat_interleave(per_level), torch.cat(targets))


def noisy_pool(points: Tensor, rng: torch.Generator, copies: int = 8) -> Pool:
    """Put noise on given points; each target is the point itself, as in ordinary denoising.

    Where only samples are known, not their density, this is what a network can learn from. The
    average target is the right one; a single target is not, which costs precision.

    Shapes:  points [n, 2]; the pool holds n * copies noisy points, in random order.
    Errors:  ValueError when there are no points or no copies.
    """
    if not len(points) or copies < 1:
        raise ValueError(f"expected points and copies >= 1, got {len(points)} and {copies}")
    clean = points.float().repeat(copies, 1)
    clean = clean[torch.randperm(len(clean), generator=rng)]
    sigma = log_normal_levels(len(clean), rng).float()  # in rising order, hence the shuffle
    noise = torch.randn(clean.shape, generator=rng)
    return Pool(clean + sigma[:, None] * noise, sigma, clean)


def training_steps(
    model: nn.Module,
    pool: Pool,
    steps: int,
    rng: torch.Generator,
    batch: int = 512,
    learning_rate: float = 1e-2,
    decay: float = 512,
) -> Iterator[float]:
    """Train a denoiser on a pool; yield the loss of each batch after its step is taken.

    Between the steps the caller may look at the model, average its weights, or stop.

    The loss is |D(x, sigma) - target|^2 / (2 sigma^2), Adam with a learning rate that falls like
    1/sqrt(step) after ``decay`` steps (infinity: never).

    Shapes:  yields ``steps`` numbers.
    Errors:  ValueError when steps or batch are below 1, or there are fewer points than in a batch.
    Source:  Karras et al. 2024 (arXiv:2406.02507), app. C (schedule, Adam betas).
    """
    if steps < 1 or not 1 <= batch <= len(pool.x):
        raise ValueError(f"expected steps >= 1 and 1 <= batch <= {len(pool.x)}")
    return _steps(model, pool, steps, rng, batch, learning_rate, decay)


def _steps(model, pool, steps, rng, batch, learning_rate, decay) -> Iterator[float]:
    optimizer = torch.optim.Adam(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.99), fused=True
    )
    order, start = torch.randperm(len(pool.x), generator=rng), 0
    for step in progress(range(steps), "training"):
        if start + batch > len(order):
            order, start = torch.randperm(len(pool.x), generator=rng), 0
        rows = order[start : start + batch]
        start += batch
        for group in optimizer.param_groups:
            group["lr"] = learning_rate / math.sqrt(max(step / decay, 1))
        error = model(pool.x[rows], pool.sigma[rows]) - pool.target[rows]
        loss = (error.square().sum(1) / pool.sigma[rows] ** 2).mean() / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        yield float(loss.detach())


def fit(
    model: nn.Module,
    pool: Pool,
    steps: int,
    rng: torch.Generator,
    batch: int = 512,
    learning_rate: float = 1e-2,
    decay: float = 512,
    sigma_rel: float = 0.01,
) -> float:
    """Train as :func:`training_steps` does; leave the model with averaged weights.

    Returns the last average loss. The average of the weights is a power-function average.

    Errors:  ValueError when steps or batch are below 1; FloatingPointError when the loss is not
             finite.
    Source:  Karras et al. 2024 (arXiv:2406.02507), app. C (EMA length).
    """
    average, running = PowerEMA(model, sigma_rel), 0.0
    losses = training_steps(model, pool, steps, rng, batch, learning_rate, decay)
    for step, loss in enumerate(losses):
        average.update(model)
        running += (loss - running) / min(step + 1, 200)
        if not math.isfinite(running):
            raise FloatingPointError(f"the loss is not finite at step {step}; the model diverged")
    average.copy_to(model)
    return running
