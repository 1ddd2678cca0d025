"""The operations of an index on its table in PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from ragopt._runtime import Runtime
from ragopt.filters import Filter, Ids, Predicate, compile_filter
from ragopt.indexes._pgjson import Condition, dump_metadata, load_metadata, storable
from ragopt.indexes._pgschema import Schema
from ragopt.indexes._pgvectors import (
    SPARSE_ENTRIES,
    pack_dense,
    pack_sparse,
    unpack_dense,
    unpack_sparse,
)
from ragopt.indexes._postgres import Postgres
from ragopt.indexes.base import BaseVectorIndex
from ragopt.indexes.scores import relevance, sparse_relevance
from ragopt.types import Dense, Embedding, Hit, Metric, Record, RecordBatch, SparseVector

EF_SEARCH = 1_000  # pgvector's bound
# Operator, and what a distance is subtracted from to make a score.
_METRICS = {Metric.COSINE: ("<=>", 1.0), Metric.IP: ("<#>", 0.0), Metric.L2: ("<->", 0.0)}
_PLAIN = ("id", "text", "metadata", "document_id")
_COLUMNS = (*_PLAIN, "embedding", "sparse")
# A record that is replaced moves to the end of the order, as one that is new.
_REPLACED = ", ".join(f"{column} = EXCLUDED.{column}" for column in (*_COLUMNS[1:], "seq"))


class PgTable(BaseVectorIndex):
    """What ``PgvectorIndex`` does, without its options: reading, writing, searching.

    Args:
        postgres: Connections to the database.
        schema: The table.
        dimension: Length of the vectors; None to take it from the table or the first record.
        metric: How vectors are compared.
        index: ``"hnsw"`` or ``"none"``, of the dense vectors.
        sparse_index: Of the sparse vectors.
        ef_search: Candidates of a search with an HNSW index.
    """

    def __init__(
        self,
        postgres: Postgres,
        schema: Schema,
        dimension: int | None,
        *,
        metric: Metric,
        index: str,
        sparse_index: str,
        ef_search: int,
    ) -> None:
        super().__init__(dimension, metric=metric)
        self._postgres = postgres
        self._schema = schema
        self._table = schema.table
        self._index = index
        self._sparse_index = sparse_index
        self._ef_search = ef_search
        self._operator, self._nearest_score = _METRICS[self._metric]
        self._ready = False  # the table is there, and it is known to fit

    async def _drop(self) -> None:
        async with self._postgres.connection() as connection, connection.transaction():
            await self._schema.drop(connection)
        self._ready = False

    async def _version(self, io: Runtime) -> str:
        return await self._postgres.run(io, self._read_version)

    async def _add(self, io: Runtime, records: RecordBatch, vectors: Dense) -> None:
        most = SPARSE_ENTRIES[self._sparse_index]
        rows = await io.cpu(_rows, records, most)
        await self._postgres.run(io, self._store, rows, vectors)

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
        k: int | None,
        where: Filter | None,
        min_score: float | None,
        embeddings: bool,
    ) -> list[list[Hit]]:
        farthest = None if min_score is None else self._nearest_score - min_score
        found = await self._postgres.run(io, self._nearest, queries, k, where, farthest, embeddings)
        passes, metric = _predicate(where), self._metric
        return [
            self._hits(rows, self._nearest_score, relevance(metric, query), min_score, passes)
            for rows, query in zip(found, queries, strict=True)
        ]

    async def _search_sparse(
        self,
        io: Runtime,
        queries: Sequence[SparseVector],
        k: int | None,
        where: Filter | None,
        min_score: float | None,
        embeddings: bool,
    ) -> list[list[Hit]]:
        found = await self._postgres.run(io, self._heaviest, queries, k, where, embeddings)
        passes = _predicate(where)
        return [
            self._hits(rows, 0.0, sparse_relevance(query), min_score, passes)
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

    async def _store(self, rows: list[list[Any]], vectors: Dense) -> None:
        columns, dimension = ", ".join(_COLUMNS), vectors.shape[1]
        async with self._connection() as connection:
            self._check_dimension(dimension, "record")  # known only since the table was opened
            async with connection.transaction():
                if not self._ready:
                    await self._schema.create(connection, dimension)
                kind = self._schema.dense  # of a new table it is known only now
                await connection.execute(
                    "CREATE TEMP TABLE ragopt_batch (place integer, id text, text text, "
                    f"metadata jsonb, document_id text, sparse sparsevec, embedding {kind.name}) "
                    "ON COMMIT DROP"
                )
                packed = zip(rows, pack_dense(vectors, kind), strict=True)
                await connection.copy_records_to_table(
                    "ragopt_batch", records=[(*row, vector) for row, vector in packed]
                )
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
        found = (self._record(row, passes) for row in rows)
        return [record for record in found if record is not None][:limit]

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

    @asynccontextmanager
    async def _searching(
        self, index: str, k: int | None, where: Filter | None
    ) -> AsyncIterator[tuple[Any, Condition]]:
        """Give a connection, and the condition on records, whose parameters begin with ``$2``."""
        condition = Condition(where, first=2)
        async with (
            self._connection() as connection,
            # One snapshot, so that every query and both ways of searching see the same records.
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            if index == "hnsw" and k is not None:
                ef_search = min(max(self._ef_search, k), EF_SEARCH)
                await connection.execute(
                    f"SET LOCAL hnsw.ef_search = {ef_search:d}; "
                    "SET LOCAL hnsw.iterative_scan = strict_order"
                )
            if not condition.exact and self._ready:
                condition = Condition(Ids(await self._matching(connection, where)), first=2)
            yield connection, condition

    async def _nearest(
        self,
        queries: Dense,
        k: int | None,
        where: Filter | None,
        farthest: float | None,
        embeddings: bool,
    ) -> list[list[Any]]:
        async with self._searching(self._index, k, where) as (connection, condition):
            self._check_dimension(queries.shape[1], "query")
            if not self._ready:
                return [[] for _ in queries]
            return [
                await self._fetch_nearest(connection, query, k, condition, farthest, embeddings)
                for query in queries
            ]

    async def _fetch_nearest(
        self,
        connection: Any,
        query: Dense,
        k: int | None,
        condition: Condition,
        farthest: float | None,
        embeddings: bool,
    ) -> list[Any]:
        kind = self._schema.dense
        distance = f"embedding {self._operator} $1::{kind.name}"
        # A cosine with a zero vector is NaN; here it counts as 0. And an expression round the
        # operator keeps the planner from using the HNSW index.
        exact = f"COALESCE(NULLIF({distance}, 'NaN'), 1)"

        async def fetch(order: str, within: str = "TRUE") -> list[Any]:
            rows: list[Any] = await connection.fetch(
                f"SELECT {_fields(embeddings)}, {exact} AS distance FROM {self._table} "
                f"WHERE {condition.sql} AND {within} ORDER BY {order}, seq {_limit(k)}",
                *pack_dense(query[None, :], kind),
                *condition.parameters,
            )
            return rows

        if k is None and farthest is not None:
            # A little more, for what is lost between a distance and a score; scores decide.
            return await fetch(exact, f"{exact} <= {farthest + 1e-6 * (1 + abs(farthest))!r}")
        if self._index == "hnsw" and query.any():
            rows = await fetch(distance)
            if len(rows) == k:
                # Without the index after all, PostgreSQL puts NaN last.
                return sorted(rows, key=lambda row: row["distance"])
        return await fetch(exact)

    async def _heaviest(
        self,
        queries: Sequence[SparseVector],
        k: int | None,
        where: Filter | None,
        embeddings: bool,
    ) -> list[list[Any]]:
        distance = "sparse <#> $1::sparsevec"
        async with self._searching(self._sparse_index, k, where) as (connection, condition):
            if not self._ready:
                return [[] for _ in queries]
            return [
                await connection.fetch(
                    f"SELECT {_fields(embeddings)}, {distance} AS distance FROM {self._table} "
                    f"WHERE {condition.sql} AND {distance} < 0 "
                    f"ORDER BY {distance}, seq {_limit(k)}",
                    query,
                    *condition.parameters,
                )
                for query in pack_sparse(queries, SPARSE_ENTRIES["none"])
            ]

    def _hits(
        self,
        rows: list[Any],
        nearest_score: float,
        relevant: Callable[[float], float],
        min_score: float | None,
        passes: Predicate,
    ) -> list[Hit]:
        hits = []
        for row in rows:
            score = nearest_score - float(row["distance"])
            record = self._record(row, passes)
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

    def _record(self, row: Any, passes: Predicate) -> Record | None:
        """Turn a row into a record; None if the filter, asked again, refuses it."""
        metadata = load_metadata(row["metadata"])
        if not passes(row["id"], row["document_id"], metadata):
            return None
        embedding = Embedding()
        if "embedding" in row:
            sparse = row["sparse"]
            embedding = Embedding(
                unpack_dense(row["embedding"], self._schema.dense),
                None if sparse is None else unpack_sparse(sparse),
            )
        return Record(row["id"], row["text"], metadata, row["document_id"], embedding)


def _limit(k: int | None) -> str:
    return "" if k is None else f"LIMIT {k:d}"


def _fields(embeddings: bool) -> str:
    return ", ".join(_COLUMNS if embeddings else _PLAIN)


def _predicate(where: Filter | None) -> Predicate:
    return compile_filter(where) if where is not None else lambda _id, _doc, _metadata: True


def _rows(records: RecordBatch, most: int) -> list[list[Any]]:
    """Return what COPY writes, without the dense vectors: the place in the batch comes first."""
    sparse = records.embeddings.sparse
    columns = (
        range(len(records)),
        map(storable, records.ids),
        map(storable, records.texts),
        map(dump_metadata, records.metadatas or ()),
        (None if id_ is None else storable(id_) for id_ in records.document_ids or ()),
        [None] * len(records) if sparse is None else pack_sparse(sparse, most),
    )
    return [list(row) for row in zip(*columns, strict=True)]
