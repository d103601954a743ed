"""Negatives that break the input: the estimate is blurred where attention lands (SAG).

The model denoises; its estimate is blurred in places; the noise that it saw is put back; it
denoises again. The second answer is the negative. It needs the first one, so the two passes cannot
share work or run as one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guidance_edu.attention import Map, chosen_layers, recorded
from guidance_edu.denoisers import Denoiser, check_sigma
from guidance_edu.energy import blur_matrix

# (estimate [n, c, h, w], received attention [n, gh, gw]) -> mask [n, 1, h, w] of 0 and 1
Mask = Callable[[Tensor, Tensor], Tensor]
# Rounding alone puts tokens of a uniform map above their mean of 1.
ABOVE = 1 + 1e-5


class BlurredInput:
    """A model shown its own estimate, blurred in places. Made by :func:`blurred_input`."""

    def __init__(
        self, model: Denoiser, layer: str | int, blur: float, taps: int | None, mask: Mask
    ):
        self.model, self.layer, self.blur, self.taps, self.mask = model, layer, blur, taps, mask

    def __call__(self, x: Tensor, sigma: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the negative's estimate of the clean sample."""
        return self.pair(x, sigma, condition)[1]

    def pair(
        self, x: Tensor, sigma: float | Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return positive and negative; the attention is read in the positive's own pass.

        The negative is x - sigma times the noise that the model finds in the blurred input, so
        that the difference of the two is taken in noise, as published.

        Shapes:  as for a denoiser, twice.
        Errors:  ValueError for sigma = 0, where there is no noise to put back.
        """
        positive, shown = self.shown(x, sigma, condition)
        return positive, answer_elsewhere(self.model, x, shown, sigma, condition)

    def shown(
        self, x: Tensor, sigma: float | Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the positive and the input with the blurred estimate, at the same noise.

        Shapes:  as for a denoiser, twice.
        Errors:  ValueError for sigma = 0, where there is no noise to put back.
        """
        if not bool(check_sigma(x, sigma).gt(0).all()):
            raise ValueError("expected sigma above 0, got 0")
        with recorded(self.model, [self.layer]) as maps:
            positive = self.model(x, sigma, condition)
        (seen,) = next(iter(maps.values()))
        mask = self.mask(positive, received_attention(seen))
        smooth = blur_image(positive, self.blur, self.taps)
        return positive, x - mask * (positive - smooth)


def blurred_input(
    model: Denoiser,
    layer: str | int,
    blur: float = 1.5,
    taps: int | None = None,
    mask: Mask | None = None,
) -> BlurredInput:
    """Return the negative of self-attention guidance.

    Shapes:  images x [n, c, h, w]; the result is a denoiser.
    Units:   blur in pixels (published: 9 at 256x256 and 3 at 128x128, with 31 taps).
    Limits:  a mask of nothing, or blur -> 0, gives the model itself.
    Errors:  TypeError for a model that is no torch module; ValueError for a layer that it has not,
             or a layer whose tokens are on no grid.
    Source:  Hong et al. 2023 (arXiv:2210.00939), sec. 4 and algorithm 1.
    Chapter: 09_self_attention_guidance
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a network with attention, got {type(model).__name__}")
    chosen_layers(model, [layer])
    blur_matrix(1, blur)
    return BlurredInput(model, layer, blur, taps, attention_mask if mask is None else mask)


def answer_elsewhere(
    model: Denoiser,
    x: Tensor,
    shown: Tensor,
    sigma: float | Tensor,
    condition: Tensor | None = None,
) -> Tensor:
    """Return the estimate for x with the noise that the model finds in another input.

    It is x - sigma e(shown), where e is the model's noise prediction, and not D(shown): a
    difference of two noise predictions at two inputs is no difference of two estimates.

    Shapes:  x, shown, result [n, ...]; sigma float or [n], the noise level of both inputs.
    Limits:  shown = x gives the model's own estimate.
    Source:  Hong et al. 2023 (arXiv:2210.00939), algorithm 1, written for clean samples.
    Chapter: 09_self_attention_guidance
    """
    return x - shown + model(shown, sigma, condition)


def received_attention(seen: Map) -> Tensor:
    """Return how much attention each token receives, over all tokens and the mean of the heads.

    Shapes:  weights [n, heads, tokens, tokens]; result [n, height, width].
    Limits:  the mean over the tokens is 1; uniform attention gives 1 everywhere.
    Errors:  ValueError for tokens on no grid.
    Source:  Hong et al. 2023 (arXiv:2210.00939), published code.
    Chapter: 09_self_attention_guidance
    """
    if seen.grid is None:
        raise ValueError("expected a layer whose tokens are on a grid, got one without")
    return seen.weights.float().mean(1).sum(1).unflatten(-1, seen.grid)


def blur_image(x: Tensor, sigma: float, taps: int | None = None) -> Tensor:
    """Blur images with a Gaussian, with mirrored borders.

    Shapes:  x, result [n, c, h, w].
    Units:   sigma in pixels; taps an odd number, by default the one next to 6 sigma.
    Limits:  sigma -> 0 changes nothing; infinity leaves the mean.
    Chapter: 09_self_attention_guidance
    """
    rows, columns = (blur_matrix(size, sigma, taps=taps).to(x) for size in x.shape[-2:])
    return rows @ x @ columns.T


def attention_mask(estimate: Tensor, received: Tensor) -> Tensor:
    """Mark what receives more than the mean attention. The mask of self-attention guidance.

    Shapes:  estimate [n, c, h, w]; received [n, gh, gw]; result [n, 1, h, w].
    Source:  Hong et al. 2023 (arXiv:2210.00939), sec. 4.3 (threshold 1).
    Chapter: 09_self_attention_guidance
    """
    return _spread(received > ABOVE, estimate)


def whole_mask(estimate: Tensor, received: Tensor) -> Tensor:
    """Mark everything: plain blur guidance.

    Shapes:  as :func:`attention_mask`.
    Chapter: 09_self_attention_guidance
    """
    return torch.ones_like(estimate[:, :1])


def square_mask(estimate: Tensor, received: Tensor) -> Tensor:
    """Mark the tokens nearest to the centre, as many as attention would mark.

    Shapes:  as :func:`attention_mask`.
    Chapter: 09_self_attention_guidance
    """
    height, width = received.shape[1:]
    rows = (torch.arange(height, device=received.device) + 0.5) / height - 0.5
    columns = (torch.arange(width, device=received.device) + 0.5) / width - 0.5
    distance = torch.maximum(rows.abs()[:, None], columns.abs()[None, :])
    return _spread(_most(-distance.expand_as(received), received), estimate)


def random_mask(rng: torch.Generator) -> Mask:
    """Return the mask that marks random tokens, as many as attention would mark.

    Chapter: 09_self_attention_guidance
    """

    def mask(estimate: Tensor, received: Tensor) -> Tensor:
        scores = torch.rand(received.shape, generator=rng).to(received)
        return _spread(_most(scores, received), estimate)

    return mask


def frequency_mask(cutoff: float = 0.25) -> Mask:
    """Return the mask that marks where fine detail is, as much area as attention would mark.

    Units:   cutoff in cycles a pixel: detail is what lies above it in the Fourier transform.
    Errors:  ValueError for a cutoff outside (0, .71).
    Source:  an ablation of Hong et al. 2023 (arXiv:2210.00939), sec. 5.
    Chapter: 09_self_attention_guidance
    """
    if not 0 < cutoff < math.sqrt(0.5):
        raise ValueError(f"expected a cutoff between 0 and .71 cycles a pixel, got {cutoff}")

    def mask(estimate: Tensor, received: Tensor) -> Tensor:
        return _spread(_most(detail(estimate, cutoff, received.shape[1:]), received), estimate)

    return mask


def detail(x: Tensor, cutoff: float, grid: tuple[int, int]) -> Tensor:
    """Return the strength of fine detail around each token.

    Shapes:  x [n, c, h, w]; grid (gh, gw) that divides h and w; result [n, gh, gw].
    Units:   root mean square of what lies above ``cutoff`` cycles a pixel.
    Chapter: 09_self_attention_guidance
    """
    spectrum = torch.fft.rfft2(x.float())
    rows = torch.fft.fftfreq(x.shape[-2], device=x.device)
    columns = torch.fft.rfftfreq(x.shape[-1], device=x.device)
    fine = (rows[:, None].square() + columns.square()).sqrt() > cutoff
    parts = torch.fft.irfft2(spectrum * fine, s=x.shape[-2:])
    return F.adaptive_avg_pool2d(parts.square().mean(1, keepdim=True), grid)[:, 0].sqrt()


def _most(scores: Tensor, received: Tensor) -> Tensor:
    """Mark the highest scores of each image, as many as attention marks there."""
    count = (received > ABOVE).flatten(1).sum(1, keepdim=True)
    ranks = scores.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (ranks < count).view_as(received)


def _spread(marked: Tensor, estimate: Tensor) -> Tensor:
    """Enlarge a mask of tokens to the pixels under them."""
    size = estimate.shape[-2:]
    return F.interpolate(marked[:, None].to(estimate), size=size, mode="nearest")
