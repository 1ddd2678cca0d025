"""Records read from Redis: by key, in order, and by the distance of their vectors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from ragopt._runtime import Runtime
from ragopt.filters import Filter, compile_filter
from ragopt.indexes._redis_filters import EVERYTHING, Condition
from ragopt.indexes._redis_records import (
    DISTANCE,
    EMBEDDED,
    PLAIN,
    SEQ,
    VECTOR,
    Found,
    Keys,
    Vectors,
    chunks,
    fields_of,
    found,
    record_of,
)
from ragopt.indexes._redis_schema import RedisSchema
from ragopt.types import Record

_PAGE = 500  # records in one reply
_GRAPH = 4_096  # candidates from which on looking at every vector is faster than the graph
_QUERIES = 32  # queries in one round trip, which has to end before the timeout


def names_of(embeddings: bool) -> tuple[str, ...]:
    """Return the fields to read for a record."""
    return (*PLAIN, *EMBEDDED) if embeddings else PLAIN


class RedisReader:
    """Asks an index for records.

    Args:
        schema: The index.
        keys: Its keys.
        vectors: How vectors are stored.
        ef_search: Candidates of a search in the HNSW graph; None for an index without one.
        timeout: Seconds after which nobody waits for an answer.
    """

    def __init__(
        self,
        schema: RedisSchema,
        keys: Keys,
        vectors: Vectors,
        *,
        ef_search: int | None,
        timeout: float,
    ) -> None:
        self._schema = schema
        self._keys = keys
        self._vectors = vectors
        self._ef_search = ef_search
        # The engine returns what it has after this time, as if it were all. By then the client
        # has raised an error, and nobody sees it.
        limit = b"%d" % (int(2_000 * timeout) + 1)
        self._end: tuple[bytes, ...] = (b"TIMEOUT", limit, b"DIALECT", b"2")

    async def condition(self, io: Runtime, where: Filter | None) -> Condition:
        """Return a filter as a query."""
        condition = Condition(where, self._schema.fields)
        if condition.missing and await self._schema.refresh(io):
            condition = Condition(where, self._schema.fields)  # others may have made them
        return condition

    async def existing(self, io: Runtime, ids: Sequence[str]) -> list[bytes]:
        """Return the keys of those records that are there."""
        keys = [self._keys.of(id_) for id_ in ids]
        existing: list[bytes] = []
        for part in chunks(keys, _PAGE):
            there = await self._schema.ask(io, *(("EXISTS", key) for key in part))
            existing += (key for key, is_there in zip(part, there, strict=True) if is_there)
        return existing

    async def read(
        self, io: Runtime, ids: Sequence[str], names: Sequence[str]
    ) -> list[tuple[Record | None, int]]:
        """Return the record with each id, and its place in the order."""
        names = (*names, SEQ)
        read: list[tuple[Record | None, int]] = []
        for part in chunks(ids, _PAGE):
            replies = await self._schema.ask(
                io, *(("HMGET", self._keys.of(id_), *names) for id_ in part)
            )
            for id_, values in zip(part, replies, strict=True):
                fields = fields_of(names, values)
                # A key without a place in the order is no record of ours.
                there = b"seq" in fields and b"metadata" in fields
                record = record_of(id_, fields, self._vectors) if there else None
                read.append((record, int(fields[b"seq"]) if there else 0))
        return read

    async def count(self, io: Runtime, condition: Condition) -> int:
        """Return how many records meet a query."""
        query = "FT.SEARCH", self._schema.index, condition.text or "*", "LIMIT", 0, 0, *self._end
        replies = await self._schema.query(io, [query])
        return int(replies[0][0]) if replies else 0

    def matching(self, condition: Condition, most: int) -> tuple[Any, ...]:
        """Return the command for the places of records that meet a query, up to a number."""
        query = "FT.AGGREGATE", self._schema.index, condition.text or "*"
        return (*query, "LOAD", 1, f"@{SEQ}", "LIMIT", 0, most, *self._end)

    async def pages(
        self, io: Runtime, where: Filter | None, names: Sequence[str], limit: int | None = None
    ) -> AsyncIterator[tuple[int, Record]]:
        """Yield the records that match, in order, each after its place.

        Each query looks at a stretch of the order that holds about a page, so that the whole takes
        a time that grows with the records, and no cursor is open on the server.
        """
        condition = await self.condition(io, where)
        passes = None if where is None else compile_filter(where)
        page = min(_PAGE, limit) if limit is not None and condition.exact else _PAGE
        wanted = ("RETURN", len(names) + 1, *names, SEQ, "SORTBY", SEQ, "LIMIT", 0, page)
        low, high, width, last = 0, 0, 0, 0  # after low, up to high; 0 for no end
        while True:
            stretch = f"@{SEQ}:[({low} {high or '+inf'}]" if low or high else ""
            query = f"{condition.text or ''} {stretch}".strip() or "*"
            commands = [("FT.SEARCH", self._schema.index, query, *wanted, *self._end)]
            replies = await self._schema.query(io, [*commands, ("HGET", self._schema.meta, SEQ)])
            if replies is None:
                return
            (total, *_), last = replies[0], int(replies[1] or 0)
            rows = found(replies[0])
            for key, fields in rows:
                record = record_of(self._keys.id_of(key), fields, self._vectors)
                if passes is None or passes(record.id, record.document_id, record.metadata):
                    yield int(float(fields[b"seq"])), record
            if total > len(rows) and rows:
                # No stretch of a page's width holds more than a page.
                width = max(page, width // 2 if width else (last - low) * page // total)
                low = int(float(rows[-1][1][b"seq"]))
            elif not high:
                return
            else:
                low, width = high, width * (2 if total < page // 2 else 1)
            high = low + width if low + width < last else 0

    async def nearest(
        self,
        io: Runtime,
        blobs: Sequence[bytes],
        number: int,
        condition: Condition,
        names: Sequence[str],
        *,
        every: bool,
    ) -> list[list[Found]]:
        """Return for each query the nearest records, as many as there are up to a number.

        With ``every``, all vectors are looked at that the condition leaves, and the graph is not.
        """

        async def ask(rows: Sequence[int], among: str, how: str) -> list[list[Found]]:
            text = f"{among}=>[KNN {number} @{VECTOR} $q {how} AS {DISTANCE}]"
            search = "FT.SEARCH", self._schema.index, text, "PARAMS", 2, "q"
            replies: list[Any] = []
            for part in chunks(rows, _QUERIES):
                queries = [(*search, blobs[row], *wanted, number, *self._end) for row in part]
                replies += await self._schema.query(io, queries) or [[0]] * len(part)
            return [found(reply) for reply in replies]

        wanted = ("RETURN", len(names) + 1, DISTANCE, *names, "SORTBY", DISTANCE, "LIMIT", 0)
        rows: Sequence[int] = range(len(blobs))
        if self._ef_search is None:
            return await ask(rows, condition.text or "*", "")
        nearest: list[list[Found]] = [[] for _ in rows]
        if not every and number < _GRAPH:
            effort = f"EF_RUNTIME {max(self._ef_search, number)}"
            nearest = await ask(rows, condition.text or "*", effort)
            # What the graph does not lead to, or what the filter left no way to.
            rows = [row for row in rows if len(nearest[row]) < number]
        exact = await ask(rows, condition.text or EVERYTHING, "HYBRID_POLICY ADHOC_BF")
        for row, all_of_them in zip(rows, exact, strict=True):
            nearest[row] = all_of_them
        return nearest
