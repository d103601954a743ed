"""Exercises that check themselves.

``check("2.1", function)`` prints one line: not attempted yet, passed, or the first property that
fails with a likely reason. The checks of a chapter live in a module of their own; they compare
with an independent form on random inputs and contain no solution.
"""

from guidance_edu.exercises.check import CHECKS, check, exercise

__all__ = ["CHECKS", "check", "exercise"]
