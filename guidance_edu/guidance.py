"""The one equation of the book, and the object that turns it into a denoiser.

    D_w = D_neg + w (D_pos - D_neg) = D_pos + (w - 1) (D_pos - D_neg)

w = 1 means no guidance, w = 0 the negative alone, w > 1 extrapolates away from the negative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from guidance_edu.denoisers import Denoiser, check_sigma

EVERYWHERE = (0.0, math.inf)


def guide(positive: Tensor, negative: Tensor, w: float) -> Tensor:
    """Extrapolate from the negative through the positive prediction.

    Shapes:  positive, negative, result: [n, ...], all in one prediction space.
    Limits:  w = 1 is the positive, bit for bit; w = 0 is the negative up to rounding.
    Errors:  ValueError when the shapes differ, a prediction is not in floating point, or w is not
             finite.
    Source:  Karras et al. 2024 (arXiv:2406.02507), eq. 3; Ho & Salimans 2022 write w - 1 for our w.
    Chapter: 02_classifier_free_guidance
    """
    difference = _difference(positive, negative)
    # 0 times an infinite difference would be NaN, and -0.0 + 0.0 is 0.0.
    return positive if check_weight(w) == 1 else positive + (w - 1) * difference


def combine(positive: Tensor, negatives: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Push the positive prediction away from several negatives at once.

        D_w = D_pos + sum_i (w_i - 1) (D_pos - D_i)

    Shapes:  positive, each negative, result: [n, ...]; as many weights as negatives.
    Limits:  all w = 1, or no negative at all: the positive, bit for bit; one negative: ``guide``;
             a negative with w = 1 does not count, even where it is not finite; the order of the
             terms changes rounding only.
    Errors:  ValueError when the numbers of negatives and weights differ, shapes differ, or a
             weight is not finite.
    Source:  Karras et al. 2024 (arXiv:2406.02507), eq. 3 and app. B (several negatives add).
    Chapter: 03_the_negative_term
    """
    if len(negatives) != len(weights):
        raise ValueError(f"expected {len(negatives)} weights, got {len(weights)}")
    result = positive
    for negative, w in zip(negatives, weights, strict=True):
        difference = _difference(positive, negative)
        result = result if check_weight(w) == 1 else result + (w - 1) * difference
    return result


def rescale(guided: Tensor, positive: Tensor, strength: float = 0.7) -> Tensor:
    """Shrink a guided prediction to the standard deviation of the positive one.

    Shapes:  guided, positive, result: [n, ...]; the deviation is one number a sample.
    Limits:  strength = 0 returns guided; strength = 1 gives each sample the positive's deviation;
             a constant sample has none to rescale and is returned as it is.
    Errors:  ValueError on different shapes, fewer than two numbers a sample, or a strength outside
             [0, 1].
    Source:  Lin et al. 2024 (Common Diffusion Noise Schedules and Sample Steps are Flawed),
             sec. 3.4.
    Chapter: 02_classifier_free_guidance
    """
    if guided.shape != positive.shape or guided.shape[1:].numel() < 2:
        raise ValueError(
            f"expected two predictions of one shape with at least two numbers a sample,"
            f" got {list(guided.shape)} and {list(positive.shape)}"
        )
    if not 0 <= strength <= 1:
        raise ValueError(f"expected strength from 0 to 1, got {strength}")
    if not len(guided):
        return guided
    axes = tuple(range(1, guided.dim()))
    spread = guided.std(axes, keepdim=True)
    ratio = torch.where(spread > 0, positive.std(axes, keepdim=True) / spread, 1)
    return guided * (strength * ratio + 1 - strength)


CONVENTIONS: dict[str, tuple[str, float]] = {
    # name: (form in the source, value that switches guidance off)
    "book": ("D_neg + w (D_pos - D_neg)", 1.0),
    "ho2022": ("(1 + w) e_c - w e_u", 0.0),
    "imagen": ("e_u + w (e_c - e_u)", 1.0),
    "diffusers": ("e_u + w (e_c - e_u)", 1.0),
    "diffusers-original": ("e_c + g (e_c - e_u)", 0.0),
    "edm2": ("D_u + w (D_c - D_u)", 1.0),
    "interval": ("D_u + w (D_c - D_u)", 1.0),
    "icg": ("D_r + w (D_c - D_r)", 1.0),
    "tsg": ("D_t + w (D - D_t)", 1.0),
    "autoguidance": ("w D_1 + (1 - w) D_0", 1.0),
    "sag-paper": ("e_hat + (1 + s) (e - e_hat)", 0.0),
    "sag-code": ("e_hat + g (e - e_hat)", 1.0),
    "sag-diffusers": ("e_cfg + s (e_u - e_hat)", 0.0),
    "pag-paper": ("e + s (e - e_hat)", 0.0),
    "pag-code": ("e_hat + g (e - e_hat)", 1.0),
    "pag-diffusers": ("e + s (e - e_hat)", 0.0),
    "seg-paper": ("g s - (g - 1) s_blur", 1.0),
    "seg-with-cfg": ("(1 - c + g) s_u + c s_c - g s_blur", 0.0),
    "seg-code": ("e + g (e - e_blur)", 0.0),
    "sims": ("(1 + w) s_r - w s_s", 0.0),
    "neon": ("(1 + w) theta_r - w theta_s", 0.0),
    "swg": ("e + w (e - e_crop)", 0.0),
    "model-guidance": ("e + w (e_c - e_u)", 0.0),
    "tpg": ("e + s (e - e_hat)", 0.0),
    "skip-layer": ("e_cfg + s (e_c - e_hat)", 0.0),
    "diffusers-guiders-alone": ("e_hat + s (e - e_hat)", 1.0),
    "nag": ("s z - (s - 1) z_neg", 1.0),
}


def to_w(value: float, convention: str) -> float:
    """Translate a guidance scale of a paper or library into the w of the book.

    Limits:  each convention's own off value becomes w = 1.
    Errors:  ValueError for an unknown convention (the message lists them) or a value that is not
             finite.
    Source:  the formulas in CONVENTIONS, each as written in the source that its name says.
    Chapter: 03_the_negative_term
    """
    if convention not in CONVENTIONS:
        raise ValueError(
            f"unknown convention {convention!r}; expected one of {', '.join(CONVENTIONS)}"
        )
    # All known scales have unit slope: they differ only in the value that means "off".
    _, off = CONVENTIONS[convention]
    return check_weight(value) - off + 1


def cfg_plus_plus_w(
    strength: float, alpha: float, sigma: float, alpha_next: float, sigma_next: float
) -> float:
    """Translate the CFG++ strength at one deterministic (DDIM) step into the w of the book.

    CFG++ denoises with the guided prediction but adds back the unconditional noise. Step by step
    this equals ordinary guidance with a weight that depends on the two noise levels.

    Limits:  strength = 0 gives w = 0 (the unconditional model), not w = 1.
    Errors:  ValueError when a number is not finite, or the step does not lower sigma / alpha.
    Source:  Chung et al. 2025 (CFG++, arXiv:2406.08070); the equivalence is one line of algebra.
    Chapter: 03_the_negative_term
    """
    numbers = (strength, alpha, sigma, alpha_next, sigma_next)
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"expected finite numbers, got {numbers}")
    if not (alpha > 0 and alpha_next > 0 and sigma / alpha > sigma_next / alpha_next >= 0):
        raise ValueError(f"expected a step to a lower sigma / alpha, got {numbers[1:]}")
    return strength * alpha_next / (alpha_next - sigma_next / sigma * alpha)


def check_weight(w: float) -> float:
    """Return w as a float. Errors: ValueError when it is not a finite number."""
    try:
        number = math.nan if isinstance(w, (bool, str)) else float(w)
    except (TypeError, ValueError, RuntimeError):  # None, a list, a tensor of several numbers
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"expected a finite guidance weight w, got {w!r}")
    return number


class Term(NamedTuple):
    """One negative, its weight, and the noise levels (low, high] in which it acts."""

    negative: Denoiser
    w: float
    window: tuple[float, float] = EVERYWHERE


class Guided:
    """A positive denoiser pushed away from one or several negatives; itself a denoiser.

        D_w = D_pos + sum_i (w_i - 1) (D_pos - D_i)

    Shapes:  as every denoiser: x [n, ...], sigma float or [n], condition passed on to all.
    Limits:  a term with w = 1, or outside its window low < sigma <= high for all samples, is not
             evaluated; with none left the result is the positive's, bit for bit.
    Errors:  ValueError when w is not finite, a window is empty or negative, or predictions differ
             in shape; TypeError when a model cannot be called.
    Source:  Karras et al. 2024 (arXiv:2406.02507), eq. 3 and app. B (several negatives add);
             Kynkäänniemi et al. 2024 (window).
    Chapter: 03_the_negative_term

    ``Guided(positive, negative, w, window)`` is short for ``Guided(positive, [(negative, w,
    window)])``. A negative may offer two things that let work be shared:

    ``inputs(x, sigma, condition)`` with ``model``: the inputs on which ``model`` gives the
    negative. Where ``model`` is the positive itself, both can run as one batch.
    ``pair(x, sigma, condition)`` with ``model``: returns (positive, negative) in one go. It is used
    when its ``model`` is the positive. Of several such negatives, one shares work with the
    positive.

    A network serves one thread at a time: a negative that reaches into its layers changes them
    while it is asked.

    ``batching`` is ``"one"`` batch, ``"two"`` passes, or ``"auto"``: two on a CPU, where a doubled
    batch costs more than two passes, and one on a GPU.
    """

    __slots__ = ("_step", "batching", "positive", "terms")  # g.w = 3 is an error, not a no-op

    def __init__(
        self,
        positive: Denoiser,
        negatives: Denoiser | Sequence[tuple],
        w: float | None = None,
        window: tuple[float, float] | None = None,
        batching: str = "auto",
    ):
        if batching not in {"auto", "one", "two"}:
            raise ValueError(f"expected batching auto, one or two, got {batching!r}")
        self.positive, self.batching = _callable(positive), batching
        self._step: tuple[tuple, Denoiser] | None = None
        if isinstance(negatives, (list, tuple)):
            if w is not None or window is not None:
                raise ValueError("give w and window inside the list: (negative, w, window)")
            self.terms = tuple(_term(*_entry(entry)) for entry in negatives)
        else:
            if w is None:
                raise ValueError("expected a weight w beside a single negative")
            self.terms = (_term(negatives, w, window),)

    @property
    def null_label(self) -> int | None:
        """The label that stands for "no class" in the positive, where it declares one."""
        return getattr(self.positive, "null_label", None)

    def __call__(self, x: Tensor, sigma: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the guided estimate of the clean sample."""
        level = check_sigma(x, sigma)
        active = [t for t in self.terms if t.w != 1 and bool(_inside(level, t.window).any())]
        positive, known = self._shared(active, x, sigma, condition)
        result = positive
        for term in active:
            shared = known.get(id(term))
            negative = term.negative(x, sigma, condition) if shared is None else shared
            pushed = result + (term.w - 1) * _difference(positive, negative)
            result = torch.where(_inside(level, term.window), pushed, result)
        return result

    def during(self, sigma: float) -> Denoiser:
        """Return the denoiser for one solver step that starts at sigma.

        The windows are decided once, at the start of the step, so that w never changes between
        the two evaluations of a second-order step: window edges are snapped to noise levels.
        Asked twice for one level, it returns one object, so that a negative still recognises the
        positive as its model.
        """
        asked, step = (sigma, self.positive, self.terms, self.batching), self._step
        if step is None or step[0] != asked:
            self._step = step = (asked, self._during(sigma))
        return step[1]

    def _during(self, sigma: float) -> Denoiser:
        positive = during(self.positive, sigma)
        terms = [
            (during(t.negative, sigma), t.w)
            for t in self.terms
            if t.window[0] < sigma <= t.window[1]
        ]
        return Guided(positive, terms, batching=self.batching)

    def _shared(
        self, active: Sequence[Term], x: Tensor, sigma: float | Tensor, condition: Tensor | None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Evaluate the positive, and with it one negative where work can be shared."""
        for term in active:
            negative = term.negative
            if getattr(negative, "model", None) is not self.positive:
                continue
            both = None
            if hasattr(negative, "pair"):
                both = negative.pair(x, sigma, condition)
            elif hasattr(negative, "inputs") and self._one_batch(x):
                both = _as_one_batch(self.positive, negative, x, sigma, condition)
            if both is not None:
                return both[0], {id(term): both[1]}
        return self.positive(x, sigma, condition), {}

    def _one_batch(self, x: Tensor) -> bool:
        return self.batching == "one" or (self.batching == "auto" and x.device.type != "cpu")


def during(denoiser: Denoiser, sigma: float) -> Denoiser:
    """Return what stands for a denoiser in one solver step that starts at sigma.

    Limits:  a denoiser without windows is returned as it is. A negative that wraps a model offers
             ``during(sigma)`` too, so that windows inside the model are decided with the others.
    Chapter: 03_the_negative_term
    """
    return denoiser.during(sigma) if hasattr(denoiser, "during") else denoiser


def _as_one_batch(
    model: Denoiser,
    negative: Denoiser,
    x: Tensor,
    sigma: float | Tensor,
    condition: Tensor | None,
) -> tuple[Tensor, Tensor]:
    n = len(x)
    other_x, other_sigma, other_condition = negative.inputs(x, sigma, condition)
    if not _stackable(condition, other_condition):
        return model(x, sigma, condition), model(other_x, other_sigma, other_condition)
    here, there = (torch.as_tensor(s, dtype=x.dtype, device=x.device) for s in (sigma, other_sigma))
    # A level that all share stays one number: a model written for one number must see one.
    shared = here.dim() == there.dim() == 0 and bool(here == there)
    both = model(
        torch.cat([x, other_x]),
        sigma if shared else torch.cat([here.expand(n), there.expand(n)]),
        None if condition is None else torch.cat([condition, other_condition.to(condition.device)]),
    )
    return both[:n], both[n:]


def _stackable(condition: Tensor | None, other: Tensor | None) -> bool:
    """Say whether two conditions fit into one batch; None beside labels does not."""
    if condition is None or other is None:
        return condition is other
    return condition.shape[1:] == other.shape[1:] and condition.dtype == other.dtype


def _entry(entry: tuple) -> tuple:
    if not isinstance(entry, (list, tuple)) or len(entry) not in {2, 3}:
        raise ValueError(
            f"expected a list of (negative, w) or (negative, w, window), got {entry!r}"
        )
    return tuple(entry)


def _term(negative: Denoiser, w: float, window: tuple[float, float] | None = EVERYWHERE) -> Term:
    window = EVERYWHERE if window is None else window
    if not isinstance(window, (list, tuple)) or len(window) != 2:
        raise ValueError(f"expected a window (low, high), got {window!r}")
    low, high = window
    if any(isinstance(edge, (str, type(None))) for edge in window) or not 0 <= low < high:
        raise ValueError(f"expected a window (low, high) with 0 <= low < high, got {(low, high)}")
    return Term(_callable(negative), check_weight(w), (float(low), float(high)))


def _difference(positive: Tensor, negative: Tensor) -> Tensor:
    if positive.shape != negative.shape:
        raise ValueError(
            f"expected positive and negative of one shape, got {list(positive.shape)}"
            f" and {list(negative.shape)}"
        )
    if not (positive.is_floating_point() and negative.is_floating_point()):
        raise ValueError(
            f"expected predictions in floating point, got {positive.dtype} and {negative.dtype}"
        )
    return positive - negative


def _callable(model: Denoiser) -> Denoiser:
    if not callable(model):
        raise TypeError(f"expected a denoiser D(x, sigma, condition), got {type(model).__name__}")
    return model


def _inside(sigma: Tensor, window: tuple[float, float]) -> Tensor:
    return (window[0] < sigma) & (sigma <= window[1])
