"""``python -m book <command>``; the Makefile has a target for each."""

from __future__ import annotations

import argparse
import sys

COMMANDS = {
    "build": "execute copies of the chapters and build the HTML book",
    "html": "build the HTML book from the stored outputs, without running anything",
    "chapters": "execute the chapters and store their outputs and figures (writes tracked files)",
    "claims": "execute copies and print every claim with what was measured",
    "seeds": "check every claim at other seeds",
    "mutations": "break the code behind each claim and require that it fails",
    "records": "repeat the long sweeps and store their results (writes tracked files)",
    "assignments": "write the student versions of the assignments, or grade submissions",
    "bench": "measure speed as ratios in one process",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit status: 2 for wrong arguments, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m book", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name not in ("assignments", "bench", "html", "records"):
            command.add_argument("--only", default="", help="first letters of chapters: '02 03'")
            command.add_argument("--jobs", type=int, default=2, help="notebooks at a time")
        if name == "seeds":
            command.add_argument("--seeds", type=int, nargs="+", default=[1000, 2000, 3000])
        if name == "mutations":
            help_ = "these claims alone, such as 12.3"
            command.add_argument("--claims", dest="ids", nargs="+", default=[], help=help_)
        if name == "records":
            command.add_argument("names", nargs="*", help="sweeps; all where none is named")
            command.add_argument("--show", action="store_true", help="print what is stored")
        if name == "assignments":
            command.add_argument("action", choices=["release", "grade"])
            command.add_argument("what", nargs="*", help="assignments, or notebooks to grade")
            command.add_argument("--to", default="", help="a folder, or the CSV file of the marks")
            command.add_argument(
                *("--set", "-s"),
                dest="values",
                action="append",
                default=[],
                metavar="NAME=VALUE",
                help="a parameter of the assignment, such as SEED=7",
            )
        if name == "bench":
            command.add_argument("--only", default="", help="part of a benchmark's name")
    options = vars(parser.parse_args(arguments))
    name = options.pop("command")
    try:
        if name == "bench" or (name == "records" and not options["show"]):
            _check_device()
        return _command(name)(**options)
    except (ValueError, OSError) as error:
        print(f"python -m book {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"python -m book {name}: interrupted", file=sys.stderr)
        return 130


def _check_device() -> None:
    from guidance_edu.settings import device

    try:
        device()
    except RuntimeError as error:  # no GPU; other errors of torch keep their trace
        raise ValueError(str(error)) from None


def _command(name: str):
    """Import only what one command needs: building needs Sphinx, measuring does not."""
    from book import CHAPTERS

    if name == "build":
        from book.html import main as run
    elif name == "html":
        from book.html import built

        def run() -> int:
            return built(CHAPTERS)
    elif name == "chapters":
        from book.refresh import main as run
    elif name == "claims":
        from book.ledger import main as run
    elif name == "seeds":
        from book.seeds import main as run
    elif name == "mutations":
        from book.mutations import main as run
    elif name == "records":
        from book.records import main as run
    elif name == "assignments":
        from book.assignments import main as run
    else:
        from book.bench import main as run
    return run


if __name__ == "__main__":
    sys.exit(main())
