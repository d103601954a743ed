"""Check every claim at other seeds: whether it holds, and how much it has to spare."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from book import BUILD, chapters
from book.execute import Run, execute_all, report, workspace
from book.ledger import distance, number, order, read, save, table

SEEDS = (1000, 2000, 3000)


def summarise(by_seed: dict[int, list[dict]]) -> list[dict]:
    """Return one row for each claim: measured at each seed, spread, smallest margin, failures.

    ``spread`` is the standard deviation over seeds. ``margin`` is the smallest distance to a
    bound in units of the spread, infinite where nothing moves; both are NaN where a measured
    value is not finite. A seed that never reached the claim counts as failed.
    """
    claims: dict[str, dict] = {}
    for entries in by_seed.values():
        for entry in entries:
            claims.setdefault(entry["id"], entry)
    rows = []
    for entry in sorted(claims.values(), key=order):
        found = {
            seed: next((e for e in entries if e["id"] == entry["id"]), None)
            for seed, entries in by_seed.items()
        }
        there = [e for e in found.values() if e is not None]
        values = [e["measured"] for e in there]
        known = len(values) > 1 and all(map(math.isfinite, values))
        spread = statistics.stdev(values) if known else math.nan
        if spread < 1e-9 * max(map(abs, values)):  # the rounding of a value that does not move
            spread = 0.0
        nearest = min((distance(e) for e in there), default=math.nan)
        rows.append(
            {
                "id": entry["id"],
                "statement": entry["statement"],
                "chapter": entry["chapter"],
                "expected": entry["relation"],
                "measured": {s: e["measured"] if e else None for s, e in found.items()},
                "spread": spread,
                "margin": nearest / spread if spread else math.copysign(math.inf, nearest),
                "failed": [s for s, e in found.items() if e is None or not e["holds"]],
            }
        )
    return rows


def show(rows: Sequence[dict], seeds: Sequence[int]) -> str:
    """Return the rows as a table."""
    head = ("id", "statement", *(f"seed {s}" for s in seeds), "expected", "std", "margin/std", "")
    return table(
        head,
        [
            (
                row["id"],
                row["statement"],
                *(number(row["measured"][s]) for s in seeds),
                row["expected"],
                f"{row['spread']:.2g}",
                f"{row['margin']:.1f}",
                f"FAILS at {', '.join(map(str, row['failed']))}" if row["failed"] else "",
            )
            for row in rows
        ],
    )


def main(only: str = "", jobs: int = 2, seeds: Sequence[int] = SEEDS) -> int:
    """Execute copies of every chapter at each seed and print the table."""
    with workspace(BUILD, "seeds") as folder:
        by_seed, failures = _at_seeds(folder, only, jobs, seeds)
    rows = summarise(by_seed)
    print("\n" + show(rows, seeds) + "\n")
    save(rows, BUILD / "seeds.json")
    failed = [row["id"] for row in rows if row["failed"]]
    closest = min(rows, key=lambda row: row["margin"], default=None)
    if closest:
        print(f"smallest margin: claim {closest['id']}, {closest['margin']:.1f} std")
    print(f"{len(rows)} claims, " + (f"FAILED: {', '.join(failed)}" if failed else "all hold"))
    report(failures)
    return 1 if failed or failures or not rows else 0


def _at_seeds(
    folder: Path, only: str, jobs: int, seeds: Sequence[int]
) -> tuple[dict[int, list[dict]], dict]:
    runs = []
    for seed in seeds:
        for path in chapters(only=only):
            env = {
                "GUIDANCE_EDU_SEED": str(seed),
                "GUIDANCE_EDU_CLAIMS": "record",
                "GUIDANCE_EDU_LEDGER": str(folder / str(seed) / f"{path.stem}.jsonl"),
            }
            target = folder / str(seed) / path.name
            runs.append(Run(path, target, env, f"seed {seed}: {path.stem}"))
    _, failures = execute_all(runs, jobs)
    by_seed: dict[int, list[dict]] = {seed: [] for seed in seeds}
    for run in runs:
        by_seed[int(run.env["GUIDANCE_EDU_SEED"])] += read(Path(run.env["GUIDANCE_EDU_LEDGER"]))
    return by_seed, failures
