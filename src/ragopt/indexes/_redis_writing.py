"""Records stored in Redis: in parts, each of them as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ragopt._runtime import Runtime
from ragopt.errors import StorageError
from ragopt.indexes._redis_errors import is_missing
from ragopt.indexes._redis_records import SEQ, VECTOR, Keys, Row, Vectors, chunks, rows_of
from ragopt.indexes._redis_schema import TRIES, RedisSchema
from ragopt.types import Dense, RecordBatch

_PART = 100  # records in one transaction: others wait for it, and each goes through the graph


class RedisWriter:
    """Adds records to an index and removes them.

    Args:
        schema: The index.
        keys: Its keys.
        vectors: How vectors are stored.
    """

    def __init__(self, schema: RedisSchema, keys: Keys, vectors: Vectors) -> None:
        self._schema = schema
        self._keys = keys
        self._vectors = vectors

    async def add(self, io: Runtime, records: RecordBatch, vectors: Dense) -> None:
        """Store records; an error says from which one on they were not."""
        rows, packed, norms = await io.cpu(self._encode, records, vectors)
        fields = frozenset[str]().union(*(row.numbers for row in rows))
        done = 0
        try:
            await self._schema.prepare(io, vectors.shape[1], fields)
            (last,) = await self._schema.ask(io, ("HINCRBY", self._schema.meta, SEQ, len(rows)))
            first = int(last) - len(rows) + 1
            for chunk in chunks(range(len(rows)), _PART):
                stores = []
                for row in chunk:
                    words = [*rows[row].words, SEQ, first + row, VECTOR, packed[row]]
                    if norms is not None:
                        words += "norm", repr(norms[row])
                    # Removed first, since fields of the old record would stay.
                    stores += [("DEL", rows[row].key), ("HSET", rows[row].key, *words)]
                span = first + chunk[0], first + chunk[-1]
                await self._store(io, stores, span, vectors.shape[1], fields)
                done = chunk[-1] + 1
        except StorageError as error:
            raise type(error)(
                f"{error.problem} Of {len(rows)} records the {len(rows) - done} from "
                f"{records.ids[done]!r} on were not stored, or it is not known that they were.",
                fix=f"{error.fix} Then add those again.",
            ) from error

    async def remove(self, io: Runtime, keys: Sequence[bytes]) -> int:
        """Remove records; return how many were there."""
        removed = 0
        for part in chunks(keys, _PART):
            *_, (gone, _) = await self._schema.ask(
                io, ("MULTI",), ("UNLINK", *part), self._schema.change(), ("EXEC",)
            )
            removed += int(gone)
        return removed

    def _encode(
        self, records: RecordBatch, vectors: Dense
    ) -> tuple[list[Row], list[bytes], list[float] | None]:
        return rows_of(self._keys, records), *self._vectors.pack(vectors, "record")

    async def _store(
        self,
        io: Runtime,
        stores: list[tuple[Any, ...]],
        span: tuple[int, int],
        dimension: int,
        fields: frozenset[str],
    ) -> None:
        """Store some records at once, and see to it that they can be found."""
        number = len(stores) // 2
        for _ in range(TRIES):
            made = self._schema.made.dump() if self._schema.made else None
            try:
                *_, outcomes, (indexed, *_), schema = await self._schema.ask(
                    io,
                    ("MULTI",),
                    *stores,
                    self._schema.change(),
                    ("EXEC",),
                    self._span(span, "LIMIT", 0, 0),
                    ("HGET", self._schema.meta, "schema"),
                )
            except StorageError as error:
                if not is_missing(error):
                    raise
            else:
                _raise_first(outcomes)
                if schema == made:
                    if indexed < number:
                        await self._raise_not_indexed(io, stores, span)
                    return
            # Another process removed the index, or made it anew, perhaps of another shape.
            await self._schema.prepare(io, dimension, fields, again=True)
        raise StorageError(
            f"Other processes removed the Redis index {self._schema.name!r} again and again.",
            fix="Do not drop or clear it while records are added.",
        )

    def _span(self, span: tuple[int, int], *how: Any) -> tuple[Any, ...]:
        query = f"@{SEQ}:[{span[0]} {span[1]}]"
        return "FT.SEARCH", self._schema.index, query, *how, "DIALECT", 2

    async def _raise_not_indexed(
        self, io: Runtime, stores: list[tuple[Any, ...]], span: tuple[int, int]
    ) -> None:
        """Raise StorageError if a record is stored and cannot be found; the part is removed."""
        keys = [words[1] for words in stores[::2]]
        *numbers, (_, *known) = await self._schema.ask(
            io,
            *(("HGET", key, SEQ) for key in keys),
            self._span(span, "NOCONTENT", "LIMIT", 0, len(keys)),
        )
        # Those that another process replaced or removed meanwhile are neither ours nor missing.
        ours = [
            key
            for key, number in zip(keys, numbers, strict=True)
            if number and span[0] <= int(number) <= span[1]
        ]
        lost = [key for key in ours if key not in known]
        if not lost:
            return
        await self.remove(io, ours)
        said = iter((await self._schema.info(io)).get(b"Index Errors", ()))
        why = dict(zip(said, said, strict=False)).get(b"last indexing error", b"no reason given")
        raise StorageError(
            f"The Redis server did not index {len(lost)} records, the first of them "
            f"{self._keys.id_of(lost[0])!r} ({why.decode(errors='replace')}).",
            fix="Look at the server's log.",
        )


def _raise_first(outcomes: Sequence[Any]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise StorageError(
                f"The Redis server refused to store a record ({outcome}).",
                fix="Check the memory and the permissions of the user.",
            ) from outcome
