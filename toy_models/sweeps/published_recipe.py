"""The published recipe of the autoguidance tree, written plainly: what the book's recipe is beside.

Every training step evaluates the exact score of all Gaussians at fresh points, and the network is
the gradient of an energy. The book's recipe reaches the same loss from a pool of exact targets and
a plain denoiser; ``make bench`` compares the two.
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor, nn

from guidance_edu.ema import PowerEMA
from guidance_edu.settings import generator, seed_shift
from toy_models.gaussian_mixture import GaussianMixture
from toy_models.pool import LOG_SIGMA_MEAN, LOG_SIGMA_STD
from toy_models.recipes import recipe_named, validation_loss
from toy_models.sweeps import sweep
from toy_models.tree import published_tree

SIGMA_DATA = 0.5


class EnergyDenoiser(nn.Module):
    """A denoiser whose score is the gradient of a learned log density.

    Shapes:  D(x [n, 2], sigma float or [n]) -> [n, 2].
    Limits:  at the start the log density is that of N(0, sigma_data^2 + sigma^2).
    Source:  Karras et al. 2024 (arXiv:2406.02507), app. C: no biases, rows of the weights of unit
             length, and the log density as a mean of squares.
    """

    def __init__(self, hidden: int = 64):
        super().__init__()
        widths = [4, hidden, hidden, hidden, hidden, hidden]
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(b, a)) for a, b in pairs)
        self.gain = nn.Parameter(torch.zeros(()))

    def log_density(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the log density up to a constant. Shapes: x [n, 2], sigma [n]; result [n]."""
        scaled = x / (sigma**2 + SIGMA_DATA**2).sqrt()[:, None]
        h = torch.cat([scaled, sigma.log()[:, None] / 4, torch.ones_like(sigma)[:, None]], dim=1)
        for i, weight in enumerate(self.weights):
            h = nn.functional.silu(h) / 0.596 if i else h
            h = h @ (weight / weight.norm(dim=1, keepdim=True)).mT
        return h.square().mean(1) * self.gain / sigma - scaled.square().sum(1) / 2

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the gradient of the log density. Shapes: x [n, 2], sigma [n]; result [n, 2]."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            total = self.log_density(x, sigma).sum()
            return torch.autograd.grad(total, x, create_graph=self.training)[0]

    def forward(self, x: Tensor, sigma: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the denoised x."""
        sigma = torch.as_tensor(sigma, dtype=x.dtype).expand(len(x))
        return x + sigma[:, None] ** 2 * self.score(x, sigma)


def direct_score(world: GaussianMixture, x: Tensor, sigma: Tensor) -> Tensor:
    """Return the exact score the direct way: every Gaussian at every point.

    Shapes:  x [n, 2], sigma [n]; result [n, 2].
    """
    means, covariances = world.means.to(x.dtype), world.covariances.to(x.dtype)
    noisy = covariances + sigma[:, None, None, None] ** 2 * torch.eye(2)  # [n, K, 2, 2]
    precision = torch.linalg.inv(noisy)
    offset = x[:, None] - means
    distance = torch.einsum("nki,nkij,nkj->nk", offset, precision, offset)
    logits = world.weights.to(x.dtype).log() - (noisy.logdet() + distance) / 2
    return -torch.einsum("nk,nkij,nkj->ni", logits.softmax(1), precision, offset)


def train_plainly(
    hidden: int = 64,
    steps: int = 4096,
    batch: int = 4096,
    schedule: int = 512,
    classes: str = "A",
) -> tuple[EnergyDenoiser, list[float]]:
    """Train by the published recipe; return the averaged network and the CPU seconds of each step.

    Errors:  ValueError for classes other than A, B or AB.
    Source:  Karras et al. 2024 (arXiv:2406.02507), app. C.
    """
    world, rng = published_tree().mixture(classes), generator(5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_shift())
        model = EnergyDenoiser(hidden).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.9, 0.99))
    average, seconds = PowerEMA(model, 0.01), []
    for step in range(steps):
        start = time.process_time()
        sigma = torch.randn(batch, generator=rng) * LOG_SIGMA_STD + LOG_SIGMA_MEAN
        sigma = sigma.exp()
        clean = world.sample(batch, rng).float()
        x = clean + sigma[:, None] * torch.randn(batch, 2, generator=rng)
        target = direct_score(world, x, sigma)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / math.sqrt(max(step / schedule, 1))
        error = model.score(x, sigma) - target
        loss = (sigma**2 * error.square().mean(1)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        average.update(model)
        seconds.append(time.process_time() - start)
    average.copy_to(model)
    return model.eval().requires_grad_(False), seconds


@sweep("published_recipe", seeds=(0,), settings=[{"hidden": 64, "steps": 4096}], long=True)
def published_recipe(hidden: int, steps: int) -> dict[str, float]:
    """CPU seconds and validation loss of the published recipe, run in full."""
    model, seconds = train_plainly(hidden, steps)
    loss = validation_loss(model, recipe_named("published-main"))
    return {"validation_loss": loss, "seconds": sum(seconds)}
