"""What a Redis server in trouble costs the calls that use it: a load through every fault."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

from tests.faults.load import (
    COMPUTING,
    FAULTS,
    TASKS,
    WORKERS,
    AsyncLoad,
    Load,
    Rig,
    Story,
    aplay,
    play,
    rig,
)

from benchmarks.report import Table
from ragopt import MemoryStore, RedisStore, TieredCache, ValueCache

TIMEOUT = 0.25
LASTS = 2.0
_TITLES = {
    "none": "none",
    "killed": "killed: the port refuses",
    "restarted": "restarted, empty",
    "stopped": "process stopped",
    "hung": "accepts, never answers",
    "slow": "each answer 100 ms late",
    "too slow": "each answer 400 ms late",
    "full": "full, refuses to write",
    "evicting": "full, evicts",
    "flushed": "emptied every 5 ms",
}
_COLUMNS = (
    "fault",
    "calls",
    "errors",
    "wrong",
    "failed in Redis",
    "over 10 ms",
    "over 200 ms",
    "worst ms",
    "hits meanwhile",
    "read again after s",
    "written again after s",
)


def tables(_: Path) -> Iterator[Table]:
    """Play every fault under threads, then two of them under tasks."""
    logging.getLogger("ragopt.cache").setLevel(logging.ERROR)
    with rig() as place:
        rows = [_row(fault, _threads(place, fault)) for fault in ("none", *FAULTS)]
        yield Table(
            f"{WORKERS} threads, ValueCache over memory and Redis, each fault for {LASTS:g} s",
            _COLUMNS,
            rows,
            (
                f"Times are what a call took beyond its computation, which sleeps "
                f"{COMPUTING * 1e3:g} ms. The client waits {TIMEOUT * 1e3:g} ms for an answer.",
                "failed in Redis: operations that failed meanwhile, hidden from the callers.",
            ),
        )
        rows = []
        for fault in ("none", "killed", "hung"):
            story, gap = asyncio.run(_tasks(place, fault))
            rows.append((*_row(fault, story), gap * 1e3))
        yield Table(
            f"{TASKS} tasks on one event loop, the same",
            (*_COLUMNS, "loop blocked ms"),
            rows,
            ("loop blocked: the longest time in which nothing else could run on the loop.",),
        )


def _threads(place: Rig, fault: str) -> Story:
    place.heal()
    store = RedisStore(place.url(fault), timeout=TIMEOUT)
    with TieredCache(MemoryStore(max_entries=50), store) as cache:
        load = Load(ValueCache("answer", cache, ttl=600).get_or_compute)
        return play(place, fault, cache, load, during=LASTS)


async def _tasks(place: Rig, fault: str) -> tuple[Story, float]:
    place.heal()
    store = RedisStore(place.url(fault), timeout=TIMEOUT)
    async with TieredCache(MemoryStore(max_entries=50), store) as cache:
        load = AsyncLoad(ValueCache("answer", cache, ttl=600).aget_or_compute)
        return await aplay(place, fault, cache, load, during=LASTS), max(load.gaps)


def _row(fault: str, story: Story) -> tuple[object, ...]:
    tally = story.tally
    return (
        _TITLES[fault],
        len(tally.added) + len(tally.errors),
        len(tally.errors),
        len(tally.wrong),
        story.failed,
        tally.slow(0.01),
        tally.slow(0.2),
        tally.worst * 1e3,
        story.hits_during,
        story.recovered_after,
        story.written_after,
    )
