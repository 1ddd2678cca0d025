"""Dense search in PostgreSQL, with the pgvector extension."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import numpy as np

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.errors import InvalidInput
from ragopt.filters import Filter, Ids, Predicate, compile_filter
from ragopt.indexes._pgjson import Condition, dump_metadata, load_metadata, storable
from ragopt.indexes._pgschema import DIMENSIONS, Schema
from ragopt.indexes._postgres import Postgres
from ragopt.indexes.base import BaseVectorIndex
from ragopt.indexes.scores import relevance
from ragopt.types import Dense, Embedding, Hit, Metric, Record, RecordBatch

_EF_SEARCH = 1_000  # pgvector's bound
# Operator, and what a distance is subtracted from to make a score.
_METRICS = {Metric.COSINE: ("<=>", 1.0), Metric.IP: ("<#>", 0.0), Metric.L2: ("<->", 0.0)}
_PLAIN = ("id", "text", "metadata", "document_id")
_COLUMNS = (*_PLAIN, "embedding")
# A record that is replaced moves to the end of the order, as one that is new.
_REPLACED = ", ".join(f"{column} = EXCLUDED.{column}" for column in (*_COLUMNS[1:], "seq"))


class PgvectorIndex(BaseVectorIndex):
    """Records in a PostgreSQL table, found by the distance of their vectors.

    The table and its HNSW index are made when the dimension is known: at the first use, or at the
    first ``add``. The table ``ragopt_index`` of the same schema keeps the version, dimension and
    metric of every index. Each event loop has a pool of connections, and all sync calls of the
    process share a thread.

    A search with an HNSW index is approximate. When it finds fewer than ``k`` records, which a
    narrow filter may cause, the search is made again without the index, and that is exact. So is
    every search with ``index="none"``. Zero vectors are not in an HNSW index on cosine distance:
    only the exact search finds them, with score 0. Changes of one index wait for each other.

    A filter is checked by PostgreSQL and again on what it returns. ``text_match`` without regard
    to case, and the order of text that PostgreSQL cannot hold, are decided in Python over the
    records that the rest of the filter leaves.

    Args:
        dsn: ``postgresql://user:password@host:5432/database``.
        table: Name of the table; made if it is not there.
        dimension: Length of the vectors; None to take it from the table or the first record.
        metric: ``cosine``, ``ip`` or ``l2``.
        index: ``"hnsw"`` for approximate search, ``"none"`` for exact search.
        m: Links of a node of the HNSW graph; used when the table is made.
        ef_construction: Candidates while the graph is built; used when the table is made.
        ef_search: Candidates of a search, at least ``k``: more find more and take longer.
        schema: The schema of the table; it must exist.
        max_connections: Bound on the connections of each pool.
        timeout: Seconds to wait for a connection.
        command_timeout: Seconds to wait for each statement; None for as long as it takes.
        statement_cache_size: Prepared statements that a connection keeps. 0 is right behind
            pgbouncer too; 100 saves a round trip on a direct connection.

    Raises:
        MissingDependency: asyncpg is not installed.
        InvalidInput: The DSN or a name cannot be used, or an option is out of its range. From
            the first operation: the table has another metric.
        DimensionMismatch: From the first operation: the table has another dimension.
        BackendUnavailable: From every operation: the server could not be reached, or did not
            answer in time.
        StorageError: From every operation: the server refused it. The sentence says why.
    """

    def __init__(
        self,
        dsn: str,
        table: str,
        dimension: int | None = None,
        *,
        metric: Metric | str = Metric.COSINE,
        index: Literal["hnsw", "none"] = "hnsw",
        m: int = 16,
        ef_construction: int = 64,
        ef_search: int = 100,
        schema: str = "public",
        max_connections: int = 10,
        timeout: float = 5.0,
        command_timeout: float | None = 60.0,
        statement_cache_size: int = 0,
    ) -> None:
        super().__init__(dimension, metric=metric)
        _check_index(index, m, ef_construction, ef_search)
        self._schema = Schema(
            schema, table, metric=self._metric, index=index, m=m, ef_construction=ef_construction
        )
        self._table = self._schema.table
        self._index = index
        self._ef_search = ef_search
        self._operator, self._nearest_score = _METRICS[self._metric]
        self._ready = False  # the table is there, and it is known to fit
        self._postgres = Postgres(
            dsn,
            purpose=f"the table {table!r}",
            max_connections=max_connections,
            timeout=timeout,
            command_timeout=command_timeout,
            statement_cache_size=statement_cache_size,
        )

    def __repr__(self) -> str:
        return (
            f"PgvectorIndex(table={self._schema.name!r}, dimension={self._dimension}, "
            f"metric={str(self._metric)!r})"
        )

    def drop(self) -> None:
        """Remove the table and what is kept of it elsewhere. A missing one is no error."""
        run(self._postgres.run(SYNC, self._drop))

    async def adrop(self) -> None:
        """Remove the table and what is kept of it elsewhere. A missing one is no error."""
        await self._postgres.run(ASYNC, self._drop)

    async def _drop(self) -> None:
        async with self._postgres.connection() as connection, connection.transaction():
            await self._schema.drop(connection)
        self._ready = False

    async def _version(self, io: Runtime) -> str:
        return await self._postgres.run(io, self._read_version)

    async def _add(self, io: Runtime, records: RecordBatch, vectors: Dense) -> None:
        rows = await io.cpu(_rows, records, vectors)
        await self._postgres.run(io, self._store, rows, vectors.shape[1])

    async def _get(self, io: Runtime, ids: Sequence[str], embeddings: bool) -> list[Record | None]:
        found = await self._find(io, Ids(ids), None, embeddings)
        by_id = {record.id: record for record in found}
        return [by_id.get(id_) for id_ in ids]

    async def _find(
        self, io: Runtime, where: Filter | None, limit: int | None, embeddings: bool
    ) -> list[Record]:
        return await self._postgres.run(io, self._select, where, limit, embeddings)

    async def _delete(self, io: Runtime, where: Filter | None) -> int:
        return await self._postgres.run(io, self._remove, where)

    async def _count(self, io: Runtime, where: Filter | None) -> int:
        return await self._postgres.run(io, self._count_rows, where)

    async def _search(
        self,
        io: Runtime,
        queries: Dense,
        k: int,
        where: Filter | None,
        min_score: float | None,
        embeddings: bool,
    ) -> list[list[Hit]]:
        found = await self._postgres.run(io, self._nearest, queries, k, where, embeddings)
        passes = _predicate(where)
        return [
            self._hits(rows, query, min_score, passes)
            for rows, query in zip(found, queries, strict=True)
        ]

    async def _close(self, io: Runtime) -> None:
        await self._postgres.close(io)

    # -- what runs on an event loop ----------------------------------------------------------

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        async with self._postgres.connection() as connection:
            if not self._ready:
                known = await self._schema.open(connection, self._dimension)
                if known is not None:
                    self._dimension, self._ready = known, True
            yield connection

    async def _read_version(self) -> str:
        async with self._connection() as connection:
            return await self._schema.version(connection)

    async def _store(self, rows: list[tuple[Any, ...]], dimension: int) -> None:
        columns = ", ".join(_COLUMNS)
        async with self._connection() as connection:
            self._check_dimension(dimension, "record")  # known only since the table was opened
            async with connection.transaction():
                if not self._ready:
                    await self._schema.create(connection, dimension)
                await connection.execute(
                    "CREATE TEMP TABLE ragopt_batch (place integer, id text, text text, "
                    "metadata jsonb, document_id text, embedding vector) ON COMMIT DROP"
                )
                await connection.copy_records_to_table("ragopt_batch", records=rows)
                await self._schema.change(connection)
                await connection.execute(
                    f"INSERT INTO {self._table} ({columns}) "
                    f"SELECT {columns} FROM ragopt_batch ORDER BY place "
                    f"ON CONFLICT (id) DO UPDATE SET {_REPLACED}"
                )
            self._dimension, self._ready = dimension, True

    async def _select(
        self, where: Filter | None, limit: int | None, embeddings: bool
    ) -> list[Record]:
        condition, passes = Condition(where), _predicate(where)
        async with self._connection() as connection:
            if not self._ready:
                return []
            page = f"LIMIT {limit:d}" if limit is not None and condition.exact else ""
            rows = await connection.fetch(
                f"SELECT {_fields(embeddings)} FROM {self._table} "
                f"WHERE {condition.sql} ORDER BY seq {page}",
                *condition.parameters,
            )
        return [record for row in rows if (record := _record(row, passes)) is not None][:limit]

    async def _count_rows(self, where: Filter | None) -> int:
        condition = Condition(where)
        async with self._connection() as connection:
            if not self._ready:
                return 0
            if not condition.exact:
                return len(await self._matching(connection, where))
            number = await connection.fetchval(
                f"SELECT count(*) FROM {self._table} WHERE {condition.sql}", *condition.parameters
            )
        return int(number)

    async def _remove(self, where: Filter | None) -> int:
        condition = Condition(where)
        async with self._connection() as connection:
            if not self._ready:
                return 0
            async with connection.transaction():
                # The writers' lock first, as in an add: always the same order, so no deadlock.
                await self._schema.lock(connection)
                if not condition.exact:
                    condition = Condition(Ids(await self._matching(connection, where)))
                if where is None:
                    # Rows that are deleted stay in the HNSW graph until the next vacuum.
                    removed = await connection.fetchval(f"SELECT count(*) FROM {self._table}")
                    await connection.execute(f"TRUNCATE {self._table}")
                else:
                    status = await connection.execute(
                        f"DELETE FROM {self._table} WHERE {condition.sql}", *condition.parameters
                    )
                    removed = int(status.rpartition(" ")[2])
                if removed:
                    await self._schema.change(connection)
        return int(removed)

    async def _matching(self, connection: Any, where: Filter | None) -> list[str]:
        """Return the ids of the records that match a filter which SQL cannot express."""
        condition, passes = Condition(where), _predicate(where)
        rows = await connection.fetch(
            f"SELECT id, document_id, metadata FROM {self._table} WHERE {condition.sql}",
            *condition.parameters,
        )
        return [id_ for id_, document, text in rows if passes(id_, document, load_metadata(text))]

    async def _nearest(
        self, queries: Dense, k: int, where: Filter | None, embeddings: bool
    ) -> list[list[Any]]:
        condition = Condition(where, first=2)
        async with self._connection() as connection:
            self._check_dimension(queries.shape[1], "query")
            if not self._ready:
                return [[] for _ in queries]
            # One snapshot, so that every query and both ways of searching see the same records.
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                if self._index == "hnsw":
                    ef_search = min(max(self._ef_search, k), _EF_SEARCH)
                    await connection.execute(
                        f"SET LOCAL hnsw.ef_search = {ef_search:d}; "
                        "SET LOCAL hnsw.iterative_scan = strict_order"
                    )
                if not condition.exact:
                    condition = Condition(Ids(await self._matching(connection, where)), first=2)
                return [
                    await self._fetch_nearest(connection, query, k, condition, embeddings)
                    for query in queries
                ]

    async def _fetch_nearest(
        self, connection: Any, query: Dense, k: int, condition: Condition, embeddings: bool
    ) -> list[Any]:
        distance = f"embedding {self._operator} $1::vector"
        # A cosine with a zero vector is NaN; here it counts as 0. And an expression round the
        # operator keeps the planner from using the HNSW index.
        exact = f"COALESCE(NULLIF({distance}, 'NaN'), 1)"

        async def fetch(order: str) -> list[Any]:
            rows: list[Any] = await connection.fetch(
                f"SELECT {_fields(embeddings)}, {exact} AS distance FROM {self._table} "
                f"WHERE {condition.sql} ORDER BY {order}, seq LIMIT {k:d}",
                _packed(query[None, :])[0],
                *condition.parameters,
            )
            return rows

        if self._index == "hnsw" and query.any():
            rows = await fetch(distance)
            if len(rows) == k:
                # Without the index after all, PostgreSQL puts NaN last.
                return sorted(rows, key=lambda row: row["distance"])
        return await fetch(exact)

    def _hits(
        self, rows: list[Any], query: Dense, min_score: float | None, passes: Predicate
    ) -> list[Hit]:
        relevant = relevance(self._metric, query)
        hits = []
        for row in rows:
            score = self._nearest_score - float(row["distance"])
            record = _record(row, passes)
            if record is None or (min_score is not None and score < min_score):
                continue
            hits.append(
                Hit(
                    id=record.id,
                    score=score,
                    relevance=relevant(score),
                    text=record.text,
                    metadata=dict(record.metadata),
                    document_id=record.document_id,
                    embedding=record.embedding if "embedding" in row else None,
                )
            )
        return hits


def _check_index(index: str, m: int, ef_construction: int, ef_search: int) -> None:
    if index not in DIMENSIONS:
        raise InvalidInput(f"{index!r} is not an index.", fix='Use "hnsw" or "none".')
    if not (2 <= m <= 100 and 2 * m <= ef_construction <= 1000 and 1 <= ef_search <= _EF_SEARCH):
        raise InvalidInput(
            f"An HNSW index was given m={m}, ef_construction={ef_construction} and "
            f"ef_search={ef_search}.",
            fix="Give m from 2 to 100, ef_construction from 2 * m to 1000, ef_search up to 1000.",
        )


def _fields(embeddings: bool) -> str:
    return ", ".join(_COLUMNS if embeddings else _PLAIN)


def _predicate(where: Filter | None) -> Predicate:
    return compile_filter(where) if where is not None else lambda _id, _doc, _metadata: True


def _rows(records: RecordBatch, vectors: Dense) -> list[tuple[Any, ...]]:
    """Return what COPY writes: the place in the batch, then the columns."""
    columns = (
        map(storable, records.ids),
        map(storable, records.texts),
        map(dump_metadata, records.metadatas or ()),
        (None if id_ is None else storable(id_) for id_ in records.document_ids or ()),
        _packed(vectors),
    )
    return [(place, *values) for place, values in enumerate(zip(*columns, strict=True))]


def _packed(vectors: Dense) -> list[bytes]:
    """Return vectors in pgvector's binary format: dimension and 0 as uint16, then float32.

    A batch is turned at once: a ``pgvector.Vector`` for each row takes several times as long.
    """
    head = struct.pack(">HH", vectors.shape[1], 0)
    return [head + row.tobytes() for row in vectors.astype(">f4")]


def _record(row: Any, passes: Predicate) -> Record | None:
    """Turn a row into a record; None if the filter, asked again, refuses it."""
    metadata = load_metadata(row["metadata"])
    if not passes(row["id"], row["document_id"], metadata):
        return None
    dense = None
    if "embedding" in row:
        dense = np.frombuffer(row["embedding"], ">f4", offset=4).astype(np.float32)
    return Record(row["id"], row["text"], metadata, row["document_id"], Embedding(dense))
