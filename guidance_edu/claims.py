"""Numbers in the prose are claims, and a claim is checked whenever its cell runs.

Three environment variables belong to the commands that run the book:

``GUIDANCE_EDU_LEDGER``   a file to which every claim appends one JSON line
``GUIDANCE_EDU_CLAIMS``   ``record``: a claim that fails is recorded and printed, but does not stop
``GUIDANCE_EDU_CHAPTER``  the chapter's name, for the ledger
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from dataclasses import asdict, dataclass

_last = time.perf_counter()


@dataclass(frozen=True)
class Claim:
    """One checked statement, as it stands in the ledger.

    ``low`` and ``high`` bound the measured value (None: no bound). ``margin`` is the distance to
    the nearest bound, as a share of the tolerance, or of the bound where there is only one;
    negative means the claim fails. ``breaks`` is the change of the chapter's code that makes it
    fail, written ``old code => new code``. ``seconds`` is the time since the claim before.
    """

    chapter: str
    id: str
    statement: str
    measured: float
    relation: str
    expected: float | None
    tolerance: float | None
    low: float | None
    high: float | None
    margin: float
    holds: bool
    seconds: float
    breaks: str

    def line(self) -> str:
        """Return the line that the chapter prints."""
        verdict = "holds" if self.holds else "FAILS"
        return (
            f"claim {self.id} {self.statement}: measured {_digits(self.measured)},"
            f" {self.relation}, {verdict}"
        )


def claim(
    statement: str,
    measured: float,
    *,
    expected: float | None = None,
    tol: float | None = None,
    below: float | None = None,
    above: float | None = None,
    between: tuple[float, float] | None = None,
    breaks: str,
) -> None:
    """Check one number, print one line, and record it; stop the notebook where it is wrong.

    Give the statement as ``"2.1 what is claimed"`` and one of: ``expected`` with ``tol``,
    ``below``, ``above``, ``between``. ``breaks`` names the mutation of the chapter's code that
    makes the claim fail, as ``old code => new code``; ``make mutations`` tries it.

    Units:   measured and its bounds in the unit that the statement names.
    Limits:  a value on the edge of a tolerance holds, one on a single bound does not; NaN and
             infinity never hold.
    Errors:  AssertionError when the claim does not hold; ValueError when it is not well formed.
    """
    match = re.fullmatch(r"(\d+\.\d+) (.+)", statement)
    if not match:
        raise ValueError(f"expected a statement like '2.1 what is claimed', got {statement!r}")
    old, arrow, new = breaks.partition(" => ")
    if not arrow or not old.strip() or old == new:
        raise ValueError(f"expected breaks like 'old code => new code', got {breaks!r}")
    low, high, relation = _bounds(expected, tol, below, above, between)
    result = _judge(match[1], match[2], float(measured), low, high, relation, expected, tol, breaks)
    print(result.line())
    ledger = os.environ.get("GUIDANCE_EDU_LEDGER")
    if ledger:
        with open(ledger, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")
    if not result.holds and os.environ.get("GUIDANCE_EDU_CLAIMS") != "record":
        raise AssertionError(result.line())


def _bounds(expected, tol, below, above, between) -> tuple[float | None, float | None, str]:
    given = [expected is not None, below is not None, above is not None, between is not None]
    if sum(given) != 1 or (expected is None) != (tol is None):
        raise ValueError("expected exactly one of: expected with tol, below, above, between")
    if expected is not None:
        if not (tol > 0 and math.isfinite(expected + tol)):
            raise ValueError(f"expected a finite number and tol above 0, got {expected} +- {tol}")
        return expected - tol, expected + tol, f"expected {expected:g} +- {tol:g}"
    bounds = (below, above) if between is None else between
    if not all(bound is None or math.isfinite(bound) for bound in bounds):
        raise ValueError(f"expected finite bounds, got {bounds}")
    if below is not None:
        return None, below, f"below {below:g}"
    if above is not None:
        return above, None, f"above {above:g}"
    low, high = between
    if not low < high:
        raise ValueError(f"expected between=(low, high) with low < high, got {between}")
    return low, high, f"between {low:g} and {high:g}"


def _judge(number, text, measured, low, high, relation, expected, tol, breaks) -> Claim:
    global _last
    now = time.perf_counter()
    seconds, _last = now - _last, now
    room = min(
        measured - low if low is not None else math.inf,
        high - measured if high is not None else math.inf,
    )
    if not math.isfinite(measured):  # a comparison with NaN is false, whichever way it is put
        room = -math.inf
    if low is not None and high is not None:
        unit = (high - low) / 2
    else:
        unit = abs(low if high is None else high) or 1.0
    return Claim(
        chapter=os.environ.get("GUIDANCE_EDU_CHAPTER", ""),
        id=number,
        statement=text,
        measured=measured,
        relation=relation,
        expected=expected,
        tolerance=tol,
        low=low,
        high=high,
        margin=room / unit,
        # "below" and "above" mean it: a value on the only bound does not hold.
        holds=bool(room >= 0 if low is not None and high is not None else room > 0),
        seconds=seconds,
        breaks=breaks,
    )


def _digits(value: float) -> str:
    """Format with four significant digits, and always with a decimal point."""
    text = f"{value:.4g}"
    return text if not math.isfinite(value) or "." in text or "e" in text else text + ".0"
