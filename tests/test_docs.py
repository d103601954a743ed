"""The public API is documented: what it is, shapes, errors, and where a method comes from."""

import ast

import pytest

from book import ROOT

PACKAGES = ("guidance_edu", "toy_models")
# Modules that hold published methods or facts: each public function says where it is from, itself
# or through its class or module.
METHODS = {
    "guidance_edu/guidance.py",
    "guidance_edu/denoisers.py",
    "guidance_edu/samplers.py",
    "guidance_edu/error_shift.py",
    "guidance_edu/metrics.py",
    "toy_models/laws.py",
    "toy_models/tree.py",
}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def public():
    """Yield (where, node, docstrings around it) for every public function, method and class."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            module = path.relative_to(ROOT).as_posix()
            for node in tree.body:
                if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_"):
                    around = [ast.get_docstring(tree) or ""]
                    yield module, node.name, node, around
                    if isinstance(node, ast.ClassDef):
                        around = [*around, ast.get_docstring(node) or ""]
                        for part in node.body:
                            if isinstance(part, FUNCTIONS) and not part.name.startswith("_"):
                                yield module, f"{node.name}.{part.name}", part, around


API = list(public())
every_part = pytest.mark.parametrize(
    ("module", "name", "node", "around"), API, ids=[f"{m}:{n}" for m, n, _, _ in API]
)


def raises(node):
    """Return whether a function raises, other than to say that a method is not written."""
    for part in ast.walk(node):
        if isinstance(part, ast.Raise) and part.exc is not None:
            name = part.exc.func if isinstance(part.exc, ast.Call) else part.exc
            if getattr(name, "id", "") not in {"NotImplementedError", "StopIteration"}:
                return True
    return False


def takes_tensors(node):
    arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
    annotations = [a.annotation for a in arguments if a.annotation is not None]
    return any("Tensor" in ast.unparse(a) for a in annotations)


def test_the_api_is_there():
    assert API


@every_part
def test_documented(module, name, node, around):
    text = ast.get_docstring(node) or ""
    assert text, f"{module}: {name} has no docstring"
    if isinstance(node, FUNCTIONS):
        if takes_tensors(node):
            said = [text, *around[1:]]
            assert any("Shapes:" in s for s in said), f"{module}: {name} says no Shapes:"
        if raises(node):
            said = [text, *around[1:]]
            assert any("Errors:" in s for s in said), f"{module}: {name} says no Errors:"
        method = module in METHODS or "/negatives/" in module
        if method and "." not in name and not name.startswith("check_"):
            said = [text, *around]
            sources = any("Source:" in s or "Chapter:" in s for s in said)
            assert sources, f"{module}: {name} says neither Source: nor Chapter:"
    for line in text.splitlines():
        field = line.split(":")[0]
        if field in {"Shape", "Raises", "Returns", "Args", "Limit", "Error", "Sources"}:
            pytest.fail(f"{module}: {name}: the fields are Shapes, Units, Limits, Errors, Source")


def test_every_module_says_what_it_holds():
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            assert text, path.relative_to(ROOT)
