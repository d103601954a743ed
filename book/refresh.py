"""Store what the chapters print and draw: the only command that writes tracked files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from book import BUILD, CHAPTERS, FIGURES, chapters
from book.execute import Run, execute_all, report
from book.references import markdown

INDEX = "index.json"


def figures_readme(entries: list[dict]) -> str:
    """Return the index page of the published figures."""
    lines = [
        "# Figures",
        "",
        "Written by `make chapters`, never by hand. Each shows what its chapter computes.",
        "",
    ]
    for e in entries:
        title = " ".join((e.get("title") or e["name"]).split())
        lines += [
            f"## {title}",
            "",
            f"![{e['alt']}]({e['name']}.png)",
            "",
            f"{e['alt']}",
            "",
            f"[Chapter {e['chapter']}](../chapters/{e['chapter']}.ipynb)",
            "",
        ]
    return "\n".join(lines)


def store_figures(fresh: Path, folder: Path, ran: set[str]) -> list[dict]:
    """Replace the figures of the chapters that ran; return the whole index.

    Errors:  ValueError when two chapters publish one name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / INDEX
    old = json.loads(index.read_text(encoding="utf-8")) if index.exists() else []
    new = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(fresh.glob("*.json"))]
    entries = [e for e in old if e["chapter"] not in ran] + new
    names = [e["name"] for e in entries]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(f"figure names are used twice: {', '.join(twice)}")
    entries.sort(key=lambda e: (e["chapter"], e["name"]))
    for e in new:
        shutil.copyfile(fresh / f"{e['name']}.png", folder / f"{e['name']}.png")
    for stale in folder.glob("*.png"):
        if stale.stem not in names:
            stale.unlink()
    text = json.dumps(entries, indent=1, ensure_ascii=False) + "\n"
    index.write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(figures_readme(entries), encoding="utf-8")
    return entries


def main(only: str = "", jobs: int = 2) -> int:
    """Execute every chapter; when all of them ran, store outputs, figures and references."""
    folder = BUILD / "refresh"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "figures").mkdir(parents=True)
    env = {"GUIDANCE_EDU_FIGURES": str(folder / "figures")}
    runs = [Run(path, folder / path.name, env) for path in chapters(only=only)]
    _, failures = execute_all(runs, jobs)
    report(failures)
    if failures or not runs:
        print("nothing was stored")
        return 1
    ran = {run.source.stem for run in runs}
    gone = set() if only else {e["chapter"] for e in _index()} - ran
    entries = store_figures(folder / "figures", FIGURES, ran | gone)
    for run in runs:
        run.target.replace(run.source)
    text = markdown((CHAPTERS / "references.bib"), for_sphinx=False)
    (CHAPTERS / "references.md").write_text(text, encoding="utf-8")
    print(f"stored {len(runs)} chapters and {len(entries)} figures")
    return 0


def _index() -> list[dict]:
    path = FIGURES / INDEX
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
