"""Checks of chapter 00."""

from guidance_edu.exercises.check import compare_number, exercise


@exercise("0.1")
def predict_guided_value(answer):
    """A number: positive 3, negative 1, w = 4."""
    positive, negative, w = 3.0, 1.0, 4.0
    return compare_number(
        answer,
        w * positive + (1 - w) * negative,
        1e-6,
        "the guided value",
        {
            "the step starts at the positive, and its length is w - 1 differences": positive
            + w * (positive - negative),
            "the step of w - 1 differences starts at the positive, not at the negative": negative
            + (w - 1) * (positive - negative),
            "guidance steps away from the negative, not towards it": positive
            - (w - 1) * (positive - negative),
        },
    )
