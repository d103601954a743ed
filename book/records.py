"""Run the long sweeps and store their results where the chapters read them.

A sweep is registered in ``toy_models/sweeps`` (its docstring says how); ``python -m book records``
runs all of them but the long ones, ``python -m book records NAME ...`` those named. Each becomes
``chapters/records/NAME.json``: what is measured, the seeds, the settings, the versions, the device
and the commit that made it, and one line for each row. A record is written whole or not at all.
Rows measured before an interruption are kept under ``_build/records`` and not measured again, as
long as neither the code and the weights of the two packages nor the versions have changed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from book import BUILD, ROOT
from guidance_edu.checkpoints import write_whole
from guidance_edu.settings import device
from toy_models.sweeps import RECORDS, Sweep, all_sweeps, measure, record, sweep_named


def made_with() -> dict[str, str]:
    """Return what the digits of a record may depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "numpy": np.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "device": str(device()),
    }


def commit() -> str:
    """Return the commit of the two packages, "-changed" where they differ from it, or "unknown"."""
    packages = ("guidance_edu", "toy_models")
    try:
        head = _git("rev-parse", "--short=12", "HEAD").strip()
        return head + "-changed" * bool(_git("status", "--porcelain", "--", *packages).strip())
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        return "unknown"


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def sources_hash() -> str:
    """Return a hash of all that a sweep can reach: the code, and the manifests of the weights."""
    digest = hashlib.sha256()
    for package in ("guidance_edu", "toy_models"):
        for kind in ("*.py", "*.json"):  # a manifest holds the hash of each file beside it
            for path in sorted((ROOT / package).rglob(kind)):
                digest.update(f"{path.relative_to(ROOT)} {path.stat().st_size}\n".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def run(sweep: Sweep, folder: Path = RECORDS, keep: Path = BUILD / "records") -> Path:
    """Measure every row that is not yet known, then write the record; return its path.

    Errors:  ValueError when a row's numbers have other names than the first row's, or that of a
             setting, or one is not finite.
    """
    made, start = made_with(), time.process_time()
    known = _Known(keep / f"{sweep.name}.jsonl", {"made": made, "sources": sources_hash()})
    todo = [{"seed": seed, **setting} for seed in sweep.seeds for setting in sweep.settings]
    hidden = os.environ.get("GUIDANCE_EDU_PROGRESS", "1").strip() == "0"
    rows, columns = [], None
    for row in tqdm(todo, desc=sweep.name, disable=hidden):
        found = known.get(row)
        if found is None:
            found = {key: _digits(value) for key, value in measure(sweep.name, row).items()}
            known.add(row, found)
        if both := set(row) & set(found):
            raise ValueError(f"{sorted(both)} name a setting and a number that is measured")
        columns = columns or [*row, *found]
        if [*row, *found] != columns or not all(map(math.isfinite, found.values())):
            raise ValueError(f"expected finite numbers {columns}, got {found} at {row}")
        rows.append([*row.values(), *found.values()])
    seconds = known.seconds + time.process_time() - start
    stored = {
        "name": sweep.name,
        "what": sweep.what,
        "made": made | {"commit": commit(), "cpu_seconds": round(seconds)},
        "seeds": list(sweep.seeds),
        "settings": list(sweep.settings[0]),
        "columns": columns,
    }
    path = _write(stored, rows, Path(folder) / f"{sweep.name}.json")
    known.path.unlink(missing_ok=True)
    return path


def table(name: str) -> str:
    """Return a stored record as text, without measuring anything.

    Columns that only serve to compare two rows (``without_0`` ...) are left out.

    Errors:  as :func:`toy_models.sweeps.record`.
    """
    stored = record(name)
    columns = [key for key in stored.rows[0] if not key.rpartition("_")[2].isdigit()]
    cells = [[_shown(row[key]) for key in columns] for row in stored.rows]
    wide = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    lines = [
        "  ".join(cell.rjust(size) for cell, size in zip(line, wide, strict=True))
        for line in [columns, *cells]
    ]
    made = ", ".join(f"{key} {value}" for key, value in stored.made.items())
    return "\n".join([stored.what, made, *lines])


def _shown(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(names: Sequence[str] = (), show: bool = False) -> int:
    """Run the named sweeps, or all that are not marked as long; or show what is stored of them.

    Errors:  ValueError for an unknown name; those of :func:`run` and :func:`table`.
    """
    try:
        chosen = [sweep_named(name) for name in names] or [
            sweep for sweep in all_sweeps().values() if not sweep.long
        ]
    except KeyError as error:
        raise ValueError(error.args[0]) from None
    if show:
        print("\n\n".join(table(sweep.name) for sweep in chosen))
        return 0
    torch.set_num_threads(1)  # what the chapters use
    for sweep in chosen:
        start = time.perf_counter()
        path = run(sweep)
        shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        print(f"{shown}: {time.perf_counter() - start:.0f} s", flush=True)
    return 0


class _Known:
    """Rows that an interrupted run has measured, with the CPU seconds they took."""

    def __init__(self, path: Path, head: dict):
        self.path, self.rows, self.seconds = path, {}, 0.0
        self.last = time.process_time()
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        lines = text.splitlines()
        kept = [json.dumps(head)]
        if lines and lines[0] == kept[0]:
            for line in lines[1:]:
                try:
                    key, found, seconds = json.loads(line)
                    whole = {name: float(value) for name, value in found.items()}
                    self.rows[key], self.seconds = whole, self.seconds + float(seconds)
                except (ValueError, TypeError, AttributeError):  # what was being written, or harmed
                    continue
                kept.append(line)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(kept) + "\n", encoding="utf-8")

    def get(self, row: dict) -> dict | None:
        return self.rows.get(json.dumps(row))

    def add(self, row: dict, found: dict) -> None:
        now = time.process_time()
        taken, self.last = now - self.last, now
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([json.dumps(row), found, round(taken, 3)]) + "\n")


def _digits(value: float) -> float:
    """Keep six significant digits: more would change from machine to machine for no reader."""
    return float(f"{value:.6g}")


def _write(head: dict, rows: list[list], path: Path) -> Path:
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    text = json.dumps(head, indent=1)[:-2] + ',\n "rows": [\n' + lines + "\n ]\n}\n"
    json.loads(text)
    write_whole({path: text.encode()})
    return path
