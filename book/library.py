"""The library's page: every public function with its signature and docstring."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from book import ROOT

PACKAGES = ("guidance_edu", "toy_models")
FIELD = re.compile(r"[A-Z][a-z]+:\s")
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
        lines += [f"### `{node.name}`", ""]
        lines += ["```{code-block} python", ":class: signature", signature(node), "```", ""]
        lines += ["```text", readable(ast.get_docstring(node) or ""), "```", ""]
    return lines


def readable(docstring: str) -> str:
    """Return a docstring for a page of any width: no markup, one line for each paragraph or field.

    Indented blocks, which are examples, stay as they are.
    """
    text = re.sub(r":\w+:`~(?:\w+\.)*(\w+)`|:\w+:`([^`]+)`", lambda m: m[1] or m[2], docstring)
    text = text.replace("``", "")
    return "\n\n".join(map(_unwrapped, text.split("\n\n")))


def _unwrapped(paragraph: str) -> str:
    lines = paragraph.split("\n")
    indented = [line.startswith(" ") for line in lines]
    if all(indented):
        return paragraph
    items: list[str] = []
    for line, deeper in zip(lines, indented, strict=True):
        # Where continuations are indented, each other line is an item of its own.
        if not items or (not deeper and (any(indented) or FIELD.match(line))):
            items.append(line)
        else:
            items[-1] += " " + line.strip()
    return "\n".join(items)


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
