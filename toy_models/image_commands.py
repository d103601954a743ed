"""``python -m toy_models images ...``: fetch and pack photographs; make what measures samples."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import torch

from guidance_edu.checkpoints import save_weights
from toy_models.classifier import (
    CLASSIFIER,
    WEIGHTS,
    Classifier,
    features_of,
    load_classifier,
    train_classifier,
)
from toy_models.download import TINY_IMAGENET, fetch
from toy_models.image_recipes import LICENCE
from toy_models.image_reference import STATISTICS, make_reference, store_reference
from toy_models.imagenet64 import BOOK, FIFTY, check_packed, load, pack

DATA = Path("data")
LISTS = {"book": tuple(BOOK), "fifty": tuple(FIFTY), "all": None}


def add_images_command(commands: argparse._SubParsersAction) -> None:
    """Add ``images`` and its own commands to a parser."""
    images = commands.add_parser("images", help="fetch, pack or list photographs")
    actions = images.add_subparsers(dest="action", required=True)
    packing = actions.add_parser("pack", help="pack archives, folders or .npz batches")
    packing.add_argument("sources", nargs="+", type=Path, metavar="source")
    fetching = actions.add_parser("download", help=f"fetch and pack {TINY_IMAGENET.address}")
    for parser in (packing, fetching):
        parser.add_argument("--classes", choices=LISTS, default="all", help="which to keep")
    listing = actions.add_parser("list", help="check what is packed and count it by class")
    for parser in (packing, fetching, listing):
        parser.add_argument("--data", type=Path, default=DATA, help=f"folder (default: {DATA})")


def run_images_command(options: argparse.Namespace) -> None:
    """Run ``images pack``, ``images download`` or ``images list``.

    Errors:  OSError or ValueError with a message for the reader.
    """
    if options.action == "list":
        list_packed(options.data)
        return
    if options.action == "download":
        print(f"{TINY_IMAGENET.address}: {TINY_IMAGENET.bytes / 1e6:.0f} MB")
        print("ImageNet's terms allow non-commercial research and teaching.")
        sources = [fetch(TINY_IMAGENET, options.data)]
    else:
        sources = options.sources
    folder = pack(sources, options.data, LISTS[options.classes])
    index = check_packed(folder)
    print(f"{folder}: {len(index['files'])} images of {len(set(index['wnids']))} classes")


def list_packed(data: Path) -> None:
    """Check the packed images against their hash and print a line for each class.

    Errors:  FileNotFoundError where nothing is packed; ValueError where it is damaged.
    """
    index = check_packed(data)
    names = index.get("names", {}) | {wnid: name for name, wnid in FIFTY.items()}
    counts = Counter(
        (wnid, file.split("/")[0])
        for file, wnid in zip(index["files"], index["wnids"], strict=True)
    )
    book = list(BOOK.values())
    others = sorted(set(index["wnids"]) - set(book))
    for wnid in [*(w for w in book if w in set(index["wnids"])), *others]:
        name = names.get(wnid, "")
        print(f"{wnid} {name:26s} {counts[wnid, 'train']:5d} train {counts[wnid, 'val']:4d} val")
    print(f"{len(index['files'])} images in {data}, sha256 {index['sha256']}")


def store_classifier(data: Path, runs: Path, folder: Path = WEIGHTS) -> Path:
    """Train the classifier (or go on), write its weights, and measure the photographs with it.

    The statistics go to ``toy_models/statistics`` where the weights go to those that are shipped,
    and beside the weights otherwise.

    Errors:  as :func:`toy_models.classifier.train_classifier`; FileNotFoundError for no images.
    """
    model, card = train_classifier(data, runs / CLASSIFIER)
    model = model.half().float()  # as it will be stored, and so as it will be used
    card |= accuracies(model, data) | {"licence": LICENCE}
    path = save_weights(folder, CLASSIFIER, model, card, torch.float16)
    target = STATISTICS if folder == WEIGHTS else folder / "statistics"
    store_reference(make_reference(data, load_classifier(folder)), path, target)
    return path


def accuracies(model: Classifier, data: Path) -> dict[str, float]:
    """Return the share of validation images of the book's classes that are recognised.

    ``accuracy`` is among these ten classes, which is what samples are judged by; ``accuracy_all``
    among all classes that the classifier knows.

    Errors:  FileNotFoundError or ValueError where the images are not packed.
    """
    images = load(data, "val", tuple(BOOK))
    logits = features_of(model, images.pixels)[1]
    choices = {"accuracy": logits[:, : len(BOOK)], "accuracy_all": logits}
    return {
        name: round(float((values.argmax(1) == images.labels).double().mean()), 4)
        for name, values in choices.items()
    }
