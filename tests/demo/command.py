"""Runs the command line, in a process of its own or in this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from ragopt import cli

MAIN = "from ragopt.cli import main; main()"

_PLAIN = {"NO_COLOR": "1", "COLUMNS": "200"}


def environment(temporary: Path) -> dict[str, str]:
    """Return the environment of a process whose temporary files are in a folder of the test."""
    return {**os.environ, "TMPDIR": str(temporary), **_PLAIN}


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


def here(*arguments: object, typed: str = "") -> subprocess.CompletedProcess[str]:
    """Do it in this process, which costs no start; whatever is no exit is an error of the test."""
    taken = signal.SIGINT, signal.SIGTERM  # by the commands, from those who run the tests
    before = [signal.getsignal(number) for number in taken]
    words = [*map(str, arguments)]
    try:
        done = CliRunner(env={**_PLAIN, "TERM": "dumb"}).invoke(
            cli.make_app(), words, input=typed, prog_name="ragopt"
        )
    finally:
        for number, handler in zip(taken, before, strict=True):
            signal.signal(number, handler)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)
