"""What a chapter builds from scratch and what the library holds stay one function."""

import ast
import importlib
import inspect
import math

import pytest
import torch

from tests.notebooks import CHAPTERS, cells, source, tags


def scratch_cells():
    for path in CHAPTERS:
        for cell in cells(path):
            for tag in tags(cell):
                if tag.startswith("scratch:"):
                    yield path, tag.removeprefix("scratch:"), source(cell)


BUILT = list(scratch_cells())
IDS = [f"{path.stem}:{name.rsplit('.', 1)[1]}" for path, name, _ in BUILT]


def bank(path):
    """Inputs and known wrong versions of one chapter, in tests/scratch/chapter_NN.py."""
    return importlib.import_module(f"tests.scratch.chapter_{path.stem[:2]}")


def alone(text, name):
    """Run one cell with nothing but torch and math in scope."""
    scope = {"torch": torch, "math": math}
    exec(text, scope)
    return scope[name.rsplit(".", 1)[1]]


def library(name):
    module, function = name.rsplit(".", 1)
    return getattr(importlib.import_module(module), function)


def assert_same(path, name, function):
    """Equal to the library on every set of random inputs that the chapter's bank draws."""
    draw = bank(path).INPUTS[name]
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        arguments = draw(rng)
        torch.testing.assert_close(
            function(*arguments), library(name)(*arguments), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(("path", "name", "text"), BUILT, ids=IDS)
def test_the_chapter_equals_the_library(path, name, text):
    assert_same(path, name, alone(text, name))
    assert f"Chapter: {path.stem}" in inspect.getdoc(library(name))


@pytest.mark.parametrize(("path", "name", "text"), BUILT, ids=IDS)
def test_the_chapter_does_not_import_what_it_builds(path, name, text):
    for cell in cells(path):
        assert brings(source(cell), name) == []


def brings(text, name):
    """The imports of a cell through which a function of the library can be had."""
    package, built = name.split(".")[0], name.rsplit(".", 1)[1]
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] == package]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{a.name}" for a in node.names]
            found += [
                n for n in names if n.endswith((f".{built}", ".*")) or name.startswith(n + ".")
            ]
    return found


@pytest.mark.parametrize(
    "text",
    [
        "import guidance_edu",
        "import math, guidance_edu.guidance as g",
        "from guidance_edu import guidance",
        "from guidance_edu import cfg as other",
        "from guidance_edu.guidance import *",
    ],
)
def test_a_way_to_import_what_is_built_is_noticed(text):
    assert brings(text, "guidance_edu.guidance.cfg")
    assert not brings("import math\nfrom guidance_edu import Guided", "guidance_edu.guidance.cfg")


WRONG = [
    (path, name, text, old, new)
    for path, name, text in BUILT
    for old, new in bank(path).WRONG[name]
]


@pytest.mark.parametrize(
    ("path", "name", "text", "old", "new"),
    WRONG,
    ids=[f"{n.rsplit('.', 1)[1]}:{o}->{w}" for _, n, _, o, w in WRONG],
)
def test_a_known_wrong_version_is_noticed(path, name, text, old, new):
    assert old in text
    with pytest.raises((AssertionError, ValueError, RuntimeError, TypeError, NameError)):
        assert_same(path, name, alone(text.replace(old, new), name))


def test_every_chapter_builds_something_and_every_function_has_wrong_versions():
    chapters = {path.stem for path, _, _ in BUILT}
    assert {p.stem for p in CHAPTERS if not p.stem.startswith("00")} <= chapters
    assert all(len(bank(path).WRONG[name]) >= 2 for path, name, _ in BUILT)
