"""Several stores as one: read from the nearest, write to all, never break the chain."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from time import perf_counter
from typing import TypeVar

from ragopt._runtime import Runtime
from ragopt.errors import InvalidInput
from ragopt.metrics import CacheStats
from ragopt.protocols import Clock, Entry, KVStore
from ragopt.stores.base import BaseKVStore
from ragopt.stores.memory import MemoryStore

T = TypeVar("T")

logger = logging.getLogger("ragopt.cache")

_WARN_EVERY = 60.0  # seconds between two log lines about the same failing layer


class TieredCache(BaseKVStore):
    """Stores from the nearest to the farthest, read through and written through.

    What a far layer knows is copied into the nearer ones for the rest of its time to live. A
    layer that fails to read or write is skipped, counted and logged: that is never the caller's
    error. Deleting, clearing and counting do raise, after every layer had its turn.

    Args:
        layers: The stores, nearest first; a ``MemoryStore`` of its own if there are none.
        strict: Raise the errors of the layers instead of going on without them.
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
        self.strict = strict
        self.stats = stats or CacheStats()
        self._warned: dict[str, float] = {}

    @classmethod
    def over(cls, store: KVStore | None) -> TieredCache:
        """Return the store as a cache: itself if it is one, else a cache with this one layer."""
        if isinstance(store, TieredCache):
            return store
        return cls() if store is None else cls(store)

    async def _get_many(self, io: Runtime, keys: Sequence[bytes]) -> list[Entry | None]:
        found: list[Entry | None] = [None] * len(keys)
        wanted: Sequence[int] = range(len(keys))
        for depth, layer in enumerate(self.layers):
            if not wanted:
                break
            asked = keys if len(wanted) == len(keys) else [keys[i] for i in wanted]
            start = perf_counter()
            try:
                entries = await io.call(layer.get_many, layer.aget_many, asked)
            except Exception as error:  # noqa: BLE001 - the chain goes on without this layer
                self._failed(layer, error)
                continue
            self.stats.observe(layer.name, "get", perf_counter() - start)
            if depth == 0 and all(entries):
                self.stats.count(layer.name, "hit", len(entries))
                return entries
            missing = []
            for i, entry in zip(wanted, entries, strict=True):
                if entry is None:
                    missing.append(i)
                else:
                    found[i] = entry
            hits = len(wanted) - len(missing)
            self.stats.count(layer.name, "hit", hits)
            self.stats.count(layer.name, "miss", len(missing))
            if depth and hits:
                fresh = set(wanted).difference(missing)
                await self._fill(io, depth, {keys[i]: e for i in fresh if (e := found[i])})
            wanted = missing
        return found

    async def _fill(self, io: Runtime, depth: int, entries: Mapping[bytes, Entry]) -> None:
        """Copy what layer ``depth`` knew into the layers above it, for the time it has left."""
        now = self._clock()
        groups: defaultdict[float | None, dict[bytes, bytes]] = defaultdict(dict)
        for key, entry in entries.items():
            groups[entry.expires_at][key] = entry.value
        for expires_at, items in groups.items():
            ttl = None if expires_at is None else expires_at - now
            if ttl is None or ttl > 0:
                for layer in self.layers[:depth]:
                    await self._write(io, layer, items, ttl)

    async def _set_many(
        self, io: Runtime, items: Mapping[bytes, bytes], expires_at: float | None
    ) -> None:
        ttl = None if expires_at is None else expires_at - self._clock()
        if ttl is None or ttl > 0:
            for layer in self.layers:
                await self._write(io, layer, items, ttl)

    async def _write(
        self, io: Runtime, layer: KVStore, items: Mapping[bytes, bytes], ttl: float | None
    ) -> None:
        start = perf_counter()
        try:
            await io.call(layer.set_many, layer.aset_many, items, ttl=ttl)
        except Exception as error:  # noqa: BLE001 - the chain goes on without this layer
            self._failed(layer, error)
        else:
            self.stats.observe(layer.name, "set", perf_counter() - start)
            self.stats.count(layer.name, "write", len(items))

    async def _delete_many(self, io: Runtime, keys: Sequence[bytes]) -> int:
        return max(
            await self._all(io.call(x.delete_many, x.adelete_many, keys) for x in self.layers)
        )

    async def _clear(self, io: Runtime, prefix: bytes) -> None:
        await self._all(io.call(x.clear, x.aclear, prefix) for x in self.layers)

    async def _count(self, io: Runtime, prefix: bytes) -> int:
        """Return the count of the fullest layer: every layer holds a part of what it holds."""
        return max(await self._all(io.call(x.count, x.acount, prefix) for x in self.layers))

    async def _close(self, io: Runtime) -> None:
        await self._all(io.call(x.close, x.aclose) for x in self.layers)

    async def _all(self, operations: Iterable[Awaitable[T]]) -> list[T]:
        """Do it in every layer, then raise the first error.

        Nothing is skipped quietly here: after a delete that failed in one layer, the caller
        would take for gone what that layer still serves.
        """
        results: list[T] = []
        first: Exception | None = None
        for layer, operation in zip(self.layers, operations, strict=True):
            try:
                results.append(await operation)
            except Exception as error:  # noqa: BLE001 - raised below, when all had their turn
                self.stats.count(layer.name, "error")
                first = first or error
        if first is not None:
            raise first
        return results

    def _failed(self, layer: KVStore, error: Exception) -> None:
        if self.strict:
            raise error
        self.stats.count(layer.name, "error")
        now = self._clock()
        if now - self._warned.get(layer.name, float("-inf")) >= _WARN_EVERY:
            self._warned[layer.name] = now
            logger.warning("The %s layer of the cache is skipped: %s", layer.name, error)
