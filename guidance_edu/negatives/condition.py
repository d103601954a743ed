"""Negatives that break the condition: none at all, a random one, or noise in its place."""

from __future__ import annotations

import torch
from torch import Tensor

from guidance_edu.denoisers import Denoiser
from guidance_edu.guidance import during
from guidance_edu.negatives.submodules import output_changed, submodule
from guidance_edu.negatives.wrapped import check_generator, with_model


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


def random_labels(draws: Tensor, classes: int, avoid: Tensor | None = None) -> Tensor:
    """Turn uniform draws into labels of all classes, or of all but one for each sample.

    Shapes:  draws [n], uniform in [0, 1); avoid None or [n] long; result [n] long.
    Limits:  every allowed class has the same share.
    Errors:  ValueError for fewer than one class (two where one is avoided), draws outside [0, 1),
             or labels to avoid that do not fit.
    Source:  Sadat et al. 2025 (arXiv:2407.02687), algorithm 1: labels of all classes, the sample's
             own among them.
    Chapter: 07_independent_condition
    """
    left = classes - (avoid is not None)
    if left < 1:
        raise ValueError(f"expected a class to draw, got {classes} in all")
    if not bool(((draws >= 0) & (draws < 1)).all()):
        raise ValueError("expected draws in [0, 1)")
    # A draw just below 1 may round up to the number of classes.
    labels = (draws * left).long().clamp(max=left - 1)
    if avoid is None:
        return labels
    if avoid.shape != draws.shape or avoid.dtype != torch.long:
        raise ValueError(f"expected labels to avoid of shape {[*draws.shape]}, dtype long")
    if len(avoid) and not 0 <= int(avoid.min()) <= int(avoid.max()) < classes:
        raise ValueError(
            f"expected labels to avoid from 0 to {classes - 1}, got {int(avoid.min())} to"
            f" {int(avoid.max())}"
        )
    return labels + (labels >= avoid)  # the classes from the avoided one on move up by one


def matched_noise(embedding: Tensor, noise: Tensor) -> Tensor:
    """Scale noise to the standard deviation of each sample's embedding.

    Shapes:  embedding, noise, result [n, ...]: one standard deviation a sample.
    Limits:  scaling the embedding scales the result; what the embedding says is gone, its mean too.
    Errors:  ValueError for shapes that differ, or fewer than two numbers a sample.
    Source:  Sadat et al. 2025 (arXiv:2407.02687), its Gaussian condition (with one
             deviation for the batch; the two agree where embeddings are of one size).
    Chapter: 07_independent_condition
    """
    if embedding.shape != noise.shape or embedding[:1].numel() < 2:
        raise ValueError(
            f"expected an embedding [n, ...] of at least two numbers and noise of its shape,"
            f" got {[*embedding.shape]} and {[*noise.shape]}"
        )
    return noise * embedding.std(tuple(range(1, embedding.dim())), keepdim=True)


class RandomCondition:
    """A model asked with a condition that has nothing to do with the sample.

    Made by :func:`random_condition`.
    """

    def __init__(self, model: Denoiser, classes: int, rng: torch.Generator, fixed: bool, own: bool):
        self.model, self.classes, self.rng, self.fixed, self.own = model, classes, rng, fixed, own
        self._kept: dict[str, Tensor] = {}  # shared by the copies that one run makes

    def inputs(
        self, x: Tensor, sigma: float | Tensor, condition: Tensor | None
    ) -> tuple[Tensor, float | Tensor, Tensor]:
        """Return the inputs on which the model gives the negative; draws anew at each call.

        Shapes:  as for a denoiser; the condition is [n] long.
        Errors:  ValueError where the sample's own class is to be avoided and none is given, or
                 another number of samples comes to fixed labels.
        """
        if not self.own and condition is None:
            raise ValueError("expected a condition [n]: its own class is not to be drawn")
        draws = self._kept.get("draws")
        if draws is None:
            draws = torch.rand(len(x), generator=self.rng)
            if self.fixed:
                self._kept["draws"] = draws
        if len(draws) != len(x):
            raise ValueError(
                f"expected the {len(draws)} samples whose random labels are kept, got {len(x)}:"
                " make a new negative for each batch"
            )
        avoid = None if self.own else condition.cpu()
        return x, sigma, random_labels(draws, self.classes, avoid).to(x.device)

    def __call__(self, x: Tensor, sigma: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the model's estimate for a random class."""
        return self.model(*self.inputs(x, sigma, condition))

    def during(self, sigma: float) -> RandomCondition:
        """Return the negative for one solver step that starts at sigma."""
        return with_model(self, during(self.model, sigma))


def random_condition(
    model: Denoiser,
    classes: int,
    rng: torch.Generator,
    fixed: bool = False,
    own: bool = True,
) -> RandomCondition:
    """Return the negative of independent condition guidance: the same model, a random class.

    Labels are drawn at every evaluation, which means twice in a Heun step. ``fixed``: once for
    each sample, at the first call, and kept. ``own=False``: the sample's own class is not drawn.

    Shapes:  the result is a denoiser; the condition it is given matters only to ``own=False``.
    Limits:  with one class positive and negative coincide, and guidance does nothing. Where the own
             class is drawn, the negative equals the positive: leaving it out of ``classes`` many
             multiplies the average push by classes / (classes - 1).
    Errors:  ValueError for fewer than one class, or two where the own one is left out; TypeError
             for a random generator that is none or not on the CPU, or a model that cannot be
             called.
    Source:  Sadat et al. 2025 (arXiv:2407.02687), algorithm 1.
    Chapter: 07_independent_condition
    """
    _check_call(model, rng)
    random_labels(torch.zeros(0), classes, None if own else torch.zeros(0, dtype=torch.long))
    return RandomCondition(model, classes, rng, fixed, own)


class GaussianCondition:
    """A model told noise in place of its condition. Made by :func:`gaussian_condition`."""

    def __init__(self, model: Denoiser, rng: torch.Generator, embedding: str | None, fixed: bool):
        self.model, self.rng, self.embedding, self.fixed = model, rng, embedding, fixed
        self._kept: dict[str, Tensor] = {}

    def __call__(self, x: Tensor, sigma: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the model's estimate for a condition of noise.

        Errors:  ValueError where the condition itself is to become noise and is no embedding.
        """
        if self.embedding is not None:
            with output_changed(submodule(self.model, self.embedding), self._noise):
                return self.model(x, sigma, condition)
        if condition is None or not condition.is_floating_point():
            raise ValueError(
                "expected an embedding as condition, in floating point; for a network that is told"
                " labels, name the part that embeds them: embedding='network.label'"
            )
        return self.model(x, sigma, self._noise(condition))

    def during(self, sigma: float) -> GaussianCondition:
        """Return the negative for one solver step that starts at sigma."""
        return with_model(self, during(self.model, sigma))

    def _noise(self, embedding: Tensor) -> Tensor:
        noise = self._kept.get("noise")
        if noise is None:
            noise = torch.randn(embedding.shape, generator=self.rng, dtype=embedding.dtype)
            if self.fixed:
                self._kept["noise"] = noise
        return matched_noise(embedding, noise.to(embedding.device))


def gaussian_condition(
    model: Denoiser, rng: torch.Generator, embedding: str | None = None, fixed: bool = False
) -> GaussianCondition:
    """Return a negative that is told Gaussian noise of the size of the condition's embedding.

    ``embedding`` names the part of the network whose output is the embedding, ``network.label`` in
    the networks of this book. Without it the condition itself is the embedding. Noise is drawn at
    every evaluation; ``fixed``: once, at the first call, and kept.

    Shapes:  the result is a denoiser.
    Limits:  the network is changed during the call alone, also where it raises.
    Errors:  TypeError for a random generator that is none or not on the CPU, a model that cannot be
             called, or one that is no network where a part is named; ValueError for a part that is
             not there.
    Source:  Sadat et al. 2025 (arXiv:2407.02687), its Gaussian condition.
    Chapter: 07_independent_condition
    """
    _check_call(model, rng)
    if embedding is not None:
        submodule(model, embedding)
    return GaussianCondition(model, rng, embedding, fixed)


def _check_call(model: Denoiser, rng: torch.Generator) -> None:
    if not callable(model):
        raise TypeError(f"expected a denoiser D(x, sigma, condition), got {type(model).__name__}")
    check_generator(rng)
