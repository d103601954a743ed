"""``python -m toy_models list | show NAME | train NAME ... [--out FOLDER]``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from guidance_edu.checkpoints import read_manifest
from toy_models.recipes import RECIPES, WEIGHTS, recipe_named, store


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m toy_models", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="all recipes, one line each")
    show = commands.add_parser("show", help="the card of shipped weights")
    show.add_argument("name")
    training = commands.add_parser("train", help="train recipes and write their weights")
    training.add_argument("names", nargs="+", metavar="name", help="recipe names, or all")
    training.add_argument("--out", type=Path, default=WEIGHTS, help="folder (default: shipped)")
    options = parser.parse_args(arguments)
    try:
        _run(options)
    except (KeyError, ValueError, OSError, FloatingPointError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        print(f"error: {message}", file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    if options.command == "list":
        for recipe in RECIPES.values():
            size = f"{recipe.hidden} wide, {recipe.steps} steps"
            world = f"{recipe.tree} tree, {recipe.classes:2s}"
            print(f"{recipe.name:30s} {world} {size:22s} {recipe.what}")
    elif options.command == "show":
        recipe_named(options.name)
        print(json.dumps(read_manifest(WEIGHTS).get(options.name, "not shipped"), indent=2))
    else:
        names = list(RECIPES) if options.names == ["all"] else options.names
        for name in names:
            recipe_named(name)
        for name in names:
            path = store(name, options.out)
            card = read_manifest(options.out)[name]
            print(f"{path}: validation loss {card['validation_loss']}, {card['seconds']} s")


if __name__ == "__main__":
    sys.exit(main())
