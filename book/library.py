"""The library's page: every public function with its signature and docstring."""

from __future__ import annotations

import ast
from pathlib import Path

from book import ROOT

PACKAGES = ("guidance_edu", "toy_models")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def library_page() -> str:
    """Return the page as Markdown: one section a module, one entry a public name."""
    lines = [
        "# The library",
        "",
        "Two packages stand behind the chapters: `guidance_edu` holds the methods and imports no",
        "model; `toy_models` holds worlds, networks and weights. Every method is a function from",
        "denoisers to a denoiser, so all of them can be combined.",
        "",
    ]
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            lines += _module(path)
    return "\n".join(lines)


def _module(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    entries = [node for node in tree.body if _public(node)]
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if not entries or ".exercises.chapter_" in name:
        return []
    lines = [f"## `{name}`", "", ast.get_docstring(tree).split("\n\n")[0], ""]
    for node in entries:
        lines += [f"### `{node.name}`", "", "```python", signature(node), "```", ""]
        lines += ["```text", ast.get_docstring(node) or "", "```", ""]
    return lines


def _public(node: ast.AST) -> bool:
    return isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_")


def signature(node: ast.AST) -> str:
    """Return how a function or class is called, as its source says."""
    if isinstance(node, ast.ClassDef):
        makers = [p for p in node.body if isinstance(p, FUNCTIONS) and p.name == "__init__"]
        if not makers:
            return f"class {node.name}"
        arguments = makers[0].args
        arguments.args = arguments.args[1:]
        return f"{node.name}({ast.unparse(arguments)})"
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{node.name}({ast.unparse(node.args)}){result}"
