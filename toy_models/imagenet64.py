"""ImageNet photographs at 64x64: packed once into one memory-mapped file, read by class name.

The images are those of Tiny ImageNet (200 classes, 500 training and 50 validation images each) or
of downsampled ImageNet. They are never part of the repository: ImageNet's terms allow
non-commercial research and teaching.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from guidance_edu.settings import progress
from toy_models.image_archives import SIDE, Photograph, read_source

# The ten classes of the book, in label order.
BOOK = {
    "goldfish": "n01443537",
    "king penguin": "n02056570",
    "jellyfish": "n01910747",
    "monarch": "n02279972",
    "ladybug": "n02165456",
    "lesser panda": "n02509815",
    "school bus": "n04146614",
    "espresso": "n07920052",
    "orange": "n07747607",
    "alp": "n09193705",
}
# Forty more: a model that trains on all fifty classes sees each image less often.
MORE = {
    "seashore": "n09428293",
    "sports car": "n04285008",
    "lion": "n02129165",
    "pizza": "n07873807",
    "lemon": "n07749582",
    "mushroom": "n07734744",
    "koala": "n01882714",
    "brain coral": "n01917289",
    "golden retriever": "n02099601",
    "triumphal arch": "n04486054",
    "banana": "n07753592",
    "bell pepper": "n07720875",
    "teddy": "n04399382",
    "Persian cat": "n02123394",
    "Egyptian cat": "n02124075",
    "chimpanzee": "n02481823",
    "African elephant": "n02504458",
    "brown bear": "n02132136",
    "bison": "n02410509",
    "tarantula": "n01774750",
    "bee": "n02206856",
    "dragonfly": "n02268443",
    "black stork": "n02002724",
    "albatross": "n02058221",
    "goose": "n01855672",
    "tailed frog": "n01644900",
    "American alligator": "n01698640",
    "lakeside": "n09332890",
    "cliff": "n09246464",
    "coral reef": "n09256479",
    "viaduct": "n04532670",
    "suspension bridge": "n04366367",
    "convertible": "n03100240",
    "tractor": "n04465501",
    "freight car": "n03393912",
    "umbrella": "n04507155",
    "volleyball": "n04540053",
    "pomegranate": "n07768694",
    "cauliflower": "n07715103",
    "fountain": "n03388043",
}
FIFTY = BOOK | MORE
PIXELS, INDEX = "images.npy", "images.json"
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Images:
    """Images of chosen classes, in the order of the classes and then of the file names.

    Shapes:  pixels [n, 64, 64, 3] uint8; labels [n] long (position in the list of classes asked
             for); files n names.
    """

    pixels: Tensor
    labels: Tensor
    files: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def sha256(self) -> str:
        """Return a hash of pixels, labels and names: what a training run was given."""
        digest = hashlib.sha256(self.pixels.contiguous().numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        digest.update("\n".join(self.files).encode())
        return digest.hexdigest()


def to_range(pixels: Tensor) -> Tensor:
    """Turn stored pixels into model inputs.

    Shapes:  pixels [n, h, w, 3] uint8; result [n, 3, h, w] float32.
    Units:   0 .. 255 becomes -1 .. 1.
    """
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(x: Tensor) -> Tensor:
    """Turn samples into pixels, clipping what lies outside -1 .. 1.

    Shapes:  x [n, 3, h, w]; result [n, h, w, 3] uint8.
    """
    scaled = (x.float().clamp(-1, 1) + 1) * 127.5
    return scaled.round().byte().permute(0, 2, 3, 1).contiguous()


def pack(
    sources: Sequence[str | Path], folder: str | Path, classes: Sequence[str] | None = None
) -> Path:
    """Pack photographs into one file of pixels and an index; return the folder.

    Sources are any of the layouts of :mod:`toy_models.image_archives`; one image may be in several.
    ``classes`` (names or WordNet ids) keeps only these.

    Limits:  the images are in the order of their names, whatever the order of the sources.
    Errors:  FileNotFoundError for a source that is not there; ValueError for one of another
             layout, a damaged one, two that differ in one image, or classes that none has.
    """
    if not sources:
        raise ValueError("expected at least one source of images, got none")
    wanted = None if classes is None else set(_wnids(classes))
    rows: dict[str, Photograph] = {}
    names: dict[str, str] = {}
    for source in sources:
        images, named = read_source(source)
        names |= named
        for image in images:
            if wanted is not None and image.wnid not in wanted:
                continue
            other = rows.setdefault(image.name, image)
            if other is not image and not other.same_as(image):
                raise ValueError(f"{source} has another image under the name {image.name}")
    missing = (wanted or set()) - {image.wnid for image in rows.values()}
    if missing or not rows:
        raise ValueError(f"no image of the classes {sorted(missing)} in the sources given")
    order = sorted(rows)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{PIXELS}.{os.getpid()}.part"
    digest = hashlib.sha256()
    try:
        shape = (len(order), SIDE, SIDE, 3)
        packed = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
        for row, name in enumerate(progress(order, "packing")):
            packed[row] = rows[name].pixels()
            digest.update(packed[row].tobytes())
        packed.flush()
        del packed  # some systems do not rename a file that is still mapped
        wnids = [rows[name].wnid for name in order]
        known = {wnid: names[wnid] for wnid in sorted(set(wnids)) if wnid in names}
        index = {"files": order, "wnids": wnids, "names": known, "sha256": digest.hexdigest()}
        (folder / INDEX).unlink(missing_ok=True)  # an index never stands beside other pixels
        os.replace(part, folder / PIXELS)
        part.write_text(json.dumps(index), encoding="utf-8")
        os.replace(part, folder / INDEX)
    finally:
        part.unlink(missing_ok=True)
    return folder


def load(folder: str | Path, split: str = "train", classes: Sequence[str] = tuple(BOOK)) -> Images:
    """Return the images of a split ("train" or "val") of some classes, by name or WordNet id.

    Limits:  the images of a class are in the order of their file names as text.
    Errors:  FileNotFoundError where nothing is packed; ValueError for another split, a class that
             is not packed, or a file that is damaged.
    """
    if split not in SPLITS:
        raise ValueError(f"expected the split train or val, got {split!r}")
    folder = Path(folder)
    index = read_index(folder)
    wanted = {wnid: label for label, wnid in enumerate(_wnids(classes))}
    missing = sorted(wanted.keys() - set(index["wnids"]))
    if missing:
        raise ValueError(f"classes {missing} are not packed in {folder}")
    rows = [
        (wanted[wnid], file, row)
        for row, (file, wnid) in enumerate(zip(index["files"], index["wnids"], strict=True))
        if wnid in wanted and file.split("/")[0] == split
    ]
    rows.sort()
    pixels = _stored_pixels(folder, index)[[row for _, _, row in rows]]
    return Images(
        torch.from_numpy(np.ascontiguousarray(pixels)),
        torch.tensor([label for label, _, _ in rows], dtype=torch.long),
        tuple(file for _, file, _ in rows),
    )


def read_index(folder: str | Path) -> dict:
    """Return the index of packed images: files, wnids, names of classes, sha256 of the pixels.

    Errors:  FileNotFoundError where nothing is packed; ValueError where the index is damaged.
    """
    path = Path(folder) / INDEX
    if not path.is_file():
        raise FileNotFoundError(
            f"no packed images in {folder}: fetch them with 'python -m toy_models images download'"
            " or pack an archive that you have with 'python -m toy_models images pack FILE ...'"
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        whole = len(index["files"]) == len(index["wnids"]) and len(index["sha256"]) == 64
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not whole:
        raise ValueError(f"{path} is damaged: its lists differ in length")
    return index


def wnids_of(folder: str | Path) -> list[str]:
    """Return the WordNet id of every packed image, in the order of the file."""
    return read_index(folder)["wnids"]


def check_packed(folder: str | Path) -> dict:
    """Read every packed pixel and compare with the hash of the index; return the index.

    Errors:  as :func:`load`; ValueError where the pixels are not those that were packed.
    """
    index = read_index(folder)
    pixels = _stored_pixels(Path(folder), index)
    digest = hashlib.sha256()
    for start in range(0, len(pixels), 1000):
        digest.update(pixels[start : start + 1000].tobytes())
    if digest.hexdigest() != index["sha256"]:
        raise ValueError(f"{Path(folder) / PIXELS} is damaged: its sha256 is not the index's")
    return index


def _stored_pixels(folder: Path, index: dict) -> np.ndarray:
    path = folder / PIXELS
    expected = (len(index["files"]), SIDE, SIDE, 3)
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged or cut off: {error}") from error
    if pixels.shape != expected or pixels.dtype != np.uint8:
        raise ValueError(f"{path} is damaged: expected {list(expected)}, got {list(pixels.shape)}")
    return pixels


def _wnids(classes: Sequence[str]) -> list[str]:
    """Turn names of classes into WordNet ids, and check that there is none twice."""
    wnids = [FIFTY.get(name, name) for name in classes]
    for name, wnid in zip(classes, wnids, strict=True):
        if not re.fullmatch(r"n\d{8}", wnid):
            raise ValueError(
                f"unknown class {name!r}; expected a WordNet id or one of: {', '.join(FIFTY)}"
            )
    if len(set(wnids)) < len(wnids):
        raise ValueError(f"expected every class once, got {list(classes)}")
    return wnids
