"""Break the code behind each claim and require that the claim notices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from book import BUILD, chapters
from book.execute import ChapterFailed, Run, execute_all, workspace, write
from book.ledger import number, read, save, table
from book.source import Claim, claims, mutate
from book.source import read as read_notebook


@dataclass
class Verdict:
    """What became of one mutation.

    ``result`` is ``failed`` (the claim ran and failed), ``raised`` (the code before it raised),
    ``alive``, ``not applied`` or ``not judged``.
    """

    claim: Claim
    result: str
    how: str

    @property
    def killed(self) -> bool:
        """Whether the mutation was noticed."""
        return self.result in ("failed", "raised")


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
    """Decide whether a mutation was noticed: the claim failed, or the code before it raised.

    The copy that ran ends with the claim's cell, so an error of a cell stands at or before the
    claim. A kernel that died or a cell without an end says nothing about the claim.
    """
    own = [e for e in entries if e["id"] == claim.id]
    failed = next((e for e in own if not e["holds"]), None)
    if failed:
        return Verdict(claim, "failed", f"failed, measured {number(failed['measured'])}")
    if own:
        return Verdict(claim, "alive", f"SURVIVED, measured {number(own[0]['measured'])}")
    if failure is None:
        return Verdict(claim, "alive", "SURVIVED, the claim never ran")
    if failure.raised:
        return Verdict(claim, "raised", f"raised {failure.why}")
    return Verdict(claim, "not judged", f"NOT JUDGED: {failure.why}")


def show(verdicts: Sequence[Verdict]) -> str:
    """Return the verdicts as a table; below it, those where no claim was needed to notice."""

    def rows(chosen: Iterable[Verdict]) -> str:
        cells = [(v.claim.id, v.claim.statement, v.claim.breaks or "-", v.how) for v in chosen]
        return table(("id", "statement", "mutation", "result"), cells)

    raised = [v for v in verdicts if v.result == "raised"]
    text = rows(v for v in verdicts if v.result != "raised")
    if raised:
        text += "\n\nThe code raised before the claim was measured:\n\n" + rows(raised)
    return text


def main(only: str = "", jobs: int = 2, ids: Sequence[str] = ()) -> int:
    """Apply each claim's mutation to a copy of its chapter, run it and print what happened.

    ``ids`` limits this to some claims.

    Errors:  ValueError for an id that no chosen chapter has.
    """
    found = [(p, claim) for p in chapters(only=only) for claim in claims(read_notebook(p), p.stem)]
    if unknown := set(ids) - {claim.id for _, claim in found}:
        raise ValueError(f"no claim {', '.join(sorted(unknown))} in the chosen chapters")
    chosen = [(path, claim) for path, claim in found if not ids or claim.id in ids]
    with workspace(BUILD, "mutations") as folder:
        verdicts = _judged(folder, chosen, jobs)
    print("\n" + show(verdicts) + "\n")
    record = [
        {"id": v.claim.id, "killed": v.killed, "result": v.result, "how": v.how} for v in verdicts
    ]
    save(record, BUILD / "mutations.json")
    of = {
        result: [v.claim.id for v in verdicts if v.result == result]
        for result in ("failed", "raised", "alive", "not applied", "not judged")
    }
    counts = [f"{len(verdicts)} mutations"]
    counts += [f"{len(of[result])} {result}" for result in ("failed", "raised")]
    missed = ("alive", "not applied", "not judged")
    counts += [f"{result.upper()}: {', '.join(of[result])}" for result in missed if of[result]]
    killed = all(v.killed for v in verdicts)
    print(", ".join(counts) + (", all killed" if killed and verdicts else ""))
    return 0 if killed and verdicts else 1


def _judged(folder: Path, chosen: Sequence[tuple[Path, Claim]], jobs: int) -> list[Verdict]:
    runs: dict[str, Run] = {}
    verdicts: list[Verdict] = []
    for path, claim in chosen:
        staged = folder / claim.id / path.name
        try:
            stage(path, claim, staged)
        except ValueError as error:
            verdicts.append(Verdict(claim, "not applied", f"NOT APPLIED: {error}"))
            continue
        env = {
            "GUIDANCE_EDU_CLAIMS": "record",
            "GUIDANCE_EDU_LEDGER": str(folder / claim.id / "ledger.jsonl"),
        }
        target = folder / claim.id / "executed" / path.name
        runs[claim.id] = Run(staged, target, env, f"claim {claim.id}")
    _, failures = execute_all(list(runs.values()), jobs)
    for _, claim in chosen:
        if claim.id in runs:
            run = runs[claim.id]
            entries = read(Path(run.env["GUIDANCE_EDU_LEDGER"]))
            verdicts.append(judge(claim, entries, failures.get(run.target)))
    return sorted(verdicts, key=lambda v: tuple(map(int, v.claim.id.split("."))))
