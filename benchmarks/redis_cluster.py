"""What an index on a Redis cluster takes more than one on a single server, shard by shard."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from tests.services import redis_cluster, redis_server

from benchmarks.data import vectors
from benchmarks.report import Table
from ragopt import Embedding, EmbeddingBatch, RecordBatch, RedisIndex

_RECORDS, _DIMENSION, _K = 20_000, 384, 10
_QUERIES, _ROUNDS, _TOGETHER = 20, 5, 16


def tables(_: Path) -> Iterator[Table]:
    """Yield one table: a single server, and three masters with more and more shards."""
    array = np.ascontiguousarray(vectors(_RECORDS)[:, :_DIMENSION])
    ids = [str(row) for row in range(_RECORDS)]
    records = RecordBatch(ids, [f"text of {id_}" for id_ in ids], EmbeddingBatch(dense=array))
    queries = [Embedding(row) for row in array[:: _RECORDS // _QUERIES][:_QUERIES] * 1.1]
    # Not asyncio.Runner, which prepares for an interrupt at every call.
    loop = asyncio.new_event_loop()
    with redis_server() as one, redis_cluster() as cluster, closing(loop):
        indexes = {
            "one server": RedisIndex(one, "bench", kind="flat"),
            **{
                f"cluster, shards={shards}": RedisIndex(
                    cluster, f"bench{shards}", kind="flat", shards=shards
                )
                for shards in (1, 3, 12)
            },
        }
        adding: dict[str, float] = {}
        for name, index in indexes.items():
            start = perf_counter()
            index.add(records)
            adding[name] = perf_counter() - start
        expected = [[hit.id for hit in _search(indexes["one server"], query)] for query in queries]
        took: dict[tuple[str, str], list[float]] = {}
        for number in range(_QUERIES * _ROUNDS):
            row = number % _QUERIES
            for name, index in indexes.items():
                start = perf_counter()
                hits = _search(index, queries[row])
                middle = perf_counter()
                same = loop.run_until_complete(index.asearch(queries[row], k=_K))
                end = perf_counter()
                assert [h.id for h in hits] == [h.id for h in same] == expected[row]
                took.setdefault((name, "sync"), []).append(middle - start)
                took.setdefault((name, "async"), []).append(end - middle)
        for _turn in range(_ROUNDS):
            for name, index in indexes.items():
                start = perf_counter()
                loop.run_until_complete(_together(index, queries))
                took.setdefault((name, "together"), []).append(perf_counter() - start)
        rows: list[tuple[Any, ...]] = [
            (
                name,
                1e3 * adding[name] / _RECORDS,
                *(1e3 * median(took[name, way]) for way in ("sync", "async", "together")),
            )
            for name in indexes
        ]
        for index in indexes.values():
            loop.run_until_complete(index.aclose())
    yield Table(
        f"{_RECORDS:,} x {_DIMENSION}, flat, k={_K}",
        (
            *("where", "add, ms a record", "search, ms", "search async, ms"),
            f"{_TOGETHER} at once, ms",
        ),
        rows,
        ("All find the same in the same order. Four servers share the cores of one machine.",),
    )


def _search(index: RedisIndex, query: Embedding) -> list[Any]:
    return index.search(query, k=_K)


async def _together(index: RedisIndex, queries: list[Embedding]) -> None:
    await asyncio.gather(*(index.asearch(query, k=_K) for query in queries[:_TOGETHER]))
