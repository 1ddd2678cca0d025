"""Records stored in Redis: in parts, each of them as a whole."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from ragopt._redis.connections import packed
from ragopt._runtime import Runtime
from ragopt.errors import StorageError
from ragopt.indexes._redis_errors import is_missing
from ragopt.indexes._redis_postings import APPEND, pack_terms, postings, scripts, terms_of
from ragopt.indexes._redis_records import SEQ, TERMS, Keys, Row, Vectors, chunks, rows_of
from ragopt.indexes._redis_schema import TRIES, RedisSchema
from ragopt.types import Dense, RecordBatch

_PART = 100  # records in one transaction: others wait for it, and each goes through the graph


class Batch(NamedTuple):
    """Records that are ready to be stored, but for their places in the order.

    Args:
        ids: Their ids.
        rows: The records.
        fields: Their NUMERIC fields.
        dimension: Length of their vectors.
    """

    ids: Sequence[str]
    rows: Sequence[Row]
    fields: frozenset[str]
    dimension: int

    @classmethod
    def of(cls, records: RecordBatch, dense: Dense, vectors: Vectors) -> Batch:
        """Encode records that have been checked."""
        rows = rows_of(records, *vectors.pack(dense, "record"))
        fields = frozenset[str]().union(*(row.numbers for row in rows))
        return cls(records.ids, rows, fields, dense.shape[1])

    def not_stored(self, error: StorageError, stored: Collection[int]) -> StorageError:
        """Return an error that says as well which records were not stored.

        Args:
            error: What happened.
            stored: The rows that were.
        """
        every = range(len(self.rows))
        # All, if it is not even known that they are where they will be looked for.
        missing = [row for row in every if row not in stored] or list(every)
        first = repr(self.ids[missing[0]])
        if missing[0] + len(missing) == len(self.rows):  # all from there on
            which, those = f"the {len(missing)} from {first} on", "those"
        else:
            which, those = f"{len(missing)}, the first of them {first},", "the batch"
        return type(error)(
            f"{error.problem} Of {len(self.rows)} records {which} were not stored, or it is not "
            "known that they were.",
            fix=f"{error.fix} Then add {those} again.",
        )


class RedisWriter:
    """Adds records to an index and removes them.

    Args:
        schema: The index.
        keys: Its keys.
    """

    def __init__(self, schema: RedisSchema, keys: Keys) -> None:
        self._schema = schema
        self._keys = keys
        self._forgotten = scripts(schema.block).forget

    async def store(
        self, io: Runtime, batch: Batch, rows: Sequence[int], first: int, stored: set[int]
    ) -> None:
        """Store some records of a batch.

        Args:
            io: The colour.
            batch: The batch.
            rows: Which of its records, in order.
            first: The place of its first record.
            stored: Where those rows are noted that have been stored.
        """
        for part in chunks(rows, _PART):
            await self._store(io, batch, part, first)
            stored.update(part)

    async def remove(self, io: Runtime, keys: Sequence[bytes]) -> int:
        """Remove records; return how many were there."""
        removed = 0
        for part in chunks(keys, _PART):
            *_, (gone, _) = await self._schema.ask(
                io, ("MULTI",), self._forget(part), self._schema.change(), ("EXEC",)
            )
            removed += int(gone)
        return removed

    def _forget(self, keys: Sequence[bytes]) -> tuple[Any, ...]:
        """Return the command that removes records and their postings."""
        return "EVAL", self._forgotten, 1 + len(keys), self._schema.postings, *keys

    def _commands(self, rows: Sequence[Row], places: Sequence[int], text: bool) -> list[bytes]:
        """Return what stores records: as it is sent, since making that takes a while."""
        words = [[*row.words, SEQ, place] for row, place in zip(rows, places, strict=True)]
        block = self._schema.block
        entries = postings("s", places, [row.sparse for row in rows], block)
        if text:
            terms = [terms_of(row.text) for row in rows]
            entries += postings("t", places, terms, block)
            for each, vector in zip(words, terms, strict=True):
                each.extend((TERMS, pack_terms(vector)))
        for row, place in zip(rows, places, strict=True):
            if text or row.sparse is not None:
                entries += b"n%d" % place, row.end
        keys = [self._keys.prefix + row.end for row in rows]
        # Removed first, since fields and postings of the old records would stay.
        commands = [self._forget(keys)]
        commands += (("HSET", key, *each) for key, each in zip(keys, words, strict=True))
        if entries:
            commands.append(("EVAL", APPEND, 1, self._schema.postings, *entries))
        return [packed(command) for command in commands]

    async def _store(self, io: Runtime, batch: Batch, part: Sequence[int], first: int) -> None:
        """Store some records at once, and see to it that they can be found."""
        rows, places = [batch.rows[row] for row in part], [first + row for row in part]
        span = places[0], places[-1]
        for _ in range(TRIES):
            made = self._schema.made
            commands = await io.cpu(self._commands, rows, places, self._schema.text)
            try:
                *_, outcomes, (indexed, *_), schema = await self._schema.ask(
                    io,
                    ("MULTI",),
                    *commands,
                    *self._schema.changes(span[1]),
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
                        await self._raise_not_indexed(
                            io, [self._keys.prefix + row.end for row in rows], span
                        )
                    return
            # Another process removed the index, or made it anew, perhaps of another shape.
            await self._schema.prepare(io, batch.dimension, batch.fields, again=True)
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
