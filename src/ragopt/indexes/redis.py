"""Search by dense and sparse vectors and by text in Redis, with its query engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from ragopt._redis.servers import RedisServers
from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.errors import InvalidInput
from ragopt.filters import Filter, Ids, compile_filter
from ragopt.indexes._redis_errors import no_cluster, no_texts
from ragopt.indexes._redis_heaviest import Heaviest
from ragopt.indexes._redis_made import Kind
from ragopt.indexes._redis_postings import Family
from ragopt.indexes._redis_reading import RedisReader, names_of
from ragopt.indexes._redis_records import (
    PRECISIONS,
    SEQ,
    Keys,
    VectorPrecision,
    Vectors,
    embedding_of,
    plain_of,
)
from ragopt.indexes._redis_schema import RedisSchema
from ragopt.indexes._redis_writing import RedisWriter
from ragopt.indexes.base import BaseVectorIndex
from ragopt.indexes.scores import relevance
from ragopt.text import WeightedTerms
from ragopt.types import Dense, Hit, Metric, Record, RecordBatch, SparseVector

__all__ = ["RedisIndex", "RedisIndexInfo"]

_RANK = itemgetter(0, 1)
_GROWTH = 8  # how many more candidates are asked for when too few passed a filter
_CHECKED = "metadata", "document"  # what a filter looks at
_MEMORY = (
    *("inverted_sz_mb", "vector_index_sz_mb", "doc_table_size_mb", "key_table_size_mb"),
    *("sortable_values_size_mb", "tag_overhead_sz_mb"),
)


@dataclass(frozen=True, slots=True)
class RedisIndexInfo:
    """What a Redis server says about an index.

    Args:
        records: How many records can be found.
        bytes: Memory of the index, postings included, without the records themselves.
        failures: Records that the engine could not index.
        indexed: Share of the records that are in the index, from 0 to 1.
    """

    records: int
    bytes: int
    failures: int
    indexed: float


class RedisIndex(BaseVectorIndex):
    """Records in Redis hashes, found by the distance of their vectors.

    The server needs the query engine: Redis 8, Redis Stack, or the module redisearch 2.10. The
    index is made at the first ``add``. A cluster is refused, since a search would see one server's
    part of it; a Sentinel's master will do.

    With ``kind="hnsw"`` a search is approximate. When it finds fewer than ``k`` records, it is made
    again over every vector that the filter leaves, and that is exact. So is a range search, and
    every search with ``kind="flat"``: their time grows with the records.

    A filter is checked by Redis and again on what it returns. The order of strings,
    ``text_match``, ``like``, and numbers from 2**53 on are decided in Python over the records that
    the rest of the filter leaves.

    Sparse vectors, and with ``text_search`` the terms of texts, are in an inverted index beside
    that of the query engine. Its searches are exact, and take a time that grows with the records
    that hold a token of the query. Indices go up to 2**32 - 1.

    A full server has to refuse (``maxmemory-policy noeviction``, its default): with another policy
    it would drop records, which no search would miss.

    A batch of up to 100 records is stored as a whole or not at all. Of a larger one, 100 are stored
    at a time, and an error names the first that is not.

    Args:
        url: See ``RedisStore``; the database is 0.
        name: Name of the index: letters, digits, ``_``, ``.`` and ``-``.
        dimension: Length of the vectors; None to take it from the index or the first record.
        metric: ``cosine``, ``ip`` or ``l2``.
        kind: ``"hnsw"`` for approximate search, ``"flat"`` for exact search.
        m: Links of a node of the HNSW graph; used when the index is made.
        ef_construction: Candidates while the graph is built; used when the index is made.
        ef_search: Candidates of a search, at least ``k``: more find more and take longer.
        precision: ``float32``, or half of the memory: ``float16`` (numbers up to 65504) or
            ``bfloat16``.
        timeout: Seconds to wait for other searches on the event loop, for a connection, and for
            each answer.
        max_connections: Bound on the connections of each pool.
        prefix: What the keys of the index begin with; several indexes may share it.
        text_search: Whether texts can be searched, with ``by="text"``; used when the index is made.

    Raises:
        MissingDependency: The redis package is not installed.
        InvalidInput: The URL or the name cannot be used, or an option is out of its range. From
            the first operation: the index has another metric, kind or precision.
        DimensionMismatch: From the first operation: the index has another dimension.
        BackendUnavailable: From every operation: the server could not be reached, or did not
            answer in time.
        StorageError: From every operation: the server refused it. The sentence says why.
    """

    _keeps_multi = True

    def __init__(
        self,
        url: str,
        name: str,
        dimension: int | None = None,
        *,
        metric: Metric | str = Metric.COSINE,
        kind: Kind = "hnsw",
        m: int = 16,
        ef_construction: int = 200,
        ef_search: int = 100,
        precision: VectorPrecision = "float32",
        timeout: float = 5.0,
        max_connections: int = 64,
        prefix: str = "ragopt:",
        text_search: bool = False,
    ) -> None:
        super().__init__(dimension, metric=metric)
        _check_options(kind, precision, m, ef_construction, ef_search)
        self._servers = RedisServers(url, timeout=timeout, max_connections=max_connections)
        if self._servers.is_cluster:
            raise no_cluster(self._servers.name)
        self._schema = RedisSchema(
            self._servers,
            name,
            prefix,
            metric=self._metric,
            kind=kind,
            m=m,
            ef_construction=ef_construction,
            precision=precision,
            dimension=dimension,
            timeout=timeout,
            text=text_search,
        )
        self._exact = kind == "flat"
        self._patience = timeout
        self._keys = Keys(self._schema.records)
        self._vectors = Vectors(self._metric, precision)
        self._writer = RedisWriter(self._schema, self._keys, self._vectors)
        self._reader = RedisReader(
            self._schema,
            self._keys,
            self._vectors,
            ef_search=ef_search if kind == "hnsw" else None,
            timeout=timeout,
        )
        self._heaviest = Heaviest(self._schema, self._keys, self._vectors, self._reader)

    def __repr__(self) -> str:
        return (
            f"RedisIndex({self._servers.name!r}, {self._schema.name!r}, "
            f"dimension={self._dimension}, metric={str(self._metric)!r})"
        )

    def drop(self) -> None:
        """Remove the index and its records. A missing one is no error."""
        run(self._drop(SYNC))

    async def adrop(self) -> None:
        """Remove the index and its records. A missing one is no error."""
        await self._drop(ASYNC)

    def info(self) -> RedisIndexInfo:
        """Return what the server says about the index."""
        return run(self._info(SYNC))

    async def ainfo(self) -> RedisIndexInfo:
        """Return what the server says about the index."""
        return await self._info(ASYNC)

    async def _drop(self, io: Runtime) -> None:
        await self._schema.drop(io)
        self._dimension = self._schema.dimension

    async def _info(self, io: Runtime) -> RedisIndexInfo:
        if not await self._open(io):
            return RedisIndexInfo(0, 0, 0, 1.0)
        info = await self._schema.info(io)
        postings = "MEMORY", "USAGE", self._schema.postings, "SAMPLES", 1_000
        (size,) = await self._schema.ask(io, postings)
        megabytes = sum(float(info.get(part.encode(), 0)) for part in _MEMORY)
        return RedisIndexInfo(
            records=int(info[b"num_docs"]),
            bytes=int(megabytes * 2**20) + int(size or 0),
            failures=int(info.get(b"hash_indexing_failures", 0)),
            indexed=float(info.get(b"percent_indexed", 1)),
        )

    async def _close(self, io: Runtime) -> None:
        await self._servers.close(io)

    async def _version(self, io: Runtime) -> str:
        await self._open(io)
        (token,) = await self._schema.ask(io, ("HGET", self._schema.meta, "version"))
        return token.decode() if token else "empty"

    async def _made_by(self, io: Runtime, model: str | None, replace: bool) -> str | None:
        return await self._schema.made_by(io, model, replace) if await self._open(io) else None

    async def _open(self, io: Runtime) -> bool:
        """Learn what the index is, at the first use; False if there is none yet."""
        there = await self._schema.opened(io)
        self._dimension = self._schema.dimension
        return there

    async def _add(self, io: Runtime, records: RecordBatch, vectors: Dense) -> None:
        try:
            await self._writer.add(io, records, vectors)
        finally:
            self._dimension = self._schema.dimension

    async def _delete(self, io: Runtime, where: Filter | None) -> int:
        if not await self._open(io):
            return 0
        if where is None:
            return await self._schema.clear(io)
        if isinstance(where, Ids):
            keys = await self._reader.existing(io, where)
        else:
            pages = self._reader.pages(io, where, _CHECKED)
            keys = [self._keys.of(record.id) async for record in pages]
        return await self._writer.remove(io, keys)

    async def _get(self, io: Runtime, ids: Sequence[str], embeddings: bool) -> list[Record | None]:
        if not await self._open(io):
            return [None] * len(ids)
        return [record for record, _ in await self._reader.read(io, ids, names_of(embeddings))]

    async def _find(
        self, io: Runtime, where: Filter | None, limit: int | None, embeddings: bool
    ) -> list[Record]:
        names = names_of(embeddings)
        if (limit is not None and limit <= 0) or not await self._open(io):
            return []
        if isinstance(where, Ids):
            ids = [id_ for id_ in where.values if isinstance(id_, str)]
            read = sorted(await self._reader.read(io, ids, names), key=lambda pair: pair[1])
            return [record for record, _ in read if record is not None][:limit]
        records: dict[str, Record] = {}  # one that is replaced meanwhile comes twice
        async for record in self._reader.pages(io, where, names, limit):
            records[record.id] = record
            if len(records) == limit:
                break
        return list(records.values())

    async def _count(self, io: Runtime, where: Filter | None) -> int:
        if not await self._open(io):
            return 0
        if isinstance(where, Ids):
            return len(await self._reader.existing(io, where))
        condition = await self._reader.condition(io, where)
        if condition.exact:
            return await self._reader.count(io, condition)
        return len({record.id async for record in self._reader.pages(io, where, _CHECKED)})

    async def _search(
        self,
        io: Runtime,
        queries: Dense,
        k: int | None,
        where: Filter | None,
        min_score: float | None,
        embeddings: bool,
    ) -> list[list[Hit]]:
        if not await self._open(io):
            return [[] for _ in queries]
        self._check_dimension(queries.shape[1], "query")
        condition = await self._reader.condition(io, where)
        passes = None if where is None else compile_filter(where)
        id_of, score_of = self._keys.id_of, self._vectors.score
        packed, _ = self._vectors.pack(queries, "query")
        names = (*names_of(embeddings), *((SEQ,) if self._exact else ()))
        hits: list[list[Hit]] = [[] for _ in packed]
        # One more, where equal scores go by the order of adding: is it as good as the last?
        wanted = (k or 0) + self._exact
        candidates = wanted if k is not None and condition.exact else max(4 * wanted, 256)
        pending = list(range(len(packed)))
        while pending:
            blobs = [packed[row] for row in pending]
            # A range search has to find all, and the graph does not say what it missed.
            nearest = await self._reader.nearest(
                io, blobs, candidates, condition, names, every=k is None
            )
            again = []
            for row, rows in zip(pending, nearest, strict=True):
                relevant = relevance(self._metric, queries[row])
                passed: list[tuple[float, int, Hit]] = []
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
                    passed.sort(key=_RANK)
                enough = k is not None and len(passed) >= k
                if enough and self._exact:  # those beyond may be as good, and have come earlier
                    enough = score < -passed[(k or 0) - 1][0]
                if len(rows) < candidates or beyond or enough:
                    hits[row] = [hit for *_, hit in passed[:k]]
                else:
                    again.append(row)
            pending, candidates = again, candidates * _GROWTH
        return hits

    async def _search_sparse(
        self, io: Runtime, queries: Sequence[SparseVector], *how: Any
    ) -> list[list[Hit]]:
        return await self._weigh(io, "s", queries, *how)

    async def _search_terms(
        self, io: Runtime, queries: Sequence[WeightedTerms], *how: Any
    ) -> list[list[Hit]]:
        return await self._weigh(io, "t", queries, *how)

    async def _weigh(
        self, io: Runtime, family: Family, queries: Sequence[SparseVector], *how: Any
    ) -> list[list[Hit]]:
        if not await self._open(io):
            return [[] for _ in queries]
        return [await self._heaviest.search(io, family, query, *how) for query in queries]

    async def _frequencies(self, io: Runtime, terms: Sequence[int]) -> tuple[int, list[int]]:
        there = await self._open(io)
        if not self._schema.text:
            raise no_texts(self._schema.name)
        return await self._heaviest.count(io, terms) if there else (0, [0] * len(terms))


def _check_options(kind: str, precision: str, m: int, ef_construction: int, ef_search: int) -> None:
    if kind not in ("hnsw", "flat"):
        raise InvalidInput(f"{kind!r} is not a kind of index.", fix='Use "hnsw" or "flat".')
    if precision not in PRECISIONS:
        raise InvalidInput(
            f"{precision!r} is not a precision.", fix=f"Use one of {', '.join(PRECISIONS)}."
        )
    if not (2 <= m <= 512 and 1 <= ef_construction <= 4096 and 1 <= ef_search <= 4096):
        raise InvalidInput(
            f"An HNSW index was given m={m}, ef_construction={ef_construction} and "
            f"ef_search={ef_search}.",
            fix="Give m from 2 to 512, and the other two from 1 to 4096.",
        )
