"""The whole demo, small: the answers are the same, the reports are there, nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.demo import command

SMALL = ("demo", "--passages", "40", "--asks", "16")
PATIENCE = 60.0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, str]:
    """A folder with the reports of a run, the numbers, and what was printed."""
    folder = tmp_path_factory.mktemp("demo")
    done = command.ragopt(
        *SMALL, "--json", folder / "demo.json", "--html", folder / "demo.html", temporary=folder
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "demo.json").read_text()), done.stdout


def test_the_answers_are_the_same(finished: tuple[Path, Any, str]) -> None:
    _, numbers, _ = finished
    assert set(numbers["frameworks"]) == {"LangChain", "LlamaIndex"}
    for framework in numbers["frameworks"].values():
        assert framework["same_answers"] == framework["questions"] > 30
        assert framework["differing"] == []
    arms = numbers["measured"]
    assert arms["LangChain alone"]["answers"] == arms["LlamaIndex with ragopt"]["answers"]


def test_every_measure_is_there(finished: tuple[Path, Any, str]) -> None:
    _, numbers, printed = finished
    for framework in numbers["frameworks"].values():
        rows = {row["key"]: row for row in framework["rows"]}
        for key in ("response", "embedding", "search", "memory", "build", "again", "at_once_cold"):
            assert rows[key]["before"] is not None
            assert rows[key]["after"] is not None
        assert rows["first_to_second"]["after"] > 0
        assert rows["hit_rate"]["before"] == 0
        # A question is answered by the chain once: everything else was a hit.
        asked = numbers["setting"]["asks"]
        hits = asked - numbers["setting"]["distinct"]
        assert rows["hit_rate"]["after"] == pytest.approx(hits / asked)
    for word in ("Query response time", "first / second", "extractive answerer", "Zipf"):
        assert word in printed


def test_nothing_stays_behind(finished: tuple[Path, Any, str]) -> None:
    folder, _, _ = finished
    assert list(folder.glob("ragopt*")) == []  # PyTorch leaves an empty folder of its own


def has_child_at_work(pid: int) -> bool:
    """Tell whether a child has computed for a second: it is beyond its start, within its arm."""
    with suppress(psutil.NoSuchProcess):  # the list and the looks at it are not one moment
        children = psutil.Process(pid).children()
        return any(child.cpu_times().user > 1 for child in children)
    return False


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run in a process group of its own, whose first child is at work."""
    process = subprocess.Popen(
        [sys.executable, "-c", command.MAIN, *SMALL, "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=command.environment(tmp_path),
        start_new_session=True,
    )
    try:
        until = time.monotonic() + PATIENCE
        while not has_child_at_work(process.pid):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [(signal.SIGINT, 130, "Interrupted."), (signal.SIGTERM, 143, "")],
    ids=["ctrl-c", "terminated"],
)
def test_a_run_that_is_cut_short_leaves_nothing(
    running: subprocess.Popen[str], tmp_path: Path, number: int, status: int, said: str
) -> None:
    children = psutil.Process(running.pid).children(recursive=True)
    assert children
    if number == signal.SIGINT:
        os.killpg(running.pid, number)  # as a terminal does
    else:
        os.kill(running.pid, number)
    _, errors = running.communicate(timeout=PATIENCE)
    assert running.returncode == status
    assert errors.strip() == said
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []
    assert list(tmp_path.glob("ragopt*")) == []
