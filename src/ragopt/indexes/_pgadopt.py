"""Taking over the tables of other packages: with their vectors, so that nothing is embedded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ragopt._progress import Progress, tallied
from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.errors import InvalidInput
from ragopt.indexes._pgjson import dump_metadata
from ragopt.indexes._pgsources import Asked, Columns, Row, Source, open_source
from ragopt.indexes._pgtable import PgTable
from ragopt.indexes.checks import copy_metadata
from ragopt.types import EmbeddingBatch, Metadata, RecordBatch

_EXAMPLES = 10


@dataclass(slots=True)
class LeftOut:
    """Rows that were not taken, for one reason.

    Args:
        why: The reason.
        rows: How many.
        keys: The primary keys of the first ten, as text.
    """

    why: str
    rows: int = 0
    keys: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        more = ", ..." if self.rows > len(self.keys) else ""
        return f"{self.rows:,} left out, {self.why}: {', '.join(self.keys)}{more}."


@dataclass(frozen=True, slots=True)
class Adoption:
    """What an index took over from a table.

    Args:
        table: Name of the table.
        taken: How many records were stored.
        left_out: Which rows were not, reason by reason.
    """

    table: str
    taken: int
    left_out: list[LeftOut]

    def __str__(self) -> str:
        taken = f"{self.taken:,} records were taken from the table {self.table!r}."
        return " ".join([taken, *map(str, self.left_out)])


class Adopting(PgTable):
    """An index that takes over tables of LangChain and of LlamaIndex."""

    def adopt(
        self,
        table: str,
        *,
        schema: str = "public",
        collection: str | None = None,
        id_column: str | None = None,
        content_column: str = "content",
        embedding_column: str = "embedding",
        metadata_json_column: str = "langchain_metadata",
        metadata_columns: Sequence[str] | None = None,
        after: str | None = None,
        batch_size: int = 1_000,
        progress: Progress | bool = False,
    ) -> Adoption:
        """Copy the records of another package's table of the same database, vectors included.

        Known are the tables of LangChain's ``PGVectorStore`` and of its older ``PGVector``
        (``langchain_pg_embedding``), and those of LlamaIndex's ``PGVectorStore`` (``data_...``).
        They are only read. Ids stay what they are, so doing it again does no harm, and brings what
        has changed since.

        Args:
            table: Name of the other table.
            schema: Its schema.
            collection: Which one of a ``langchain_pg_embedding``; None if it has only one.
            id_column: The ids of a LangChain ``PGVectorStore``; None for the primary key.
            content_column: Its texts.
            embedding_column: Its vectors.
            metadata_json_column: Its metadata, if it has such a column.
            metadata_columns: Columns that become metadata too; None for all that are left.
            after: The primary key of the row after which to go on.
            batch_size: Rows that are read and stored at a time, in a transaction of their own.
            progress: Called after each batch with the rows that are done and with all of them;
                True for a bar on stderr.

        Returns:
            How many records were taken, and which rows were not: those without an id, a text or a
            vector, of another dimension, with metadata that cannot be stored, or whose id a later
            row has.

        Raises:
            DimensionMismatch: The vectors do not fit the index.
            InvalidInput: There is no such table or collection, or it is none of these, or its
                vectors are indexed for another metric.
            StorageError: The server failed. A note says after which row to go on.
        """
        names = Columns(
            id_column, content_column, embedding_column, metadata_json_column, metadata_columns
        )
        asked = Asked(table, schema, collection, names)
        return run(self._adopt(SYNC, asked, after, batch_size, progress))

    async def aadopt(
        self,
        table: str,
        *,
        schema: str = "public",
        collection: str | None = None,
        id_column: str | None = None,
        content_column: str = "content",
        embedding_column: str = "embedding",
        metadata_json_column: str = "langchain_metadata",
        metadata_columns: Sequence[str] | None = None,
        after: str | None = None,
        batch_size: int = 1_000,
        progress: Progress | bool = False,
    ) -> Adoption:
        """Copy the records of another package's table; see ``adopt``."""
        names = Columns(
            id_column, content_column, embedding_column, metadata_json_column, metadata_columns
        )
        asked = Asked(table, schema, collection, names)
        return await self._adopt(ASYNC, asked, after, batch_size, progress)

    async def _adopt(
        self,
        io: Runtime,
        asked: Asked,
        after: str | None,
        batch_size: int,
        progress: Progress | bool,
    ) -> Adoption:
        if batch_size < 1:
            raise InvalidInput(
                f"A batch of {batch_size} rows was asked for.", fix="Give 1 or more."
            )
        source = await self._run(io, self._open_source, asked)
        taking = _Taking(source)
        with tallied(progress, source.rows, "adopted") as tally:
            while True:
                try:
                    rows = await self._postgres.run(io, self._read, source, after, batch_size)
                    await self._take(io, taking, rows)
                except Exception as error:
                    if after is not None:
                        error.add_note(f"To go on where it stopped, pass after={after!r}.")
                    raise
                if tally is not None:
                    tally.add(len(rows))
                if len(rows) < batch_size:
                    return taking.result()
                after = rows[-1].key

    async def _take(self, io: Runtime, taking: _Taking, rows: list[Row]) -> None:
        """Store rows as every other record is stored."""
        keys, records = await io.cpu(taking.records, rows)
        try:
            await self._checked_add(io, records)
        except InvalidInput:
            # Nearly all metadata can be stored: single rows are looked at only if a batch cannot.
            storable = await io.cpu(taking.storable, keys, records)
            if len(storable) == len(records):
                raise
            await self._checked_add(io, storable)

    async def _open_source(self, asked: Asked) -> Source:
        async with self._connection() as connection:
            return await open_source(
                connection, asked, metric=self._metric, dimension=self._dimension
            )

    async def _read(self, source: Source, after: str | None, limit: int) -> list[Row]:
        async with self._connection() as connection:
            return await source.read(connection, after, limit)


class _Taking:
    """Rows of a table on their way, and what becomes of each."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._rows = 0
        self._left_out: dict[str, LeftOut] = {}
        self._keys: dict[str, str] = {}  # of the rows so far with an id that is there repeatedly

    def result(self) -> Adoption:
        left_out = list(self._left_out.values())
        return Adoption(
            self._source.name, self._rows - sum(each.rows for each in left_out), left_out
        )

    def records(self, rows: list[Row]) -> tuple[list[str], RecordBatch]:
        """Return the records of the rows that can be taken, and the rows' primary keys."""
        source = self._source
        kept: dict[str, tuple[Row, Metadata, str | None]] = {}
        for row in rows:
            self._rows += 1
            if why := self._fault(row):
                self._leave_out(why, row.key)
                continue
            try:
                metadata, document_id = source.metadata_of(row)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                self._leave_out("their metadata cannot be read", row.key)
                continue
            id_ = str(row.id)
            if id_ in source.repeated:
                if id_ in self._keys:
                    self._leave_out("later rows have their ids", self._keys[id_])
                self._keys[id_] = row.key
            kept[id_] = row, metadata, document_id
        found = kept.values()
        vectors = b"".join(row.vector[4:] for row, _, _ in found if row.vector)
        dense = np.frombuffer(vectors, source.kind.format).astype(np.float32)
        return [row.key for row, _, _ in found], RecordBatch(
            list(kept),
            [str(row.text) for row, _, _ in found],
            EmbeddingBatch(dense=dense.reshape(len(found), -1 if found else 0)),
            [metadata for _, metadata, _ in found],
            [document_id for _, _, document_id in found],
        )

    def storable(self, keys: list[str], records: RecordBatch) -> RecordBatch:
        """Return the records whose metadata can be stored."""
        fine = []
        metadatas = records.metadatas or []
        for place, metadata in enumerate(metadatas):
            try:
                dump_metadata(copy_metadata(metadata))
                fine.append(place)
            except InvalidInput:
                self._leave_out("their metadata cannot be stored", keys[place])
        dense, documents = records.embeddings.dense, records.document_ids or []
        assert dense is not None
        return replace(
            records,
            ids=[records.ids[place] for place in fine],
            texts=[records.texts[place] for place in fine],
            embeddings=EmbeddingBatch(dense=dense[fine]),
            metadatas=[metadatas[place] for place in fine],
            document_ids=[documents[place] for place in fine],
        )

    def _fault(self, row: Row) -> str | None:
        """Say what keeps a row from being a record."""
        if not row.id:
            return "they have no id"
        if row.text is None:
            return "they have no text"
        if row.vector is None:
            return "they have no vector"
        dimension = int.from_bytes(row.vector[:2])
        if dimension != self._source.dimension:
            return f"their vectors have dimension {dimension}, not {self._source.dimension}"
        return None

    def _leave_out(self, why: str, key: str) -> None:
        each = self._left_out.setdefault(why, LeftOut(why))
        each.rows += 1
        if len(each.keys) < _EXAMPLES:
            each.keys.append(key)
