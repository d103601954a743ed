"""Break the code behind each claim and require that the claim notices."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from book import BUILD, chapters
from book.execute import ChapterFailed, Run, execute_all, write
from book.ledger import number, read, table
from book.source import Claim, claims, mutate
from book.source import read as read_notebook


@dataclass
class Verdict:
    """What became of one mutation."""

    claim: Claim
    killed: bool
    how: str


def stage(path: Path, claim: Claim, target: Path) -> None:
    """Write a copy of a chapter with the claim's mutation, cut off after the claim's cell.

    Errors:  ValueError when the claim names no mutation or it cannot be applied.
    """
    if not claim.breaks:
        raise ValueError("names no mutation")
    nb = read_notebook(path)
    changed = mutate(nb, claim.breaks)
    if changed > claim.cell:
        raise ValueError(f"changes cell {nb.cells[changed].id}, which stands after the claim")
    nb.cells = nb.cells[: claim.cell + 1]
    write(nb, target)


def judge(claim: Claim, entries: list[dict], failure: ChapterFailed | None) -> Verdict:
    """Decide whether a mutation was noticed: the claim failed, or the code before it raised."""
    entry = next((e for e in entries if e["id"] == claim.id), None)
    if entry is None:
        why = str(failure).partition("): ")[2] if failure else "the claim never ran"
        return Verdict(claim, failure is not None, f"raised {why}" if failure else why)
    if entry["holds"]:
        return Verdict(claim, False, f"SURVIVED, measured {number(entry['measured'])}")
    return Verdict(claim, True, f"failed, measured {number(entry['measured'])}")


def main(only: str = "", jobs: int = 2) -> int:
    """Apply each claim's mutation to a copy of its chapter, run it and print what happened."""
    folder = BUILD / "mutations"
    shutil.rmtree(folder, ignore_errors=True)
    runs: dict[str, Run] = {}
    verdicts: list[Verdict] = []
    everything: list[Claim] = []
    for path in chapters(only=only):
        for claim in claims(read_notebook(path), path.stem):
            everything.append(claim)
            staged = folder / claim.id / path.name
            try:
                stage(path, claim, staged)
            except ValueError as error:
                verdicts.append(Verdict(claim, False, f"NOT APPLIED: {error}"))
                continue
            env = {
                "GUIDANCE_EDU_CLAIMS": "record",
                "GUIDANCE_EDU_LEDGER": str(folder / claim.id / "ledger.jsonl"),
            }
            target = folder / claim.id / "executed" / path.name
            runs[claim.id] = Run(staged, target, env, f"claim {claim.id}")
    _, failures = execute_all(list(runs.values()), jobs)
    for claim in everything:
        if claim.id in runs:
            run = runs[claim.id]
            entries = read(Path(run.env["GUIDANCE_EDU_LEDGER"]))
            verdicts.append(judge(claim, entries, failures.get(run.target)))
    verdicts.sort(key=lambda v: tuple(map(int, v.claim.id.split("."))))
    rows = [(v.claim.id, v.claim.statement, v.claim.breaks or "-", v.how) for v in verdicts]
    print("\n" + table(("id", "statement", "mutation", "result"), rows) + "\n")
    record = [{"id": v.claim.id, "killed": v.killed, "how": v.how} for v in verdicts]
    (BUILD / "mutations.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    alive = [v.claim.id for v in verdicts if not v.killed]
    print(
        f"{len(verdicts)} mutations, " + (f"ALIVE: {', '.join(alive)}" if alive else "all killed")
    )
    return 1 if alive or not verdicts else 0
