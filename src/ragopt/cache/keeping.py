"""Making a value and keeping it: when to store, when not to, and when to make it anew."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import nullcontext
from time import monotonic, perf_counter
from typing import Any, NamedTuple

from ragopt._runtime import Runtime
from ragopt.cache.flight import Abandoned
from ragopt.cache.freshness import Freshness
from ragopt.cache.lineage import Lineage, Origin, tags_of
from ragopt.cache.packing import Packed, pack
from ragopt.cache.tiers import TieredCache
from ragopt.codecs import stamp_of
from ragopt.sources import Sources, collect

logger = logging.getLogger("ragopt.cache")

Documents = Callable[[Any], Iterable[str]]
"""Names the documents that a value was made from."""

_REST = 1.0  # seconds before a refresh that another process does is thought of again
_MOST_RESTING = 10_000
_SHORTEST = 0.001  # seconds


class Recipe(NamedTuple):
    """How a value is made.

    Args:
        compute: Makes it.
        documents: Names what it was made from, where that is not noted by itself.
    """

    compute: Callable[[], Awaitable[Any]]
    documents: Documents | None = None


class Keeper:
    """Makes the values of one kind and keeps them.

    Args:
        kind: Name in statistics.
        cache: Where they are kept.
        freshness: For how long.
        lineage: Follows what they are made from; None for nobody.
        encode: Turns a value into bytes; None if it has no such form.
    """

    def __init__(
        self,
        kind: str,
        cache: TieredCache,
        freshness: Freshness,
        lineage: Lineage | None,
        encode: Callable[[Any], bytes | None],
    ) -> None:
        self._kind = kind
        self._cache = cache
        self._freshness = freshness
        self._lineage = lineage
        self._body = encode
        self._resting: dict[bytes, float] = {}

    async def make(self, io: Runtime, recipe: Recipe) -> tuple[Any, Packed | None]:
        """Compute a value; also return what is to be stored, or None if it must not be kept."""
        lineage = self._lineage
        begun = None if lineage is None else await lineage.position(io)
        start = perf_counter()
        with nullcontext(Sources()) if lineage is None else collect() as sources:
            value = await recipe.compute()
        cost = perf_counter() - start
        body = self._body(value)
        origin: Origin | None = None
        if lineage is not None:
            if recipe.documents is not None:
                sources.documents.update(recipe.documents(value))
            if begun is None:  # the log is out of reach, so nothing could ever tell if it is dead
                return value, None
            tags = sources.tags.union(tags_of(sources.documents))
            seq = begun.seq if sources.as_of is None else min(begun.seq, sources.as_of)
            origin = Origin(begun.log, seq, tuple(sorted(tags)))
        if body is None:
            return value, None
        return value, self.fresh(body, cost, origin)

    def fresh(self, body: bytes, cost: float = 0.0, origin: Origin | None = None) -> Packed:
        """Return an encoded value whose time begins now."""
        return Packed(body, self._cache.now() + self._freshness.span(), cost, origin)

    def _ttl(self, packed: Packed) -> float | None:
        # A time so short that it is over by now must not be taken for a wrong one.
        return self._freshness.kept(max(packed.fresh_until - self._cache.now(), _SHORTEST))

    async def put(
        self,
        io: Runtime,
        key: bytes,
        packed: Packed,
        trips: tuple[int, ...],
        token: bytes | None,
    ) -> bool:
        """Store a value in all layers; with a token, only if its claim still holds."""
        data, ttl = pack(packed), self._ttl(packed)
        store, since = self._cache.coordinator, self._cache.changes
        depths = range(len(self._cache.layers))
        if store is not None and token is not None:
            self._cache.claims.let_go(token)
            start = perf_counter()
            done = await self._cache.attempt(
                io, store.commit, store.acommit, key, token, data, ttl=ttl
            )
            if done is not True:
                # Deleted meanwhile, or another's value is there, or nobody knows.
                self._cache.stats.count(self._kind, "superseded")
                return False
            self._cache.stats.wrote(store.name, 1, perf_counter() - start)
            depths = depths[:-1]
        await self._cache.write(io, depths, {key: data}, ttl, trips=trips, since=since)
        return True

    async def put_many(self, io: Runtime, items: dict[bytes, Packed]) -> None:
        """Store values that nobody claimed, as long as the one that is fresh the longest."""
        if items:
            ttl = self._ttl(max(items.values(), key=lambda packed: packed.fresh_until))
            data = {key: pack(packed) for key, packed in items.items()}
            await io.call(self._cache.set_many, self._cache.aset_many, data, ttl=ttl)

    async def slide(self, io: Runtime, key: bytes, packed: Packed, left: float) -> None:
        """Start the time of a value again, unless that was done a moment ago."""
        span = self._freshness.span()
        if left < 0.9 * span:
            await self._replace(io, key, packed._replace(fresh_until=self._cache.now() + span))

    async def _replace(self, io: Runtime, key: bytes, packed: Packed) -> None:
        """Put a value in the place of what the last layer holds, if it holds anything."""
        store = self._cache.coordinator
        if store is None:
            return
        found = await self._cache.attempt(io, store.get_many, store.aget_many, [key])
        if isinstance(found, list) and found[0] is not None:
            await self.put(io, key, packed, self._cache.trips, stamp_of(found[0]))

    def start_refresh(self, io: Runtime, key: bytes, recipe: Recipe) -> None:
        """Make a value anew in the background, once in this process and once in all."""
        mark = key + b"~"
        if self._resting.get(key, 0.0) > monotonic() or self._cache.flights.under_way(mark):
            return

        async def refresh() -> None:
            store = self._cache.coordinator
            token = None if store is None else await self._cache.claims.take(io, store, mark)
            if store is None or token is None:
                if len(self._resting) > _MOST_RESTING:
                    self._resting.clear()
                self._resting[key] = monotonic() + _REST
                return
            try:
                _, packed = await self.make(io, recipe)
                if packed is not None:
                    await self._replace(io, key, packed)
                    await self._cache.replaced(io, [key])
                    self._cache.stats.count(self._kind, "refresh")
            finally:
                await self._cache.claims.give_up(io, store, mark, token)

        async def background() -> None:
            try:
                await self._cache.flights.share(io, mark, refresh)
            except Abandoned:
                return
            except Exception as error:  # noqa: BLE001 - nobody waits who could be told
                self._cache.stats.count(self._kind, "refresh_error")
                logger.warning("A cached %s could not be refreshed: %s", self._kind, error)

        io.spawn(background)
