"""Give the kernels that pytest starts the environment that the book's own runs give them."""

import os

from book.execute import CONTROLS, KERNEL_ENVIRONMENT


def pytest_configure() -> None:
    """Set the environment before a kernel starts; kernels inherit it."""
    for name in CONTROLS:
        os.environ.pop(name, None)
    os.environ.update(KERNEL_ENVIRONMENT)
