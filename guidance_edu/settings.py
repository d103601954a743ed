"""What a reader may set from outside: the device, the seed shift, progress bars.

Three environment variables reach every part of the book and every notebook kernel:

``GUIDANCE_EDU_DEVICE``    cpu (default), cuda, or auto (cuda where there is one)
``GUIDANCE_EDU_SEED``      an integer that is added to every seed of the book (default 0)
``GUIDANCE_EDU_PROGRESS``  0 hides progress bars (default 1)
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeVar

import torch
from tqdm.auto import tqdm

Item = TypeVar("Item")


def device() -> torch.device:
    """Return the device that ``GUIDANCE_EDU_DEVICE`` names.

    Limits:  unset means the CPU, so that stored outputs do not depend on the machine.
    Errors:  ValueError for any other word; RuntimeError for ``cuda`` where torch sees no GPU.
    """
    name = os.environ.get("GUIDANCE_EDU_DEVICE", "cpu").strip().lower() or "cpu"
    if name not in {"cpu", "cuda", "auto"}:
        raise ValueError(f"expected GUIDANCE_EDU_DEVICE to be cpu, cuda or auto, got {name!r}")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise RuntimeError("GUIDANCE_EDU_DEVICE=cuda, but this torch sees no GPU; use cpu or auto")
    return torch.device("cuda" if name != "cpu" and available else "cpu")


def quick_bf16() -> bool:
    """Say whether the book's device computes faster in bfloat16 than in float32.

    Limits:  False on a CPU where torch is too old to say (2.6).
    """
    if device().type == "cuda":
        return torch.cuda.is_bf16_supported()
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def seed_shift() -> int:
    """Return the number that is added to every seed of the book.

    Errors:  ValueError when ``GUIDANCE_EDU_SEED`` is not an integer of at least 0.
    """
    text = os.environ.get("GUIDANCE_EDU_SEED", "0").strip() or "0"
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"expected GUIDANCE_EDU_SEED to be an integer of at least 0, got {text!r}")
    return int(text)


def generator(seed: int) -> torch.Generator:
    """Return a CPU random generator seeded with ``seed`` plus the book's seed shift.

    Noise is always drawn on the CPU and moved, so that a CPU and a GPU start from equal numbers.

    Errors:  TypeError when ``seed`` is not an integer; ValueError when it is negative, or when the
             shifted seed needs more than 63 bits.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"expected an integer seed, got {seed!r}")
    shifted = seed + seed_shift()
    if seed < 0 or shifted >= 2**63:
        raise ValueError(
            f"expected a seed of at least 0 and at most 63 bits with"
            f" its shift, got {seed} shifted by {shifted - seed}"
        )
    return torch.Generator().manual_seed(shifted)


def progress(items: Iterable[Item], label: str, total: int | None = None) -> Iterable[Item]:
    """Show a progress bar for a loop that lasts longer than two seconds.

    The bar vanishes at the end and is never stored in a notebook of the book, since the
    commands that execute the chapters set ``GUIDANCE_EDU_PROGRESS=0``.
    """
    hidden = os.environ.get("GUIDANCE_EDU_PROGRESS", "1").strip() == "0"
    return tqdm(items, desc=label, total=total, delay=2.0, leave=False, disable=hidden)
