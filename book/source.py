"""What a chapter's text says about its claims, read without running it."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import nbformat

ARROW = " => "
NUMBERED = re.compile(r"^(\d+\.\d+)\s+(\S.*)$", re.DOTALL)
PRINTED = re.compile(
    r"^claim (?P<id>\d+\.\d+) (?P<statement>.*): measured (?P<measured>\S+), "
    r"(?P<expected>.*), (?P<verdict>holds|FAILS)$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Claim:
    """One ``claim(...)`` call as written: where it stands and which change breaks it."""

    chapter: str
    cell: int
    id: str
    statement: str
    breaks: str | None


@dataclass(frozen=True)
class Line:
    """One claim as printed in a stored output."""

    id: str
    statement: str
    measured: str
    expected: str
    verdict: str


def read(path: Path) -> nbformat.NotebookNode:
    """Read a notebook.

    Errors:  FileNotFoundError; ValueError where it is not a whole notebook.
    """
    try:
        nb = nbformat.read(path, as_version=4)
        nbformat.validate(nb)
    except OSError:
        raise
    except Exception as error:  # what nbformat raises depends on where the form ends
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is not a whole notebook: {why[:200]}") from error
    return nb


def tags(cell: nbformat.NotebookNode) -> list[str]:
    """Return a cell's tags."""
    return list(cell.metadata.get("tags", []))


def calls(cell: nbformat.NotebookNode) -> list[ast.Call]:
    """Return the ``claim(...)`` calls of a code cell.

    Errors:  SyntaxError when the cell is not plain Python.
    """
    tree = ast.parse(cell.source)
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "claim"
    ]


def claims(nb: nbformat.NotebookNode, chapter: str) -> list[Claim]:
    """Return the claims of a chapter in the order in which they are written.

    Errors:  ValueError when a claim's name is not a plain string that begins with its number.
    """
    found = []
    for index, cell in enumerate(nb.cells):
        if cell.cell_type != "code" or "claim" not in cell.source:
            continue
        for call in calls(cell):
            name = call.args[0] if call.args else None
            text = name.value if isinstance(name, ast.Constant) else None
            match = NUMBERED.match(text) if isinstance(text, str) else None
            if match is None:
                raise ValueError(
                    f"{chapter}, cell {cell.id}: a claim's first argument is a plain string "
                    f"'N.M statement', got {ast.unparse(name) if name else 'nothing'}"
                )
            breaks = next((k.value for k in call.keywords if k.arg == "breaks"), None)
            value = breaks.value if isinstance(breaks, ast.Constant) else None
            found.append(Claim(chapter, index, match[1], match[2], value))
    return found


def printed(nb: nbformat.NotebookNode) -> list[Line]:
    """Return the claims that a chapter's stored outputs show."""
    return [
        Line(**match.groupdict())
        for cell in nb.cells
        for out in cell.get("outputs", [])
        if out.output_type == "stream"
        for match in PRINTED.finditer(out.text)
    ]


def split_breaks(breaks: str) -> tuple[str, str]:
    """Split ``"old => new"``.

    Errors:  ValueError when there is not exactly one arrow, nothing on its left, or no change.
    """
    old, arrow, new = breaks.partition(ARROW)
    if not arrow or ARROW in new or not old.strip() or old == new:
        raise ValueError(f"expected 'old => new', got {breaks!r}")
    return old, new


def mutate(nb: nbformat.NotebookNode, breaks: str) -> int:
    """Apply ``"old => new"`` in place to the first code cell without a claim that holds old.

    Returns the index of the changed cell.

    Errors:  ValueError when no such cell holds the old text, or the new text is not Python.
    """
    old, new = split_breaks(breaks)
    for index, cell in enumerate(nb.cells):
        if cell.cell_type != "code" or old not in cell.source or calls(cell):
            continue
        cell.source = cell.source.replace(old, new)
        try:
            ast.parse(cell.source)
        except SyntaxError as error:
            raise ValueError(f"{breaks!r} leaves no valid Python in cell {cell.id}") from error
        return index
    raise ValueError(f"no code cell without a claim holds {old!r}")
