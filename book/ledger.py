"""The ledger: every claim of the book with what was measured and how far it is from failing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from book import BUILD, chapters
from book.execute import Run, execute_all, report, workspace

COLUMNS = ("id", "statement", "measured", "expected", "margin", "seconds")


def read(path: Path) -> list[dict]:
    """Read the lines that ``claim`` appended; none when no claim ran."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def save(data: list | dict, path: Path) -> None:
    """Write JSON that every reader takes: null stands where a number is not finite."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_finite(data), indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _finite(data):
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def order(entry: dict) -> tuple[int, ...]:
    """Sort key of a claim: its number, part by part."""
    return tuple(int(part) for part in entry["id"].split("."))


def interval(entry: dict) -> tuple[float, float]:
    """Return the lowest and the highest value with which a claim holds; infinite where open."""
    low, high = entry["low"], entry["high"]
    return (-math.inf if low is None else low), (math.inf if high is None else high)


def distance(entry: dict) -> float:
    """Return how far the measured value is from the nearest bound; negative when it fails."""
    low, high = interval(entry)
    return min(entry["measured"] - low, high - entry["measured"])


def number(value: float | None) -> str:
    """Format a measured value; a dash for none."""
    return "-" if value is None else f"{value:.4g}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], width: int = 58) -> str:
    """Lay out rows of text in columns; a longer text is cut at ``width`` characters."""
    cut = [[c if len(c) <= width else c[: width - 3] + "..." for c in map(str, r)] for r in rows]
    widths = [max(map(len, column)) for column in zip(head, *cut, strict=True)]
    lines = [head, ["-" * w for w in widths], *cut]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def show(entries: Iterable[dict]) -> str:
    """Return the ledger as a table; under each claim the change of its chapter that breaks it."""
    entries = list(entries)
    rows = [
        (
            e["id"],
            e["statement"],
            number(e["measured"]),
            e["relation"],
            f"{e['margin']:.0%}" + ("" if e["holds"] else " FAILS"),
            f"{e['seconds']:.1f}",
        )
        for e in entries
    ]
    names, rule, *lines = table(COLUMNS, rows).splitlines()
    broken = [f"      broken by  {e['breaks']}" for e in entries]
    return "\n".join(
        [names, rule, *(line for pair in zip(lines, broken, strict=True) for line in pair)]
    )


def gather(
    folder: Path, only: str = "", jobs: int = 2, env: dict[str, str] | None = None
) -> tuple[list[dict], dict]:
    """Execute copies of the chapters in ``folder`` in record mode; return claims and failures."""
    runs = []
    for path in chapters(only=only):
        settings = {
            "GUIDANCE_EDU_LEDGER": str(folder / f"{path.stem}.jsonl"),
            "GUIDANCE_EDU_CLAIMS": "record",
        }
        runs.append(Run(path, folder / path.name, settings | (env or {})))
    _, failures = execute_all(runs, jobs)
    entries = [e for run in runs for e in read(Path(run.env["GUIDANCE_EDU_LEDGER"]))]
    return sorted(entries, key=order), failures


def main(only: str = "", jobs: int = 2) -> int:
    """Execute copies, print the ledger and write ``_build/claims.json``."""
    with workspace(BUILD, "claims") as folder:
        entries, failures = gather(folder, only, jobs)
    print("\n" + show(entries) + "\n")
    save(entries, BUILD / "claims.json")
    failed = [e["id"] for e in entries if not e["holds"]]
    print(f"{len(entries)} claims, " + (f"FAILED: {', '.join(failed)}" if failed else "all hold"))
    print(f"written to {BUILD / 'claims.json'}")
    report(failures)
    return 1 if failed or failures or not entries else 0
