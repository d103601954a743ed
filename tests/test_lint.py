"""Style, formatting and spelling, of the notebooks too."""

import subprocess
import sys
from pathlib import Path

import pytest

from book import ROOT

RUFF = [sys.executable, "-m", "ruff"]
COMMANDS = {
    "style": [*RUFF, "check", "--no-cache", "."],
    "formatting": [*RUFF, "format", "--check", "--no-cache", "."],
    "spelling": [str(Path(sys.executable).with_name("codespell"))],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_lint(command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
