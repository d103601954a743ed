"""Random inputs and known wrong versions for what chapter 01 builds."""

import torch

SHAPES = [(4,), (3, 2), (5, 1), (2, 3, 4, 4)]
FACES = ["denoised", "epsilon", "score", "v", "flow"]


def _whole(rng, low, high):
    return int(torch.randint(low, high, (), generator=rng))


def _between(rng, low, high):
    return low + (high - low) * float(torch.rand((), generator=rng))


def _tensor(rng, shape):
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def _denoiser(x, sigma, condition=None):
    """Nonlinear in x, smooth in sigma, and shifted by the condition."""
    shift = 0.0 if condition is None else condition.reshape(-1, *[1] * (x.dim() - 1))
    return torch.tanh(x) / (1 + sigma) + 0.1 * shift


def _step(rng):
    x = _tensor(rng, SHAPES[_whole(rng, 0, 4)])
    sigma = _between(rng, 0.5, 3)
    target = 0.0 if _whole(rng, 0, 4) == 0 else sigma * _between(rng, 0.2, 0.9)
    condition = torch.arange(len(x)) if _whole(rng, 0, 2) else None
    return [_denoiser, x, sigma, target, condition]


def _conversion(rng):
    x = _tensor(rng, SHAPES[_whole(rng, 0, 4)])
    source, target = (FACES[_whole(rng, 0, 5)] for _ in range(2))
    each = (len(x),) if _whole(rng, 0, 2) else ()
    sigma, alpha = (0.2 + torch.rand(each, generator=rng, dtype=torch.float64) for _ in range(2))
    if not each:
        sigma, alpha = float(sigma), float(alpha)
    return [_tensor(rng, x.shape), x, sigma, source, target, alpha]


def _levels(rng):
    top = _between(rng, 1, 100)
    return [_whole(rng, 2, 40), top, top * _between(rng, 1e-4, 0.1), _between(rng, 1, 9)]


INPUTS = {
    "guidance_edu.denoisers.convert": _conversion,
    "guidance_edu.samplers.noise_levels": _levels,
    "guidance_edu.samplers.euler_step": _step,
    "guidance_edu.samplers.heun_step": _step,
}

WRONG = {
    "guidance_edu.denoisers.convert": [
        ('"epsilon": (1 / sigma, -alpha / sigma)', '"epsilon": (1 / sigma, -1 / sigma)'),
        ("-alpha / sigma - 1)", "-alpha / sigma + 1)"),
        ("(-1 / sigma**2, alpha / sigma**2)", "(-1 / sigma, alpha / sigma)"),
        ("-(alpha**2) / sigma - sigma", "-(alpha**2) / sigma + sigma"),
        (".reshape(column)", ""),
    ],
    "guidance_edu.samplers.noise_levels": [
        ("** rho  # eq. 1.10", "** 7.0"),
        ("torch.linspace(0, 1, steps,", "torch.linspace(0, 1, steps + 1,"),
        ("torch.cat([levels, torch.zeros(1, dtype=torch.float64)])", "levels"),
    ],
    "guidance_edu.samplers.euler_step": [
        ("/ sigma  # eq. 1.8", "/ target"),
        ("(target - sigma) * slope\n\n", "(sigma - target) * slope\n\n"),
        ("denoiser(x, sigma, condition)) / sigma  # eq. 1.8", "denoiser(x, sigma, None)) / sigma"),
    ],
    "guidance_edu.samplers.heun_step": [
        ("(slope + slope_ahead) / 2", "slope_ahead"),
        ("denoiser(ahead, target, condition)", "denoiser(ahead, sigma, condition)"),
        ("    if target == 0:  # no slope there\n        return ahead\n", ""),
    ],
}
