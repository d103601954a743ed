"""Other people's networks as denoisers, so that every negative of the book runs on them.

diffusers is not imported here: a network is known by its parts. An attention layer there has the
projections ``to_q``, ``to_k``, ``to_v`` and ``to_out``, and a *processor* that says what happens
between them. While somebody reads or replaces a layer, the processor is one of ours, for the length
of one call; at all other times the network is untouched.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from guidance_edu.attention import Opening
from guidance_edu.denoisers import check_sigma, convert

PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "denoised"}
PROCESSORS = ("AttnProcessor2_0", "AttnProcessor")  # those that do what _Call does


def from_diffusers(
    network: nn.Module, scheduler, null: int | Tensor | None = None
) -> FromDiffusers:
    """Return a network of diffusers as a denoiser whose self-attention layers can be reached into.

    The network is one of the variance-preserving kind, such as ``UNet2DModel`` with a class label
    as condition, or ``UNet2DConditionModel`` with an embedded text. ``scheduler`` says by which
    noise levels and on which prediction it was trained. ``null`` is what it is told when there is
    no condition: a label, or an embedded text [tokens, width]. The network is not copied.

    Shapes:  D(x [n, c, h, w], sigma float or [n], condition) -> [n, c, h, w]; condition None, [n]
             long, or [n, tokens, width].
    Units:   sigma is that of x = x0 + sigma noise, up to the last level of the scheduler; between
             its steps the time is interpolated in ln sigma.
    Limits:  where nobody reaches in, the network runs as it is, processors and all.
    Errors:  TypeError for what is no network, or a ``null`` that is neither label nor text;
             ValueError for a condition of another batch, for a scheduler of another kind, and in a
             call for a sigma above its last level. Layers that cannot be reached into (attention
             to a text, rotary positions, joint attention) are listed in ``closed``, with the
             reason, and refused by name.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"expected a network (torch.nn.Module), got {type(network).__name__}")
    shares = getattr(scheduler, "alphas_cumprod", None)
    kind = getattr(getattr(scheduler, "config", None), "prediction_type", None)
    if shares is None or kind not in PREDICTIONS:
        raise ValueError(
            f"expected a scheduler with alphas_cumprod and a prediction_type of"
            f" {', '.join(PREDICTIONS)}, got {type(scheduler).__name__} with {kind!r}"
        )
    if isinstance(null, bool) or not isinstance(null, (int, Tensor, type(None))):
        raise TypeError(f"expected null as a label, an embedded text or None, got {null!r}")
    shares = torch.as_tensor(shares, dtype=torch.float64, device="cpu")
    return FromDiffusers(network, shares, PREDICTIONS[kind], null)


class FromDiffusers(nn.Module):
    """A network of diffusers as a denoiser. Made by :func:`from_diffusers`.

    Shapes:  as there.
    """

    def __init__(self, network: nn.Module, shares: Tensor, kind: str, null: int | Tensor | None):
        super().__init__()
        self.network, self.kind = network, kind
        log_sigma = 0.5 * (torch.log1p(-shares) - torch.log(shares))
        # A last share of 0 is noise alone: no finite sigma stands for it.
        self.log_sigma = log_sigma[log_sigma.isfinite()].numpy()
        self.null_label = null if isinstance(null, int) else None
        self.null_text = null if isinstance(null, Tensor) else None
        told = inspect.signature(network.forward).parameters
        self.told_as = next(
            (name for name in ("encoder_hidden_states", "class_labels") if name in told), None
        )
        openings, self.closed = [], {}
        for name, layer in network.named_modules():
            if hasattr(layer, "to_q") and hasattr(layer, "processor"):
                reason = _why_not(layer)
                if reason is None:
                    openings.append(_Place(name))
                else:
                    self.closed[name] = reason
        self.openings = nn.ModuleList(openings)

    def forward(self, x: Tensor, sigma: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the estimate of the clean sample; two a sample where a layer is forked."""
        level = check_sigma(x, sigma).flatten().expand(len(x))
        condition = self._condition(condition, x)
        if any(opening.fork is not None for opening in self.openings):
            # What comes before the fork cannot be shared: the layers around it know no doubling.
            x, level = torch.cat([x, x]), torch.cat([level, level])
            condition = None if condition is None else torch.cat([condition, condition])
        alpha = (level**2 + 1).rsqrt()
        scaled = alpha.reshape(-1, *[1] * (x.dim() - 1)) * x
        weight = next(self.network.parameters(), x)
        named = {} if condition is None else {self.told_as: condition.to(weight.device)}
        with self._reached():
            # In the dtype of half a network, a step of 238.4 would be one of 238.
            time = self._time(level).to(weight.device, torch.float32)
            answer = self.network(scaled.to(weight), time, return_dict=False, **named)[0]
        if answer.shape[1] == 2 * x.shape[1]:  # the second half is a learned variance
            answer = answer[:, : x.shape[1]]
        return convert(answer.to(x), scaled, alpha * level, self.kind, "denoised", alpha)

    def _time(self, level: Tensor) -> Tensor:
        """Return the step of training that belongs to a noise level, a fraction between two."""
        highest = math.exp(self.log_sigma[-1])
        if bool((level > highest * 1.001).any()):  # a level of the scheduler itself may be rounded
            raise ValueError(
                f"expected sigma up to {highest:.4g}, the network's last level,"
                f" got {float(level.max()):.4g}"
            )
        logs = level.double().clamp_min(1e-300).log().cpu().numpy()
        return torch.from_numpy(np.interp(logs, self.log_sigma, np.arange(len(self.log_sigma))))

    def _condition(self, condition: Tensor | None, x: Tensor) -> Tensor | None:
        if condition is None and self.null_label is not None:
            condition = torch.full((len(x),), self.null_label)
        if condition is None and self.null_text is not None:
            condition = self.null_text.expand(len(x), *self.null_text.shape[-2:])
        if condition is not None and condition.shape[:1] != x.shape[:1]:
            raise ValueError(f"expected {len(x)} conditions, got {list(condition.shape)}")
        if condition is not None and self.told_as is None:
            raise ValueError(f"{type(self.network).__name__} knows no condition, got one")
        return condition

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Put our processors into the layers that somebody reads or replaces."""
        with ExitStack() as stack:
            for opening in self.openings:
                if opening.in_use:
                    stack.enter_context(opening.installed(self.network))
            yield


class _Place(Opening):
    """One attention layer of somebody else's network, by name."""

    def __init__(self, name: str):
        super().__init__(name)
        steps = name.split(".")
        self.around = [".".join(steps[:i]) for i in range(len(steps))]
        self.seen: tuple[int, int] | None = None

    @contextmanager
    def installed(self, network: nn.Module) -> Iterator[None]:
        layer = network.get_submodule(self.name)
        before, handles = layer.processor, []
        reason = _why_not(layer)  # the processors may have been changed since
        if reason is not None:
            raise ValueError(f"layer {self.name!r} cannot be reached into: {reason}")
        try:
            for name in self.around:
                part = network.get_submodule(name)
                handles.append(part.register_forward_pre_hook(self._look, with_kwargs=True))
            layer.processor = _Call(self)
            yield
        finally:
            layer.processor = before
            for handle in handles:
                handle.remove()

    def _look(self, part: nn.Module, inputs: tuple, named: dict) -> None:
        """Note the size of the feature map: the part next to the layer is the last to be seen."""
        for value in (*inputs, *named.values()):
            if isinstance(value, Tensor) and value.dim() == 4:
                self.seen = tuple(value.shape[-2:])
                return

    def grid(self, count: int) -> tuple[int, int] | None:
        """Return the grid of the tokens: that of the feature map, or of its patches."""
        if self.seen is None:
            return None
        height, width = self.seen
        patch = math.isqrt(height * width // count)
        whole = patch and height % patch == 0 and width % patch == 0
        grid = (height // patch, width // patch) if whole else (0, 0)
        return grid if grid[0] * grid[1] == count else None


class _Call:
    """The processor itself: a plain callable, since the layer must not own the opening."""

    def __init__(self, opening: _Place):
        self.opening = opening

    def __call__(
        self, layer: nn.Module, x: Tensor, encoder_hidden_states=None, temb=None, **others
    ) -> Tensor:
        opening = self.opening
        others = {name: value for name, value in others.items() if value is not None}
        if encoder_hidden_states is not None or others:
            what = "another sequence" if encoder_hidden_states is not None else ", ".join(others)
            raise ValueError(f"layer {opening.name!r} cannot be reached into: it is given {what}")
        grid = tuple(x.shape[-2:]) if x.dim() == 4 else None
        tokens = x.flatten(2).transpose(1, 2) if x.dim() == 4 else x
        if layer.group_norm is not None:
            tokens = layer.group_norm(tokens.transpose(1, 2)).transpose(1, 2)
        parts = [f(tokens) for f in (layer.to_q, layer.to_k, layer.to_v)]
        queries, keys, values = (
            part.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for part in parts
        )
        # Normed first: a rule that changes queries changes those that meet the keys.
        queries = queries if layer.norm_q is None else layer.norm_q(queries)
        keys = keys if layer.norm_k is None else layer.norm_k(keys)
        mixed = opening.mix(queries, keys, values, grid or opening.grid(tokens.shape[1]))
        result = mixed.transpose(1, 2).flatten(2).to(queries.dtype)
        for part in layer.to_out:  # a projection, and dropout
            result = part(result)
        if x.dim() == 4:
            result = result.transpose(1, 2).unflatten(-1, grid)
        if layer.residual_connection:
            result = result + x
        return result / layer.rescale_output_factor


def _why_not(layer: nn.Module) -> str | None:
    """Return why an attention layer cannot be reached into; None where it can."""
    kind = type(layer.processor).__name__
    if getattr(layer, "is_cross_attention", False):
        return "it is cross-attention, whose keys are those of another sequence"
    if kind not in PROCESSORS:
        return f"its processor is {kind}; known are {' and '.join(PROCESSORS)}"
    width = layer.to_q.out_features // layer.heads
    if layer.to_k.out_features != layer.to_q.out_features:
        return "several heads share their keys"
    if not math.isclose(layer.scale, width**-0.5):
        return f"its logits are scaled by {layer.scale:g} and not by {width**-0.5:g}"
    if layer.spatial_norm is not None:
        return "its norm is told more than the tokens"
    if kind == "AttnProcessor" and layer.norm_q is not None:
        return "its processor leaves out the norm of queries and keys"
    return None
