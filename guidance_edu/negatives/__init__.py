"""Where the second model is broken: one module for each place.

``condition``  another condition, or none
``clock``      another noise level, or a blurred one
``training``   damaged weights; a model trained less needs no function
"""

from guidance_edu.negatives.clock import perturbed_time, wrong_level
from guidance_edu.negatives.condition import (
    gaussian_condition,
    random_condition,
    without_condition,
)

__all__ = [
    "gaussian_condition",
    "perturbed_time",
    "random_condition",
    "without_condition",
    "wrong_level",
]
