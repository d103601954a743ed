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
from toy_models.sweeps.image_guidance import MAIN, PAIRS, guided
from toy_models.sweeps.images import START, SWEEP, TABLE, cached, drawn

COLUMNS = 10  # one a class, since the labels go round


def add_evaluate_command(commands: argparse._SubParsersAction) -> None:
    """Add ``evaluate`` to the command line."""
    command = commands.add_parser(
        "evaluate",
        help="draw images under a method and measure them",
        description="Draw images from the shipped 64x64 models under a method and measure them."
        " GUIDANCE_EDU_SEED picks other starting noise, GUIDANCE_EDU_DEVICE another device.",
    )
    command.add_argument("method", help=f"none, {', '.join(PAIRS)}")
    command.add_argument("--w", type=float, default=1.5, help="weight (1: no guidance)")
    command.add_argument("--n", type=int, default=SWEEP, choices=(SWEEP, TABLE), help="images")
    command.add_argument("--png", type=Path, help="also write the first forty images to this file")


def run_evaluate_command(options: argparse.Namespace) -> None:
    """Measure, print one line, write the images where asked.

    Errors:  KeyError for an unknown method; ValueError for a weight that is not finite, or a path
             at which no file can be written, before anything is drawn.
    """
    check_weight(options.w)
    if options.png is not None:
        _check_path(options.png)
    alone = options.method == "none"
    x = drawn(cached(MAIN) if alone else guided(options.method, options.w), options.n)
    found = measure(x, balanced_labels(options.n), START + seed_shift())
    print(f"{options.method} w = {1.0 if alone else options.w:g}: {found}", flush=True)
    if options.png is not None:
        picture = BytesIO()
        sheet(x[:40]).save(picture, format="PNG")
        write_whole({options.png: picture.getvalue()})


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
