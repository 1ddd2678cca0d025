"""Records into PostgreSQL, and the nearest of them out of it, with pgvector."""

from __future__ import annotations

import asyncio
import json
import secrets
import struct
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
from tests.services import postgres_server

from benchmarks.data import DIMENSION, passages, vectors
from benchmarks.harness import Bound, Contender, Line, Row
from ragopt import Embedding, EmbeddingBatch, PgvectorIndex, RecordBatch

_ADDED, _SEARCHED, _K, _QUERIES = 2_000, 5_000, 10, 16
_EF_SEARCH = 100
_COLUMNS = ["id", "text", "metadata", "document_id", "embedding"]


@contextmanager
def rows(_: Path) -> Iterator[Sequence[Row]]:
    """Start a server; yield a row for adding and one for searching."""
    loop = asyncio.new_event_loop()
    wait = loop.run_until_complete
    with postgres_server() as dsn, closing(loop):
        connection = wait(asyncpg.connect(dsn))
        wait(connection.set_type_codec("vector", encoder=bytes, decoder=bytes, format="binary"))
        added, searched = (
            PgvectorIndex(dsn, f"t_{secrets.token_hex(4)}", DIMENSION, index=kind)
            for kind in ("none", "hnsw")
        )
        try:
            yield _adding(added, connection, wait), _searching(searched, connection, wait)
        finally:
            for index in (added, searched):
                wait(index.aclose())
                index.close()
            wait(connection.close())


def _records(number: int) -> RecordBatch:
    ids = [str(row) for row in range(number)]
    metadatas = [{"source": f"file-{row % 50}.md", "page": row} for row in range(number)]
    return RecordBatch(ids, passages(number), EmbeddingBatch(vectors(number)), metadatas)


def _adding(index: PgvectorIndex, connection: Any, wait: Any) -> Row:
    records = _records(_ADDED)
    wait(index.aclear())
    wait(
        connection.execute(
            "CREATE TABLE plain (id text PRIMARY KEY, text text NOT NULL, metadata jsonb NOT NULL,"
            f" document_id text, embedding vector({DIMENSION}) NOT NULL)"
        )
    )

    def tuples() -> list[tuple[Any, ...]]:
        head = struct.pack(">HH", DIMENSION, 0)
        rows = np.asarray(records.embeddings.dense, ">f4")
        assert records.metadatas is not None
        return [
            (id_, text, json.dumps(metadata), None, head + row.tobytes())
            for id_, text, metadata, row in zip(
                records.ids, records.texts, records.metadatas, rows, strict=True
            )
        ]

    async def copy() -> int:
        await connection.copy_records_to_table("plain", records=tuples(), columns=_COLUMNS)
        return _ADDED

    async def merge() -> int:
        async with connection.transaction():
            await connection.execute(
                "CREATE TEMP TABLE batch (id text, text text, metadata jsonb, document_id text, "
                "embedding vector) ON COMMIT DROP"
            )
            await connection.copy_records_to_table("batch", records=tuples(), columns=_COLUMNS)
            await connection.execute(
                "INSERT INTO plain SELECT * FROM batch ON CONFLICT (id) DO UPDATE SET "
                + ", ".join(f"{column} = EXCLUDED.{column}" for column in _COLUMNS[1:])
            )
        return _ADDED

    def empty(_: int) -> None:
        wait(connection.execute("TRUNCATE plain"))
        wait(index.aclear())

    return Row(
        f"add to PostgreSQL, {_ADDED:,} x {DIMENSION}",
        [
            Contender("COPY", lambda _: wait(copy()), int, empty),
            Contender("COPY and merge", lambda _: wait(merge()), int, empty),
            Contender("PgvectorIndex", lambda _: len(wait(index.aadd(records))), int, empty),
            Contender("PgvectorIndex, sync", lambda _: len(index.add(records)), int, empty),
        ],
        [
            Line("against COPY", "PgvectorIndex", "COPY"),
            Line("async", "PgvectorIndex", "COPY and merge", None, Bound(1.5)),
            Line("sync", "PgvectorIndex, sync", "COPY and merge", None, Bound(1.5)),
        ],
    )


def _searching(index: PgvectorIndex, connection: Any, wait: Any) -> Row:
    records = _records(_SEARCHED)
    wait(index.aadd(records))
    dense = vectors(_SEARCHED)
    noise = vectors(_QUERIES)[:, ::-1]
    queries = np.ascontiguousarray(dense[:: _SEARCHED // _QUERIES][:_QUERIES] + noise)
    wait(connection.execute(f"SET hnsw.ef_search = {_EF_SEARCH}"))
    table = index._table
    wait(connection.execute(f"ANALYZE {table}"))  # or the server may do it between two rounds

    async def raw(number: int) -> list[str]:
        query = struct.pack(">HH", DIMENSION, 0) + queries[number].astype(">f4").tobytes()
        found = await connection.fetch(
            "SELECT id, text, metadata, document_id, embedding <=> $1 AS distance "
            f"FROM {table} ORDER BY embedding <=> $1 LIMIT {_K}",
            query,
        )
        return [row["id"] for row in found]

    async def ours(number: int) -> list[str]:
        return [hit.id for hit in await index.asearch(Embedding(queries[number]), k=_K)]

    def sync(number: int) -> list[str]:
        return [hit.id for hit in index.search(Embedding(queries[number]), k=_K)]

    return Row(
        f"search PostgreSQL HNSW, {_SEARCHED:,} x {DIMENSION}, k={_K}",
        [
            Contender("raw", lambda i: wait(raw(i)), list),
            Contender("PgvectorIndex", lambda i: wait(ours(i)), list),
            Contender("PgvectorIndex, sync", sync, list),
        ],
        [
            Line("async", "PgvectorIndex", "raw", None, Bound(1.3)),
            Line("sync", "PgvectorIndex, sync", "raw", None, Bound(1.3)),
        ],
        inputs=_QUERIES,
    )
