"""Checks of the exercises of chapter 01. Independent forms and properties only, no solutions."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import MixtureSameFamily, Normal
from torch.distributions.categorical import Categorical

from guidance_edu.denoisers import convert
from guidance_edu.exercises.check import compare, compare_number, exercise
from guidance_edu.samplers import noise_levels, sample


def _normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


@exercise("1.1")
def two_points(answer: object) -> str | None:
    """The posterior mean of two points, by Bayes' rule on their densities."""
    x, points, sigma = 0.5, torch.tensor([-1.0, 1.0], dtype=torch.float64), 0.5
    likelihood = Normal(points, sigma).log_prob(torch.tensor(x, dtype=torch.float64)).exp()
    posterior = likelihood / likelihood.sum()
    wanted, right = float((posterior * points).sum()), float(posterior[1])
    hints = {
        "that is x; the denoiser should move it": 0.5,
        "that is the nearest point; the other one is possible too": 1.0,
        "that is the best linear guess; these data are not Gaussian": 0.4,
        "a squared distance is divided by twice the variance of the noise": math.tanh(1.0),
        "that is the probability of the right point; the left one counts with -1": right,
    }
    return compare_number(answer, wanted, 0.002, "the mean of the clean points", hints)


@exercise("1.2")
def gaussian_flow(flow) -> str | None:
    """The end of a path of the ODE on Gaussian data, as a quantile map."""
    rng = torch.Generator().manual_seed(1)
    for m, s, sigma, target in ((0.0, 1.0, 3.0, 0.5), (1.0, 0.5, 0.5, 0.25), (-2.0, 0.3, 3.0, 0.0)):
        before, after = (Normal(m, math.hypot(s, level)) for level in (sigma, target))
        x = m + 1.5 * math.hypot(s, sigma) * torch.rand(20, generator=rng, dtype=torch.float64)
        wanted = after.icdf(before.cdf(x))
        ratio = (wanted - m) / (x - m)
        hints = {
            "the mean stays where it is; scale the distance from it": x * ratio,
            "that scales by variances; take the root": m + (x - m) * ratio**2,
            "that goes up in noise; swap the levels": m + (x - m) / ratio,
            "that is the denoiser, not the path": m + (x - m) * s**2 / (s**2 + sigma**2),
            "the data have a spread of their own, s": m + (x - m) * target / sigma,
            "variances add, strengths do not": m + (x - m) * (s + target) / (s + sigma),
            "that is one Euler step, not the whole path": x
            + (target - sigma) * sigma / (s**2 + sigma**2) * (x - m),
        }
        where = f"for m={m:g}, s={s:g}, sigma={sigma:g}, target={target:g}"
        problem = compare(flow(x, m, s, sigma, target), wanted, where, hints)
        if problem:
            return problem
    return None


@exercise("1.3")
def climb(answer) -> str | None:
    """Fresh noise must make up the difference of the variances."""
    rng = torch.Generator().manual_seed(2)
    for sigma, churn in ((1.0, 0.4), (10.0, 0.1), (0.02, 1.0)):
        x, noise = _normal(rng, 6, 2), _normal(rng, 6, 2)
        where = f"for sigma={sigma:g}, churn={churn:g}"
        got = answer(x, sigma, churn, noise)
        if not isinstance(got, Tensor) or got.shape != x.shape:
            return f"expected a tensor of shape {list(x.shape)} {where}"
        strength = ((got - x) / noise).mean()
        if not torch.allclose(got - x, strength * noise):
            return f"x should move by one multiple of the noise {where}"
        reached = float(strength**2 + sigma**2) / sigma**2  # variance in units of sigma^2
        if abs(reached - (1 + churn) ** 2) > 1e-6:
            if abs(float(strength) - churn * sigma) < 1e-9:
                return f"too little noise {where}: strengths of independent noise do not add"
            if abs(float(strength) - (1 + churn) * sigma) < 1e-9:
                return f"too much noise {where}: x is noisy already"
            if abs(float(strength) - ((1 + churn) ** 2 - 1) * sigma**2) < 1e-9:
                return f"wrong strength {where}: that is a variance, take its root"
            return f"the variance reaches {reached:.3f} sigma^2 {where}, not (1 + churn)^2 sigma^2"
    return None


@exercise("1.4")
def denoiser_from_v(answer) -> str | None:
    """A v network behind the scale of the book, against the library's conversion."""
    rng = torch.Generator().manual_seed(3)
    matrix = _normal(rng, 3, 3)

    def network(x: Tensor) -> Tensor:
        return torch.tanh(x @ matrix)

    for sigma in (0.1, 1.0, 7.0):
        x = _normal(rng, 5, 3) * (1 + sigma)
        alpha = (1 + sigma**2) ** -0.5

        def face(y, weight, at, level=sigma * alpha, scale=alpha):
            return convert(network(y), at, level, weight, "denoised", scale)

        hints = {
            "the network expects x divided by sqrt(1 + sigma^2)": face(x, "v", alpha * x),
            "after the network, x in the formula is in the wrong scale": face(alpha * x, "v", x),
            "that reads the output as noise; it is v": face(alpha * x, "epsilon", alpha * x),
            "the sign of v: it is alpha epsilon - sigma x0": 2 * alpha**2 * x
            - face(alpha * x, "v", alpha * x),
            "the noise, too, is smaller in the network's scale": alpha**2 * x
            - sigma * network(alpha * x),
            "that is v itself; turn it into the clean sample": network(alpha * x),
        }
        problem = compare(
            answer(network, x, sigma), face(alpha * x, "v", alpha * x), f"at sigma={sigma:g}", hints
        )
        if problem:
            return problem
    return None


@exercise("1.5")
def failing_world(build) -> str | None:
    """Sixteen Heun steps must miss the quantile map of the reader's world."""
    weights, means, stds = (torch.tensor(v, dtype=torch.float64) for v in build())
    if not 1 <= len(weights) == len(means) == len(stds) <= 4:
        return "expected one to four weights, means and standard deviations, as many of each"
    if bool((weights <= 0).any()) or bool((means.abs() > 10).any()) or bool((stds < 1e-4).any()):
        return "expected positive weights, means within 10, standard deviations of at least 1e-4"

    def blurred(sigma: float) -> MixtureSameFamily:
        return MixtureSameFamily(Categorical(weights), Normal(means, (stds**2 + sigma**2).sqrt()))

    def denoiser(x: Tensor, sigma: float, condition=None) -> Tensor:
        free = x.detach().requires_grad_()
        with torch.enable_grad():
            total = blurred(sigma).log_prob(free).sum()
        return x + sigma**2 * torch.autograd.grad(total, free)[0]

    ranks = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    ends = _quantiles(blurred(0.0), ranks)
    starts = _quantiles(blurred(80.0), ranks)
    arrived = sample(denoiser, starts[:, None], noise_levels(16))[:, 0]
    data = blurred(0.0)
    error = float((arrived - ends).abs().mean() / data.variance.sqrt())
    if error > 0.2:
        return None
    if float(data.variance.sqrt()) > 0.05:
        why = "each path is caught by one mode; compare the size of the data with the levels"
    else:
        why = "you are close; what does the very last step do to data of this size?"
    return f"the method works here, with an error of {error:.3f} of the spread: {why}"


def _quantiles(law: MixtureSameFamily, ranks: Tensor) -> Tensor:
    low, high = torch.full_like(ranks, -2000.0), torch.full_like(ranks, 2000.0)
    for _ in range(70):
        middle = (low + high) / 2
        below = law.cdf(middle) < ranks
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
