"""What the tests of the book's files share.

The environment of nbval's kernels is set by ``book.pytest_settings``, which pyproject.toml loads,
so that it also reaches a single notebook tested alone.
"""

import nbformat
import pytest
import torch

# Test processes share the cores; worlds and networks this small are slower on several threads,
# and many times slower where the threads have to wait for each other.
torch.set_num_threads(1)


@pytest.fixture
def notebook(tmp_path):
    """Write a small notebook: ``notebook("02_x", [("code", source, tags), ...])``."""

    def write(stem, cells):
        nb = nbformat.v4.new_notebook(
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}
        )
        for number, (kind, source, *tags) in enumerate(cells):
            new = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
            nb.cells.append(new(source, id=f"cell-{number}", metadata={"tags": list(tags)}))
        path = tmp_path / f"{stem}.ipynb"
        nbformat.write(nb, path)
        return path

    return write
