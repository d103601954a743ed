"""``python -m toy_models list | show | train | evaluate | images``: the models and their making."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from guidance_edu.checkpoints import read_manifest
from guidance_edu.settings import device
from toy_models.classifier import CLASSIFIER
from toy_models.constellation_recipes import CONSTELLATION_RECIPES
from toy_models.evaluate import add_evaluate_command, run_evaluate_command
from toy_models.image_commands import add_images_command, run_images_command, store_classifier
from toy_models.image_recipes import IMAGE_RECIPES, train_image_model
from toy_models.recipes import RECIPES, WEIGHTS, recipe_named, store


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit status: 2 for wrong input, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m toy_models", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="all recipes, one line each")
    show = commands.add_parser("show", help="the card of shipped weights")
    show.add_argument("name")
    training = commands.add_parser("train", help="train recipes and write their weights")
    training.add_argument("names", nargs="+", metavar="name", help="recipe names, or all")
    training.add_argument("--out", type=Path, default=WEIGHTS, help="folder (default: shipped)")
    training.add_argument("--data", type=Path, default=Path("data"), help="packed images")
    training.add_argument("--runs", type=Path, default=Path("_runs"), help="unfinished runs")
    training.add_argument("--until", type=int, help="stop for now after this step (images only)")
    add_evaluate_command(commands)
    add_images_command(commands)
    options = parser.parse_args(arguments)
    try:
        _run(options)
    except (KeyError, ValueError, OSError, FloatingPointError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        print(f"error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"python -m toy_models {options.command}: interrupted", file=sys.stderr)
        return 130
    return 0


def _run(options: argparse.Namespace) -> None:
    if options.command in ("evaluate", "train"):
        try:
            device()
        except RuntimeError as error:  # no GPU; other errors of torch keep their trace
            raise ValueError(str(error)) from None
    if options.command == "list":
        _list()
    elif options.command == "images":
        run_images_command(options)
    elif options.command == "evaluate":
        run_evaluate_command(options)
    elif options.command == "show":
        _known(options.name)
        print(json.dumps(read_manifest(WEIGHTS).get(options.name, "not shipped"), indent=2))
    else:
        # "all" is what trains in seconds; the image models take hours and are asked for by name.
        names = list(RECIPES) if options.names == ["all"] else options.names
        if "all" in names:
            raise ValueError(f"expected 'all' alone or names of recipes, got {' '.join(names)}")
        for name in names:
            _known(name)
        for name in names:
            _train(name, options)


def _known(name: str) -> None:
    if name not in {*IMAGE_RECIPES, *CONSTELLATION_RECIPES, CLASSIFIER}:
        recipe_named(name)


def _list() -> None:
    for recipe in RECIPES.values():
        size = f"{recipe.hidden} wide, {recipe.steps} steps"
        world = f"{recipe.tree} tree, {recipe.classes:2s}"
        print(f"{recipe.name:30s} {world} {size:22s} {recipe.what}")
    for recipe in CONSTELLATION_RECIPES.values():
        print(f"{recipe.name:34s} constellations, {recipe.steps} steps  {recipe.what}")
    shipped = read_manifest(WEIGHTS)
    for recipe in IMAGE_RECIPES.values():
        card = shipped.get(recipe.name)
        state = f"{card['bytes'] / 1e6:.1f} MB" if card else "not shipped"
        seen = f"{recipe.run.images // 1000}k images"
        print(f"{recipe.name:30s} 64x64 photographs {seen:12s} {state:12s} {recipe.what}")
    card = shipped.get(CLASSIFIER)
    state = f"{card['bytes'] / 1e6:.1f} MB" if card else "not shipped"
    print(f"{CLASSIFIER:30s} 64x64 photographs {'256k images':12s} {state:12s} accuracy, features")


def _train(name: str, options: argparse.Namespace) -> None:
    if name == CLASSIFIER:
        path = store_classifier(options.data, options.runs, options.out)
        print(f"{path}: accuracy {read_manifest(options.out)[name]['accuracy']}")
        return
    if name in IMAGE_RECIPES:
        path = train_image_model(name, options.data, options.runs, options.out, options.until)
        if path is None and options.until is None:
            return  # one of several processes, and not the one that stores
        if path is None:
            print(f"{name}: stopped at step {options.until}; the same command goes on")
            return
        loss = read_manifest(options.out)[name]["validation_losses"]
    else:
        path = store(name, options.out)
        loss = read_manifest(options.out)[name]["validation_loss"]
    seconds = read_manifest(options.out)[name].get("seconds", "-")
    print(f"{path}: validation loss {loss}, {seconds} s")


if __name__ == "__main__":
    sys.exit(main())
