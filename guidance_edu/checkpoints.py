"""Weights on disk: safetensors files beside a manifest that says what each one is.

Only numbers are ever read. A pickle (``.pt``, ``.pkl``, ``.ckpt``) can run code while it is being
opened, so such a file is refused before a byte of it is interpreted.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor, nn

MANIFEST = "manifest.json"


def save_weights(
    folder: str | Path,
    name: str,
    model: nn.Module,
    card: dict,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a model's weights and their manifest entry; each appears whole or not at all.

    ``card`` says where the weights come from (recipe, data, seed, licence ...); hash and size are
    added here. Floating-point weights are stored as ``dtype``: float16 halves the file.

    Errors:  ValueError when the name is not a plain file name, or a weight is not finite as it is
             stored (float16 ends at 65504).
    """
    folder = Path(folder)
    path = _path(folder, name)
    tensors = {
        key: (value.to(dtype) if value.is_floating_point() else value).cpu().contiguous()
        for key, value in model.state_dict().items()
    }
    for key, value in tensors.items():
        if not bool(value.isfinite().all()):
            raise ValueError(f"expected finite weights, but {key} holds NaN or infinity")
    data = write_tensors(tensors)
    manifest = read_manifest(folder) if (folder / MANIFEST).exists() else {}
    entry = {**card, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest[name] = entry
    text = json.dumps(dict(sorted(manifest.items())), indent=2) + "\n"
    write_whole({path: data, folder / MANIFEST: text.encode()})
    return path


def load_weights(folder: str | Path, name: str, model: nn.Module) -> nn.Module:
    """Fill a model with stored weights and return it in evaluation mode.

    Errors:  KeyError when the manifest has no such entry (the message lists what it has);
             FileNotFoundError when the file is missing; ValueError when its hash differs from the
             manifest's, it is not a safetensors file, or its tensors do not fit the model.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if name not in manifest:
        known = ", ".join(manifest) or "none"
        raise KeyError(f"no weights named {name!r} in {folder / MANIFEST}; it lists: {known}")
    tensors = read_safetensors(_path(folder, name), manifest[name]["sha256"])
    _check_fit(tensors, model.state_dict(), name)
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)


def read_safetensors(path: str | Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file, after checking its hash where one is given.

    Errors:  ValueError for another file type (pickles are never opened), a wrong hash, or a
             damaged file; FileNotFoundError when it is missing.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"expected a .safetensors file, got {path.name}: other checkpoint formats can run"
            " code when they are opened, and are refused"
        )
    if not path.is_file():
        raise FileNotFoundError(f"no weight file {path}")
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise ValueError(
            f"{path.name} is damaged or changed: expected sha256 {sha256}, got {found}"
        )
    try:
        return read_tensors(data)
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not a whole safetensors file: {error}") from error


def read_manifest(folder: str | Path) -> dict[str, dict]:
    """Read the manifest of a weights folder.

    Errors:  FileNotFoundError when there is none; ValueError when it is not the JSON expected.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"no manifest {path}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not all(len(entry["sha256"]) == 64 for entry in manifest.values()):
            raise ValueError("an entry has no sha256")
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a manifest of weights: {error}") from error
    return manifest


def _check_fit(tensors: dict[str, Tensor], wanted: dict[str, Tensor], name: str) -> None:
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or extra:
        raise ValueError(f"weights {name!r} do not fit the model: missing {missing}, extra {extra}")
    for key in wanted:
        value = tensors[key]
        if value.shape != wanted[key].shape:
            raise ValueError(
                f"weights {name!r} do not fit the model: expected {key} of shape"
                f" {list(wanted[key].shape)}, got {list(value.shape)}"
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"weights {name!r}: {key} holds NaN or infinity")


def _path(folder: Path, name: str) -> Path:
    if not name or name != Path(name).name or name.startswith("."):
        raise ValueError(f"expected a plain file name for weights, got {name!r}")
    return folder / f"{name}.safetensors"


def write_whole(files: dict[Path, bytes]) -> None:
    """Write to neighbours, then rename them all, so that a reader never sees half a file.

    Writing is what fails (a full disk); nothing is renamed before everything is written.

    Errors:  OSError where a file cannot be written; what was there before then stays.
    """
    parts = {path.with_name(f"{path.name}.{os.getpid()}.part"): path for path in files}
    try:
        for part, path in parts.items():
            part.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as stream:
                stream.write(files[path])
                stream.flush()
                os.fsync(stream.fileno())
        for part, path in parts.items():
            os.replace(part, path)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
