"""Answers to the exercises of chapter 00: right ones, and common wrong ones with their hints."""

RIGHT = {"0.1": 9.0}

WRONG = {
    "0.1": [
        (11.0, "w - 1 differences"),
        (7.0, "starts at the positive"),
        (-3.0, "away from the negative"),
        (8.0, "is not the guided value"),
        ("nine", "expected a number"),
    ]
}
