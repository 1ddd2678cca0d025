"""200 searches at the same time on one event loop: how long they keep it from everything else."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Awaitable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time

from tests.services import postgres_server, redis_server

from benchmarks.data import DIMENSION, passages, vectors
from benchmarks.report import Table
from ragopt import Embedding, EmbeddingBatch, FaissIndex, PgvectorIndex, RecordBatch, RedisIndex
from ragopt.indexes.base import BaseVectorIndex

_RECORDS, _AT_ONCE, _ROUNDS = 5_000, 200, 9
_TICK = 0.001  # seconds that a task which does nothing sleeps


def tables(_: Path) -> Iterator[Table]:
    """Yield one table: each index, sync in a thread for each search and natively."""
    with postgres_server() as dsn, redis_server() as url:
        name = f"t_{secrets.token_hex(4)}"
        indexes: dict[str, BaseVectorIndex] = {
            "FaissIndex": FaissIndex(),
            "PgvectorIndex": PgvectorIndex(dsn, name),
            "RedisIndex": RedisIndex(url, name),
        }
        rows = [row for shown, index in indexes.items() for row in _measured(shown, index)]
    yield Table(
        f"{_AT_ONCE} searches at once, {_RECORDS:,} x {DIMENSION}, k=10, {_ROUNDS} rounds",
        (
            "searches",
            "seconds for all",
            "longest gap, ms (median round)",
            "of it computing, ms (worst round)",
            "threads more",
        ),
        rows,
        (
            "A gap is the time between two turns of a task that sleeps 1 ms. In the rest of it the"
            " loop's thread waits for a core, which servers and threads share, or for the GIL.",
        ),
    )


def _measured(shown: str, index: BaseVectorIndex) -> Iterator[tuple[object, ...]]:
    ids = [str(row) for row in range(_RECORDS)]
    index.add(RecordBatch(ids, passages(_RECORDS), EmbeddingBatch(vectors(_RECORDS))))
    queries = [Embedding(row) for row in vectors(_AT_ONCE)]

    async def natively(query: Embedding) -> None:
        assert len(await index.asearch(query, k=10)) == 10

    async def in_thread(query: Embedding) -> None:
        assert len(await asyncio.to_thread(index.search, query, k=10)) == 10

    async def measure() -> Iterator[tuple[object, ...]]:
        found = []
        for name, search in (("asearch", natively), ("search in threads", in_thread)):
            await search(queries[0])
            threads = threading.active_count()
            gaps, start = [], perf_counter()
            for _ in range(_ROUNDS):
                gaps.append(await _gap(asyncio.gather(*map(search, queries))))
            seconds = (perf_counter() - start) / _ROUNDS
            more = threading.active_count() - threads
            waits, computes = zip(*gaps, strict=True)
            longest = 1e3 * median(waits), 1e3 * max(computes)
            found.append((f"{shown}, {name}", seconds, *longest, more))
        await index.aclose()
        return iter(found)

    yield from asyncio.run(measure())
    index.close()


async def _gap(work: Awaitable[object]) -> tuple[float, float]:
    """Return the longest time between two turns of the loop while something is awaited.

    And the longest that the loop's own thread computed between two turns.
    """
    longest, computing, running = 0.0, 0.0, True

    async def tick() -> None:
        nonlocal longest, computing
        while running:
            before, computed = perf_counter(), thread_time()
            await asyncio.sleep(_TICK)
            longest = max(longest, perf_counter() - before)
            computing = max(computing, thread_time() - computed)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0)
    await work
    running = False
    await ticking
    return longest, computing
