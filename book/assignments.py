"""Release the graded assignments to students, and grade what comes back.

The sources are notebooks in nbgrader's format. These functions and nbgrader read the same files;
nothing here needs nbgrader, a server or a database.
"""

from __future__ import annotations

import ast
import csv
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from book import BUILD, CHAPTERS
from book.execute import ANSI, METADATA, write

SOURCES = CHAPTERS / "assignments"
SOLUTION = re.compile(r"(?ms)^([ \t]*)### BEGIN SOLUTION\n.*?^[ \t]*### END SOLUTION[ \t]*$")
HIDDEN = re.compile(r"(?ms)^[ \t]*### BEGIN HIDDEN TESTS\n.*?^[ \t]*### END HIDDEN TESTS[ \t]*\n?")
# The words that nbgrader leaves too, so that students see one form.
STUB = r"\1# YOUR CODE HERE\n\1raise NotImplementedError()"
WRITTEN = "YOUR ANSWER HERE"
PARAMETERS = "parameters"  # the id of the cell that a teacher may change
# A cell is interrupted after its seconds; where it does not heed that, or the submission has had
# its own, the kernel is killed.
CELL_SECONDS, PATIENCE, SUBMISSION_SECONDS = 120, 10, 1800


@dataclass(frozen=True)
class Mark:
    """What one graded cell earned. ``points`` is None where a person has to read the answer."""

    cell: str
    points: float | None
    most: float
    why: str = ""


@dataclass(frozen=True)
class Grades:
    """The marks of one submission, and the locked cells that were not as released."""

    marks: tuple[Mark, ...]
    changed: tuple[str, ...] = ()

    @property
    def points(self) -> float:
        """Points so far, written answers left out."""
        return sum(mark.points or 0 for mark in self.marks)

    @property
    def most(self) -> float:
        """What the tests alone can give."""
        return sum(mark.most for mark in self.marks if mark.points is not None)

    @property
    def to_read(self) -> list[Mark]:
        """Written answers that a person has to read."""
        return [mark for mark in self.marks if mark.points is None]


def role(cell: NotebookNode) -> NotebookNode:
    """Return what nbgrader's metadata say about a cell; empty for a cell of the student's own."""
    return cell.metadata.get("nbgrader", NotebookNode())


def names() -> list[str]:
    """Return the names of all assignments in the order of the book's parts."""
    return sorted(path.parent.name for path in SOURCES.glob("*/*.ipynb"))


def source(name: str, values: Sequence[str] = ()) -> NotebookNode:
    """Read the source of an assignment, with a teacher's values in its parameters.

    Errors:  ValueError for a name that is not there, or values that do not fit.
    """
    if name not in names():
        raise ValueError(f"no assignment {name!r}; there are: {', '.join(names())}")
    return with_values(nbformat.read(SOURCES / name / f"{name}.ipynb", as_version=4), values)


def with_values(nb: NotebookNode, values: Sequence[str]) -> NotebookNode:
    """Return a copy in which the parameters have new values, each given as ``NAME=value``.

    Errors:  ValueError for a name that the parameters do not have, or a value that is not a plain
             Python value.
    """
    nb = nbformat.from_dict(nb)
    if not values:
        return nb
    cell = next(cell for cell in nb.cells if cell.id == PARAMETERS)
    lines = cell.source.splitlines()
    places = {
        line.targets[0].id: line for line in ast.parse(cell.source).body if type(line) is ast.Assign
    }
    for value in values:
        name, _, text = (part.strip() for part in value.partition("="))
        if name not in places:
            raise ValueError(f"no parameter {name!r}; there are: {', '.join(places)}")
        try:
            ast.literal_eval(text)
        except (SyntaxError, ValueError):
            raise ValueError(f"{value!r}: expected a plain Python value after '='") from None
        line = places[name].lineno - 1
        comment = lines[line].partition("#")[1:]
        lines[line] = f"{name} = {text}" + ("  " + "".join(comment) if comment[0] else "")
    cell.source = "\n".join(lines)
    return nb


def student_version(nb: NotebookNode) -> NotebookNode:
    """Return a copy with no solution, no hidden test and no output; what is given is locked."""
    nb = nbformat.from_dict(nb)
    nb.metadata = nbformat.from_dict(METADATA)
    for cell in nb.cells:
        kind = role(cell)
        if cell.cell_type == "code":
            cell.source = HIDDEN.sub("", SOLUTION.sub(STUB, cell.source)).rstrip()
            cell.outputs, cell.execution_count = [], None
        elif kind.get("solution"):
            cell.source = WRITTEN
        if kind:
            cell.metadata["deletable"] = False
        if kind.get("locked"):
            cell.metadata["editable"] = False
    return nb


def restored(nb: NotebookNode, submission: NotebookNode) -> tuple[NotebookNode, list[str]]:
    """Return a submission with every locked cell as in the source, and the ids of those changed.

    Metadata never come from the submission: they decide what runs and what earns points.

    Errors:  ValueError where a cell of the assignment is missing or stands there twice.
    """
    result = nbformat.from_dict(submission)
    here = [role(cell).get("grade_id") for cell in result.cells]
    released = {role(cell).get("grade_id"): cell for cell in student_version(nb).cells}
    originals = {role(cell).get("grade_id"): cell for cell in nb.cells}
    for problem, wrong in (
        ("lacks", [key for key in originals if key and key not in here]),
        ("repeats", sorted({key for key in here if key and here.count(key) > 1})),
    ):
        if wrong:
            raise ValueError(f"the submission {problem} cells of the assignment: {wrong}")
    changed, result.nbformat_minor = [], 5
    result.metadata = nbformat.from_dict(METADATA)
    for number, (cell, key) in enumerate(zip(result.cells, here, strict=True)):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if key is None or key not in originals:
            cell["id"], cell.metadata = f"own-{number}", NotebookNode()
            continue
        original = nbformat.from_dict(originals[key])
        if role(original).locked:
            given = {original.source.strip(), released[key].source.strip()}
            if cell.source.strip() not in given and key != PARAMETERS:
                changed.append(key)
            result.cells[number] = original
        else:
            cell.metadata = original.metadata
        result.cells[number]["id"] = key
    return result, changed


def grade(
    nb: NotebookNode,
    submission: NotebookNode,
    run: Callable[[NotebookNode], dict[str, str]] | None = None,
) -> Grades:
    """Run a submission with the original tests and mark it.

    ``run`` executes a notebook, numbers the cells that ran, and returns what failed, by cell id;
    :func:`in_kernel` is the default. A test that did not run earns nothing.

    Errors:  as :func:`restored` and :func:`in_kernel`.
    """
    ready, changed = restored(nb, submission)
    failed = (run or in_kernel)(ready)
    marks = []
    for cell in ready.cells:
        kind = role(cell)
        if not kind.get("grade"):
            continue
        if kind.solution:
            blank = cell.source.strip() in ("", WRITTEN)
            marks.append(Mark(kind.grade_id, 0 if blank else None, kind.points))
        else:
            why = failed.get(cell.id, "" if cell.execution_count else "did not run")
            marks.append(Mark(kind.grade_id, 0 if why else kind.points, kind.points, why))
    return Grades(tuple(marks), tuple(changed))


def in_kernel(nb: NotebookNode) -> dict[str, str]:
    """Execute every cell in a fresh kernel, whatever fails; return the errors by cell id.

    Limits:  a cell is interrupted after ``CELL_SECONDS`` and has failed then; all of them together
             have ``SUBMISSION_SECONDS``.
    Errors:  RuntimeError when the kernel dies, or is killed since a cell does not end.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import DeadKernelError

    client = NotebookClient(
        nb,
        allow_errors=True,
        kernel_name="python3",
        record_timing=False,
        shutdown_kernel="immediate",
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
    )
    failed, number, end = {}, 0, time.monotonic() + SUBMISSION_SECONDS
    with client.setup_kernel():
        for index, cell in enumerate(nb.cells):
            if cell.cell_type != "code" or not cell.source.strip():
                continue
            number += 1
            watch = _Watch(client.km.provisioner.process, end)
            try:
                with watch:
                    client.execute_cell(cell, index, execution_count=number)
            except DeadKernelError:
                why = "does not end" if watch.killed else "ended the kernel (out of memory?)"
                if time.monotonic() >= end:
                    why += f", and the submission has had its {SUBMISSION_SECONDS} s"
                raise RuntimeError(f"cell {cell.id} {why}") from None
            if watch.late:
                failed[cell.id] = f"no end after {CELL_SECONDS} s"
            for out in cell.outputs:
                if out.output_type == "error":
                    failed.setdefault(cell.id, _said(out.ename, ANSI.sub("", out.evalue)))
    return failed


class _Watch:
    """Interrupt a kernel whose cell is late, and kill it with all that it started if that fails."""

    def __init__(self, kernel: subprocess.Popen, end: float):
        self.kernel, self.late, self.killed = kernel, False, False
        left = max(0.0, end - time.monotonic())
        limits = {self._interrupt: CELL_SECONDS, self._kill: min(CELL_SECONDS + PATIENCE, left)}
        self.timers = [threading.Timer(seconds, act) for act, seconds in limits.items()]

    def __enter__(self) -> _Watch:
        for timer in self.timers:
            timer.daemon = True
            timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        for timer in self.timers:
            timer.cancel()

    def _interrupt(self) -> None:
        self.late = True
        self._send(signal.SIGINT)

    def _kill(self) -> None:
        self.killed = True
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.kernel.pid, number)  # a kernel leads a group of its own


def _said(kind: str, text: str) -> str:
    return f"{kind}: {text}" if text.strip() else kind


def in_process(nb: NotebookNode) -> dict[str, str]:
    """Execute the cells right here: quick, and only for notebooks that one trusts.

    Cells tagged ``figure`` are passed over.
    """
    failed, space = {}, {"__name__": "__main__"}
    for number, cell in enumerate(nb.cells, 1):
        if cell.cell_type != "code" or "figure" in cell.metadata.get("tags", []):
            continue
        cell.execution_count = number
        try:
            with redirect_stdout(StringIO()):
                exec(compile(cell.source, f"<{cell.id}>", "exec"), space)
        except Exception as error:
            failed[cell.id] = "".join(traceback.format_exception_only(error)).strip()
    return failed


def released(chosen: Sequence[str] = (), to: Path | None = None, values: Sequence[str] = ()) -> int:
    """Write the student versions of assignments, of all where none is named.

    ``chosen`` holds names or their first letters. What lies there already is never replaced, since
    it may be somebody's work.

    Errors:  ValueError for a name that begins no assignment's, values that do not fit, or a file
             in the way.
    """
    folder = to or BUILD / "assignments"
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"expected a folder to write to, got the file {path}")
    found = [name for name in names() if not chosen or name.startswith(tuple(chosen))]
    for word in chosen:
        if not any(name.startswith(word) for name in found):
            raise ValueError(f"no assignment begins with {word!r}; there are: {', '.join(names())}")
    ready = {
        folder / name / f"{name}.ipynb": student_version(source(name, values)) for name in found
    }
    for target, nb in ready.items():
        text = (nbformat.writes(nb) + "\n").encode()
        if target.exists() and (target.is_dir() or target.read_bytes() != text):
            raise ValueError(f"{target} is there and differs; remove it or name a folder with --to")
    for target, nb in ready.items():
        write(nb, target)
        print(target)
    return 0


def graded(files: Sequence[str], to: Path | None = None, values: Sequence[str] = ()) -> int:
    """Grade submissions; print the marks of each, and write them to a CSV file where one is named.

    A submission is a file with the name of its assignment, in a folder of the student's. One that
    cannot be graded does not stop the others, and has a row that says why. What was graded before
    an interruption is written.

    Errors:  ValueError where no file is named, the CSV file cannot be written, or the book's own
             solution fails with the given values.
    """
    if not files:
        raise ValueError("expected the notebooks to grade")
    if to is not None:
        _check_csv(to)
    if values:
        for name in dict.fromkeys(Path(file).stem for file in files):
            if name in names():
                _check_solution(name, values)
    rows, failures = [], 0
    try:
        for file in map(Path, files):
            try:
                grades = grade(source(file.stem, values), _submission(file))
            except Exception as error:
                why = f"not graded: {str(error).strip() or type(error).__name__}"
                print(f"{file}: {why}", file=sys.stderr, flush=True)
                rows.append((file, "", "", "", why))
                failures += 1
                continue
            print(show(file, grades), flush=True)
            rows += [(file, m.cell, m.points, m.most, m.why) for m in grades.marks]
    finally:
        if to is not None:
            with to.open("w", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerows([("file", "cell", "points", "most", "why"), *rows])
    return 1 if failures else 0


def _check_csv(path: Path) -> None:
    """Find out before hours of grading that the marks could not be written."""
    if path.is_dir():
        raise ValueError(f"expected a CSV file for the marks, got the folder {path}")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{path} cannot be written")


def _check_solution(name: str, values: Sequence[str]) -> None:
    nb = source(name, values)
    try:
        lost = [f"{m.cell}: {m.why.splitlines()[0]}" for m in grade(nb, nb).marks if m.why]
    except RuntimeError as error:
        lost = [str(error)]
    if lost:
        raise ValueError(
            f"nothing was graded: with {', '.join(values)} the book's own solution of {name} does"
            f" not get full marks ({'; '.join(lost)})"
        )


def show(file: Path, grades: Grades) -> str:
    """Return the marks of one submission as lines of text."""
    lines = [f"{file}: {grades.points:g} of {grades.most:g} points so far"]
    for mark in grades.marks:
        got = "to read" if mark.points is None else f"{mark.points:g}"
        why = mark.why.strip().splitlines()[:1]
        lines.append(f"  {mark.cell:<12} {got:>7} of {mark.most:g}  {''.join(why)}".rstrip())
    if grades.changed:
        lines.append(f"  locked cells were changed and put back: {', '.join(grades.changed)}")
    return "\n".join(lines)


def _submission(file: Path) -> NotebookNode:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ids that are missing or doubled are mended later
            return nbformat.read(file, as_version=4)
    except FileNotFoundError:
        raise ValueError("there is no such file") from None
    except Exception as error:
        raise ValueError(f"not a notebook ({type(error).__name__})") from None


def main(action: str, what: Sequence[str] = (), to: str = "", values: Sequence[str] = ()) -> int:
    """Release assignments or grade submissions.

    Errors:  ValueError for what cannot be done as asked.
    """
    place = Path(to) if to else None
    return (released if action == "release" else graded)(what, place, values)
