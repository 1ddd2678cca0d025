"""Processes that miss the same key compute it once; one that is killed frees the others."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ragopt import ValueCache
from ragopt.cache.claims import LEASE
from tests.faults.computing import shared

_ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["sqlite", "redis"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "cache.db")
    url: str = request.getfixturevalue("redis_url")
    return url


@contextmanager
def process(where: str, log: Path, seconds: float, threads: int, tasks: int) -> Iterator[Any]:
    """Start one; it asks when it is told to."""
    arguments = [where, str(log), str(seconds), str(threads), str(tasks)]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults.computing", *arguments],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def go(*started: Any) -> None:
    """Let processes ask, all of them once the last one is ready."""
    for each in started:
        assert each.stdout.readline() == "ready\n"
    for each in started:
        each.stdin.write("go\n")
        each.stdin.flush()


def result(started: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(started.communicate(timeout=60)[0])
    return found


def test_200_threads_and_200_tasks_in_4_processes(where: str, tmp_path: Path) -> None:
    log = tmp_path / "computed"
    with ExitStack() as stack:
        started = [stack.enter_context(process(where, log, 1.0, 50, 50)) for _ in range(4)]
        go(*started)
        found = [result(each) for each in started]
    assert [(each["right"], each["all"]) for each in found] == [(100, 100)] * 4
    assert len(log.read_text().splitlines()) == 1


def test_a_killed_leader_frees_the_others(where: str, tmp_path: Path) -> None:
    log = tmp_path / "computed"
    with process(where, log, 60.0, 1, 0) as leader:
        go(leader)
        until = time.monotonic() + 30
        while not log.exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        with ExitStack() as stack:
            others = [stack.enter_context(process(where, log, 0.1, 10, 10)) for _ in range(3)]
            go(*others)
            time.sleep(0.5)
            assert len(log.read_text().splitlines()) == 1  # they wait
            os.kill(leader.pid, signal.SIGKILL)
            found = [result(each) for each in others]
    assert [each["right"] for each in found] == [20] * 3
    assert len(log.read_text().splitlines()) == 2  # one more
    assert max(each["took"] for each in found) < 2 * LEASE


def test_a_leader_that_slept_does_not_overwrite(where: str, tmp_path: Path) -> None:
    """Stopped for longer than its claim lasts, it wakes up with an answer that nobody wants."""
    log = tmp_path / "computed"
    with process(where, log, 0.5, 1, 0) as leader:
        go(leader)
        until = time.monotonic() + 30
        while not log.exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        os.kill(leader.pid, signal.SIGSTOP)
        with process(where, log, 0.1, 1, 0) as other:
            go(other)
            assert result(other)["right"] == 1
        with shared(where) as store:
            cache = ValueCache("answer", store, ttl=60)
            key = cache._space.key(str(log))
            (before,) = store.get_many([key])
            os.kill(leader.pid, signal.SIGCONT)
            assert result(leader)["right"] == 1
            assert before is not None
            assert store.get_many([key]) == [before]
