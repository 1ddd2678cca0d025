"""Several stores as one: read from the nearest, write to all, never break the chain."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from enum import Enum
from functools import partial
from time import perf_counter
from typing import Any, Final, ParamSpec, TypeVar

from ragopt._runtime import Runtime
from ragopt.cache.breaker import Breaker, Operation
from ragopt.cache.claims import Claims
from ragopt.cache.coherence import Coherence
from ragopt.cache.flight import Flights
from ragopt.errors import BackendUnavailable, InvalidInput
from ragopt.metrics import CacheStats
from ragopt.protocols import Clock, Coordinator, Entry, KVStore
from ragopt.stores.base import BaseKVStore
from ragopt.stores.memory import MemoryStore

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("ragopt.cache")

_WARN_EVERY = 60.0  # seconds between two log lines about the same failing layer
_SLACK = 0.05  # seconds of a deadline beyond the longest timeout of a layer
_PROBE = b"ragopt:probe"  # a key that nothing is stored under


class Failed(Enum):
    """The type of ``FAILED``."""

    FAILED = "FAILED"


FAILED: Final = Failed.FAILED


class TieredCache(BaseKVStore):
    """Stores from the nearest to the farthest, read through and written through.

    What a far layer knows is copied into the nearer ones for the rest of its time to live. A
    layer that fails to read or write is skipped, counted and logged, and left alone until it
    answers again: that is never the caller's error. Deleting, clearing, counting and listing do
    raise, after every layer had its turn.

    The last layer is the one that processes agree through: it holds the claims of
    ``get_or_compute`` and the log of a ``Lineage``.

    Args:
        layers: The stores, nearest first; a ``MemoryStore`` of its own if there are none.
        strict: Raise the errors of the layers instead of going on without them.
        deadline: Seconds that one read or write may take in all layers together. A layer is
            asked only if its own ``timeout`` fits into what is left. None for 50 ms more than
            the longest timeout of a layer.
        max_staleness: Seconds after which the near layers of every process that shares the last
            one have dropped what was deleted or replaced through another. 0 asks at every
            look-up; None never asks: what another process deletes stays in this one's memory
            until it ends.
        require_tenant: Refuse every cache over this one that is opened without a tenant.
        stats: Where to count; a ``CacheStats`` of its own if None.
        clock: Seconds since the epoch; the layers must use the same.

    Examples:
        >>> cache = TieredCache(MemoryStore(), SqliteStore("cache.db"))
    """

    name = "cache"

    def __init__(
        self,
        *layers: KVStore,
        strict: bool = False,
        deadline: float | None = None,
        max_staleness: float | None = None,
        require_tenant: bool = False,
        stats: CacheStats | None = None,
        clock: Clock = time.time,
    ) -> None:
        super().__init__(clock=clock)
        for layer in layers:
            if not isinstance(layer, KVStore):
                raise InvalidInput(
                    f"A cache layer of type {type(layer).__name__} was given.",
                    fix="Pass MemoryStore, SqliteStore, RedisStore or another KVStore.",
                )
        self.layers: tuple[KVStore, ...] = layers or (MemoryStore(clock=clock),)
        last = self.layers[-1]
        self.coordinator: Coordinator | None = last if isinstance(last, Coordinator) else None
        """The last layer, where processes can agree through it."""
        self.strict = strict
        self.require_tenant = require_tenant
        self.stats = stats or CacheStats()
        self.stats.watch(self)
        self._timeouts = [float(getattr(layer, "timeout", 0.0)) for layer in self.layers]
        longest = max(self._timeouts)
        self.deadline = longest + _SLACK if deadline is None else deadline
        if self.deadline < longest:
            raise InvalidInput(
                f"A deadline of {self.deadline} s was given, but one layer alone may take "
                f"{longest} s.",
                fix="Give the layer a shorter timeout, or the cache a longer deadline.",
            )
        self.flights: Flights[Any] = Flights()
        self.claims = Claims(self)
        self.changes = 0
        """Moves with everything that is deleted or replaced through this cache."""
        self._coherence = None
        if max_staleness is not None and len(self.layers) > 1:
            self._coherence = Coherence(self, max_staleness)
        self._breakers = [Breaker(partial(layer.get_many, [_PROBE])) for layer in self.layers]
        self._warned: dict[str, float] = {}

    @classmethod
    def over(cls, store: KVStore | None) -> TieredCache:
        """Return the store as a cache: itself if it is one, else a cache with this one layer."""
        if isinstance(store, TieredCache):
            return store
        return cls() if store is None else cls(store)

    def check_tenant(self, tenant: str | None) -> None:
        """Raise InvalidInput if a cache over this one must name its tenant and does not."""
        if self.require_tenant and tenant is None:
            raise InvalidInput(
                "A cache was opened without a tenant over one that requires it.",
                fix="Pass tenant=, the customer whose data it holds.",
            )

    async def _get_many(self, io: Runtime, keys: Sequence[bytes]) -> list[Entry | None]:
        found: list[Entry | None] = [None] * len(keys)
        wanted: Sequence[int] = range(len(keys))
        if self._coherence is not None:
            await self._coherence.catch_up(io)
        since = self.changes
        begin = perf_counter() if len(self.layers) > 1 else 0.0
        for depth, layer in enumerate(self.layers):
            if not wanted:
                break
            # The nearest layer while it works, which every look-up passes, needs no more asking.
            near = not depth and self._breakers[0].closed
            if not near and not self._admits(depth, "read", begin):
                continue
            asked = keys if len(wanted) == len(keys) else [keys[i] for i in wanted]
            start = perf_counter()
            try:
                entries = await io.call(layer.get_many, layer.aget_many, asked)
            except Exception as error:  # noqa: BLE001 - the chain goes on without this layer
                self._failed(depth, "read", error)
                continue
            seconds = perf_counter() - start
            if depth == 0 and all(entries):
                self.stats.looked_up(layer.name, len(entries), 0, seconds)
                return entries
            missing = []
            for i, entry in zip(wanted, entries, strict=True):
                if entry is None:
                    missing.append(i)
                else:
                    found[i] = entry
            hits = len(wanted) - len(missing)
            self.stats.looked_up(layer.name, hits, len(missing), seconds)
            if depth and hits:
                fresh = set(wanted).difference(missing)
                items = {keys[i]: e for i in fresh if (e := found[i])}
                await self._fill(io, depth, items, since)
            wanted = missing
        return found

    async def _fill(
        self, io: Runtime, depth: int, entries: Mapping[bytes, Entry], since: int
    ) -> None:
        """Copy what layer ``depth`` knew into the layers above it, for the time it has left."""
        now = self._clock()
        groups: defaultdict[float | None, dict[bytes, bytes]] = defaultdict(dict)
        for key, entry in entries.items():
            groups[entry.expires_at][key] = entry.value
        for expires_at, items in groups.items():
            ttl = None if expires_at is None else expires_at - now
            if ttl is None or ttl > 0:
                await self.write(io, range(depth), items, ttl, since=since)

    async def _set_many(
        self, io: Runtime, items: Mapping[bytes, bytes], expires_at: float | None
    ) -> None:
        ttl = None if expires_at is None else expires_at - self._clock()
        if ttl is None or ttl > 0:
            await self.write(io, range(len(self.layers)), items, ttl, replaces=True)
            await self.replaced(io, list(items))

    async def replaced(self, io: Runtime, keys: Sequence[bytes]) -> None:
        """Let other processes know that keys have new values, where they want to know."""
        if self._coherence is not None:
            try:
                await self._coherence.changed(io, keys)
            except Exception as error:  # noqa: BLE001 - as for the write itself
                self._failed(len(self.layers) - 1, "write", error)

    async def write(
        self,
        io: Runtime,
        depths: Iterable[int],
        items: Mapping[bytes, bytes],
        ttl: float | None,
        *,
        trips: Sequence[int] | None = None,
        since: int | None = None,
        replaces: bool = False,
    ) -> None:
        """Store items in some layers, the farthest first, never raising unless it is strict.

        Args:
            io: The colour.
            depths: Which layers.
            items: What to store.
            ttl: For how many seconds.
            trips: What ``trips`` was before the request read: a layer that failed since then is
                not written to, since it may hold something newer that could not be read.
            since: What ``changes`` was before the items were read or made: if anything was
                deleted or replaced meanwhile, they are taken out again.
            replaces: Other values may stand under these keys.
        """
        begin = perf_counter()
        for depth in sorted(depths, reverse=True):
            if trips is not None and self._breakers[depth].trips != trips[depth]:
                self.stats.count(self.layers[depth].name, "skipped")
            elif self._admits(depth, "write", begin):
                layer = self.layers[depth]
                start = perf_counter()
                try:
                    await io.call(layer.set_many, layer.aset_many, items, ttl=ttl)
                except Exception as error:  # noqa: BLE001 - the chain goes on without this layer
                    self._failed(depth, "write", error)
                else:
                    self._breakers[depth].wrote()
                    self.stats.wrote(layer.name, len(items), perf_counter() - start)
            if replaces:
                self.changes += 1
            if since is not None and since != self.changes:
                layer = self.layers[depth]
                await io.call(layer.delete_many, layer.adelete_many, list(items))

    def now(self) -> float:
        """Return the time, in seconds since the epoch."""
        return self._clock()

    @property
    def trips(self) -> tuple[int, ...]:
        """How often each layer failed so far; see ``write``."""
        return tuple(breaker.trips for breaker in self._breakers)

    async def attempt(
        self,
        io: Runtime,
        sync: Callable[P, T],
        asynchronous: Callable[P, Awaitable[T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T | Failed:
        """Call a method of the last layer; ``FAILED`` if it raised or is left alone just now."""
        depth = len(self.layers) - 1
        if not self._admits(depth, "read", 0.0):
            return FAILED
        try:
            return await io.call(sync, asynchronous, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the chain goes on without this layer
            # What is refused here is mostly a claim, by a full server say; its entries can still
            # be read. Where they cannot, a look-up says so itself.
            self._failed(depth, "write", error)
            return FAILED

    async def _delete_many(self, io: Runtime, keys: Sequence[bytes]) -> int:
        gone = await self._all(io, lambda x: io.call(x.delete_many, x.adelete_many, keys))
        if self._coherence is not None:
            await self._coherence.changed(io, keys)
        return max(gone)

    async def _clear(self, io: Runtime, prefix: bytes) -> None:
        await self._all(io, lambda x: io.call(x.clear, x.aclear, prefix))
        if self._coherence is not None:
            await self._coherence.cleared(io, prefix)

    async def _count(self, io: Runtime, prefix: bytes) -> int:
        """Return the count of the fullest layer: every layer holds a part of what it holds."""
        return max(await self._all(io, lambda x: io.call(x.count, x.acount, prefix)))

    async def _keys(self, io: Runtime, prefix: bytes) -> list[bytes]:
        """Return what any layer holds: each may lack what another has."""
        listed = await self._all(io, lambda x: io.call(x.keys, x.akeys, prefix))
        return list(dict.fromkeys(key for keys in listed for key in keys))

    async def _close(self, io: Runtime) -> None:
        for breaker in self._breakers:
            breaker.stop()
        await self._all(io, lambda x: io.call(x.close, x.aclose))

    async def _all(self, io: Runtime, ask: Callable[[KVStore], Awaitable[T]]) -> list[T]:
        """Ask every layer, the farthest first, then raise the first error.

        Nothing is skipped quietly here: after a delete that failed in one layer, the caller
        would take for gone what that layer still serves. And while it goes on, nobody copies
        what a far layer held into a nearer one that was asked already: see ``write``.
        """
        results: list[T] = []
        first: Exception | None = None
        for layer in reversed(self.layers):
            try:
                results.append(await ask(layer))
            except Exception as error:  # noqa: BLE001 - raised below, when all had their turn
                self.stats.count(layer.name, "error")
                first = first or error
            self.changes += 1
        if first is not None:
            raise first
        return results

    def _admits(self, depth: int, operation: Operation, begin: float) -> bool:
        """Return whether a layer may be asked; ``begin`` is when the operation began."""
        if self._breakers[depth].admits(operation):
            timeout = self._timeouts[depth]
            if not (depth and begin and timeout) or (
                perf_counter() - begin + timeout <= self.deadline
            ):
                return True
        self.stats.count(self.layers[depth].name, "skipped")
        return False

    def _failed(self, depth: int, operation: Operation, error: Exception) -> None:
        if self.strict:
            raise error
        layer = self.layers[depth]
        self.stats.count(layer.name, "error")
        self._breakers[depth].failed(
            operation, unreachable=isinstance(error, (BackendUnavailable, OSError))
        )
        now = self._clock()
        if now - self._warned.get(layer.name, float("-inf")) >= _WARN_EVERY:
            self._warned[layer.name] = now
            logger.warning("The %s layer of the cache is skipped: %s", layer.name, error)
