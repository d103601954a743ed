"""Reaching into a network by the exact name of a part, for the length of a ``with``.

However the block ends, the network is whole again: hooks are removed on every way out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn


def submodule(model: object, name: str) -> nn.Module:
    """Return a part of a network by its exact name, such as ``network.noise``.

    Errors:  TypeError when the model is no network; ValueError when it has no such part (the
             message lists the parts beside which it was looked for).
    Chapter: 08_time_step_guidance
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a network (torch.nn.Module), got {type(model).__name__}")
    here, found = model, []
    for step in name.split("."):
        children = dict(here.named_children())
        if step not in children:
            inside = f"in {'.'.join(found)!r} " if found else ""
            raise ValueError(f"part {name!r} not found; {inside}there are: {', '.join(children)}")
        here = children[step]
        found.append(step)
    return here


@contextmanager
def output_changed(part: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace what a part of a network returns by a function of it, inside a ``with``.

    Shapes:  the function keeps the shape.
    Errors:  ValueError where it does not. The part is restored on every way out.
    Chapter: 08_time_step_guidance
    """

    def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        changed = change(output)
        if changed.shape != output.shape:
            raise ValueError(f"expected shape {[*output.shape]}, got {[*changed.shape]}")
        return changed

    handle = part.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
