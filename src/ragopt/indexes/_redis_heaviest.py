"""The records of the highest inner products with a sparse vector, in Redis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ragopt._runtime import Runtime
from ragopt.filters import Filter, compile_filter
from ragopt.indexes._redis_postings import (
    EVERY,
    READ,
    Family,
    Places,
    ranked,
    scores,
    scripts,
)
from ragopt.indexes._redis_reading import RedisReader, names_of
from ragopt.indexes._redis_records import (
    SEQ,
    Keys,
    Placed,
    Vectors,
    embedding_of,
    fields_of,
    plain_of,
)
from ragopt.indexes._redis_schema import TRIES, RedisSchema
from ragopt.indexes.scores import sparse_relevance
from ragopt.types import Dense, Hit, SparseVector

_PAGE = 500  # records that are read at once
_FEW = 2_000  # records that match a filter, above which looking at the heaviest is faster
_LARGE = 200_000  # postings whose scores would keep an event loop too long


class Heaviest:
    """Searches the postings of an index.

    The postings of a query's tokens are fetched and added up here. What was replaced or removed
    before its record could be read makes the search begin again.

    Args:
        schema: The index.
        keys: Its keys.
        vectors: How vectors are stored.
        reader: Reads its records.
    """

    def __init__(
        self, schema: RedisSchema, keys: Keys, vectors: Vectors, reader: RedisReader
    ) -> None:
        self._schema = schema
        self._keys = keys
        self._vectors = vectors
        self._reader = reader
        self._block = schema.block
        self._scripts = scripts(schema.block)

    async def search(
        self,
        io: Runtime,
        family: Family,
        query: SparseVector,
        k: int | None,
        where: Filter | None,
        min_score: float | None,
        embeddings: bool,
    ) -> list[Placed]:
        """Return the best hits, equal ones in the order of adding."""
        for left in reversed(range(TRIES)):
            places, products, sure = await self._products(io, family, query, where)
            if min_score is not None:
                above = products.astype(np.float64) >= min_score
                places, products = places[above], products[above]
            page = min(_PAGE if k is None else k if sure else max(4 * k, 64), _PAGE)
            hits, moved = await self._hits(io, places, products, page, k, where, embeddings)
            if not moved or not left:
                break
        relevant = sparse_relevance(query)
        for *_, hit in hits:
            hit.relevance = relevant(hit.score)
        return hits

    async def count(self, io: Runtime, terms: Sequence[int]) -> tuple[int, list[int]]:
        """Return the number of records, and how many of them hold each term."""
        (numbers,) = await self._schema.ask(
            io, self._asked(self._scripts.tally, "t", [*terms, EVERY])
        )
        *holding, records = map(int, numbers)
        return records, holding

    def _asked(self, script: str, family: Family, tokens: Sequence[int]) -> tuple[Any, ...]:
        keys = self._schema.postings, self._schema.meta
        return "EVAL", script, 2, *keys, *(f"{family}{token}" for token in tokens)

    async def _products(
        self, io: Runtime, family: Family, query: SparseVector, where: Filter | None
    ) -> tuple[Places, Dense, bool]:
        """Return the inner products above 0, and whether all of them pass the filter."""
        fetch = self._asked(self._scripts.fetch, family, query.indices.tolist())
        among, sure = None, where is None
        if where is None:
            (found,) = await self._schema.ask(io, fetch)
        else:
            condition = await self._reader.condition(io, where)
            asked = self._reader.matching(condition, _FEW + 1)
            # At one moment, or a record that is replaced in between would be in neither.
            commands = ("MULTI",), asked, fetch, ("EXEC",)
            *_, replies = await self._schema.ask(io, *commands)
            if any(isinstance(reply, Exception) for reply in replies):
                # By themselves they say what is wrong, or find an index that is made again.
                replies = await self._schema.query(io, [asked, fetch])
                if replies is None:
                    return *scores(query, [[]] * len(query)), True
            matching, found = replies
            if len(matching) <= _FEW + 1:  # the first is no record
                among = np.array([int(float(place)) for _, place in matching[1:]], np.int64)
                sure = condition.exact
        if sum(len(entries) for blocks in found for entries in blocks[1::2]) > 6 * _LARGE:
            places, products = await io.cpu(scores, query, found, self._block)
        else:
            places, products = scores(query, found, self._block)
        if among is not None:
            of_those = np.isin(places, among)
            places, products = places[of_those], products[of_those]
        return places, products, sure

    async def _hits(
        self,
        io: Runtime,
        places: Places,
        products: Dense,
        page: int,
        k: int | None,
        where: Filter | None,
        embeddings: bool,
    ) -> tuple[list[Placed], bool]:
        """Read records from the heaviest on; return also whether one was not there any more."""
        passes = None if where is None else compile_filter(where)
        hits: list[Placed] = []
        moved = False
        for top, heights in ranked(places, products, page):
            pairs = list(zip(top.tolist(), heights.tolist(), strict=True))
            while pairs:
                part, pairs, page = pairs[:page], pairs[page:], min(2 * page, _PAGE)
                read = await self._at(io, [place for place, _ in part], names_of(embeddings))
                for (place, score), row in zip(part, read, strict=True):
                    if row is None:
                        moved = True
                        continue
                    id_, fields = row
                    # One that somebody else removed or replaced has left its postings behind.
                    if fields.get(b"seq") != b"%d" % place:
                        continue
                    text, metadata, document_id = plain_of(fields)
                    if passes is None or passes(id_, document_id, metadata):
                        hit = Hit(id_, score, 0.0, text, metadata, document_id)
                        if embeddings:
                            hit.embedding = embedding_of(fields, self._vectors)
                        hits.append((-score, place, hit))
                        if len(hits) == k:
                            return hits, moved
        return hits, moved

    async def _at(
        self, io: Runtime, places: Sequence[int], names: Sequence[str]
    ) -> list[tuple[str, dict[bytes, bytes]] | None]:
        """Return the ids and the fields of the records with these places; None if it is gone."""
        names = (*names, SEQ)
        words = self._schema.postings, self._schema.records, len(names), *names, *places
        (rows,) = await self._schema.ask(io, ("EVAL", READ, 1, *words))
        return [row and (self._keys.id_of(row[0]), fields_of(names, row[1])) for row in rows]
