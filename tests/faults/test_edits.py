"""After an edit has returned, no process serves what was built on the old text."""

import multiprocessing
import random
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.faults.editing import QUESTIONS, answers, edit, sources, work

_SECONDS = 2.0  # of edits, once every process asks
_LAG = 0.3  # seconds that a busy machine may hold up a thread between two looks at the clock


@pytest.fixture(params=["sqlite", "redis"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "cache.db")
    url: str = request.getfixturevalue("redis_url")
    return url


def run(where: str, *, max_staleness: float = 0.0, tell: bool = True) -> list[dict[str, Any]]:
    """Let 8 workers in 4 processes ask while documents are edited; return what they saw."""
    # Each worker is as new as a spawned one; only the imports are done once for all of them.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.editing"])
    namespace = uuid.uuid4().hex
    texts, returned = context.Array("q", 1000), context.Array("d", 2000)
    begun, stop, found = context.Barrier(5), context.Event(), context.Queue()
    arguments = (where, max_staleness, namespace, texts, returned, begun, stop, found)
    workers = [context.Process(target=work, args=arguments) for _ in range(4)]
    for each in workers:
        each.start()
    cache = answers(where, 0.0, namespace)
    asked = sorted({each for question in range(QUESTIONS) for each in sources(question)})
    begun.wait(60)
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        edit(cache, tell, texts, returned, random.choice(asked[:100]))
        time.sleep(0.01)
    stop.set()
    results = [found.get(timeout=30) for _ in workers]
    for each in workers:
        each.join(30)
    cache.cache.close()
    return results


def total(results: list[dict[str, Any]], name: str) -> int:
    return sum(result[name] for result in results)


def test_no_old_answer_is_served_after_an_edit(where: str) -> None:
    results = run(where)
    assert total(results, "old") == 0
    assert total(results, "hits") > 0.5 * total(results, "asks")
    assert total(results, "dead") > 0
    assert all(result["asks"] > 50 for result in results)


def test_the_fast_mode_keeps_its_bound(where: str) -> None:
    results = run(where, max_staleness=0.25)
    # How many old answers are served is chance, a handful or none: each reading of the log ends the
    # wait of the whole process. That one may be served at all, tests/unit/test_values.py shows.
    assert total(results, "hits") > 0.5 * total(results, "asks")
    assert total(results, "dead") > 0
    assert max(result["latest"] for result in results) < 0.25 + _LAG


def test_control_without_telling_old_answers_are_served(where: str) -> None:
    results = run(where, tell=False)
    assert total(results, "old") > 100
    assert max(result["latest"] for result in results) > 1.0
