"""A claim checks one number, prints one line, and leaves one entry in the ledger."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from book import ledger
from guidance_edu.claims import claim

FEW = settings(max_examples=25, deadline=None, derandomize=True)
BREAKS = "w - 1 => w"


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("LEDGER", "CLAIMS", "CHAPTER"):
        monkeypatch.delenv(f"GUIDANCE_EDU_{name}", raising=False)


@pytest.fixture
def entries(monkeypatch, tmp_path):
    """Send claims to a ledger, and return a function that reads it strictly."""
    path = tmp_path / "ledger.jsonl"
    monkeypatch.setenv("GUIDANCE_EDU_LEDGER", str(path))
    monkeypatch.setenv("GUIDANCE_EDU_CLAIMS", "record")
    return lambda: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def holds(measured, **relation):
    try:
        claim("2.1 a number is right", measured, breaks=BREAKS, **relation)
    except AssertionError:
        return False
    return True


# The relations

RELATIONS = [
    ({"expected": 2.0, "tol": 0.5}, [1.5, 2.0, 2.5], [1.49, 2.51, -2.0]),
    ({"below": 0.85}, [0.849, 0.0, -9.0], [0.85, 0.86, 2.0]),
    ({"above": -1.0}, [-0.99, 3.0], [-1.0, -1.1, -9.0]),
    ({"between": (1.0, 2.0)}, [1.0, 1.5, 2.0], [0.99, 2.01]),
]


@pytest.mark.parametrize(("relation", "inside", "outside"), RELATIONS)
def test_a_claim_holds_inside_its_bounds_and_fails_outside(relation, inside, outside):
    assert all(holds(value, **relation) for value in inside)
    assert not any(holds(value, **relation) for value in outside)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("relation", [row[0] for row in RELATIONS])
def test_what_is_not_a_finite_number_never_holds(value, relation):
    assert not holds(value, **relation)
    assert not holds(torch.tensor(value), **relation)


@FEW
@given(expected=st.floats(-100, 100), tol=st.floats(1e-3, 10), off=st.floats(-3, 3))
def test_a_claim_holds_if_and_only_if_the_distance_is_at_most_the_tolerance(expected, tol, off):
    measured = expected + off * tol
    if abs(abs(off) - 1) > 1e-9:
        assert holds(measured, expected=expected, tol=tol) == (abs(off) < 1)
        bounds = (expected - tol, expected + tol)
        assert holds(measured, between=bounds) == (abs(off) < 1)


@pytest.mark.parametrize("number", [3, np.float32(3), np.int64(3), torch.tensor(3.0)])
def test_any_kind_of_number_can_be_measured(number, entries):
    claim("2.1 three", number, expected=3, tol=0.1, breaks=BREAKS)
    assert entries()[0]["measured"] == 3.0


# The line

LINES = [
    (0.0625, {"expected": 0.0625, "tol": 0.002}, "0.0625, expected 0.0625 +- 0.002, holds"),
    (0.38912, {"below": 0.85}, "0.3891, below 0.85, holds"),
    (3, {"above": 2}, "3.0, above 2, holds"),
    (1234567.0, {"between": (1, 2e6)}, "1.235e+06, between 1 and 2e+06, holds"),
    (1e-5, {"below": 1e-4}, "1e-05, below 0.0001, holds"),
    (-2.0, {"between": (-1, 1)}, "-2.0, between -1 and 1, FAILS"),
    (math.nan, {"below": 1}, "nan, below 1, FAILS"),
]


@pytest.mark.parametrize(("measured", "relation", "rest"), LINES)
def test_the_line_is_exactly_this(measured, relation, rest, monkeypatch, capsys):
    monkeypatch.setenv("GUIDANCE_EDU_CLAIMS", "record")
    claim("12.3 it is so, in nats: yes", measured, breaks=BREAKS, **relation)
    assert capsys.readouterr().out == f"claim 12.3 it is so, in nats: yes: measured {rest}\n"


@FEW
@given(st.floats(-1e12, 1e12))
def test_a_measured_number_always_shows_a_point_or_an_exponent(value):
    """Only such numbers are left out where stored outputs are compared."""
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr("builtins.print", said.append)
        patch.setenv("GUIDANCE_EDU_CLAIMS", "record")
        claim("1.1 a number", value, below=0.0, breaks=BREAKS)
    shown = re.search(r"measured (\S+), below", said[0])[1]
    assert "." in shown or "e" in shown
    assert float(shown) == pytest.approx(value, rel=5e-4, abs=1e-300)


# Failing and recording


def test_a_claim_that_fails_stops_the_notebook_with_its_line(capsys):
    with pytest.raises(AssertionError, match="^claim 2.1 it is small: measured 2.0, below 1, FAI"):
        claim("2.1 it is small", 2.0, below=1, breaks=BREAKS)
    assert capsys.readouterr().out.endswith("FAILS\n")


def test_in_record_mode_it_is_printed_and_recorded_but_does_not_stop(entries, capsys):
    claim("2.1 it is small", 2.0, below=1, breaks=BREAKS)
    assert "FAILS" in capsys.readouterr().out
    assert [entry["holds"] for entry in entries()] == [False]


def test_any_other_mode_stops(monkeypatch):
    monkeypatch.setenv("GUIDANCE_EDU_CLAIMS", "check")
    assert not holds(2.0, below=1)


def test_a_claim_that_stops_the_notebook_is_recorded_first(entries, monkeypatch):
    monkeypatch.delenv("GUIDANCE_EDU_CLAIMS")
    assert not holds(2.0, below=1)
    assert len(entries()) == 1


# The ledger


def test_an_entry_holds_what_the_ledgers_readers_need(entries, monkeypatch):
    monkeypatch.setenv("GUIDANCE_EDU_CHAPTER", "02_x")
    claim("2.1 pi is three", math.pi, expected=3.0, tol=0.5, breaks=BREAKS)
    claim("2.2 pi is below four", math.pi, below=4, breaks=BREAKS)
    first, second = entries()
    assert first.pop("seconds") >= 0
    assert first == {
        "chapter": "02_x",
        "id": "2.1",
        "statement": "pi is three",
        "measured": math.pi,
        "relation": "expected 3 +- 0.5",
        "expected": 3.0,
        "tolerance": 0.5,
        "low": 2.5,
        "high": 3.5,
        "margin": pytest.approx((0.5 - (math.pi - 3)) / 0.5),
        "holds": True,
        "breaks": BREAKS,
    }
    assert (second["low"], second["high"], second["expected"]) == (None, 4, None)
    assert second["margin"] == pytest.approx((4 - math.pi) / 4)


@pytest.mark.parametrize(
    ("measured", "relation", "margin"),
    [
        (2.0, {"expected": 2.0, "tol": 0.5}, 1.0),
        (2.5, {"expected": 2.0, "tol": 0.5}, 0.0),
        (3.0, {"expected": 2.0, "tol": 0.5}, -1.0),
        (1.25, {"between": (1.0, 2.0)}, 0.5),
        (-3.0, {"above": -2.0}, -0.5),
        (0.25, {"above": 0.0}, 0.25),
    ],
)
def test_the_margin_is_the_distance_to_the_nearest_bound(entries, measured, relation, margin):
    claim("1.1 a number", measured, breaks=BREAKS, **relation)
    assert entries()[0]["margin"] == pytest.approx(margin)


def test_the_book_reads_and_shows_what_claims_write(entries, tmp_path):
    claim("2.10 ten", 1.0, below=2, breaks=BREAKS)
    claim("2.9 nine, not a number", math.nan, below=2, breaks=BREAKS)
    read = sorted(ledger.read(tmp_path / "ledger.jsonl"), key=ledger.order)
    assert [entry["id"] for entry in read] == ["2.9", "2.10"]
    assert [entry["holds"] for entry in read] == [False, True]
    assert "FAILS" in ledger.show(read)


def test_without_a_ledger_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert holds(1.0, below=2)
    assert not list(tmp_path.iterdir())


# Malformed claims


@pytest.mark.parametrize(
    "statement",
    ["a number is right", "2 it is", "2.1", "2.1 ", "2.1.1 it is", "2.1 a\nb", "x2.1 a"],
)
def test_a_statement_begins_with_its_number_and_is_one_line(statement):
    with pytest.raises(ValueError, match="expected a statement like '2.1 what is claimed', got"):
        claim(statement, 1.0, below=2, breaks=BREAKS)


@pytest.mark.parametrize("breaks", ["", "w", "w => w", " => w", "w=>v", "w -> v"])
def test_breaks_names_a_change_of_the_code(breaks):
    with pytest.raises(ValueError, match="expected breaks like 'old code => new code', got"):
        claim("2.1 it is", 1.0, below=2, breaks=breaks)


def test_breaks_may_delete_code_but_cannot_be_left_out():
    claim("2.1 it is", 1.0, below=2, breaks=" - 1 => ")
    with pytest.raises(TypeError, match="breaks"):
        claim("2.1 it is", 1.0, below=2)


@pytest.mark.parametrize(
    "relation",
    [
        {},
        {"expected": 1.0},
        {"tol": 1.0},
        {"below": 2, "tol": 1.0},
        {"below": 2, "above": 1},
        {"expected": 1.0, "tol": 1.0, "below": 2},
    ],
)
def test_a_claim_has_exactly_one_relation(relation):
    with pytest.raises(ValueError, match="expected exactly one of: expected with tol, below, abo"):
        claim("2.1 it is", 1.0, breaks=BREAKS, **relation)


@pytest.mark.parametrize(
    ("relation", "message"),
    [
        ({"expected": 1.0, "tol": 0.0}, r"tol above 0, got 1.0 \+- 0.0"),
        ({"expected": 1.0, "tol": -1.0}, r"tol above 0, got 1.0 \+- -1.0"),
        ({"expected": 1.0, "tol": math.inf}, r"tol above 0, got 1.0 \+- inf"),
        ({"expected": math.nan, "tol": 1.0}, r"a finite number .* got nan \+- 1.0"),
        ({"below": math.inf}, "expected finite bounds, got"),
        ({"above": math.nan}, "expected finite bounds, got"),
        ({"between": (-math.inf, 1)}, "expected finite bounds, got"),
        ({"between": (1, 1)}, r"expected between=\(low, high\) with low < high, got \(1, 1\)"),
        ({"between": (2, 1)}, r"with low < high, got \(2, 1\)"),
    ],
)
def test_bounds_that_cannot_fail_or_cannot_hold_are_refused(relation, message, capsys):
    with pytest.raises(ValueError, match=message):
        claim("2.1 it is", 1.0, breaks=BREAKS, **relation)
    assert capsys.readouterr().out == ""
