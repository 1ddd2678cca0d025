"""The tables of a PostgreSQL index: made by whoever comes first, checked by the others."""

from __future__ import annotations

import secrets
import warnings
from enum import Enum
from typing import Any

from ragopt.errors import DimensionMismatch, InvalidInput, StorageError
from ragopt.indexes._pgindexes import Indexes, IndexOptions, read_indexes
from ragopt.indexes._pgterms import COUNTS, DEFINED, TermCounts
from ragopt.indexes._pgvectors import (
    DENSE_TYPES,
    HALFVEC,
    SPARSE_DIMENSION,
    VECTOR,
    DenseType,
)
from ragopt.indexes._postgres import gone, quoted

_META = "ragopt_index"  # one row for each index of a schema
_TERMS = "to_jsonb(meta) ->> 'terms'"  # a table from before there were terms lacks the column
_LONG = 86_400.0  # seconds for what reads the whole table
_SPARSE = f"sparse sparsevec({SPARSE_DIMENSION})"
_MULTI = "multi bytea"


class Terms(Enum):
    """What the table holds of the terms of its texts."""

    NONE = None
    READ = "read"
    """Writers store them, while those of older records are read."""
    KEPT = "kept"
    """All are there, and counted."""


class Schema:
    """The table of one index, and its row in the table of all indexes.

    Args:
        schema: The schema of both tables; it must exist.
        name: Name of the table.
        options: The indexes on its vectors, and how these are compared.
        precision: ``"float32"`` or ``"float16"``; None for what the table has, or for what the
            index takes.
        text_search: Whether a new table keeps the terms of the texts.
    """

    def __init__(
        self,
        schema: str,
        name: str,
        options: IndexOptions,
        *,
        precision: str | None,
        text_search: bool,
    ) -> None:
        self.name = name
        self.table = f"{quoted(schema)}.{quoted(name)}"
        self.meta = f"{quoted(schema)}.{quoted(_META)}"
        self.options = options
        self.kind = options.of_new_table()  # as far as is known, as is the next
        self.sparse_kind: str = options.sparse_index
        self._schema = schema
        self._precision = precision
        self.dense = DENSE_TYPES[precision or "float32"]
        self.terms = Terms.KEPT if text_search else Terms.NONE  # as far as is known
        self.counts = TermCounts(schema, name)
        self.text_search = text_search

    async def open(self, connection: Any, dimension: int | None) -> int | None:
        """Take part in the index that the table holds, or make it; return its dimension.

        None if the table is not made yet, since no dimension is known.
        """
        known = await self._read_meta(connection)
        if known is None or (known["dimension"] is None and dimension is not None):
            async with connection.transaction():
                await self.create(connection, dimension)
            known = await self._read_meta(connection)
        self._agree(known, dimension)
        self.terms = Terms(known["terms"])
        found: int | None = known["dimension"]
        if found is not None:
            await self._fit(connection)
        return found

    async def _fit(self, connection: Any) -> None:
        """Take types and indexes from the table; give an older one what it lacks."""
        types = await self._column_types(connection)
        for column in (_SPARSE, _MULTI):
            if column.split()[0] not in types:
                await connection.execute(
                    f"ALTER TABLE {self.table} ADD COLUMN IF NOT EXISTS {column}"
                )
        self.dense = HALFVEC if types["embedding"] == HALFVEC.name else VECTOR
        if self._precision and self.dense is not DENSE_TYPES[self._precision]:
            raise InvalidInput(
                f"The vectors of the table {self.name!r} are of the type {self.dense.name}, and "
                f"precision={self._precision!r} was given.",
                fix="Leave precision out, or name another table.",
            )
        await self.read_indexes(connection)
        wanted = self.options.kind
        coming = (wanted, self.kind) == ("ivfflat", "none")  # when there is enough to learn from
        if wanted not in (None, "none", self.kind) and not coming:
            has = "no index" if self.kind == "none" else f"the index {self.kind!r}"
            warnings.warn(
                f"The dense vectors of the table {self.name!r} have {has}, though {wanted!r} was "
                "asked for. Searches use what there is; reindex() changes it.",
                stacklevel=2,
            )

    async def read_indexes(self, connection: Any) -> Indexes:
        """Find out how the vectors can be searched, whatever was asked for."""
        found = await read_indexes(connection, self.table, self.options.metric)
        self.kind, self.sparse_kind = found.kind, found.sparse_kind
        return found

    async def _column_types(self, connection: Any) -> dict[str, str]:
        rows = await connection.fetch(
            "SELECT attname, typname FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid "
            "JOIN pg_class ON pg_class.oid = attrelid "
            "JOIN pg_namespace ON pg_namespace.oid = relnamespace "
            "WHERE nspname = $1 AND relname = $2 AND attnum > 0 AND NOT attisdropped",
            self._schema, self.name,
        )  # fmt: skip
        if not rows:
            raise self._gone()
        return {row["attname"]: row["typname"] for row in rows}

    async def create(self, connection: Any, dimension: int | None) -> None:
        """Make what is missing, inside a transaction; any number of processes may try at once."""
        if dimension is not None:
            self.dense = self._type_for(dimension)
        await self.alone(connection)
        known = await self._read_meta(connection)
        if known is None:
            await self._register(connection)
        else:
            self._agree(known, dimension)
            if known["dimension"] is not None:  # another process was first
                await self._fit(connection)
                return
        if dimension is None:
            return
        await connection.execute(
            f"CREATE TABLE {self.table} (id text PRIMARY KEY, text text NOT NULL, metadata jsonb "
            f"NOT NULL, document_id text, embedding {self.dense.name}({dimension:d}) NOT NULL, "
            f"{_SPARSE}, {_MULTI}, seq bigint GENERATED BY DEFAULT AS IDENTITY)"
        )
        await connection.execute(f"CREATE INDEX ON {self.table} (document_id)")
        if self.text_search:
            await self.add_terms(connection)
            await self.index_terms(connection)
        options = self.options
        made = options.of_new_table()
        self.kind, self.sparse_kind = made, options.sparse_index
        if made != "none":
            definition = options.dense(made, self.dense, dimension, 0)
            await connection.execute(f"CREATE INDEX ON {self.table} {definition}")
        if options.sparse_index == "hnsw":
            await connection.execute(f"CREATE INDEX ON {self.table} {options.sparse()}")
        await connection.execute(
            f"UPDATE {self.meta} SET dimension = $2 WHERE name = $1", self.name, dimension
        )

    async def alone(self, connection: Any) -> None:
        """Make all who make tables or columns wait until the end of the transaction."""
        await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", self.meta)

    async def add_terms(self, connection: Any) -> None:
        """Give the table what the terms of its texts need; writers store them from now on."""
        for column in DEFINED:
            await connection.execute(f"ALTER TABLE {self.table} ADD COLUMN IF NOT EXISTS {column}")
        await self._widen_meta(connection, "terms")
        await self.counts.create(connection)
        await self._set_terms(connection, Terms.READ)

    async def _widen_meta(self, connection: Any, column: str) -> None:
        """Give a table of all indexes that an earlier version made what it lacks."""
        if not await connection.fetchval(
            f"SELECT to_jsonb(meta) ? $1 FROM {self.meta} AS meta LIMIT 1", column
        ):
            await connection.execute(f"ALTER TABLE {self.meta} ADD COLUMN {column} text")

    async def model(self, connection: Any) -> str | None:
        """Return the embedding model that the index is kept for, if it is known."""
        found: str | None = await connection.fetchval(
            f"SELECT to_jsonb(meta) ->> 'model' FROM {self.meta} AS meta WHERE name = $1", self.name
        )
        return found

    async def set_model(self, connection: Any, model: str | None, replace: bool) -> str | None:
        """Keep the name of a model, unless one is kept and not to be replaced; return what is."""
        async with connection.transaction():
            await self.alone(connection)
            await self._widen_meta(connection, "model")
            found: str | None = await connection.fetchval(
                f"UPDATE {self.meta} SET model = CASE WHEN $3 THEN $2 ELSE COALESCE(model, $2) END "
                "WHERE name = $1 RETURNING model",
                self.name, model, replace,
            )  # fmt: skip
        return found

    async def index_terms(self, connection: Any) -> None:
        """Index the terms of all records, and count them; writers count them from now on."""
        await connection.execute(
            f"CREATE INDEX ON {self.table} USING gin (term_ids)", timeout=_LONG
        )
        await self.counts.clear(connection)
        await connection.execute(self.counts.change(more=self.table), timeout=_LONG)
        await self._set_terms(connection, Terms.KEPT)

    async def _set_terms(self, connection: Any, terms: Terms) -> None:
        await connection.execute(
            f"UPDATE {self.meta} SET terms = $2 WHERE name = $1", self.name, terms.value
        )

    def _type_for(self, dimension: int) -> DenseType:
        """Return the type of the vectors of a new table."""
        wanted = [DENSE_TYPES[self._precision]] if self._precision else [VECTOR, HALFVEC]
        limits = [self.options.most(kind) for kind in wanted]
        for kind, most in zip(wanted, limits, strict=True):
            if dimension <= most:
                return kind
        raise InvalidInput(
            f"A table with the index {self.options.kind or 'hnsw'!r} takes vectors of at most "
            f"{max(limits):,} dimensions{f' in {self._precision}' if self._precision else ''}, not "
            f"{dimension:,}. Nothing was stored.",
            fix=f'Use quantization="bit" or index="none", which take {VECTOR.stored:,}, or a model '
            "with shorter vectors.",
        )

    async def _register(self, connection: Any) -> None:
        if await self._exists(connection, self.name):
            raise StorageError(
                f"The table {self.name!r} exists and was not made by ragopt.",
                fix="Nothing was written to it. Name another table.",
            )
        await connection.execute(
            f"CREATE TABLE IF NOT EXISTS {self.meta} (name text PRIMARY KEY, version text "
            "NOT NULL, dimension integer, metric text NOT NULL, terms text, model text)"
        )
        await self._forget(connection)
        await connection.execute(
            f"INSERT INTO {self.meta} (name, version, metric) VALUES ($1, $2, $3)",
            self.name, secrets.token_hex(8), str(self.options.metric),
        )  # fmt: skip

    async def _read_meta(self, connection: Any) -> Any:
        """Return the row of the index; None if there is none, or none of a table that is there."""
        if not await self._exists(connection, _META):
            return None
        row = await connection.fetchrow(
            f"SELECT dimension, metric, {_TERMS} AS terms FROM {self.meta} AS meta WHERE name = $1",
            self.name,
        )
        made = row is not None and row["dimension"] is not None
        return None if made and not await self._exists(connection, self.name) else row

    async def _forget(self, connection: Any) -> bool:
        """Remove the row, and what is counted of terms; False if there is no row."""
        found = await connection.fetchval(
            f"DELETE FROM {self.meta} WHERE name = $1 RETURNING TRUE", self.name
        )
        if found and await self._exists(connection, COUNTS):
            await self.counts.clear(connection)
        return bool(found)

    async def _exists(self, connection: Any, table: str) -> bool:
        # to_regclass() would do, but inside a transaction it may answer from a stale cache.
        return bool(
            await connection.fetchval(
                "SELECT EXISTS (SELECT FROM pg_tables WHERE schemaname = $1 AND tablename = $2)",
                self._schema, table,
            )
        )  # fmt: skip

    def _agree(self, known: Any, dimension: int | None) -> None:
        if known["metric"] != self.options.metric:
            raise InvalidInput(
                f"The table {self.name!r} was made for the metric {known['metric']!r}, not for "
                f"{str(self.options.metric)!r}.",
                fix="Open it with its own metric, or name another table.",
            )
        if dimension is not None and known["dimension"] not in (None, dimension):
            raise DimensionMismatch(
                f"The table {self.name!r} holds vectors of dimension {known['dimension']}, not "
                f"{dimension}. Nothing was changed.",
                fix="Use the embedding model that the table was made with, or name another table.",
            )

    async def drop(self, connection: Any) -> None:
        """Remove the table and its row, inside a transaction."""
        if await self._exists(connection, _META) and await self._forget(connection):
            await connection.execute(f"DROP TABLE IF EXISTS {self.table}")

    async def version(self, connection: Any) -> str:
        """Return the token that every change replaces."""
        found = await connection.fetchval(
            f"SELECT version FROM {self.meta} WHERE name = $1", self.name
        )
        if found is None:
            raise self._gone()
        return str(found)

    async def size(self, connection: Any) -> int:
        """Return the bytes on disk of the table, its indexes and what is counted of its terms."""
        found = await connection.fetchval(
            "SELECT pg_total_relation_size($1::text::regclass) "
            "+ pg_total_relation_size(pg_get_serial_sequence($1, 'seq')::regclass)",
            self.table,
        )
        return int(found) + (0 if self.terms is Terms.NONE else await self.counts.size(connection))

    async def lock(self, connection: Any) -> Terms:
        """Make every other writer of this index wait until the end of the transaction.

        Returns:
            What writers have to do about the terms of texts.

        Raises:
            Stale: There is no such index any more.
        """
        return self._told(
            await connection.fetchrow(
                f"SELECT {_TERMS} FROM {self.meta} AS meta WHERE name = $1 FOR UPDATE", self.name
            )
        )

    async def change(self, connection: Any) -> Terms:
        """Replace the version, after ``lock`` or in its place; raises as that does."""
        return self._told(
            await connection.fetchrow(
                f"UPDATE {self.meta} AS meta SET version = $2 WHERE name = $1 RETURNING {_TERMS}",
                self.name, secrets.token_hex(8),
            )
        )  # fmt: skip

    def _told(self, row: Any) -> Terms:
        if row is None:
            raise self._gone()
        self.terms = Terms(row[0])
        return self.terms

    def _gone(self) -> StorageError:
        return gone(f"the table {self.name!r}")
