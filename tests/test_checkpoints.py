"""Weights on disk: whole or absent, checked by hash, and never able to run code."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle

import pytest
import torch
from safetensors.torch import save as write_tensors
from torch import nn

from guidance_edu import checkpoints
from guidance_edu.checkpoints import (
    MANIFEST,
    load_weights,
    read_manifest,
    read_safetensors,
    save_weights,
)

CARD = {"recipe": "by hand", "licence": "MIT"}


def network(seed=0, hidden=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, 2))


def same(a, b):
    return all(torch.equal(x, b.state_dict()[key]) for key, x in a.state_dict().items())


@pytest.fixture
def folder(tmp_path):
    """A folder with the weights "one"."""
    save_weights(tmp_path, "one", network(), CARD)
    return tmp_path


def rewrite(folder, data):
    """Replace the stored weights by other bytes that the manifest vouches for."""
    (folder / "one.safetensors").write_bytes(data)
    entry = CARD | {"sha256": hashlib.sha256(data).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps({"one": entry}))


# There and back


def test_weights_come_back_bit_for_bit_ready_to_be_used(folder):
    model = load_weights(folder, "one", network(seed=1))
    assert same(model, network())
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_the_manifest_says_what_the_file_is(folder):
    data = (folder / "one.safetensors").read_bytes()
    wanted = CARD | {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert read_manifest(folder) == {"one": wanted}
    assert sorted(p.name for p in folder.iterdir()) == [MANIFEST, "one.safetensors"]


def test_saving_again_adds_or_replaces_and_keeps_the_others(folder):
    save_weights(folder, "an-other", network(seed=2), CARD)
    save_weights(folder, "one", network(seed=3), CARD)
    assert list(read_manifest(folder)) == ["an-other", "one"]
    assert same(load_weights(folder, "an-other", network()), network(seed=2))
    assert same(load_weights(folder, "one", network()), network(seed=3))


def test_a_new_folder_is_made_and_the_same_weights_give_the_same_bytes(tmp_path):
    paths = [save_weights(tmp_path / name / "x", "one", network(), CARD) for name in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()


# Missing and damaged


def test_an_unknown_name_is_told_what_there_is(folder):
    with pytest.raises(KeyError, match="no weights named 'two' in .*manifest.json; it lists: one"):
        load_weights(folder, "two", network())


def test_a_missing_file_or_manifest_is_named(folder, tmp_path):
    (folder / "one.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no weight file .*one\.safetensors"):
        load_weights(folder, "one", network())
    with pytest.raises(FileNotFoundError, match="no manifest .*nowhere"):
        load_weights(tmp_path / "nowhere", "one", network())


@pytest.mark.parametrize("where", [0, 7, 100, -1])
def test_one_changed_byte_is_noticed(folder, where):
    path = folder / "one.safetensors"
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="one.safetensors is damaged or changed: expected sha256"):
        load_weights(folder, "one", network())


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_cut_off_file_is_noticed_with_and_without_its_hash(folder, keep):
    path = folder / "one.safetensors"
    cut = path.read_bytes()[:keep]
    path.write_bytes(cut)
    with pytest.raises(ValueError, match="damaged or changed"):
        load_weights(folder, "one", network())
    with pytest.raises(ValueError, match="one.safetensors is not a whole safetensors file"):
        read_safetensors(path)
    rewrite(folder, cut)
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        load_weights(folder, "one", network())


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", '"one"', '{"one": 3}', '{"one": {}}', '{"one": {"sha256": "ab"}}', "\x00"],
)
def test_a_damaged_manifest_is_named(folder, text):
    (folder / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match="manifest.json is not a manifest of weights"):
        load_weights(folder, "one", network())
    with pytest.raises(ValueError, match="is not a manifest of weights"):
        save_weights(folder, "two", network(), CARD)
    assert (folder / MANIFEST).read_text() == text


def test_a_manifest_that_is_not_text_is_named(folder):
    (folder / MANIFEST).write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="is not a manifest of weights"):
        read_manifest(folder)


# Code


class Trap:
    """An object that touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".ckpt", ".bin", ""])
def test_a_pickle_is_refused_before_it_is_opened(tmp_path, suffix):
    sprung, path = tmp_path / "sprung", tmp_path / f"weights{suffix}"
    path.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(ValueError, match=r"expected a \.safetensors file, got weights.* refused"):
        read_safetensors(path)
    assert not sprung.exists()
    pickle.loads(path.read_bytes()).close()
    assert sprung.exists(), "the trap works"


def test_a_pickle_in_disguise_is_not_run(folder):
    sprung = folder / "sprung"
    rewrite(folder, pickle.dumps(Trap(sprung)))
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        load_weights(folder, "one", network())
    torch.save({"a": Trap(sprung)}, folder / "one.safetensors")
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        read_safetensors(folder / "one.safetensors")
    assert not sprung.exists()


def test_another_suffix_is_refused_whether_or_not_the_file_exists(tmp_path):
    with pytest.raises(ValueError, match=r"expected a \.safetensors file, got model\.pt"):
        read_safetensors(tmp_path / "model.pt")


# Weights that do not fit


def test_weights_of_another_architecture_are_refused_and_the_model_is_untouched(folder):
    wide = network(seed=4, hidden=5)
    with pytest.raises(ValueError, match=r"'one' do not fit .* of shape \[5.*\], got \[3"):
        load_weights(folder, "one", wide)
    assert same(wide, network(seed=4, hidden=5))
    other = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"missing \['3\.bias', '3\.weight'\], extra \['1\.bias'"):
        load_weights(folder, "one", other)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_neither_written_nor_read(folder, bad):
    model = network()
    with torch.no_grad():
        model[0].weight[0, 0] = bad
    before = (folder / MANIFEST).read_bytes()
    with pytest.raises(ValueError, match="expected finite weights, but 0.weight holds NaN or inf"):
        save_weights(folder, "two", model, CARD)
    assert (folder / MANIFEST).read_bytes() == before
    rewrite(folder, write_tensors(model.state_dict()))
    with pytest.raises(ValueError, match="weights 'one': 0.weight holds NaN or infinity"):
        load_weights(folder, "one", network())


# Names


@pytest.mark.parametrize("name", ["../one", "a/one", "/one", "..", ".", ".hidden", ""])
def test_a_name_with_a_path_is_refused_for_writing_and_reading(folder, name):
    with pytest.raises(ValueError, match="expected a plain file name for weights, got"):
        save_weights(folder, name, network(), CARD)
    (folder / MANIFEST).write_text(json.dumps({name: {"sha256": "0" * 64}}))
    with pytest.raises(ValueError, match="expected a plain file name for weights, got"):
        load_weights(folder, name, network())


# Writing that fails


def fail_at(number, function):
    """Return the function, which fails at one of its calls as on a full disk."""
    calls = []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            raise OSError("No space left on device")
        return function(*arguments)

    return failing


@pytest.mark.parametrize("number", [1, 2])
def test_where_writing_fails_the_old_weights_and_manifest_stay(folder, monkeypatch, number):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(checkpoints.os, "fsync", fail_at(number, checkpoints.os.fsync))
    with pytest.raises(OSError, match="No space left"):
        save_weights(folder, "one", network(seed=1), CARD)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert same(load_weights(folder, "one", network()), network())


def test_where_renaming_fails_nothing_is_left_over(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(checkpoints.os, "replace", fail_at(1, os.replace))
    with pytest.raises(OSError, match="No space left"):
        save_weights(folder, "one", network(seed=1), CARD)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_card_that_is_no_json_leaves_everything_as_it_was(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_weights(folder, "one", network(seed=1), {"data": torch.zeros(1)})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
