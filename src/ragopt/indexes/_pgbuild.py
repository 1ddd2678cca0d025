"""Making the indexes on the vectors of a table in PostgreSQL anew, while others use them."""

from __future__ import annotations

import secrets
from contextlib import nullcontext
from typing import Any

from ragopt.errors import InvalidInput, StorageError
from ragopt.indexes._pgindexes import Indexes, lists_in, memory_for
from ragopt.indexes._pgschema import Schema
from ragopt.indexes._postgres import Postgres

_OURS = "ragopt_vectors_"  # how the names of the indexes begin that are made here


class IndexBuilder:
    """What makes indexes in the place of others, in one process at a time.

    A new one is made beside the old one, which searches use until then.

    Args:
        postgres: The database.
        schema: The table.
    """

    def __init__(self, postgres: Postgres, schema: Schema) -> None:
        self._postgres = postgres
        self._schema = schema
        self._table = schema.table

    async def due(self, connection: Any) -> bool | None:
        """Say whether lists are to be learnt: None for no, True where others should not wait."""
        options = self._schema.options
        found = [each for each in (await self._schema.read_indexes(connection)).dense if each.valid]
        if not found:
            some = f"SELECT FROM {self._table} LIMIT {options.first:d}"
            records = await connection.fetchval(f"SELECT count(*) FROM ({some}) AS few")
            return False if records >= options.first else None
        if found[0].kind != "ivfflat":
            return None
        about = await connection.fetchval(
            "SELECT reltuples / greatest(relpages, 1) * pg_relation_size(oid) "
            "/ current_setting('block_size')::integer FROM pg_class "
            "WHERE oid = $1::text::regclass",
            self._table,
        )
        return True if options.outgrown(lists_in(found[0].definition), about) else None

    async def learn(self, dimension: int, *, concurrently: bool) -> None:
        """Make the IVFFlat index that is due, unless somebody else is at it.

        Raises:
            StorageError: It could not be made.
        """
        try:
            await self._make(dimension, concurrently, dense_only=True)
        except StorageError as error:
            raise StorageError(
                "The records were stored, but the IVFFlat index of the table "
                f"{self._schema.name!r} could not be made. {error.problem}",
                fix="Searches do without it. Call reindex() when the reason is gone.",
            ) from error

    async def reindex(self, dimension: int) -> None:
        """Make all indexes anew, the dense one of the kind that was asked for.

        Raises:
            InvalidInput: There is none to make, or the vectors are too long for it.
            StorageError: It could not be made, or somebody else is at it.
        """
        if not await self._make(dimension, True, dense_only=False):
            raise StorageError(
                f"The indexes of the table {self._schema.name!r} are being made by somebody else.",
                fix="Wait until that is done; searches and changes go on meanwhile.",
            )

    async def forget_lists(self, connection: Any) -> None:
        """Remove an IVFFlat index with the records that it learnt from, in a transaction."""
        for each in (await self._schema.read_indexes(connection)).dense:
            if each.kind == "ivfflat":
                await connection.execute(f"DROP INDEX {each.name}")
                self._schema.kind = "none"

    async def _make(self, dimension: int, concurrently: bool, *, dense_only: bool) -> bool:
        """Return False if somebody else is at it."""
        async with self._postgres.session() as (connection, direct):
            # Behind a pooler only a transaction keeps locks and settings, and within one an index
            # cannot be made without making writers wait.
            concurrently = concurrently and direct
            async with nullcontext() if concurrently else connection.transaction():
                # Not waiting for it: who waits has a snapshot, whose end the other would wait for.
                lock = "pg_try_advisory_lock" if concurrently else "pg_try_advisory_xact_lock"
                if not await connection.fetchval(
                    f"SELECT {lock}(hashtextextended($1, 1))", self._table
                ):
                    return False
                try:
                    await self._replace(connection, dimension, concurrently, dense_only)
                finally:
                    if concurrently and not connection.is_closed():
                        await connection.execute("SELECT pg_advisory_unlock_all()")
            await self._schema.read_indexes(connection)
        return True

    async def _replace(
        self, connection: Any, dimension: int, concurrently: bool, dense_only: bool
    ) -> None:
        if dense_only and await self.due(connection) is None:
            return  # somebody else was first
        found = await self._schema.read_indexes(connection)
        old = found.dense if dense_only else [*found.dense, *found.sparse]
        wanted = await self._wanted(connection, found, dimension)
        if not dense_only:
            wanted += [each.definition for each in found.sparse if each.valid]
        if not wanted:
            raise InvalidInput(
                f"The table {self._schema.name!r} has no index on its vectors, and none was asked "
                "for.",
                fix='Open it with index="hnsw" or "ivfflat" and call reindex() again.',
            )
        schema, how = self._table.partition(".")[0], "CONCURRENTLY" if concurrently else ""
        for each in old:
            if not each.valid and _OURS in each.name:  # what was interrupted
                await connection.execute(f"DROP INDEX {how} {each.name}")
        for definition in wanted:
            await self._set(connection, definition, dimension, local=not concurrently)
            name = _OURS + secrets.token_hex(8)
            try:
                await connection.execute(f"CREATE INDEX {how} {name} ON {self._table} {definition}")
            except Exception:
                if concurrently and not connection.is_closed():  # or it is gone with all the rest
                    await connection.execute(f"DROP INDEX {how} IF EXISTS {schema}.{name}")
                raise
        for each in old:
            if each.valid:
                await connection.execute(f"DROP INDEX {how} {each.name}")

    async def _wanted(self, connection: Any, found: Indexes, dimension: int) -> list[str]:
        """Return the definitions of the indexes on dense vectors: as asked for, or as they are."""
        options, column = self._schema.options, self._schema.dense
        if options.kind in (None, "none"):
            return [each.definition for each in found.dense if each.valid]
        if dimension > options.most(column):
            raise InvalidInput(
                f"The table {self._schema.name!r} holds vectors of dimension {dimension:,} of the "
                f"type {column.name}, of which an index {options.kind!r} takes "
                f"{options.most(column):,}.",
                fix='Use quantization="bit", which takes all.',
            )
        records = 0
        if options.kind == "ivfflat":
            records = await connection.fetchval(f"SELECT count(*) FROM {self._table}")
        return [options.dense(options.kind, column, dimension, records)]

    async def _set(self, connection: Any, definition: str, dimension: int, *, local: bool) -> None:
        """Let a statement take its time and, to learn lists, the memory without which it fails."""
        lists = lists_in(definition)
        await connection.execute(
            "SELECT set_config('statement_timeout', '0', $2), set_config('lock_timeout', '0', $2), "
            "set_config('maintenance_work_mem', greatest($1, "
            "pg_size_bytes(current_setting('maintenance_work_mem')) / 1024) || 'kB', $2)",
            memory_for(lists, dimension) >> 10 if lists else 0,
            local,
        )
