"""One shard of a Redis index: all of it on a single server, or what one slot of a cluster has.

What an operation does is the same in both; ``RedisIndex`` puts the results of several together.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from ragopt._operators import MISSING
from ragopt._runtime import Runtime
from ragopt.filters import And, F, Filter, Ids, compile_filter
from ragopt.indexes._redis_heaviest import Heaviest
from ragopt.indexes._redis_postings import Family
from ragopt.indexes._redis_reading import RedisReader, names_of
from ragopt.indexes._redis_records import SEQ, Keys, Placed, Vectors, embedding_of, plain_of
from ragopt.indexes._redis_schema import RedisSchema
from ragopt.indexes._redis_writing import RedisWriter
from ragopt.indexes.scores import relevance
from ragopt.types import Dense, Hit, IndexStats, Metric, Record, SparseVector

_GROWTH = 8  # how many more candidates are asked for when too few passed a filter
_MANY = 10_000  # candidates from which on it pays to count the records
_CHECKED = "metadata", "document"  # what a filter looks at
_MEMORY = (
    *("inverted_sz_mb", "vector_index_sz_mb", "doc_table_size_mb", "key_table_size_mb"),
    *("sortable_values_size_mb", "tag_overhead_sz_mb"),
)


def best(hit: Placed) -> tuple[float, int]:
    """Return what hits are sorted by: the best first, equal ones in the order of adding."""
    return hit[0], hit[1]


def _shard_of(id_: str, shards: int) -> int:
    digest = blake2b(id_.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % shards


class RedisShard:
    """The operations on the records of one shard, which has been opened.

    Args:
        schema: Its index of the query engine, and the keys beside it.
        vectors: How vectors are stored.
        ef_search: Candidates of a search in the HNSW graph; None for an index without one.
        timeout: Seconds after which nobody waits for an answer.
        number: Which of the shards it is, from 0.
        shards: How many there are.
    """

    def __init__(
        self,
        schema: RedisSchema,
        vectors: Vectors,
        ef_search: int | None,
        timeout: float,
        *,
        number: int = 0,
        shards: int = 1,
    ) -> None:
        self.schema = schema
        self._number = number
        self._shards = shards
        self._exact = ef_search is None
        self._vectors = vectors
        self._keys = Keys(schema.records)
        self.writer = RedisWriter(schema, self._keys)
        self.reader = RedisReader(schema, self._keys, vectors, ef_search=ef_search, timeout=timeout)
        self.heaviest = Heaviest(schema, self._keys, vectors, self.reader)

    async def search(
        self,
        io: Runtime,
        metric: Metric,
        queries: Dense,
        k: int | None,
        where: Filter | None,
        min_score: float | None,
        embeddings: bool,
    ) -> list[list[Placed]]:
        """Return the nearest records for each query; without places where the graph is asked."""
        condition = await self.reader.condition(io, where)
        passes = None if where is None else compile_filter(where)
        id_of, score_of = self._keys.id_of, self._vectors.score
        packed, _ = self._vectors.pack(queries, "query")
        names = (*names_of(embeddings), *((SEQ,) if self._exact or self._shards > 1 else ()))
        hits: list[list[Placed]] = [[] for _ in packed]
        # One more, where equal scores go by the order of adding: is it as good as the last?
        wanted = (k or 0) + self._exact
        candidates = wanted if k is not None and condition.exact else max(4 * wanted, 256)
        pending = list(range(len(packed)))
        while pending:
            if candidates > _MANY:  # than the server has records, it may be, or returns at once
                candidates = min(candidates, 1 + await self.count(io, None))
            blobs = [packed[row] for row in pending]
            # A range search has to find all, and the graph does not say what it missed.
            nearest = await self.reader.nearest(
                io, blobs, candidates, condition, names, every=k is None
            )
            again = []
            for row, rows in zip(pending, nearest, strict=True):
                relevant = relevance(metric, queries[row])
                passed: list[Placed] = []
                score = float("inf")
                for key, fields in rows:
                    score = score_of(float(fields[b"distance"]))
                    if min_score is not None and score < min_score:
                        break
                    id_, (text, metadata, document_id) = id_of(key), plain_of(fields)
                    if passes is None or passes(id_, document_id, metadata):
                        hit = Hit(id_, score, relevant(score), text, metadata, document_id)
                        if embeddings:
                            hit.embedding = embedding_of(fields, self._vectors)
                        passed.append((-score, int(fields.get(b"seq", 0)), hit))
                beyond = min_score is not None and score < min_score
                if self._exact:
                    passed.sort(key=best)
                enough = k is not None and len(passed) >= k
                if enough and self._exact:  # those beyond may be as good, and have come earlier
                    enough = score < -passed[(k or 0) - 1][0]
                if len(rows) < candidates or beyond or enough:
                    hits[row] = passed[:k]
                else:
                    again.append(row)
            pending, candidates = again, candidates * _GROWTH
        return hits

    async def weigh(
        self, io: Runtime, family: Family, queries: Sequence[SparseVector], *how: Any
    ) -> list[list[Placed]]:
        """Return the records of the highest inner products with each sparse vector."""
        return [await self.heaviest.search(io, family, query, *how) for query in queries]

    def mine(self, ids: Sequence[str]) -> Sequence[int]:
        """Return which of the ids are those of records that this shard has, or would have."""
        if self._shards == 1:
            return range(len(ids))
        owners = (_shard_of(id_, self._shards) for id_ in ids)
        return [row for row, owner in enumerate(owners) if owner == self._number]

    def _among(self, where: Ids) -> list[str]:
        ids = [id_ for id_ in where.values if isinstance(id_, str)]
        return [ids[row] for row in self.mine(ids)]

    async def get(self, io: Runtime, ids: Sequence[str], embeddings: bool) -> list[Record | None]:
        """Return a record, or None, for each id."""
        return [record for record, _ in await self.reader.read(io, ids, names_of(embeddings))]

    async def find(
        self, io: Runtime, where: Filter | None, limit: int | None, embeddings: bool
    ) -> list[tuple[int, Record]]:
        """Return the records that match in the order they were added, each after its place."""
        names = names_of(embeddings)
        if isinstance(where, Ids):
            read = await self.reader.read(io, self._among(where), names)
            placed = [(place, record) for record, place in read if record is not None]
            return sorted(placed, key=lambda pair: pair[0])[:limit]
        records: dict[str, tuple[int, Record]] = {}  # one that is replaced meanwhile comes twice
        async for place, record in self.reader.pages(io, where, names, limit):
            records[record.id] = place, record
            if len(records) == limit:
                break
        return list(records.values())

    async def count(self, io: Runtime, where: Filter | None) -> int:
        """Return how many records match."""
        if isinstance(where, Ids):
            return len(await self.reader.existing(io, self._among(where)))
        condition = await self.reader.condition(io, where)
        if condition.exact:
            return await self.reader.count(io, condition)
        pages = self.reader.pages(io, where, _CHECKED)
        return len({record.id async for _, record in pages})

    async def counts(self, io: Runtime, key: str, where: Filter | None) -> list[tuple[Any, int]]:
        """Return what the records that match have under a metadata key.

        The engine has digests of the values alone, so the metadata are read of those that have any.
        """
        if isinstance(where, Ids):
            read = await self.reader.read(io, self._among(where), _CHECKED)
            found = [record for record, _ in read if record is not None]
            values = {record.id: record.metadata.get(key, MISSING) for record in found}
        else:
            there = F(key).exists()
            pages = self.reader.pages(io, there if where is None else And((where, there)), _CHECKED)
            # One that is replaced meanwhile comes twice.
            values = {record.id: record.metadata[key] async for _, record in pages}
        return [(value, 1) for value in values.values()]

    async def delete(self, io: Runtime, where: Filter | None) -> int:
        """Remove the records that match, or all; return how many there were."""
        if where is None:
            return await self.schema.clear(io)
        if isinstance(where, Ids):
            keys = await self.reader.existing(io, self._among(where))
        else:
            pages = self.reader.pages(io, where, _CHECKED)
            keys = [self._keys.of(record.id) async for _, record in pages]
        return await self.writer.remove(io, keys)

    async def version(self, io: Runtime) -> str:
        """Return a token that every change replaces."""
        (token,) = await self.schema.ask(io, ("HGET", self.schema.meta, "version"))
        return token.decode() if token else "empty"

    async def stats(self, io: Runtime, metric: Metric) -> IndexStats:
        """Return what the server says about the index."""
        assert self.schema.made is not None
        info = await self.schema.info(io)
        postings = "MEMORY", "USAGE", self.schema.postings, "SAMPLES", 1_000
        (size,) = await self.schema.ask(io, postings)
        megabytes = sum(float(info.get(part.encode(), 0)) for part in _MEMORY)
        return IndexStats(
            records=int(info[b"num_docs"]),
            dimension=self.schema.made.dimension,
            metric=metric,
            kind=self.schema.made.kind,
            bytes=int(megabytes * 2**20) + int(size or 0),
            indexed=float(info.get(b"percent_indexed", 1)),
            failures=int(info.get(b"hash_indexing_failures", 0)),
        )
