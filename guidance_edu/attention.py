"""Self-attention with one place where a guide may look in or reach in.

Every network of the book attends through :class:`SelfAttention`, other people's networks through
:mod:`guidance_edu.adapters`. A negative that breaks attention replaces the function
``attend(queries, keys, values, grid)`` of chosen layers, for chosen samples of the batch, inside a
``with`` block. However the block ends, the layer is whole again. Inside it, the layer is changed
for everybody: one network serves one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

# (queries, keys, values, grid) -> mixed values; all [n, heads, tokens, width]
Attend = Callable[[Tensor, Tensor, Tensor, tuple[int, int] | None], Tensor]


def attention_weights(queries: Tensor, keys: Tensor) -> Tensor:
    """Return how much each token takes from each other one.

    Shapes:  queries, keys [n, heads, tokens, width]; result [n, heads, tokens, tokens].
    Limits:  every row is positive and sums to 1; equal logits give the plain average.
    Source:  Vaswani et al. 2017, eq. 1.
    """
    scale = queries.shape[-1] ** -0.5
    return torch.softmax(queries @ keys.transpose(-1, -2) * scale, dim=-1)


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, grid: tuple[int, int] | None = None
) -> Tensor:
    """Return the values mixed by the attention weights: what a layer does when nobody reaches in.

    Shapes:  queries, keys, values, result [n, heads, tokens, width]; grid (height, width) or None.
    Limits:  one token returns its own value.
    Source:  Vaswani et al. 2017, eq. 1.
    Chapter: 10_perturbed_attention
    """
    return attention_weights(queries, keys) @ values


class Map(NamedTuple):
    """What was read: weights [n, heads, tokens, tokens] and the grid (height, width) or None."""

    weights: Tensor
    grid: tuple[int, int] | None


class Opening(nn.Module):
    """The place between the projections of an attention layer where others may look or reach in.

    Shapes:  queries, keys, values, result of ``mix`` [n, heads, tokens, width]; grid (height,
             width) or None.
    Limits:  with no reader, replacement or fork, ``mix`` is :func:`attend`.
    """

    def __init__(self, name: str = ""):
        super().__init__()
        self.name = name
        self.replacements: list[tuple[Attend, slice]] = []
        self.readers: list[list[Map]] = []
        self.fork: tuple[Attend, int] | None = None

    @property
    def in_use(self) -> bool:
        """Whether anyone looks or reaches in."""
        return bool(self.replacements or self.readers or self.fork is not None)

    def mix(
        self, queries: Tensor, keys: Tensor, values: Tensor, grid: tuple[int, int] | None
    ) -> Tensor:
        """Return the mixed values, for twice as many samples where the layer is forked.

        Errors:  ValueError where a replacement returns another shape, or the batch is not the one
                 that was to be forked.
        """
        for reader in self.readers:
            reader.append(Map(attention_weights(queries, keys).detach(), grid))
        if self.fork is not None:
            function, rows = self.fork
            parts = queries[-rows:], keys[-rows:], values[-rows:]
            if len(queries) not in (rows, 2 * rows):
                raise ValueError(f"expected {rows} samples to fork, got {len(queries)}")
            first = attend(queries[:rows], keys[:rows], values[:rows], grid)
            return torch.cat([first, self._checked(function(*parts, grid), parts[2])])
        if not self.replacements:
            return attend(queries, keys, values, grid)
        owner = torch.full((len(queries),), -1)
        for number, (_, rows) in enumerate(self.replacements):
            owner[rows] = number
        mixed = torch.empty_like(values)
        for number in owner.unique().tolist():
            chosen = (owner == number).to(values.device)
            function = attend if number < 0 else self.replacements[number][0]
            result = function(queries[chosen], keys[chosen], values[chosen], grid)
            mixed[chosen] = self._checked(result, values[chosen])
        return mixed

    def _checked(self, result: Tensor, values: Tensor) -> Tensor:
        if result.shape != values.shape:
            raise ValueError(
                f"the replacement in layer {self.name!r} returned {list(result.shape)},"
                f" expected {list(values.shape)}"
            )
        return result.to(values.dtype)


class SelfAttention(Opening):
    """Tokens in, tokens out, with names and taps for those who guide.

    Shapes:  tokens, result [n, tokens, channels]; grid (height, width) where the tokens are places
             of an image in row order, None where they are not.
    Limits:  at the start the result is 0: the output projection starts at zero.
    Errors:  ValueError when the heads do not divide the channels, or the grid does not hold the
             tokens.
    """

    def __init__(self, channels: int, heads: int = 1, name: str = ""):
        super().__init__(name)
        if heads < 1 or channels % heads:
            raise ValueError(f"expected heads that divide {channels} channels, got {heads}")
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Return what the tokens take from each other."""
        n, count, channels = tokens.shape
        if grid is not None and grid[0] * grid[1] != count:
            raise ValueError(f"expected {grid[0]} x {grid[1]} tokens, got {count}")
        parts = self.qkv(tokens).reshape(n, count, 3, self.heads, channels // self.heads)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        mixed = self.mix(queries, keys, values, grid)
        return self.out(mixed.transpose(1, 2).reshape(len(mixed), count, channels))


def attention_layers(model: nn.Module) -> dict[str, Opening]:
    """Return the attention layers of a network by name, in the order in which they were built.

    Errors:  ValueError when the network has none, or when two share a name.
    """
    found = [module for module in model.modules() if isinstance(module, Opening)]
    layers = {layer.name: layer for layer in found}
    if not found:
        closed = [f"{name}: {reason}" for name, reason in getattr(model, "closed", {}).items()]
        raise ValueError("; ".join([f"{type(model).__name__} has no attention layer", *closed]))
    if len(layers) != len(found):
        raise ValueError(f"expected names of their own, got {[layer.name for layer in found]}")
    return layers


def chosen_layers(model: nn.Module, layers: Iterable[str | int]) -> list[Opening]:
    """Return layers by exact name or by position.

    A network may list in ``closed`` layers that it has and that nobody can reach into, with the
    reason of each.

    Errors:  ValueError naming the layer that was not found and all that there are; or when no layer
             is chosen, a single string is given, one layer is chosen twice, or one is closed.
    """
    known, closed = attention_layers(model), getattr(model, "closed", {})
    if isinstance(layers, str):
        raise ValueError(
            f"expected a list of layers, got the string {layers!r}: write [{layers!r}]"
        )
    names, order = [], list(known)
    for layer in layers:
        within = isinstance(layer, int) and -len(order) <= layer < len(order)
        name = order[layer] if within else layer
        if name in closed:
            raise ValueError(f"layer {name!r} cannot be reached into: {closed[name]}")
        if name not in known:
            raise ValueError(f"layer {layer!r} not found; this network has: {', '.join(known)}")
        names.append(name)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"expected at least one layer, each once, got {names}")
    return [known[name] for name in names]


@contextmanager
def replaced(
    model: nn.Module, layers: Iterable[str | int], function: Attend, rows: slice = slice(None)
) -> Iterator[None]:
    """Replace the attention of some layers, for some samples of the batch, inside a ``with``.

    ``function(queries, keys, values, grid)`` stands in for :func:`attend`. Where two blocks reach
    for one sample of one layer, the inner one holds.

    Shapes:  as for :func:`attend`, for the chosen rows alone.
    Limits:  a function equal to :func:`attend` changes nothing.
    Errors:  those of :func:`chosen_layers`. The layers are restored on every way out.
    Source:  what PAG (Ahn et al. 2024, sec. 4.1) and SEG (Hong 2024, sec. 4) do, made explicit.
    """
    chosen = chosen_layers(model, layers)
    entry = (function, rows)
    for layer in chosen:
        layer.replacements.append(entry)
    try:
        yield
    finally:
        for layer in chosen:
            layer.replacements.remove(entry)


@contextmanager
def forked(
    model: nn.Module, layers: Iterable[str | int], function: Attend, rows: int
) -> Iterator[None]:
    """Let a network answer twice in one pass: as it is, and with some layers replaced.

    At the first chosen layer the batch of ``rows`` samples doubles; what lies before it is computed
    once for both answers. The network's result has 2 rows samples: the plain ones, then the others.
    The network hands on what it kept from before the fork with :func:`as_many`.

    Errors:  those of :func:`chosen_layers`; ValueError where a chosen layer is replaced or forked
             already. The layers are restored on every way out.
    """
    chosen = chosen_layers(model, layers)
    for layer in chosen:
        if layer.fork is not None or layer.replacements:
            raise ValueError(f"layer {layer.name!r} is replaced already and cannot be forked")
    for layer in chosen:
        layer.fork = (function, rows)
    try:
        yield
    finally:
        for layer in chosen:
            layer.fork = None


def as_many(value: Tensor, like: Tensor) -> Tensor:
    """Repeat a batch that is older than a fork, so that it goes with one that is younger.

    Shapes:  value [n, ...], like [k n, ...]; result [k n, ...].
    """
    copies = len(like) // len(value)
    return value if copies == 1 else value.repeat(copies, *[1] * (value.dim() - 1))


@contextmanager
def recorded(model: nn.Module, layers: Iterable[str | int]) -> Iterator[dict[str, list[Map]]]:
    """Read the attention weights of some layers inside a ``with``.

    Shapes:  the result maps each layer's name to one :class:`Map` a call.
    Limits:  reading changes nothing. The weights are those that the layer's own queries and keys
             give, for all samples, also where they are replaced.
    Errors:  those of :func:`chosen_layers`. The layers are left as they were on every way out.
    """
    chosen = chosen_layers(model, layers)
    maps: dict[str, list[Map]] = {layer.name: [] for layer in chosen}
    for layer in chosen:
        layer.readers.append(maps[layer.name])
    try:
        yield maps
    finally:
        for layer in chosen:
            # by identity: equal lists of tensors cannot be compared
            layer.readers[:] = [r for r in layer.readers if r is not maps[layer.name]]
