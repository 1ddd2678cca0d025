"""A hybrid search in PostgreSQL: a statement for each way, against all of it in one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
from tests.services import postgres_server

from benchmarks.harness import Contender, Line, Row
from ragopt import Embedding, EmbeddingBatch, Fusion, PgvectorIndex, RecordBatch, SparseVector
from ragopt.fusion import Way, candidates, fuse
from ragopt.indexes._pgvectors import SPARSE_ENTRIES, pack_dense, pack_sparse
from ragopt.text import TextQuery
from ragopt.types import Hit

_RECORDS, _DIMENSION, _K, _QUERIES, _AT_ONCE = 10_000, 384, 10, 32, 16
_WORDS, _LONG, _SHORT = 30_000, 60, 8  # a vocabulary, and words of a record and of a question
_COLUMNS = "id, text, metadata, document_id"


@contextmanager
def rows(_: Path) -> Iterator[Sequence[Row]]:
    """Start a server; yield rows for dense with sparse vectors, and for dense ones with words."""
    loop = asyncio.new_event_loop()
    wait = loop.run_until_complete
    random = np.random.default_rng(17)
    dense = random.standard_normal((_RECORDS + _QUERIES, _DIMENSION), dtype=np.float32)
    words = random.zipf(1.3, size=(len(dense), _LONG)) % _WORDS
    texts = [" ".join(f"w{word}" for word in row) for row in words]
    sparse = [
        SparseVector.from_dict({int(word): float(random.random()) + 0.1 for word in row})
        for row in words[:_RECORDS]
    ]
    asked = [
        Embedding(vector, SparseVector.from_dict({int(word): 1.0 for word in row[:_SHORT]}))
        for vector, row in zip(dense[_RECORDS:], words[_RECORDS:], strict=True)
    ]
    questions = [" ".join(text.split()[:_SHORT]) for text in texts[_RECORDS:]]
    with (
        postgres_server() as dsn,
        closing(loop),
        closing(PgvectorIndex(dsn, "hybrid", index="none", text_search=True)) as plain,
        closing(PgvectorIndex(dsn, "hybrid", index="hnsw")) as index,
    ):
        ids = [str(row) for row in range(_RECORDS)]
        batch = EmbeddingBatch(dense[:_RECORDS], sparse)
        plain.add(RecordBatch(ids, texts[:_RECORDS], batch))
        index.reindex()
        wait(_analyse(dsn))
        try:
            yield [
                row
                for way in ("sparse", "text")
                for row in _compared(index, way, asked, questions, wait)
            ]
        finally:
            wait(index.aclose())


async def _analyse(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute("VACUUM ANALYZE hybrid")
    await connection.close()


def _compared(
    index: PgvectorIndex, way: Way, asked: Sequence[Embedding], questions: Sequence[str], wait: Any
) -> Iterator[Row]:
    fusion = Fusion({"dense": 1.0, way: 1.0})

    async def ours(number: int) -> list[str]:
        text = questions[number] if way == "text" else None
        hits = await index.asearch(asked[number], k=_K, by=fusion, text=text)
        return [hit.id for hit in hits]

    def sync(number: int) -> list[str]:
        text = questions[number] if way == "text" else None
        return [hit.id for hit in index.search(asked[number], k=_K, by=fusion, text=text)]

    async def one(number: int) -> list[str]:
        hits = await _in_one(index, fusion, way, asked[number], questions[number])
        return [hit.id for hit in hits]

    def at_once(search: Callable[[int], Any]) -> Callable[[int], list[list[str]]]:
        async def gather(first: int) -> list[list[str]]:
            numbers = ((first + each) % _QUERIES for each in range(_AT_ONCE))
            return list(await asyncio.gather(*map(search, numbers)))

        return lambda first: wait(gather(first))

    yield Row(
        f"dense and {way}, {_RECORDS:,} x {_DIMENSION}, k={_K}",
        [
            Contender("one statement", lambda number: wait(one(number)), list),
            Contender("PgvectorIndex", lambda number: wait(ours(number)), list),
            Contender("PgvectorIndex, sync", sync, list),
        ],
        [
            Line("async", "PgvectorIndex", "one statement"),
            Line("sync", "PgvectorIndex, sync", "one statement"),
        ],
        inputs=_QUERIES,
    )
    yield Row(
        f"the same, {_AT_ONCE} at once",
        [
            Contender("one statement", at_once(one), list),
            Contender("PgvectorIndex", at_once(ours), list),
        ],
        [Line("async", "PgvectorIndex", "one statement")],
        inputs=_QUERIES,
    )


async def _in_one(
    index: PgvectorIndex, fusion: Fusion, way: Way, query: Embedding, text: str
) -> list[Hit]:
    """Search both ways in one statement, and fuse what it returns as ours is fused.

    A search by words has to ask for their frequencies before that.
    """
    most = candidates(fusion, _K)
    near = "embedding <=> $1::vector"
    if way == "text":
        weighed, condition = "terms <#> $2::sparsevec", "term_ids && $3"
    else:
        weighed, condition = "sparse <#> $2::sparsevec", "cardinality($3::integer[]) = 0"
    async with index._connection() as connection:
        vector, terms = query.sparse, list[int]()
        if way == "text":
            wanted = TextQuery(text)
            number, holding = await index._schema.counts.read(connection, sorted(wanted.terms))
            vector = wanted.weighted(number, dict(zip(sorted(wanted.terms), holding, strict=True)))
            terms = vector.indices.tolist()
        assert query.dense is not None
        assert vector is not None
        found = await connection.fetch(
            f"WITH dense AS MATERIALIZED (SELECT 0 AS way, {_COLUMNS}, {near} AS distance, seq "
            f"FROM {index._table} WHERE {index._tuned(most, False)} ORDER BY {near}, seq "
            f"LIMIT {most}), other AS MATERIALIZED (SELECT 1, {_COLUMNS}, {weighed} AS distance, "
            f"seq FROM {index._table} WHERE {condition} AND {weighed} < 0 ORDER BY {weighed}, seq "
            f"LIMIT {most}) SELECT * FROM dense UNION ALL SELECT * FROM other "
            "ORDER BY way, distance, seq",
            *pack_dense(query.dense[None, :], index._schema.dense),
            *pack_sparse([vector], SPARSE_ENTRIES["none"]),
            terms,
        )
    lists: dict[Way, list[Hit]] = {"dense": [], way: []}
    for row in found:
        values = index._values(row, lambda *_: True)
        assert values is not None
        score = float(row["way"] == 0) - row["distance"]
        lists[way if row["way"] else "dense"].append(Hit(score=score, relevance=0.0, **values))
    return fuse(lists, fusion, _K)
