"""The commands that run, check and build the book: ``python -m book --help``.

The chapters never import this package. Whatever it writes lies under ``_build``, with one
exception: ``python -m book chapters`` stores outputs and figures in the tracked files.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = ROOT / "chapters"
FIGURES = ROOT / "figures"
BUILD = ROOT / "_build"


def chapters(folder: Path = CHAPTERS, only: str = "") -> list[Path]:
    """Return the notebooks of the book in reading order.

    ``only`` keeps those whose names begin with one of its words: ``"02 03"``.

    Errors:  ValueError when a word of ``only`` begins no chapter's name.
    """
    found = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    words = only.replace(",", " ").split()
    for word in words:
        if not any(path.name.startswith(word) for path in found):
            names = ", ".join(path.stem for path in found)
            raise ValueError(f"no chapter begins with {word!r}; there are: {names}")
    return [p for p in found if not words or p.name.startswith(tuple(words))]
