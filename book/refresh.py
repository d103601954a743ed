"""Store what the chapters print and draw: the only command that writes tracked files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from book import BUILD, CHAPTERS, FIGURES, chapters
from book.execute import Run, execute_all, report, workspace
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


# What is stored has the book's own seeds and comes from the CPU, whatever the shell says.
SETTINGS = {"GUIDANCE_EDU_SEED": "0", "GUIDANCE_EDU_DEVICE": "cpu"}


def figures_index(fresh: Path, folder: Path, ran: set[str]) -> list[dict]:
    """Return the index of all figures, with those in ``fresh`` for the chapters that ran.

    Errors:  ValueError when two chapters publish one name.
    """
    index = folder / INDEX
    old = json.loads(index.read_text(encoding="utf-8")) if index.exists() else []
    new = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(fresh.glob("*.json"))]
    entries = [e for e in old if e["chapter"] not in ran] + new
    names = [e["name"] for e in entries]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(f"figure names are used twice: {', '.join(twice)}")
    return sorted(entries, key=lambda e: (e["chapter"], e["name"]))


def store_figures(fresh: Path, folder: Path, entries: list[dict]) -> None:
    """Write the figures in ``fresh`` and the index; remove what the index does not name."""
    folder.mkdir(parents=True, exist_ok=True)
    for figure in sorted(fresh.glob("*.png")):
        part = folder / f"{figure.name}.part"
        shutil.copyfile(figure, part)
        part.replace(folder / figure.name)
    text = json.dumps(entries, indent=1, ensure_ascii=False) + "\n"
    (folder / INDEX).write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(figures_readme(entries), encoding="utf-8")
    names = {e["name"] for e in entries}
    for stale in [*folder.glob("*.png"), *folder.glob("*.part")]:
        if stale.suffix == ".part" or stale.stem not in names:
            stale.unlink()


def main(only: str = "", jobs: int = 2) -> int:
    """Execute every chapter; when all of them ran, store outputs, figures and references."""
    with workspace(BUILD, "refresh") as folder:
        return _refresh(folder, only, jobs)


def _refresh(folder: Path, only: str, jobs: int) -> int:
    (folder / "figures").mkdir()
    env = SETTINGS | {"GUIDANCE_EDU_FIGURES": str(folder / "figures")}
    runs = [Run(path, folder / path.name, env) for path in chapters(only=only)]
    _, failures = execute_all(runs, jobs)
    report(failures)
    if failures or not runs:
        print("nothing was stored")
        return 1
    ran = {run.source.stem for run in runs}
    gone = set() if only else {e["chapter"] for e in _index()} - ran
    # Whatever can fail comes before the first file is written. Notebooks come before figures: an
    # interruption leaves a figure older than its notebook, which the next run mends.
    entries = figures_index(folder / "figures", FIGURES, ran | gone)
    text = markdown((CHAPTERS / "references.bib"), for_sphinx=False)
    for run in runs:
        run.target.replace(run.source)
    store_figures(folder / "figures", FIGURES, entries)
    (CHAPTERS / "references.md").write_text(text, encoding="utf-8")
    print(f"stored {len(runs)} chapters and {len(entries)} figures")
    return 0


def _index() -> list[dict]:
    path = FIGURES / INDEX
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
