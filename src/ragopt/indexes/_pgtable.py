"""Reading and writing the table of an index in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ParamSpec, TypeVar

from ragopt._runtime import Runtime
from ragopt.codecs import decode_multi
from ragopt.errors import DimensionMismatch
from ragopt.filters import Filter, Ids, Predicate, compile_filter
from ragopt.indexes._late import half_precision
from ragopt.indexes._pgbuild import IndexBuilder
from ragopt.indexes._pgjson import Condition, dump_metadata, load_metadata, storable
from ragopt.indexes._pgschema import Schema, Terms
from ragopt.indexes._pgterms import TERM_COLUMNS, packed_terms
from ragopt.indexes._pgvectors import (
    SPARSE_ENTRIES,
    pack_dense,
    pack_sparse,
    unpack_dense,
    unpack_sparse,
)
from ragopt.indexes._postgres import Postgres, Stale
from ragopt.indexes.base import BaseVectorIndex
from ragopt.types import Dense, Embedding, IndexStats, Record, RecordBatch

P = ParamSpec("P")
T = TypeVar("T")

_PLAIN = ("id", "text", "metadata", "document_id")
_COLUMNS = (*_PLAIN, "embedding", "sparse", "multi")
_MOST = 2**63 - 1  # records that PostgreSQL can count to


class PgTable(BaseVectorIndex):
    """Reading and writing of the records.

    Args:
        postgres: Connections to the database.
        schema: The table.
        dimension: Length of the vectors; None to take it from the table or the first record.
    """

    _keeps_multi = True

    def __init__(
        self,
        postgres: Postgres,
        schema: Schema,
        dimension: int | None,
    ) -> None:
        super().__init__(dimension, metric=schema.options.metric)
        self._postgres = postgres
        self._schema = schema
        self._table = schema.table
        self._builder = IndexBuilder(postgres, schema)
        self._given = dimension
        self._ready = False  # the table is there, and it is known to fit

    async def _drop(self) -> None:
        async with self._postgres.connection() as connection, connection.transaction():
            await self._schema.drop(connection)
        self._dimension, self._ready = self._given, False

    async def _version(self, io: Runtime) -> str:
        return await self._run(io, self._read_version)

    async def _add(self, io: Runtime, records: RecordBatch, vectors: Dense) -> None:
        while True:
            most = self._most
            terms = self._schema.terms is not Terms.NONE
            rows = await io.cpu(_rows, records, most, terms)
            try:
                await self._run(io, self._store, rows, vectors, most, terms)
                break
            except _Outdated:
                continue
        if self._schema.options.index == "ivfflat":
            await self._postgres.run(io, self._build_when_due)

    async def _get(self, io: Runtime, ids: Sequence[str], embeddings: bool) -> list[Record | None]:
        found = await self._find(io, Ids(ids), None, embeddings)
        by_id = {record.id: record for record in found}
        return [by_id.get(id_) for id_ in ids]

    async def _find(
        self, io: Runtime, where: Filter | None, limit: int | None, embeddings: bool
    ) -> list[Record]:
        return await self._run(io, self._select, where, limit, embeddings)

    async def _delete(self, io: Runtime, where: Filter | None) -> int:
        return await self._run(io, self._remove, where)

    async def _count(self, io: Runtime, where: Filter | None) -> int:
        return await self._run(io, self._count_rows, where)

    async def _stats(self, io: Runtime) -> IndexStats:
        return await self._run(io, self._read_stats)

    async def _made_by(self, io: Runtime, model: str | None, replace: bool) -> str | None:
        return await self._run(io, self._name_model, model, replace)

    async def _close(self, io: Runtime) -> None:
        await self._postgres.close(io)

    @property
    def _most(self) -> int:
        """Entries of a sparse vector that the table takes, as far as is known."""
        return SPARSE_ENTRIES[self._schema.sparse_kind]

    async def _run(
        self,
        io: Runtime,
        operation: Callable[P, Coroutine[Any, Any, T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run an operation, once more if the table turns out to be another one than was known."""

        async def noticing() -> T:
            known = self._ready
            try:
                return await operation(*args, **kwargs)
            except (Stale, DimensionMismatch):
                if not known:
                    raise
            await self._renew()
            return await operation(*args, **kwargs)

        return await self._postgres.run(io, noticing)

    def _check_dimension(self, dimension: int, what: str) -> None:
        """Compare with what was given; ``_check_known`` does with the table, which may change."""
        if not dimension or self._given:
            super()._check_dimension(dimension, what)

    def _check_known(self, dimension: int, what: str) -> None:
        """Compare with the table, as far as is known."""
        super()._check_dimension(dimension, what)

    # -- what runs on an event loop ----------------------------------------------------------

    def _connection(self) -> AbstractAsyncContextManager[Any]:
        """Lend a connection, once the table is known to fit or not to be there yet."""
        return self._postgres.connection(None if self._ready else self._open)

    async def _open(self, connection: Any) -> None:
        known = await self._schema.open(connection, self._given)
        if known is not None:
            self._dimension, self._ready = known, True

    async def _renew(self) -> None:
        """Find out what the table is by now."""
        async with self._postgres.connection() as connection:
            known = await self._schema.open(connection, self._given)
            # Both at once: others go on meanwhile, and what is not ready has no records for them.
            self._dimension, self._ready = known or self._given, known is not None

    async def _read_version(self) -> str:
        async with self._connection() as connection:
            return await self._schema.version(connection)

    async def _name_model(self, model: str | None, replace: bool) -> str | None:
        async with self._connection() as connection:
            if not self._ready:
                return None
            known = await self._schema.model(connection)
            if known == model or (known is not None and not replace):
                return known
            return await self._schema.set_model(connection, model, replace)

    async def _store(self, rows: list[list[Any]], vectors: Dense, most: int, terms: bool) -> None:
        names, dimension = (*_COLUMNS, *(TERM_COLUMNS if terms else ())), vectors.shape[1]
        columns = ", ".join(names)
        # A record that is replaced moves to the end of the order, as one that is new.
        replaced = ", ".join(f"{name} = EXCLUDED.{name}" for name in (*names[1:], "seq"))
        patience = self._postgres.patience(len(rows))
        async with self._connection() as connection:
            self._check_known(dimension, "record")
            async with connection.transaction():
                if not self._ready:
                    await self._schema.create(connection, dimension)
                kind = self._schema.dense  # of a new table it is known only now
                await connection.execute(
                    "CREATE TEMP TABLE ragopt_batch (place integer, id text, text text, "
                    "metadata jsonb, document_id text, sparse sparsevec, multi bytea, "
                    f"terms sparsevec, term_ids integer[], embedding {kind.name}) ON COMMIT DROP"
                )
                packed = zip(rows, pack_dense(vectors, kind), strict=True)
                await connection.copy_records_to_table(
                    "ragopt_batch",
                    records=[(*row, vector) for row, vector in packed],
                    timeout=patience,
                )
                known = await self._schema.change(connection)
                if terms is not (known is not Terms.NONE) or most > self._most:
                    raise _Outdated
                if known is Terms.KEPT:
                    gone = f"{self._table} WHERE id IN (SELECT id FROM ragopt_batch)"
                    await connection.execute(
                        self._schema.counts.change("ragopt_batch", gone), timeout=patience
                    )
                await connection.execute(
                    f"INSERT INTO {self._table} ({columns}) "
                    f"SELECT {columns} FROM ragopt_batch ORDER BY place "
                    f"ON CONFLICT (id) DO UPDATE SET {replaced}",
                    timeout=patience,
                )
            self._dimension, self._ready = dimension, True

    async def _select(
        self, where: Filter | None, limit: int | None, embeddings: bool
    ) -> list[Record]:
        condition, passes = Condition(where), predicate(where)
        async with self._connection() as connection:
            if not self._ready:
                return []
            page = f"LIMIT {min(limit, _MOST):d}" if limit is not None and condition.exact else ""
            rows = await connection.fetch(
                f"SELECT {fields(embeddings)} FROM {self._table} "
                f"WHERE {condition.sql} ORDER BY seq {page}",
                *condition.parameters,
            )
        found = (self._values(row, passes) for row in rows)
        return [Record(**values) for values in found if values is not None][:limit]

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

    async def _read_stats(self) -> IndexStats:
        records, size, model = 0, 0, None
        async with self._connection() as connection:
            if self._ready:
                await self._schema.read_indexes(connection)
                records = await connection.fetchval(f"SELECT count(*) FROM {self._table}")
                size = await self._schema.size(connection)
                model = await self._schema.model(connection)
        wanted = self._schema.options.kind
        kind = "none" if wanted == "none" else self._schema.kind
        return IndexStats(
            records=records,
            dimension=self._dimension,
            metric=self._metric,
            kind=kind,
            model=model,
            bytes=size,
            indexed=float(kind != "none" or wanted in (None, "none")),
        )

    async def _reindex(self) -> None:
        async with self._connection():
            dimension = self._dimension if self._ready else None
        if dimension is not None:
            await self._builder.reindex(dimension)

    async def _build_when_due(self) -> None:
        """Learn the lists of an IVFFlat index, once there are records to learn them from."""
        async with self._connection() as connection:
            due = await self._builder.due(connection)
            dimension = self._dimension
        if due is not None and dimension is not None:
            await self._builder.learn(dimension, concurrently=due)

    async def _remove(self, where: Filter | None) -> int:
        condition = Condition(where)
        async with self._connection() as connection:
            if not self._ready:
                return 0
            async with connection.transaction():
                # The writers' lock first, as in an add: always the same order, so no deadlock.
                known = await self._schema.lock(connection)
                if not condition.exact:
                    condition = Condition(Ids(await self._matching(connection, where)))
                if where is None:
                    # Rows that are deleted stay in the HNSW graph until the next vacuum.
                    removed = await connection.fetchval(f"SELECT count(*) FROM {self._table}")
                    await connection.execute(f"TRUNCATE {self._table}")
                    await self._builder.forget_lists(connection)
                    if known is Terms.KEPT:
                        await self._schema.counts.clear(connection)
                else:
                    removed = await connection.fetchval(
                        self._removal(condition, known), *condition.parameters
                    )
                if removed:
                    await self._schema.change(connection)
        return int(removed)

    def _removal(self, condition: Condition, known: Terms) -> str:
        """Return a statement that deletes records and says how many there were."""
        gone, counted = "id", ""
        if known is Terms.KEPT:
            gone, counted = "term_ids", f", counted AS ({self._schema.counts.change(less='gone')})"
        return (
            f"WITH gone AS (DELETE FROM {self._table} WHERE {condition.sql} RETURNING {gone})"
            f"{counted} SELECT count(*) FROM gone"
        )

    async def _matching(self, connection: Any, where: Filter | None) -> list[str]:
        """Return the ids of the records that match a filter which SQL cannot express."""
        condition, passes = Condition(where), predicate(where)
        rows = await connection.fetch(
            f"SELECT id, document_id, metadata FROM {self._table} WHERE {condition.sql}",
            *condition.parameters,
        )
        return [id_ for id_, document, text in rows if passes(id_, document, load_metadata(text))]

    def _values(self, row: Any, passes: Predicate) -> dict[str, Any] | None:
        """Return what a row says of a record; None if the filter, asked again, refuses it."""
        metadata = load_metadata(row["metadata"])
        if not passes(row["id"], row["document_id"], metadata):
            return None
        values = {
            "id": row["id"],
            "text": row["text"],
            "metadata": metadata,
            "document_id": row["document_id"],
        }
        if "embedding" in row:
            sparse, multi = row["sparse"], row["multi"]
            values["embedding"] = Embedding(
                unpack_dense(row["embedding"]),
                None if sparse is None else unpack_sparse(sparse),
                None if multi is None else decode_multi(multi),
            )
        return values


def fields(embeddings: bool) -> str:
    """Return the columns that make a record."""
    return ", ".join(_COLUMNS if embeddings else _PLAIN)


def predicate(where: Filter | None) -> Predicate:
    """Return the filter as a function of what a record has."""
    return compile_filter(where) if where is not None else lambda _id, _doc, _metadata: True


class _Outdated(Exception):
    """The rows should have been made with the terms of the texts, or without."""


def _rows(records: RecordBatch, most: int, terms: bool) -> list[list[Any]]:
    """Return what COPY writes, without the dense vectors: the place in the batch comes first."""
    sparse, multi = records.embeddings.sparse, records.embeddings.multi
    columns = (
        range(len(records)),
        map(storable, records.ids),
        map(storable, records.texts),
        map(dump_metadata, records.metadatas or ()),
        (None if id_ is None else storable(id_) for id_ in records.document_ids or ()),
        [None] * len(records) if sparse is None else pack_sparse(sparse, most),
        [None] * len(records) if multi is None else map(half_precision, multi),
    )
    each = packed_terms(records.ids, records.texts) if terms else [(None, None)] * len(records)
    return [[*row, *of_text] for *row, of_text in zip(*columns, each, strict=True)]
