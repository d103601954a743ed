"""Negatives that break the clock: the model is told a wrong noise level, or a blurred one.

For a network the clock is a vector, the embedding of its noise level, and noise on it makes the
negative. An exact world has no embedding; there the told level itself is wrong, and what that does
depends on what is predicted: clean samples or noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from guidance_edu.denoisers import Denoiser, check_sigma
from guidance_edu.guidance import during
from guidance_edu.negatives.submodules import output_changed, submodule
from guidance_edu.negatives.wrapped import check_generator, with_model

PREDICTIONS = ("clean", "noise")
BETA_MIN, BETA_STEP = 0.1, 19.9  # the linear noise schedule of DDPM in continuous time


def vp_time(sigma: float | Tensor) -> Tensor:
    """Return the time t in 0 .. 1 of the linear DDPM schedule at which the noise level is sigma.

    Schedules of published methods are written in it: 1000 t is their step number.

    Shapes:  sigma a float or [any]; result the same.
    Limits:  sigma = 0 gives 0; sigma = 152 gives 1, and larger ones more than 1.
    Errors:  ValueError for a sigma that is negative or not finite.
    Source:  Karras et al. 2022 (arXiv:2206.00364), table 1, inverse of the VP schedule.
    Chapter: 08_time_step_guidance
    """
    sigma = torch.as_tensor(sigma, dtype=torch.float64)
    if not bool(((sigma >= 0) & sigma.isfinite()).all()):
        raise ValueError(f"expected finite sigma of at least 0, got {sigma.tolist()}")
    log = torch.log1p(sigma**2)
    return 2 * log / (BETA_MIN + (BETA_MIN**2 + 2 * BETA_STEP * log).sqrt())


def vp_sigma(t: float) -> float:
    """Return the noise level at time t of the linear DDPM schedule.

    Limits:  the inverse of :func:`vp_time`; t = 0 gives 0.
    Errors:  ValueError for a time that is negative or not finite.
    Source:  Karras et al. 2022 (arXiv:2206.00364), table 1, VP schedule.
    Chapter: 08_time_step_guidance
    """
    if not 0 <= t < math.inf:
        raise ValueError(f"expected a finite time of at least 0, got {t}")
    return math.sqrt(math.expm1(BETA_STEP * t * t / 2 + BETA_MIN * t))


def perturbed_embedding(embedding: Tensor, noise: Tensor, strength: float | Tensor) -> Tensor:
    """Add noise to an embedding of the noise level, in units of its own standard deviation.

    Shapes:  embedding, noise, result [n, width]; strength a float or [n].
    Limits:  strength = 0 changes nothing; scaling the embedding scales the result.
    Errors:  ValueError for shapes that differ or fewer than two numbers a sample.
    Source:  Sadat et al. 2025 (arXiv:2407.02687), time-step guidance: t_emb + s t^alpha n, with n
             scaled by the standard deviation of t_emb.
    Chapter: 08_time_step_guidance
    """
    if embedding.shape != noise.shape or embedding.dim() != 2 or embedding.shape[1] < 2:
        raise ValueError(
            f"expected an embedding [n, width] and noise of its shape, got {[*embedding.shape]} and"
            f" {[*noise.shape]}"
        )
    strength = torch.as_tensor(strength, dtype=embedding.dtype, device=embedding.device)
    return embedding + strength.reshape(-1, 1) * embedding.std(1, keepdim=True) * noise


def at_wrong_level(model, x, sigma, delta, predicts="clean", condition=None):
    """Return what a model answers that is told the level sigma e^delta, as a clean sample.

    ``predicts`` says what the model was trained to output, which decides what survives of the lie:

        clean   D(x, sigma e^delta)
        noise   x - sigma epsilon(x, sigma e^delta): the sampler, which knows sigma, removes the
                predicted noise at its true size

    Shapes:  x, result [n, ...]; sigma and delta floats or [n]; condition None or [n].
    Limits:  delta = 0 is the model's own answer (up to rounding for noise).
    Errors:  ValueError for an unknown prediction, or those of the model.
    Source:  own, for the time-step guidance of Sadat et al. 2025 (arXiv:2407.02687).
    Chapter: 08_time_step_guidance
    """
    if predicts not in PREDICTIONS:
        raise ValueError(f"unknown prediction {predicts!r}; expected one of clean, noise")
    factor = torch.exp(torch.as_tensor(delta, dtype=torch.float64))
    told = torch.as_tensor(sigma, dtype=torch.float64, device="cpu") * factor
    clean = model(x, float(told) if told.dim() == 0 else told.to(x), condition)
    if predicts == "clean":
        return clean
    return x - (x - clean) / check_sigma(x, factor)  # sigma over the told level is e^-delta


class WrongLevel:
    """A model told a wrong noise level. Made by :func:`wrong_level`."""

    def __init__(
        self,
        model: Denoiser,
        delta: float,
        predicts: str,
        spread: float,
        rng: torch.Generator | None,
    ):
        self.model, self.delta, self.predicts = model, delta, predicts
        self.spread, self.rng = spread, rng

    def __call__(self, x: Tensor, sigma: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the misled model's estimate of the clean sample."""
        check_sigma(x, sigma)
        delta = self.delta
        if self.spread:
            draws = torch.randn(len(x), generator=self.rng, dtype=torch.float64)
            delta = delta + self.spread * draws
        return at_wrong_level(self.model, x, sigma, delta, self.predicts, condition)

    def during(self, sigma: float) -> WrongLevel:
        """Return the negative for one solver step that starts at sigma."""
        return with_model(self, during(self.model, sigma))


def wrong_level(
    model: Denoiser,
    delta: float = 0.0,
    predicts: str = "clean",
    spread: float = 0.0,
    rng: torch.Generator | None = None,
) -> WrongLevel:
    """Return a negative that believes the noise level to be sigma e^delta.

    With ``spread`` each sample has an error of its own at each evaluation, normal with mean delta
    and standard deviation ``spread``.

    Shapes:  the result is a denoiser.
    Units:   delta and spread in natural logarithms of sigma.
    Limits:  delta = spread = 0: positive and negative coincide, and guidance does nothing.
    Errors:  ValueError for a delta or spread that is not finite, a negative spread, or an unknown
             prediction; TypeError for a spread without a generator on the CPU, or a model that
             cannot be called.
    Source:  own, for the time-step guidance of Sadat et al. 2025 (arXiv:2407.02687).
    Chapter: 08_time_step_guidance
    """
    if not callable(model):
        raise TypeError(f"expected a denoiser D(x, sigma, condition), got {type(model).__name__}")
    if not math.isfinite(delta) or not 0 <= spread < math.inf:
        raise ValueError(f"expected finite delta and spread >= 0, got {delta} and {spread}")
    if predicts not in PREDICTIONS:
        raise ValueError(f"unknown prediction {predicts!r}; expected one of clean, noise")
    if spread:
        check_generator(rng)
    return WrongLevel(model, delta, predicts, spread, rng)


class PerturbedTime:
    """A network with noise on its clock. Made by :func:`perturbed_time`."""

    def __init__(
        self,
        model: nn.Module,
        scale: float,
        rng: torch.Generator,
        power: float,
        clock: str,
        layers: Sequence[str] | None,
    ):
        self.model, self.scale, self.rng, self.power = model, scale, rng, power
        self.clock, self.layers = clock, layers

    def __call__(self, x: Tensor, sigma: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the misled network's estimate of the clean sample; draws new noise each time."""
        check_sigma(x, sigma)
        strength = self.scale * vp_time(sigma).cpu() ** self.power
        part = submodule(self.model, self.clock)

        def change(embedding: Tensor) -> Tensor:
            noise = torch.randn(embedding.shape, generator=self.rng, dtype=embedding.dtype)
            return perturbed_embedding(embedding, noise.to(embedding.device), strength)

        if self.layers is None:
            with output_changed(part, change):
                return self.model(x, sigma, condition)
        return self._in_some_layers(part, change, x, sigma, condition)

    def _in_some_layers(self, part, change, x, sigma, condition) -> Tensor:
        """Give the chosen blocks a perturbed embedding, all others the true one."""
        network, told, handles = self._network(), {}, []

        def embed_twice(module: nn.Module, inputs: tuple, named: dict) -> None:
            with output_changed(part, change):
                told["embedding"] = module.embed(*inputs[1:], **named)

        def mislead(module: nn.Module, inputs: tuple) -> tuple:
            return inputs[0], told["embedding"], *inputs[2:]

        try:
            handles.append(network.register_forward_pre_hook(embed_twice, with_kwargs=True))
            for name in self.layers:
                layer = submodule(self.model, name)
                handles.append(layer.register_forward_pre_hook(mislead))
            return self.model(x, sigma, condition)
        finally:
            for handle in handles:
                handle.remove()

    def _network(self) -> nn.Module:
        owner = self.clock.rpartition(".")[0]
        return submodule(self.model, owner) if owner else self.model

    def during(self, sigma: float) -> PerturbedTime:
        """Return the negative for one solver step that starts at sigma."""
        model = during(self.model, sigma)
        return self if model is self.model else with_model(self, model)


def perturbed_time(
    model: nn.Module,
    scale: float,
    rng: torch.Generator,
    power: float = 0.0,
    clock: str = "network.noise",
    layers: Sequence[str] | None = None,
) -> PerturbedTime:
    """Return the negative of time-step guidance: the same network, with noise on its clock.

    ``clock`` names the part of the network that embeds the noise level: its output gets noise of
    ``scale * t^power`` times its standard deviation, drawn for each sample at every evaluation. t
    is :func:`vp_time` of sigma. power = 0 is the constant schedule. ``layers`` names the blocks
    that are misled, for instance ``["network.blocks.0"]``; None misleads all. A block takes the
    embedding as its second argument, and the network that owns the clock builds it in ``embed``. A
    window of noise levels belongs to :class:`guidance_edu.Guided`.

    Shapes:  the result is a denoiser.
    Limits:  scale = 0: positive and negative coincide, and guidance does nothing. The network is
             changed during the call alone, also where it raises.
    Errors:  TypeError for a model that is no network, or a generator that is none or not on the
             CPU; ValueError for a part that is not there, no layers, a network without ``embed``
             where layers are named, or a scale or power that is negative or not finite.
    Source:  Sadat et al. 2025 (arXiv:2407.02687), time-step guidance.
    Chapter: 08_time_step_guidance
    """
    check_generator(rng)
    if not (0 <= scale < math.inf and 0 <= power < math.inf):
        raise ValueError(f"expected finite scale and power >= 0, got {scale} and {power}")
    submodule(model, clock)
    negative = PerturbedTime(model, scale, rng, power, clock, layers)
    if layers is not None:
        if isinstance(layers, str) or not layers:
            raise ValueError(f"expected a list of at least one layer, got {layers!r}")
        for name in layers:
            submodule(model, name)
        if not hasattr(negative._network(), "embed"):
            raise ValueError("expected a network with embed(noise, condition) to mislead layers")
    return negative
