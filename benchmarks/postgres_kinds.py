"""100,000 vectors of a real model in PostgreSQL, behind each kind of index: size, recall, time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import asyncpg
import numpy as np
from tests.services import postgres_server

from benchmarks.model_vectors import passages, vectors
from benchmarks.report import Table
from benchmarks.scale import recall
from ragopt import Embedding, EmbeddingBatch, PgvectorIndex, RecordBatch
from ragopt.types import Dense

_RECORDS, _QUERIES, _K, _BATCH, _ROUNDS = 100_000, 200, 10, 5_000, 4
_FEW = 10_000  # put into an index that is there, which takes long
_MEMORY = "options=-c%20maintenance_work_mem%3D512MB"  # a graph that does not fit is made slowly
_MADE: dict[str, dict[str, Any]] = {
    "hnsw": {"index": "hnsw"},
    "hnsw, float16": {"index": "hnsw", "precision": "float16"},
    "hnsw, bit": {"quantization": "bit"},
    "ivfflat": {"index": "ivfflat"},
}
_SEARCHED: dict[str, list[dict[str, Any]]] = {
    "hnsw, bit": [{"rescore": number} for number in (1, 2, 4, 10, 20, 40)],
    "ivfflat": [{"probes": number} for number in (1, 5, 10, 20, 40)],
}


def tables(_: Path) -> Iterator[Table]:
    """Yield a table of the kinds, and one of two ways to make an HNSW index."""
    array = vectors(passages(_RECORDS + _QUERIES))
    kept, asked = array[:_RECORDS], array[_RECORDS:]
    with postgres_server() as server:
        dsn = f"{server}&{_MEMORY}"
        yield _kinds(dsn, kept, asked)
        yield _ways(dsn, kept[:_FEW])


def _kinds(dsn: str, kept: Dense, asked: Dense) -> Table:
    made: dict[str, tuple[float, float]] = {}
    searched: list[tuple[str, PgvectorIndex]] = []
    for number, (name, options) in enumerate(_MADE.items()):
        table = f"kind_{number}"
        with PgvectorIndex(dsn, table, index="none", precision=options.get("precision")) as plain:
            _fill(plain, kept)
        with PgvectorIndex(dsn, table, **options) as index:
            start = perf_counter()
            index.reindex()
            made[name] = perf_counter() - start, _size(dsn, table)
        for each in _SEARCHED.get(name, [{}]):
            shown = ", ".join([name, *(f"{key}={value}" for key, value in each.items())])
            searched.append((shown, PgvectorIndex(dsn, table, **each)))
    exact = PgvectorIndex(dsn, "kind_0", index="none")
    _run(dsn, "VACUUM ANALYZE")
    times: dict[str, list[float]] = {name: [] for name, _ in searched}
    found: dict[str, list[list[int]]] = {name: [] for name, _ in searched}
    for turn in range(_ROUNDS):  # everyone's queries in turns, since the machine may be busy
        for name, index in searched:
            for query in asked[turn::_ROUNDS]:
                start = perf_counter()
                hits = index.search(Embedding(query), k=_K)
                times[name].append(perf_counter() - start)
                found[name].append([int(hit.id) for hit in hits])
    order = np.concatenate([np.arange(len(asked))[turn::_ROUNDS] for turn in range(_ROUNDS)])
    whole = []
    for query in asked[:20]:
        start = perf_counter()
        exact.search(Embedding(query), k=_K)
        whole.append(perf_counter() - start)
    base = median(times["hnsw"])
    rows: list[tuple[Any, ...]] = []
    for name, index in searched:
        kind = next(each for each in sorted(_MADE, key=len, reverse=True) if name.startswith(each))
        share = recall(np.array(found[name]), asked[order], kept)
        usual = median(times[name])
        rows.append((name, *made[kind], share, 1e3 * usual, usual / base))
        index.close()
    rows.append(("none", None, None, 1.0, 1e3 * median(whole), median(whole) / base))
    exact.close()
    return Table(
        f"{len(kept):,} x 384 of all-MiniLM-L6-v2 in PostgreSQL, k={_K}",
        ("", "made in, s", "MiB", "recall@10", "a search, ms", "of hnsw"),
        rows,
        (
            "An index is made by reindex() over records that are there, with 512 MB for it.",
            f"{len(asked)} texts that are not in the table are asked; a search is their median.",
        ),
    )


def _ways(dsn: str, kept: Dense) -> Table:
    seconds = []
    for table, options in (("grown", {"index": "hnsw"}), ("after", {"index": "none"})):
        with PgvectorIndex(dsn, table, **options) as index:  # type: ignore[arg-type]
            start = perf_counter()
            _fill(index, kept)
            seconds.append(perf_counter() - start)
    with PgvectorIndex(dsn, "after", index="hnsw") as index:
        start = perf_counter()
        index.reindex()
        seconds.append(perf_counter() - start)
    grown, added, made = seconds
    return Table(
        f"{len(kept):,} of them into an HNSW index",
        ("", "seconds"),
        [
            ("added to a table with the index", grown),
            ("added to one without", added),
            ("reindex() after that", made),
        ],
    )


def _fill(index: PgvectorIndex, kept: Dense) -> None:
    for begin in range(0, len(kept), _BATCH):
        ids = [str(row) for row in range(begin, begin + _BATCH)]
        index.add(RecordBatch(ids, ids, EmbeddingBatch(kept[begin : begin + _BATCH])))


def _size(dsn: str, table: str) -> float:
    """Return the MiB of the only index on vectors."""
    found = _run(
        dsn,
        "SELECT pg_relation_size(indexrelid) FROM pg_index JOIN pg_class c ON c.oid = indexrelid "
        f"JOIN pg_am a ON a.oid = relam WHERE indrelid = '{table}'::regclass AND amname <> 'btree'",
    )
    return float(found[0][0]) / 2**20


def _run(dsn: str, statement: str) -> Any:
    async def run() -> Any:
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetch(statement)
        finally:
            await connection.close()

    return asyncio.run(run())
