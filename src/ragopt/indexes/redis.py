"""Search by dense and sparse vectors and by text in Redis, with its query engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, TypeVar

from ragopt._redis.servers import RedisServers
from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.errors import InvalidInput
from ragopt.filters import Filter
from ragopt.indexes._redis_errors import no_texts
from ragopt.indexes._redis_made import Kind, Wanted
from ragopt.indexes._redis_moving import MovingSchema
from ragopt.indexes._redis_postings import Family
from ragopt.indexes._redis_records import PRECISIONS, Placed, VectorPrecision, Vectors
from ragopt.indexes._redis_schema import Plan, RedisSchema, alias_key, check_name, root_key
from ragopt.indexes._redis_shard import RedisShard, best
from ragopt.indexes._redis_shards import ClusterShards, OneShard, Operation, Shards
from ragopt.indexes._redis_writing import Batch
from ragopt.indexes.base import BaseVectorIndex
from ragopt.text import WeightedTerms
from ragopt.types import (
    Dense,
    Hit,
    IndexStats,
    Metric,
    Record,
    RecordBatch,
    SparseVector,
)

__all__ = ["RedisIndex"]

T = TypeVar("T")

_MOST_SHARDS = 256

# KEYS: that of an alias. ARGV: the name of an index. Another one may have the alias by now.
_TAKE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""


class RedisIndex(BaseVectorIndex):
    """Records in Redis hashes, found by the distance of their vectors.

    The server needs the query engine: Redis 8, Redis Stack, or the module redisearch 2.10. The
    index is made at the first ``add``.

    On a cluster the records are in shards, each on one of the masters. Every search asks all of
    them, and an exact one finds what it would on a single server, in the same order. Where a shard
    cannot be asked, or is being moved to another server, that is an error, and never a part of the
    answer. The servers need the query engine without a search coordinator.

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
    at a time, and an error names the first that is not. Shards are stored to at the same time.

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
        shards: In how many parts a cluster keeps the records; used when the index is made. None for
            one on each master; more of them leave some to move to masters that are added.

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
        url: str | RedisServers,
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
        shards: int | None = None,
    ) -> None:
        super().__init__(dimension, metric=metric)
        _check_options(kind, precision, m, ef_construction, ef_search, shards)
        if not isinstance(url, RedisServers):  # which an alias hands to each of its indexes
            url = RedisServers(url, timeout=timeout, max_connections=max_connections)
        self._servers = url
        self._name = name
        self._prefix = prefix
        self._kind = kind
        self._patience = timeout
        self._vectors = Vectors(self._metric, precision)
        wanted = Wanted(str(self._metric), kind, precision)
        plan = Plan(name, prefix, wanted, m, ef_construction, dimension, timeout, text_search)
        effort = ef_search if kind == "hnsw" else None

        def shard(plan: Plan, number: int, of: int) -> RedisShard:
            schema = MovingSchema(self._servers, plan, number, of)
            return RedisShard(schema, self._vectors, effort, timeout, number=number, shards=of)

        self._shards: Shards
        if self._servers.is_cluster:
            self._shards = ClusterShards(self._servers, plan, shard, shards)
        elif shards is None:
            schema = RedisSchema(self._servers, plan)
            self._shards = OneShard(RedisShard(schema, self._vectors, effort, timeout))
        else:
            raise InvalidInput(
                f"shards={shards} was given for the Redis server at {self._servers.name}.",
                fix="Only an index on a cluster has shards: add ?cluster=true to its URL.",
            )

    def __repr__(self) -> str:
        return (
            f"RedisIndex({self._servers.name!r}, {self._name!r}, "
            f"dimension={self._dimension}, metric={str(self._metric)!r})"
        )

    def drop(self) -> None:
        """Remove the index and its records. A missing one is no error."""
        run(self._drop(SYNC))

    async def adrop(self) -> None:
        """Remove the index and its records. A missing one is no error."""
        await self._drop(ASYNC)

    def alias(self, name: str, /) -> None:
        """Let an alias name this index from now on, whichever it named before.

        Every ``RedisAlias(url, name)`` comes here with its next operation. What has begun on
        another index ends there, so drop that one some time later.

        Args:
            name: The alias, of the characters of names. An index of the same name has nothing to do
                with it.

        Raises:
            InvalidInput: That cannot be a name; or the index is not there, since nothing was added.
        """
        run(self._give(SYNC, name))

    async def aalias(self, name: str, /) -> None:
        """Let an alias name this index from now on; see ``alias``."""
        await self._give(ASYNC, name)

    def unalias(self, name: str, /) -> None:
        """Remove an alias of this index. One of another index stays; a missing one is no error."""
        run(self._take(SYNC, name))

    async def aunalias(self, name: str, /) -> None:
        """Remove an alias of this index; see ``unalias``."""
        await self._take(ASYNC, name)

    async def _give(self, io: Runtime, alias: str) -> None:
        check_name(alias, self._prefix)
        root = root_key(self._prefix, self._name, self._servers.is_cluster)
        (there,) = await self._servers.ask(io, [(root, ("HEXISTS", root, "schema"))])
        if not there:
            raise InvalidInput(
                f"There is no Redis index {self._name!r} yet, which {alias!r} could name.",
                fix="Add its records first.",
            )
        key = alias_key(self._prefix, alias)
        await self._servers.ask(io, [(key, ("SET", key, self._name))])

    async def _take(self, io: Runtime, alias: str) -> None:
        check_name(alias, self._prefix)
        key = alias_key(self._prefix, alias)
        await self._servers.ask(io, [(key, ("EVAL", _TAKE, 1, key, self._name))])

    async def _drop(self, io: Runtime) -> None:
        await self._shards.drop(io)
        self._dimension = self._shards.dimension

    async def _close(self, io: Runtime) -> None:
        await self._servers.close(io)

    async def _each(self, io: Runtime, operation: Operation[T]) -> list[T]:
        """Return the results of an operation on all shards, none where there is no index yet."""

        async def known(io: Runtime, shard: RedisShard) -> T:
            self._dimension = shard.schema.dimension
            return await operation(io, shard)

        return await self._shards.each(io, known)

    async def _stats(self, io: Runtime) -> IndexStats:
        each = await self._each(io, lambda io, shard: shard.stats(io, self._metric))
        records = sum(one.records for one in each)
        return IndexStats(
            records=records,
            dimension=self._dimension,
            metric=self._metric,
            kind=self._kind,
            model=await self._shards.model(io) if each else None,
            bytes=sum(one.bytes for one in each),
            indexed=sum(one.records * one.indexed for one in each) / records if records else 1.0,
            failures=sum(one.failures for one in each),
        )

    async def _version(self, io: Runtime) -> str:
        return ".".join(await self._each(io, lambda io, shard: shard.version(io))) or "empty"

    async def _made_by(self, io: Runtime, model: str | None, replace: bool) -> str | None:
        return await self._shards.made_by(io, model, replace)

    async def _add(self, io: Runtime, records: RecordBatch, vectors: Dense) -> None:
        batch = await io.cpu(Batch.of, records, vectors, self._vectors)
        try:
            await self._shards.add(io, batch)
        finally:
            self._dimension = self._shards.dimension

    async def _delete(self, io: Runtime, where: Filter | None) -> int:
        return sum(await self._each(io, lambda io, shard: shard.delete(io, where)))

    async def _get(self, io: Runtime, ids: Sequence[str], embeddings: bool) -> list[Record | None]:
        records: list[Record | None] = [None] * len(ids)

        async def get(io: Runtime, shard: RedisShard) -> None:
            mine = shard.mine(ids)
            found = await shard.get(io, [ids[row] for row in mine], embeddings)
            for row, record in zip(mine, found, strict=True):
                records[row] = record

        await self._each(io, get)
        return records

    async def _find(
        self, io: Runtime, where: Filter | None, limit: int | None, embeddings: bool
    ) -> list[Record]:
        if limit is not None and limit <= 0:
            return []
        found = await self._each(io, lambda io, shard: shard.find(io, where, limit, embeddings))
        return [record for _, record in _merged(found, itemgetter(0), limit)]

    async def _count(self, io: Runtime, where: Filter | None) -> int:
        return sum(await self._each(io, lambda io, shard: shard.count(io, where)))

    async def _counts(self, io: Runtime, key: str, where: Filter | None) -> list[tuple[Any, int]]:
        return list(chain(*await self._each(io, lambda io, shard: shard.counts(io, key, where))))

    async def _search(
        self, io: Runtime, queries: Dense, k: int | None, *how: Any
    ) -> list[list[Hit]]:
        async def search(io: Runtime, shard: RedisShard) -> list[list[Placed]]:
            self._check_dimension(queries.shape[1], "query")
            return await shard.search(io, self._metric, queries, k, *how)

        return _best(await self._each(io, search), len(queries), k)

    async def _search_sparse(
        self, io: Runtime, queries: Sequence[SparseVector], *how: Any
    ) -> list[list[Hit]]:
        return await self._weigh(io, "s", queries, *how)

    async def _search_terms(
        self, io: Runtime, queries: Sequence[WeightedTerms], *how: Any
    ) -> list[list[Hit]]:
        return await self._weigh(io, "t", queries, *how)

    async def _weigh(
        self,
        io: Runtime,
        family: Family,
        queries: Sequence[SparseVector],
        k: int | None,
        *how: Any,
    ) -> list[list[Hit]]:
        found = await self._each(io, lambda io, shard: shard.weigh(io, family, queries, k, *how))
        return _best(found, len(queries), k)

    async def _frequencies(self, io: Runtime, terms: Sequence[int]) -> tuple[int, list[int]]:
        counted = await self._each(io, lambda io, shard: shard.heaviest.count(io, terms))
        if not self._shards.text:
            raise no_texts(self._name)
        holding = [sum(each) for each in zip(*(numbers for _, numbers in counted), strict=True)]
        return sum(records for records, _ in counted), holding or [0] * len(terms)


def _merged(lists: Sequence[list[T]], key: Callable[[T], Any], limit: int | None) -> list[T]:
    """Return the first of several lists that are in order."""
    return lists[0] if len(lists) == 1 else sorted(chain(*lists), key=key)[:limit]


def _best(found: Sequence[list[list[Placed]]], number: int, k: int | None) -> list[list[Hit]]:
    """Return the best hits of all shards for each query."""
    of_each = zip(*found, strict=True) if found else [()] * number
    return [[hit for *_, hit in _merged(lists, best, k)] for lists in of_each]


def _check_options(
    kind: str, precision: str, m: int, ef_construction: int, ef_search: int, shards: int | None
) -> None:
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
    if shards is not None and not 1 <= shards <= _MOST_SHARDS:
        raise InvalidInput(
            f"A Redis index cannot have {shards} shards.", fix=f"Give 1 to {_MOST_SHARDS}."
        )
