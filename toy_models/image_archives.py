"""Reading published sets of 64x64 ImageNet photographs, in the layouts in which they are offered.

Tiny ImageNet comes as a folder ``tiny-imagenet-200``, as the .zip of that folder, or as .tar
archives of parts of it. Downsampled ImageNet comes as .npz batches, whose labels 1 .. 1000 mean
nothing without the list ``map_clsloc.txt`` that is published with the ImageNet challenge. Nothing
is unpacked to disk, and no pickle is opened.
"""

from __future__ import annotations

import io
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

SIDE = 64
LABELS = "map_clsloc.txt"
TRAIN = re.compile(r"(?:^|/)train/(n\d{8})/images/([^/]+\.JPEG)$")
VALIDATION = re.compile(r"(?:^|/)val/images/([^/]+\.JPEG)$")
BATCH = re.compile(r"^(train|val)_data(?:_batch_(\d+))?\.npz$")
ANNOTATIONS = re.compile(r"(?:^|/)val/val_annotations\.txt$")
WORDS = re.compile(r"(?:^|/)words\.txt$")
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError)


@dataclass(frozen=True)
class Photograph:
    """One image: its name (``train/n01443537_57.JPEG``), its class, and what the file holds.

    Shapes:  content is the bytes of a JPEG, or pixels [64, 64, 3] uint8.
    """

    name: str
    wnid: str
    content: bytes | np.ndarray

    def same_as(self, other: Photograph) -> bool:
        """Return whether two photographs are one: the same class and the same pixels."""
        if self.wnid != other.wnid:
            return False
        if isinstance(self.content, bytes) and self.content == other.content:
            return True
        return np.array_equal(self.pixels(), other.pixels())

    def pixels(self) -> np.ndarray:
        """Return the pixels. [64, 64, 3] uint8.

        Errors:  ValueError where the file is no image, or has another size.
        """
        if isinstance(self.content, np.ndarray):
            return self.content
        try:
            with Image.open(io.BytesIO(self.content)) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{self.name} is damaged: {error}") from error
        if pixels.shape != (SIDE, SIDE, 3):
            raise ValueError(
                f"expected {self.name} of {SIDE} x {SIDE} pixels, got"
                f" {pixels.shape[1]} x {pixels.shape[0]}"
            )
        return pixels


def read_source(source: str | Path) -> tuple[list[Photograph], dict[str, str]]:
    """Read a source of any layout; return its photographs and the names of its classes by id.

    Errors:  FileNotFoundError where there is none, or a list that is needed is missing; ValueError
             for another layout, or a damaged file.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"no file or folder {source}")
    batches = _batches(source)
    if batches:
        return _from_batches(batches)
    found: dict[re.Pattern, dict[str, bytes]] = {p: {} for p in (ANNOTATIONS, WORDS)}
    training: list[Photograph] = []
    validation: dict[str, bytes] = {}
    try:
        for name, content in _files(source):
            if match := TRAIN.search(name):
                wnid, file = match.groups()
                training.append(Photograph(f"train/{file}", wnid, content))
            elif match := VALIDATION.search(name):
                validation[match[1]] = content
            for pattern, files in found.items():
                if pattern.search(name):
                    files[name] = content
    except DAMAGE as error:
        raise ValueError(f"{source} is damaged or cut off: {error}") from error
    classes = _classes_of_validation(source, found[ANNOTATIONS], validation)
    images = training + [
        Photograph(f"val/{file}", classes[file], content) for file, content in validation.items()
    ]
    if not images:
        raise ValueError(
            f"{source} has another layout: expected tiny-imagenet-200 with"
            " train/n01443537/images/*.JPEG and val/images/*.JPEG, or train_data_batch_1.npz"
        )
    lines = [line for text in found[WORDS].values() for line in text.decode().splitlines()]
    pairs = (line.split("\t", 1) for line in lines if "\t" in line)
    return images, {wnid: names.split(",")[0].strip() for wnid, names in pairs}


def _files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the names and contents of a folder or archive; only files that may matter are read."""
    wanted = (TRAIN, VALIDATION, ANNOTATIONS, WORDS)
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            name = PurePosixPath(*path.relative_to(source.parent).parts).as_posix()
            if path.is_file() and any(pattern.search(name) for pattern in wanted):
                yield name, path.read_bytes()
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            for name in archive.namelist():
                if any(pattern.search(name) for pattern in wanted):
                    yield name, archive.read(name)
    elif source.suffix == ".zip":
        raise ValueError(f"{source} is damaged or cut off: it is not a whole .zip file")
    else:
        with tarfile.open(source) as archive:
            for member in archive:
                if member.isfile() and any(pattern.search(member.name) for pattern in wanted):
                    yield member.name, archive.extractfile(member).read()


def _classes_of_validation(
    source: Path, annotations: dict[str, bytes], validation: dict[str, bytes]
) -> dict[str, str]:
    """Return the class of every validation image, from the list beside them."""
    lines = [line for text in annotations.values() for line in text.decode().splitlines()]
    classes = dict(line.split("\t")[:2] for line in lines if line.count("\t") >= 1)
    missing = sorted(validation.keys() - classes.keys())
    if missing:
        raise ValueError(
            f"{source} has validation images without a class ({len(missing)}, such as"
            f" {missing[0]}): expected a line for each in val/val_annotations.txt"
        )
    return classes


def _batches(source: Path) -> list[Path]:
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    return [file for file in files if BATCH.match(file.name)]


def _from_batches(batches: list[Path]) -> tuple[list[Photograph], dict[str, str]]:
    """Read .npz batches: rows of 3 x 64 x 64 bytes, labels 1 .. 1000."""
    table = batches[0].parent / LABELS
    if not table.is_file():
        raise FileNotFoundError(
            f"no {table}: the labels 1 .. 1000 of .npz batches are numbers in that list of the"
            " ImageNet challenge's development kit; put it beside the batches"
        )
    rows = [line.split() for line in table.read_text(encoding="utf-8").splitlines() if line.strip()]
    try:
        names = {int(number): (wnid, name.replace("_", " ")) for wnid, number, name in rows}
    except ValueError as error:
        raise ValueError(f"{table}: expected lines such as 'n02119789 1 kit_fox'") from error
    images = []
    for path in batches:
        split, number = BATCH.match(path.name).groups()
        try:
            with np.load(path, allow_pickle=False) as stored:
                data, labels = stored["data"], stored["labels"].astype(int)
        except (*DAMAGE, ValueError, KeyError, OSError) as error:
            raise ValueError(f"{path} is damaged or no .npz batch: {error}") from error
        if data.dtype != np.uint8 or data.shape != (len(labels), 3 * SIDE * SIDE):
            raise ValueError(
                f"expected {path.name} with data [{len(labels)}, {3 * SIDE * SIDE}] uint8,"
                f" got {list(data.shape)} {data.dtype}"
            )
        unknown = set(labels.tolist()) - names.keys()
        if unknown:
            raise ValueError(f"{path.name}: labels {sorted(unknown)[:5]} are not in {table}")
        pixels = data.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        images += [
            Photograph(
                f"{split}/{names[label][0]}_batch{number or 0}_{row}", names[label][0], image
            )
            for row, (label, image) in enumerate(zip(labels.tolist(), pixels, strict=True))
        ]
    return images, dict(names.values())
