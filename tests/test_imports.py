"""Who may import whom: the library knows no model, no data, no book; nobody knows a chapter."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from book import ROOT

# What the library stands on; `training.py` alone may also use accelerate.
LIBRARY = {"torch", "numpy", "scipy", "matplotlib", "safetensors", "tqdm", "PIL", "IPython"}
MODELS = LIBRARY | {"guidance_edu"}


def imported(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    ("package", "allowed"), [("guidance_edu", LIBRARY), ("toy_models", MODELS)]
)
def test_a_package_imports_what_it_may(package, allowed):
    modules = sorted((ROOT / package).rglob("*.py"))
    assert modules
    for module in modules:
        extra = {"accelerate"} if module.name == "training.py" else set()
        assert imported(module) <= allowed | {package} | extra, module.relative_to(ROOT)


def test_the_declared_contracts_hold():
    tool = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
