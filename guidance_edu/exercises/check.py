"""The machinery of the exercises: a register of checks, and the function that runs one."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch

CHECKS: dict[str, Callable[[object], str | None]] = {}


def exercise(number: str) -> Callable:
    """Register a check. It takes the answer and returns None, or what is wrong with it.

    Errors:  ValueError when the exercise has a check already.
    """

    def register(function: Callable[[object], str | None]) -> Callable[[object], str | None]:
        if number in CHECKS:
            raise ValueError(f"exercise {number} has a check already")
        CHECKS[number] = function
        return function

    return register


def check(number: str, answer: object) -> None:
    """Check an answer: a number, or a function to be called on inputs of the check's choice.

    An answer of None or a function that raises NotImplementedError counts as not attempted. A
    wrong answer is reported, never raised, so that a notebook with open exercises still runs.

    Errors:  KeyError for an exercise that does not exist.
    """
    print(f"exercise {number}: {verdict(number, answer)}")


def verdict(number: str, answer: object) -> str:
    """Return what :func:`check` prints after the number.

    Errors:  KeyError for an exercise that does not exist.
    """
    try:
        importlib.import_module(f"guidance_edu.exercises.chapter_{int(number.split('.')[0]):02d}")
        test = CHECKS[number]
    except (ImportError, KeyError, ValueError):
        raise KeyError(f"unknown exercise {number!r}") from None
    if answer is None:
        return "not attempted yet"
    try:
        problem = test(answer)
    except NotImplementedError:
        return "not attempted yet"
    except Exception as error:  # a reader's function may fail in any way; say how, do not stop
        return f"it raised {type(error).__name__}: {error}"
    return "passed" if problem is None else problem


def compare(got: object, wanted: torch.Tensor, where: str, hints: dict | None = None) -> str | None:
    """Compare a tensor with the wanted one; name the likely mistake where a hint's value fits.

    ``hints`` maps a likely reason to the tensor that the mistake would give.

    Shapes:  got and wanted [any], equal.
    """
    if not isinstance(got, torch.Tensor):
        return f"expected a tensor {where}, got {type(got).__name__}"
    if got.shape != wanted.shape:
        return f"expected shape {list(wanted.shape)} {where}, got {list(got.shape)}"
    if _close(got, wanted):
        return None
    for reason, value in (hints or {}).items():
        if _close(got, value):
            return f"wrong value {where}: {reason}"
    return f"wrong value {where}"


def compare_number(got: object, wanted: float, tolerance: float, what: str, hints=None):
    """Compare a number with the wanted one; ``hints`` maps a likely reason to its value."""
    try:
        got = float(got)
    except (TypeError, ValueError):
        return f"expected a number for {what}, got {type(got).__name__}"
    if abs(got - wanted) <= tolerance:
        return None
    for reason, value in (hints or {}).items():
        if abs(got - value) <= tolerance:
            return f"not {what}: {reason}"
    return f"{got:g} is not {what}"


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-7)
