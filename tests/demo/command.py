"""Runs the command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MAIN = "from ragopt.cli import main; main()"


def environment(temporary: Path) -> dict[str, str]:
    """Return the environment of a process whose temporary files are in a folder of the test."""
    return {**os.environ, "TMPDIR": str(temporary), "NO_COLOR": "1", "COLUMNS": "200"}


def ragopt(
    *arguments: object, temporary: Path, code: str = MAIN
) -> subprocess.CompletedProcess[str]:
    """Run ``ragopt`` with these arguments."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(temporary),
        timeout=240,
    )
