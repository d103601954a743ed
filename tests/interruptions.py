"""Interrupting a command of the book while a kernel of it is busy, for tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Tests that run in the background of a shell inherit a SIGINT that is ignored.
HEARS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


def busy(pid: Path) -> str:
    """Return a cell that writes its process number to a file and then has no end."""
    return (
        "import os, pathlib, time\n"
        f"pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(300)"
    )


def interrupted(script: str, pid: Path) -> tuple[int, str, str]:
    """Run a script until a cell is busy, interrupt it, and return its status and what it printed.

    Errors:  AssertionError when the busy kernel outlives the script.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", HEARS + script],
        cwd=ROOT,
        # Its own session: the signal reaches this process alone, and must not end at its kernels.
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: pid.exists() and pid.read_text())
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    wait_until(lambda: not running(int(pid.read_text())))
    return process.returncode, out, err


def wait_until(true, seconds: float = 60) -> None:
    """Wait for something to be true.

    Errors:  AssertionError when it is not in time.
    """
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def running(pid: int) -> bool:
    """Say whether a process is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
