"""Build the HTML book from executed notebooks: staged, linked, and readable with no network."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import nbformat

from book import BUILD, CHAPTERS, FIGURES, ROOT, chapters
from book.execute import Run, execute_all, report
from book.library import library_page
from book.references import markdown
from book.source import calls, claims, printed, read

# Code and mathematics, in which nothing is rewritten; and the claims that prose refers to.
PROTECTED = r"(?P<keep>```.*?```|~~~.*?~~~|`[^`]*`|\$\$.*?\$\$|\$[^$\n]+\$)"
MENTION = re.compile(PROTECTED + r"|(?P<claims>\(claims?\s[^()]*\))", re.DOTALL)
ONE = re.compile(r"(?:claims?\s+)?\b(\d+\.\d+)\b")


def anchor(claim: str) -> str:
    """Return the anchor of a claim on its chapter's page."""
    return "claim-" + claim.replace(".", "-")


def add_alt_texts(nb: nbformat.NotebookNode) -> None:
    """Copy the texts 'Figure: ...' to the metadata from which the alt attribute is taken."""
    for cell in nb.cells:
        for out in cell.get("outputs", []):
            text = "".join(out.get("data", {}).get("text/plain", ""))
            if "image/png" in out.get("data", {}) and text.startswith("Figure: "):
                image = cell.metadata.setdefault("mystnb", {}).setdefault("image", {})
                image["alt"] = text.removeprefix("Figure: ")


# What is folded in the book, for a reader to open on purpose. Figures and verdicts stay in view.
FOLDED = {
    "solution": ("hide-cell", "Solution"),
    "imports": ("hide-input", "What is imported"),
    "figure": ("hide-input", "How the figure is drawn"),
    "claims": ("hide-input", "How {names} checked"),
}


def fold(nb: nbformat.NotebookNode) -> None:
    """Fold solutions whole; of imports, figures and claims the code."""
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    for cell in code:
        tags = cell.metadata.get("tags", [])
        kinds = [kind for kind in ("solution", "claims") if kind in tags]
        if cell is code[0]:
            kinds.append("imports")
        if any("image/png" in out.get("data", {}) for out in cell.outputs):
            kinds.append("figure")
        if kinds:
            tag, prompt = FOLDED[kinds[0]]
            if kinds[0] == "claims":
                prompt = prompt.format(names=_named(cell))
            cell.metadata["tags"] = [*tags, tag]
            prompts = {"code_prompt_show": prompt, "code_prompt_hide": prompt}
            cell.metadata.setdefault("mystnb", {}).update(prompts)


def _named(cell: nbformat.NotebookNode) -> str:
    """Return the claims of a cell as words: claim 2.1 is, claims 2.1 to 2.4 are."""
    names = [claim.id for claim in claims(nbformat.v4.new_notebook(cells=[cell]), "this chapter")]
    if len(names) < 2:
        return f"claim {names[0]} is" if names else "it is"
    return f"claims {names[0]} to {names[-1]} are"


def link_claims(text: str, homes: dict[str, str]) -> str:
    """Turn each '(claim 2.1)' of a text into a link to the cell that checks it."""

    def link(match: re.Match) -> str:
        claim = match[1]
        if claim not in homes:
            return match[0]
        return f'<a class="claim" href="{homes[claim]}.html#{anchor(claim)}">{match[0]}</a>'

    return MENTION.sub(lambda m: m["keep"] or ONE.sub(link, m["claims"]), text)


def add_links(nb: nbformat.NotebookNode, homes: dict[str, str]) -> None:
    """Link the prose to the claims, and give each claim's cell an anchor to link to."""
    cells = []
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = link_claims(cell.source, homes)
        elif "claim" in cell.source:
            names = [call.args[0].value.split()[0] for call in calls(cell)]
            if names:
                spans = "".join(f'<span class="anchor" id="{anchor(n)}"></span>' for n in names)
                cells.append(nbformat.v4.new_markdown_cell(spans, id=f"{anchor(names[0])}-anchor"))
        cells.append(cell)
    nb.cells = cells


def claims_page(folder: Path) -> str:
    """Return a page with every claim of the book as its chapter printed it."""
    lines = [
        "# Every claim",
        "",
        "Each number in the prose of this book is checked by the cell that computes it. These are",
        "the lines that the cells printed; `make claims` measures them again, `make seeds` repeats",
        "them with other random numbers, and `make mutations` makes the change that stands below",
        "each and requires that the claim fails.",
        "",
    ]
    for path in chapters(folder):
        nb = read(path)
        shown = printed(nb)
        breaks = {c.id: c.breaks for c in claims(nb, path.stem)}
        if not shown:
            continue
        title = next(c.source for c in nb.cells if c.cell_type == "markdown").splitlines()[0]
        lines += [
            f"## {title.lstrip('# ')}",
            "",
            "| claim | what is claimed | measured | holds if |",
        ]
        lines += ["|---|---|---|---|"]
        for line in shown:
            where = f'<a class="claim" href="{path.stem}.html#{anchor(line.id)}">{line.id}</a>'
            text = f"{line.statement}<br><small>broken by `{breaks[line.id]}`</small>"
            text = text.replace("|", "\\|")
            lines.append(f"| {where} | {text} | {line.measured} | {line.expected} |")
        lines.append("")
    return "\n".join(lines)


def stage(source: Path, target: Path) -> None:
    """Write to ``target`` what Sphinx reads: the chapters with links, and the made pages."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    books = {path: read(path) for path in chapters(source)}
    homes = {c.id: p.stem for p, nb in books.items() for c in claims(nb, p.stem)}
    for path, nb in books.items():
        add_alt_texts(nb)
        fold(nb)
        add_links(nb, homes)
        nbformat.write(nb, target / path.name)
    index = (CHAPTERS / "index.md").read_text(encoding="utf-8")
    (target / "index.md").write_text(index.replace("(../figures/", "(figures/"), encoding="utf-8")
    for path in CHAPTERS.glob("*.md"):
        if path.stem not in {"index", "references"}:
            shutil.copyfile(path, target / path.name)
    (target / "figures").mkdir()
    for path in FIGURES.iterdir():  # copytree would also copy that a folder is read-only
        if path.is_file() and path.suffix not in {".md", ".json"}:
            shutil.copyfile(path, target / "figures" / path.name)
    page = markdown(CHAPTERS / "references.bib", for_sphinx=True)
    (target / "references.md").write_text(page, encoding="utf-8")
    (target / "claims.md").write_text(claims_page(source), encoding="utf-8")
    (target / "library.md").write_text(library_page(), encoding="utf-8")


def build(source: Path, out: Path) -> int:
    """Build the HTML book from the executed chapters in ``source``; warnings are errors.

    ``out`` is replaced only by a book that built; the code of Sphinx is returned.
    """
    from sphinx.cmd.build import build_main

    staged, part = out.with_name(out.name + "-source"), out.with_name(out.name + "-part")
    stage(source, staged)
    shutil.rmtree(part, ignore_errors=True)
    options = ["-q", "-E", "-n", "-W", "--keep-going", "-b", "html", "-d", f"{staged}-trees"]
    code = build_main([*options, "-c", str(ROOT / "book"), str(staged), str(part)])
    if code:
        return code
    # A reader who downloads a chapter gets the notebook itself, not the staged copy.
    for path in chapters(source):
        shutil.copyfile(path, part / "_sources" / path.name)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(part, out)
    return 0


def main(only: str = "", jobs: int = 2) -> int:
    """Execute copies of every chapter and build the book from them."""
    folder = BUILD / "executed"
    shutil.rmtree(folder, ignore_errors=True)
    paths = chapters(only=only)
    for path in set(chapters()) - set(paths):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / path.name)
    print(f"executing {len(paths)} chapters", flush=True)
    seconds, failures = execute_all([Run(p, folder / p.name) for p in paths], jobs)
    if failures:
        report(failures)
        return 1
    times = {path.stem: round(value, 1) for path, value in sorted(seconds.items())}
    (BUILD / "seconds.json").write_text(json.dumps(times, indent=1) + "\n", encoding="utf-8")
    return built(folder)


def built(source: Path) -> int:
    """Build from ``source`` to ``_build/html`` and say where the book is."""
    print("building the pages", flush=True)
    code = build(source, BUILD / "html")
    if code:
        print("the book did not build: the warnings above are errors")
        return code
    print(f"the book: {BUILD / 'html' / 'index.html'}")
    return 0
