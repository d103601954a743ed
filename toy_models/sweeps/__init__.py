"""Sweeps: measurements too long for a chapter, whose results are stored as records.

A sweep is a function of one setting that returns numbers, with the settings and the seeds at which
``make records`` runs it. A chapter plots the record and measures one of its rows again::

    @sweep("guides", seeds=(1000, 2000), settings=grid(guide=["weak", "dropout"], w=[1.5, 2.0]))
    def guides(guide: str, w: float) -> dict[str, float]:
        '''What is measured, in one line.'''
        return {"stray": ...}

    rows = record("guides").rows         # [{"seed": 1000, "guide": "weak", "w": 1.5, "stray": ...}]
    row = record("guides").pick()        # the row that the book's seed picks
    again = measure("guides", row)       # {"stray": ...}, measured now, at that row's seed

A row's seed is a seed of the whole book: the function runs as it would with ``GUIDANCE_EDU_SEED``
set to it. It draws from ``settings.generator`` and loads models by recipe, and never sees the seed.
Settings are words, whole numbers or decimals. Sweeps live in the modules of this package, one a
chapter; the command finds them there.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import pkgutil
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from guidance_edu.settings import seed_shift

RECORDS = Path(__file__).resolve().parents[2] / "chapters" / "records"

Setting = dict[str, str | int | float]


@dataclass(frozen=True)
class Sweep:
    """A measurement with the settings and seeds at which its record is made.

    A ``long`` one takes over ten minutes: it runs only where it is named.
    """

    name: str
    what: str
    measure: Callable[..., Mapping[str, float]]
    seeds: tuple[int, ...]
    settings: tuple[Setting, ...]
    long: bool = False


@dataclass(frozen=True)
class Record:
    """A sweep's stored results, with the versions and the device that made them.

    ``rows`` hold the seed, the setting and what was measured, by name.
    """

    name: str
    what: str
    made: dict
    settings: tuple[str, ...]
    rows: list[dict]

    def where(self, **setting) -> list[dict]:
        """Return the rows that have all the given values; Errors: KeyError where none has."""
        found = [row for row in self.rows if all(row[key] == setting[key] for key in setting)]
        if not found:
            raise KeyError(f"the record {self.name!r} has no row with {setting}")
        return found

    def pick(self, **setting) -> dict:
        """Return the row that the book's seed picks, of all or of those with the given values.

        Errors:  KeyError where no row has the values.
        """
        return random.Random(seed_shift()).choice(self.where(**setting))


SWEEPS: dict[str, Sweep] = {}


def sweep(name: str, seeds: Sequence[int], settings: Sequence[Setting], long: bool = False):
    """Register a function as a sweep; its docstring's first line says what it measures.

    Errors:  ValueError for a name that is taken or no plain file name, or no seeds or settings.
    """

    def add(function: Callable[..., Mapping[str, float]]) -> Callable[..., Mapping[str, float]]:
        if name in SWEEPS or not name.replace("_", "").isalnum():
            raise ValueError(f"expected a plain, new name for a sweep, got {name!r}")
        if not seeds or not settings:
            raise ValueError(f"expected seeds and settings for the sweep {name!r}")
        what = (function.__doc__ or "").strip().partition("\n")[0]
        SWEEPS[name] = Sweep(name, what, function, tuple(seeds), tuple(settings), long)
        return function

    return add


def grid(**values: Sequence) -> list[Setting]:
    """Return all combinations of the given values, one dictionary each."""
    return [dict(zip(values, v, strict=True)) for v in itertools.product(*values.values())]


def all_sweeps() -> dict[str, Sweep]:
    """Return every sweep of this package by name."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return SWEEPS


def sweep_named(name: str) -> Sweep:
    """Return a sweep. Errors: KeyError for an unknown name; the message lists all."""
    known = SWEEPS if name in SWEEPS else all_sweeps()
    if name not in known:
        raise KeyError(f"unknown sweep {name!r}; expected one of: {', '.join(sorted(known))}")
    return known[name]


def measure(name: str, row: Mapping) -> dict[str, float]:
    """Measure one row of a sweep now: at its seed and setting, whatever the book's seed is.

    Errors:  KeyError for an unknown sweep or a row without its seed.
    """
    chosen = sweep_named(name)
    with book_seed(row["seed"]):
        found = chosen.measure(**{key: row[key] for key in chosen.settings[0]})
    return {key: float(value) for key, value in found.items()}


def record(name: str, folder: Path = RECORDS) -> Record:
    """Read a record.

    Errors:  FileNotFoundError where ``make records`` has not made it; ValueError where it is not
             the whole JSON expected.
    """
    path = Path(folder) / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"no record {name!r}: run python -m book records {name}")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        rows = [dict(zip(stored["columns"], row, strict=True)) for row in stored["rows"]]
        found = Record(name, stored["what"], dict(stored["made"]), tuple(stored["settings"]), rows)
        if not rows or not rows[0]:
            raise ValueError("it has no rows")
        if not all(isinstance(text, str) for text in (found.what, *rows[0])):
            raise ValueError("what was measured and the columns are not all words")
    except (ValueError, TypeError, KeyError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} is not a whole record of a sweep: {why}") from error
    return found


@contextmanager
def book_seed(seed: int) -> Iterator[None]:
    """Shift every seed of the book by ``seed`` inside the ``with``, instead of what was set."""
    before = os.environ.get("GUIDANCE_EDU_SEED")
    os.environ["GUIDANCE_EDU_SEED"] = str(seed)
    try:
        yield
    finally:
        if before is None:
            del os.environ["GUIDANCE_EDU_SEED"]
        else:
            os.environ["GUIDANCE_EDU_SEED"] = before
