"""Run notebooks in fresh kernels, and make equal outputs equal bytes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from tqdm import tqdm

# What the kernels see beyond the caller's environment; pytest_settings gives nbval's kernels the
# same, so that a chapter prints the same text wherever it runs.
KERNEL_ENVIRONMENT = {"GUIDANCE_EDU_PROGRESS": "0"}

# Set for one run by the command that needs them, never inherited from the caller's shell.
CONTROLS = (
    "GUIDANCE_EDU_CHAPTER",
    "GUIDANCE_EDU_LEDGER",
    "GUIDANCE_EDU_CLAIMS",
    "GUIDANCE_EDU_FIGURES",
)

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
CELL_SECONDS = 600
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@contextmanager
def workspace(build: Path, name: str) -> Iterator[Path]:
    """Make a folder for one run of a command, and remove it at the end.

    A folder of its own: the same command twice at once must not mix what it writes.
    """
    build.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=build) as folder:
        yield Path(folder)


class ChapterFailed(RuntimeError):
    """A chapter that did not run to its end: which one, in which cell, and why.

    ``raised`` tells an error of the cell's own code from a kernel that died, a cell that did not
    end, and whatever else kept the chapter from running; ``where`` is empty for the last.
    """

    def __init__(
        self, chapter: str, where: str, why: str, traceback: str = "", raised: bool = False
    ):
        super().__init__(": ".join((f"{chapter}, {where}" if where else chapter, why)))
        self.chapter, self.why, self.traceback, self.raised = chapter, why, traceback, raised


@dataclass
class Run:
    """One notebook to run: from ``source`` to ``target``, with ``env`` set in its kernel."""

    source: Path
    target: Path
    env: Mapping[str, str] = field(default_factory=dict)
    label: str = ""


def normalise(nb: nbformat.NotebookNode) -> None:
    """Remove, in place, what changes from run to run while the results do not.

    Kernel and language versions, timestamps, folding state, the split of one stream into
    chunks, and the traces of errors that a cell means to show (they hold local paths).
    """
    nb.metadata = nbformat.from_dict(METADATA)
    nb.nbformat, nb.nbformat_minor = 4, 5
    for cell in nb.cells:
        for key in ("execution", "collapsed", "scrolled"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = _tidy(cell.outputs)


def _tidy(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    tidy: list[nbformat.NotebookNode] = []
    for out in outputs:
        last = tidy[-1] if tidy else None
        if out.output_type == "stream":
            if last and last.output_type == "stream" and last.name == out.name:
                last.text += out.text
                continue
        elif out.output_type == "error":
            out.traceback = [f"{out.ename}: {ANSI.sub('', out.evalue)}"]
        tidy.append(out)
    return tidy


def write(nb: nbformat.NotebookNode, target: Path) -> None:
    """Write a notebook whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        nbformat.write(nb, part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def execute(
    source: Path,
    target: Path,
    env: Mapping[str, str] | None = None,
    each_cell: Callable[[], None] = lambda: None,
    started: Callable[[subprocess.Popen], None] = lambda process: None,
) -> float:
    """Run a notebook in a fresh kernel, in its target's folder; return the seconds it took.

    The kernel inherits the caller's environment less ``CONTROLS``, plus ``KERNEL_ENVIRONMENT``
    and ``env``. ``target`` is written only when every cell ran. ``started`` gets the kernel's
    process before the first cell runs.

    Errors:  ChapterFailed, with the chapter, the cell and the reason.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    nb = nbformat.read(source, as_version=4)
    target.parent.mkdir(parents=True, exist_ok=True)
    inherited = {k: v for k, v in os.environ.items() if k not in CONTROLS}
    kernel_env = inherited | KERNEL_ENVIRONMENT | {"GUIDANCE_EDU_CHAPTER": source.stem}
    client = NotebookClient(
        nb,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        record_timing=False,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        resources={"metadata": {"path": str(target.parent)}},
    )
    start = time.perf_counter()
    number = 0
    with client.setup_kernel(env=kernel_env | dict(env or {})):
        started(client.km.provisioner.process)
        for index, cell in enumerate(nb.cells):
            if cell.cell_type != "code" or not cell.source.strip():
                continue
            number += 1
            where = (source.stem, f"code cell {number} (id {cell.id})")
            try:
                client.execute_cell(cell, index, execution_count=number)
            except CellExecutionError as error:
                trace = ANSI.sub("", error.traceback)
                why = f"{error.ename}: {ANSI.sub('', error.evalue)}"
                raise ChapterFailed(*where, why, trace, raised=True) from None
            except CellTimeoutError:
                raise ChapterFailed(*where, f"no end after {CELL_SECONDS} s") from None
            except DeadKernelError:
                raise ChapterFailed(*where, "the kernel died (out of memory?)") from None
            each_cell()
    normalise(nb)
    write(nb, target)
    return time.perf_counter() - start


def execute_all(
    runs: Sequence[Run], jobs: int = 2
) -> tuple[dict[Path, float], dict[Path, ChapterFailed]]:
    """Run notebooks, ``jobs`` at a time, with progress; return seconds and failures by target.

    One that fails, for whatever reason, does not stop the others.

    Errors:  KeyboardInterrupt as soon as every kernel was stopped.
    """
    seconds: dict[Path, float] = {}
    failures: dict[Path, ChapterFailed] = {}
    cells = sum(_code_cells(run.source) for run in runs)
    stopped = threading.Event()
    kernels: list[subprocess.Popen] = []
    hidden = not sys.stderr.isatty()
    with tqdm(total=cells, unit="cell", leave=False, disable=hidden, file=sys.stderr) as bar:

        def one(run: Run) -> float:
            begun = threading.Event()

            def started(process: subprocess.Popen) -> None:
                begun.set()
                kernels.append(process)  # before the look at stopped: no kernel is missed
                if stopped.is_set():
                    raise KeyboardInterrupt

            def each_cell() -> None:
                bar.update()
                bar.set_postfix_str(run.label or run.source.stem, refresh=False)

            try:
                return execute(run.source, run.target, run.env, each_cell, started)
            except RuntimeError:
                if begun.is_set() or stopped.is_set():
                    raise
                # The kernel never answered and no cell ran: of two kernels that start at once,
                # both may have picked one free port. The second start picks another.
                return execute(run.source, run.target, run.env, each_cell, started)

        with ThreadPoolExecutor(max(1, jobs)) as pool:
            waiting = {pool.submit(one, run): run for run in runs}
            try:
                for done in as_completed(waiting):
                    run = waiting[done]
                    name = run.label or run.source.stem
                    try:
                        seconds[run.target] = done.result()
                        bar.write(f"  {name:<44} {seconds[run.target]:6.1f} s", file=sys.stdout)
                    except Exception as error:
                        failures[run.target] = _failure(run, error)
                        bar.write(f"  {name:<44} FAILED", file=sys.stdout)
                    sys.stdout.flush()
            except KeyboardInterrupt:
                stopped.set()
                for process in kernels:
                    process.kill()  # a cell may have minutes to go; nothing waits for its end
                pool.shutdown(cancel_futures=True)
                raise
    return seconds, failures


def _failure(run: Run, error: Exception) -> ChapterFailed:
    if isinstance(error, ChapterFailed):
        return error
    trace = "".join(traceback.format_exception(error))
    return ChapterFailed(run.source.stem, "", f"{type(error).__name__}: {error}", trace)


def _code_cells(path: Path) -> int:
    try:
        return sum(c.cell_type == "code" for c in nbformat.read(path, as_version=4).cells)
    except Exception:  # its own run says what is wrong with it
        return 0


def report(failures: Mapping[Path, ChapterFailed]) -> None:
    """Print each failure with the end of its trace."""
    for failure in failures.values():
        print(f"\nFAILED {failure}", file=sys.stderr)
        print("\n".join(failure.traceback.splitlines()[-25:]), file=sys.stderr)
