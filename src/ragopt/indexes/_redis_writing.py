"""Records stored in Redis: in parts, each of them as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ragopt._redis.connections import packed
from ragopt._runtime import Runtime
from ragopt.errors import StorageError
from ragopt.indexes._redis_errors import is_missing
from ragopt.indexes._redis_postings import APPEND, FORGET, pack_terms, postings, terms_of
from ragopt.indexes._redis_records import SEQ, TERMS, Keys, Row, Vectors, chunks, rows_of
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
        rows = await io.cpu(self._encode, records, vectors)
        fields = frozenset[str]().union(*(row.numbers for row in rows))
        done = 0
        try:
            await self._schema.prepare(io, vectors.shape[1], fields)
            (last,) = await self._schema.ask(io, ("HINCRBY", self._schema.meta, SEQ, len(rows)))
            first = int(last) - len(rows) + 1
            for part in chunks(rows, _PART):
                await self._store(io, part, first + done, vectors.shape[1], fields)
                done += len(part)
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
                io, ("MULTI",), self._forget(part), self._schema.change(), ("EXEC",)
            )
            removed += int(gone)
        return removed

    def _encode(self, records: RecordBatch, vectors: Dense) -> list[Row]:
        packed, norms = self._vectors.pack(vectors, "record")
        return rows_of(self._keys, records, packed, norms)

    def _forget(self, keys: Sequence[bytes]) -> tuple[Any, ...]:
        """Return the command that removes records and their postings."""
        return "EVAL", FORGET, 1 + len(keys), self._schema.postings, *keys

    def _commands(self, rows: Sequence[Row], first: int, text: bool) -> list[bytes]:
        """Return what stores records: as it is sent, since making that takes a while."""
        words = [[*row.words, SEQ, place] for place, row in enumerate(rows, first)]
        entries = postings("s", first, [row.sparse for row in rows])
        if text:
            terms = [terms_of(row.text) for row in rows]
            entries += postings("t", first, terms)
            for each, vector in zip(words, terms, strict=True):
                each.extend((TERMS, pack_terms(vector)))
        for place, row in enumerate(rows, first):
            if text or row.sparse is not None:
                entries += b"n%d" % place, row.key[len(self._keys.prefix) :]
        # Removed first, since fields and postings of the old records would stay.
        commands = [self._forget([row.key for row in rows])]
        commands += (("HSET", row.key, *each) for row, each in zip(rows, words, strict=True))
        if entries:
            commands.append(("EVAL", APPEND, 1, self._schema.postings, *entries))
        return [packed(command) for command in commands]

    async def _store(
        self,
        io: Runtime,
        rows: Sequence[Row],
        first: int,
        dimension: int,
        fields: frozenset[str],
    ) -> None:
        """Store some records at once, and see to it that they can be found."""
        span = first, first + len(rows) - 1
        for _ in range(TRIES):
            made = self._schema.made
            commands = await io.cpu(self._commands, rows, first, self._schema.text)
            try:
                *_, outcomes, (indexed, *_), schema = await self._schema.ask(
                    io,
                    ("MULTI",),
                    *commands,
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
                if made is not None and schema == made.dump():
                    if indexed < len(rows):
                        await self._raise_not_indexed(io, [row.key for row in rows], span)
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
        self, io: Runtime, keys: Sequence[bytes], span: tuple[int, int]
    ) -> None:
        """Raise StorageError if a record is stored and cannot be found; the part is removed."""
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
