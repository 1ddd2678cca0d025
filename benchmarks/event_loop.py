"""200 searches at the same time on one event loop: how long they keep it from everything else."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Awaitable, Iterator
from pathlib import Path
from time import perf_counter

from tests.services import postgres_server, redis_server

from benchmarks.data import DIMENSION, passages, vectors
from benchmarks.report import Table
from ragopt import Embedding, EmbeddingBatch, FaissIndex, PgvectorIndex, RecordBatch, RedisIndex
from ragopt.indexes.base import BaseVectorIndex

_RECORDS, _AT_ONCE, _ROUNDS = 5_000, 200, 5
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
        ("searches", "seconds for all", "longest gap, ms", "threads more"),
        rows,
        (
            "The gap is the time between two turns of a task that sleeps 1 ms, at its longest, less"
            " that of an idle loop.",
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
        idle = await _gap(asyncio.sleep(1))
        found = []
        for name, search in (("asearch", natively), ("search in threads", in_thread)):
            await search(queries[0])
            threads = threading.active_count()
            gaps, start = [], perf_counter()
            for _ in range(_ROUNDS):
                gaps.append(await _gap(asyncio.gather(*map(search, queries))))
            seconds = (perf_counter() - start) / _ROUNDS
            more = threading.active_count() - threads
            found.append((f"{shown}, {name}", seconds, 1e3 * max(0.0, max(gaps) - idle), more))
        await index.aclose()
        return iter(found)

    yield from asyncio.run(measure())
    index.close()


async def _gap(work: Awaitable[object]) -> float:
    """Return the longest time between two turns of the loop while something is awaited."""
    longest, running = 0.0, True

    async def tick() -> None:
        nonlocal longest
        while running:
            before = perf_counter()
            await asyncio.sleep(_TICK)
            longest = max(longest, perf_counter() - before)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0)
    await work
    running = False
    await ticking
    return longest
