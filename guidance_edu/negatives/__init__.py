"""Where the second model is broken: one module for each place.

``condition``  another condition, or none
"""

from guidance_edu.negatives.condition import without_condition

__all__ = ["without_condition"]
