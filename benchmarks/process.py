"""Figures that need a process of their own, since what another left behind would be counted too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def apart(module: str, *arguments: object) -> dict[str, float]:
    """Run a module in a fresh process, and return the figures that it prints as JSON.

    What it writes to stderr, such as a bar, is shown.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{module} stopped with {done.returncode}; see above.")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def memory(field: str) -> int:
    """Return bytes of this process, by Linux's name for them.

    ``VmRSS`` is what is resident, ``VmHWM`` its peak, ``RssAnon`` the part that belongs to this
    process alone, and ``RssFile`` pages of files.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


def forget_peak() -> None:
    """Count the peak of the memory from here on."""
    Path("/proc/self/clear_refs").write_text("5")
