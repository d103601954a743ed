"""How the networks of the book are told a class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from guidance_edu.denoisers import check_condition


def add_class(
    embedding: Tensor,
    label: nn.Embedding | None,
    condition: Tensor | None,
    classes: int,
    null_label: int | None,
) -> Tensor:
    """Add the class to the embedding of the noise level; no condition means the null label.

    Shapes:  embedding, result [n, width]; condition None or [n] long.
    Errors:  ValueError for a label out of range, no condition where there is no null label, or a
             condition where the network knows no classes (``label`` None).
    """
    if label is None:
        if condition is not None:
            raise ValueError("this network knows no classes; expected condition=None")
        return embedding
    if condition is not None:
        known = classes + (null_label is not None)
        return embedding + label(check_condition(embedding, condition, known))
    if null_label is None:
        raise ValueError(
            f"this network was trained without a null label; expected a condition of shape"
            f" [{len(embedding)}] with classes from 0 to {classes - 1}, got None"
        )
    null = torch.full((len(embedding),), null_label, device=embedding.device)
    return embedding + label(null)
