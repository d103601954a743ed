"""``python -m toy_models evaluate METHOD``: measure one method on the shipped 64x64 models."""

from __future__ import annotations

import argparse
import os
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image

from guidance_edu.checkpoints import write_whole
from guidance_edu.guidance import check_weight
from guidance_edu.settings import seed_shift
from toy_models.image_measures import measure
from toy_models.image_recipes import balanced_labels
from toy_models.imagenet64 import to_pixels
from toy_models.side_by_side import METHODS, Setting, chosen, denoiser
from toy_models.sweeps.image_guidance import MAIN
from toy_models.sweeps.images import START, SWEEP, TABLE, cached, drawn

COLUMNS = 10  # one a class, since the labels go round
NONE = "none"
# option -> what the methods call it
KNOBS = {"layers": ("layers", "layer"), "blur": ("blur", "sigma"), "size": ("size",), "w": ("w",)}


def word(name: str) -> str:
    """Return the name of a method of chapter 12 as one word of a command line."""
    return name.lower().replace(",", "").replace(" ", "-")


NAMES = {word(name): name for name in METHODS}


def add_evaluate_command(commands: argparse._SubParsersAction) -> None:
    """Add ``evaluate`` to the command line."""
    command = commands.add_parser(
        "evaluate",
        help="draw images under a method and measure them",
        description="Draw images from the shipped 64x64 models under a method and measure them, at"
        " the setting that chapter 12 chose for it unless an option changes that."
        " GUIDANCE_EDU_SEED picks other starting noise, GUIDANCE_EDU_DEVICE another device.",
    )
    command.add_argument("method", help=f"{NONE}, {', '.join(NAMES)}")
    command.add_argument("--w", type=float, help="weight (1: the method's model alone)")
    command.add_argument("--layers", nargs="+", metavar="LAYER", help="attention layers")
    command.add_argument("--blur", type=float, help="SAG: in pixels; SEG: in tokens, or inf")
    command.add_argument("--size", type=float, help="how wrong the clock is")
    command.add_argument("--n", type=int, default=SWEEP, choices=(SWEEP, TABLE), help="images")
    command.add_argument("--png", type=Path, help="also write the first forty images to this file")


def run_evaluate_command(options: argparse.Namespace) -> None:
    """Measure, print one line, write the images where asked.

    Errors:  KeyError for an unknown method or layer; ValueError for an option that the method does
             not have or a value that it cannot take, or a path at which no file can be written.
             All of them before anything is drawn, but for a layer.
    """
    if options.method != NONE and options.method not in NAMES:
        known = ", ".join([NONE, *NAMES])
        raise KeyError(f"unknown method {options.method!r}; expected one of: {known}")
    setting = chosen_setting(options)
    if options.png is not None:
        _check_path(options.png)
    alone = options.method == NONE
    x = drawn(cached(MAIN) if alone else denoiser(NAMES[options.method], **setting), options.n)
    found = measure(x, balanced_labels(options.n), START + seed_shift())
    print(" ".join([options.method, *_as_options(setting)]) + f": {found}", flush=True)
    if options.png is not None:
        picture = BytesIO()
        sheet(x[:40]).save(picture, format="PNG")
        write_whole({options.png: picture.getvalue()})


def chosen_setting(options: argparse.Namespace) -> Setting:
    """Return the setting that chapter 12 chose for a method, with what the options change.

    Errors:  ValueError for an option that the method does not have, or a weight that is not finite.
    """
    setting = {} if options.method == NONE else chosen(NAMES[options.method])
    has = [option for option, knobs in KNOBS.items() if setting.keys() & {*knobs}]
    for option, knobs in KNOBS.items():
        value = getattr(options, option)
        if value is None:
            continue
        if option not in has:
            those = ", ".join(f"--{other}" for other in has) or "none"
            raise ValueError(f"{options.method} has no --{option}; its options: {those}")
        if option == "w":
            check_weight(value)
        knob = next(knob for knob in knobs if knob in setting)
        setting[knob] = " ".join(value) if option == "layers" else value
    return setting


def _as_options(setting: Setting) -> list[str]:
    """Return a setting as it can be typed."""
    option = {knob: option for option, knobs in KNOBS.items() for knob in knobs}
    return [
        f"--{option[knob]} {value:g}" if isinstance(value, float) else f"--{option[knob]} {value}"
        for knob, value in setting.items()
    ]


def _check_path(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"expected a file for the images, got the folder {path}")
    folder = next(above for above in path.absolute().parents if above.exists())
    if not folder.is_dir():
        raise ValueError(f"{path} cannot be written: {folder} is a file")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{path} cannot be written: no right to write in {folder}")


def sheet(x: torch.Tensor, columns: int = COLUMNS) -> Image.Image:
    """Return images in rows.

    Shapes:  x [n, 3, h, w], about -1 .. 1, with n a multiple of ``columns``.
    Errors:  ValueError for another number of images.
    """
    if len(x) % columns:
        raise ValueError(f"expected a multiple of {columns} images, got {len(x)}")
    rows = [torch.cat(list(row), dim=1) for row in to_pixels(x).split(columns)]
    return Image.fromarray(torch.cat(rows).numpy())
