"""JSON-like values under structured keys: what answers and search results have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum
from time import perf_counter
from typing import Any, Final, Literal, NamedTuple

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.cache.flight import Abandoned
from ragopt.cache.freshness import Freshness, TimeToLive
from ragopt.cache.keeping import Documents, Keeper, Recipe
from ragopt.cache.lineage import Lineage
from ragopt.cache.packing import Packed, pack, unpack
from ragopt.cache.tiers import TieredCache
from ragopt.codecs import decode_value, encode_value
from ragopt.errors import CorruptData, InvalidInput
from ragopt.keys import KeySpace
from ragopt.protocols import Entry, KVStore
from ragopt.sources import used


class _Missing(Enum):
    MISSING = "MISSING"

    def __bool__(self) -> Literal[False]:
        return False


MISSING: Final = _Missing.MISSING
"""What a look-up returns when there is nothing: None, 0, "" and [] are values."""

# What a decoder may raise when it is given something else than it expects.
_UNREADABLE = (CorruptData, KeyError, TypeError, ValueError, AttributeError, IndexError)


def _as_it_is(value: Any) -> Any:
    return value


class _Found(NamedTuple):
    """What a look-up brought: a value with the seconds it has left, or one that is no good."""

    value: Any = MISSING
    packed: Packed | None = None
    stored: bytes | None = None


class ValueCache:
    """A cache of values of one kind, which have a JSON-like form.

    Args:
        kind: Name in keys and statistics.
        cache: A cache or a store; one in memory of its own if None.
        ttl: Seconds that a value is kept, None until it is evicted, or a ``Freshness``.
        settings: Whatever all values depend on; part of every key.
        encode: Turns a value into its JSON-like form, or raises InvalidInput if it has none.
        decode: Turns that form back into the value, or raises if it is no such form.
        lineage: Follows the documents that a value was made from: see ``get_or_compute``.
        namespace: Separates applications which share a store.
        tenant: Separates customers of one application.
    """

    def __init__(
        self,
        kind: str,
        cache: KVStore | None = None,
        *,
        ttl: TimeToLive,
        settings: object = None,
        encode: Callable[[Any], Any] = _as_it_is,
        decode: Callable[[Any], Any] = _as_it_is,
        lineage: Lineage | None = None,
        namespace: str = "default",
        tenant: str | None = None,
    ) -> None:
        self.kind = kind
        self.cache = TieredCache.over(cache)
        self.lineage = lineage
        self._freshness = Freshness.of(ttl)
        self._encode = encode
        self._decode = decode
        self.cache.check_tenant(tenant)
        self._space = KeySpace(kind, settings, namespace=namespace, tenant=tenant)
        self._keeper = Keeper(kind, self.cache, self._freshness, lineage, self._body)

    def get(self, payload: object) -> Any:
        """Return a fresh copy of the value for this payload, or ``MISSING``."""
        return run(self._find(SYNC, self._space.key(payload))).value

    async def aget(self, payload: object) -> Any:
        """Return a fresh copy of the value for this payload, or ``MISSING``."""
        return (await self._find(ASYNC, self._space.key(payload))).value

    def set(self, payload: object, value: object) -> None:
        """Keep a value. One that has no JSON-like form is counted and not kept.

        Raises:
            InvalidInput: The cache follows lineage, which only ``get_or_compute`` can.
        """
        run(self._set(SYNC, payload, value))

    async def aset(self, payload: object, value: object) -> None:
        """Keep a value; see ``set``."""
        await self._set(ASYNC, payload, value)

    def get_or_compute(
        self,
        payload: object,
        compute: Callable[[], Any],
        *,
        documents: Documents | None = None,
    ) -> Any:
        """Return the value for this payload, computed once for all who miss it now.

        Threads, tasks and processes that miss the same key wait for one computation. Its error
        reaches those of this process who wait, and is not kept. Whoever is cancelled disturbs
        nobody; when the one who computes is, another takes over.

        With a lineage, the value is kept with the documents that were used meanwhile: what
        ragopt's indexes and cached retrievers returned, what ``ragopt.sources.used`` was told,
        and what ``documents`` names.

        Args:
            payload: What the value depends on.
            compute: Makes the value.
            documents: Names the documents that a value was made from.
        """

        async def computed() -> Any:
            return compute()

        return run(self.once(SYNC, payload, computed, documents))

    async def aget_or_compute(
        self,
        payload: object,
        compute: Callable[[], Awaitable[Any]],
        *,
        documents: Documents | None = None,
    ) -> Any:
        """Return the value for this payload; see ``get_or_compute``."""
        return await self.once(ASYNC, payload, compute, documents)

    def delete(self, payload: object) -> bool:
        """Forget one value, also if it is being computed right now; return if it was there."""
        return self.cache.delete_many([self._space.key(payload)]) > 0

    async def adelete(self, payload: object) -> bool:
        """Forget one value; see ``delete``."""
        return await self.cache.adelete_many([self._space.key(payload)]) > 0

    def count(self) -> int:
        """Return how many values of this kind, namespace and tenant are kept."""
        return self.cache.count(self._space.prefix)

    async def acount(self) -> int:
        """Return how many values of this kind, namespace and tenant are kept."""
        return await self.cache.acount(self._space.prefix)

    def clear(self) -> None:
        """Forget every value of this kind, namespace and tenant, and nothing else."""
        self.cache.clear(self._space.prefix)

    async def aclear(self) -> None:
        """Forget every value of this kind, namespace and tenant, and nothing else."""
        await self.cache.aclear(self._space.prefix)

    # -- one body for both colours -----------------------------------------------------------

    async def _set(self, io: Runtime, payload: object, value: object) -> None:
        if self.lineage is not None:
            raise InvalidInput(
                "A value was set in a cache that follows lineage.",
                fix="Use get_or_compute, which sees what the value is made from.",
            )
        body = self._body(value)
        if body is not None:
            key = self._space.key(payload)
            await self._keeper.put_many(io, {key: self._keeper.fresh(body)})

    async def once(
        self,
        io: Runtime,
        payload: object,
        compute: Callable[[], Awaitable[Any]],
        documents: Documents | None = None,
    ) -> Any:
        """Do ``get_or_compute`` in the colour of ``io``; for adapters, which have one body."""
        recipe = Recipe(compute, documents)
        key = self._space.key(payload)
        trips = self.cache.trips
        found = await self._find(io, key)
        if found.packed is not None:
            left = found.packed.fresh_until - self.cache.now()
            if self._freshness.wants_refresh(left, found.packed.cost):
                self._keeper.start_refresh(io, key, recipe)
            return found.value
        mine: list[Any] = []

        async def lead() -> Packed | None:
            value, packed = await self._lead(io, key, found.stored, trips, recipe)
            mine.append(value)
            return packed

        try:
            packed: Packed | None = await self.cache.flights.share(io, key, lead)
        except Abandoned:
            return await recipe.compute()
        if mine:
            return mine[0]
        if packed is None:  # it has no form that could be handed on
            return await recipe.compute()
        self.cache.stats.count(self.kind, "shared")
        if packed.origin is not None:  # the one who computed it noted that for itself alone
            used((), tags=packed.origin.tags, as_of=packed.origin.seq)
        return self._decode(decode_value(packed.body))

    async def _find(self, io: Runtime, key: bytes) -> _Found:
        start, since = perf_counter(), self.cache.changes
        (entry,) = await io.call(self.cache.get_many, self.cache.aget_many, [key])
        count = self.cache.stats.count
        if entry is None:
            count(self.kind, "miss")
            return _Found()
        packed, value = self._read(entry[0])
        if packed is None:
            count(self.kind, "corrupt")
        elif packed.origin is not None and not await self._alive(io, key, packed, entry, since):
            count(self.kind, "dead")
        else:
            seconds = perf_counter() - start
            self.cache.stats.looked_up(self.kind, 1, 0, seconds, saved=packed.cost)
            left = packed.fresh_until - self.cache.now()
            if left <= 0:
                count(self.kind, "stale")
            elif self._freshness.sliding:
                await self._keeper.slide(io, key, packed, left)
            return _Found(value, packed, entry[0])
        count(self.kind, "miss")
        return _Found(stored=entry[0])

    async def _alive(
        self, io: Runtime, key: bytes, packed: Packed, entry: Entry, since: int
    ) -> bool:
        """Return whether none of the documents of a value changed since it was begun."""
        origin = packed.origin
        lineage = self.lineage
        if origin is None or lineage is None:
            return False  # whoever wrote it followed it, so it must not be served unverified
        good = await lineage.verify(io, origin)
        if good is None:
            return False
        used((), tags=origin.tags, as_of=good)
        if good != origin.seq and len(self.cache.layers) > 1:
            # Known to be good up to there: the near copies need not be asked about again.
            newer = pack(packed._replace(origin=origin._replace(seq=good)))
            ttl = None if entry.expires_at is None else entry.expires_at - self.cache.now()
            if ttl is None or ttl > 0:
                near = range(len(self.cache.layers) - 1)
                await self.cache.write(io, near, {key: newer}, ttl, since=since)
        return True

    async def _lead(
        self,
        io: Runtime,
        key: bytes,
        known: bytes | None,
        trips: tuple[int, ...],
        recipe: Recipe,
    ) -> tuple[Any, Packed | None]:
        """Compute a value for all processes, or wait for the one that does."""
        claims, store = self.cache.claims, self.cache.coordinator
        token: Entry | bytes | None = None
        while store is not None:
            since = self.cache.changes
            token = await claims.wait_or_take(io, store, key, known)
            if not isinstance(token, Entry):
                break
            packed, value = self._read(token.value)
            if packed is not None and (
                packed.origin is None or await self._alive(io, key, packed, token, since)
            ):
                self.cache.stats.count(self.kind, "shared")
                return value, packed
            known = token.value
        claimed = token if isinstance(token, bytes) else None
        try:
            value, packed = await self._keeper.make(io, recipe)
            if packed is None:
                return value, None
            if await self._keeper.put(io, key, packed, trips, claimed):
                claimed = None
            return value, packed
        finally:
            if store is not None and claimed is not None:
                await claims.give_up(io, store, key, claimed)

    def _body(self, value: object) -> bytes | None:
        try:
            return encode_value(self._encode(value))
        except InvalidInput:
            # The chain has its value; that it cannot be kept is no reason to fail.
            self.cache.stats.count(self.kind, "uncacheable")
            return None

    def _read(self, data: bytes) -> tuple[Packed | None, Any]:
        """Return what was stored and its value; None and ``MISSING`` for what is neither."""
        packed = unpack(data)
        if packed is not None:
            try:
                return packed, self._decode(decode_value(packed.body))
            except _UNREADABLE:
                packed = None
        return packed, MISSING
