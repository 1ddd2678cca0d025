"""What documents are turned into: chunks, nodes, embedded nodes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Any

from ragopt._runtime import Runtime
from ragopt.cache.freshness import TimeToLive
from ragopt.cache.packing import Packed
from ragopt.cache.values import MISSING, ValueCache
from ragopt.errors import InvalidInput
from ragopt.protocols import Entry, KVStore


class ChunkCache(ValueCache):
    """What each document is turned into, keyed by its id, its content and how it is done.

    A whole batch is one look-up. Only what is missing is computed, and stored after every
    ``batch_size`` documents, so work that is broken off goes on where it stopped.

    Args:
        cache: A cache or a store; one in memory of its own if None.
        ttl: Seconds that chunks are kept, None until they are evicted, or a ``Freshness``.
        batch_size: Documents that are computed and then stored at a time.
        options: Other arguments of ``ValueCache``; ``settings`` is what identifies the splitter.

    Raises:
        InvalidInput: The batch size is below 1.
    """

    def __init__(
        self,
        cache: KVStore | None = None,
        *,
        ttl: TimeToLive = 86_400,
        batch_size: int = 256,
        **options: Any,
    ) -> None:
        if batch_size < 1:
            raise InvalidInput(f"A batch size of {batch_size} was given.", fix="Give 1 or more.")
        super().__init__("chunk", cache, ttl=ttl, **options)
        self._batch_size = batch_size

    async def resolve(
        self,
        io: Runtime,
        payloads: Sequence[object],
        compute: Callable[[list[int]], Awaitable[Sequence[Any]]],
    ) -> list[Any]:
        """Return a value for each payload: a fresh copy of what is known, or what is computed.

        Args:
            io: The colour of the call.
            payloads: What each value depends on. What no key can be made of (and None) is
                computed every time, not kept, and counted as ``uncacheable``.
            compute: Takes positions of payloads and returns their values in that order.
        """
        keys = [self._key(payload) for payload in payloads]
        asked = [key for key in keys if key is not None]
        entries = iter(await io.call(self.cache.get_many, self.cache.aget_many, asked))
        values = [MISSING if key is None else self._open(next(entries)) for key in keys]
        missing = [i for i, value in enumerate(values) if value is MISSING]
        for start in range(0, len(missing), self._batch_size):
            batch = missing[start : start + self._batch_size]
            begun = perf_counter()
            computed = await compute(batch)
            cost = (perf_counter() - begun) / len(batch)
            items: dict[bytes, Packed] = {}
            for i, value in zip(batch, computed, strict=True):
                values[i] = value
                key = keys[i]
                body = None if key is None else self._body(value)
                if key is not None and body is not None:
                    items[key] = self._keeper.fresh(body, cost)
            await self._keeper.put_many(io, items)
        return values

    def _key(self, payload: object) -> bytes | None:
        try:
            if payload is not None:
                return self._space.key(payload)
        except InvalidInput:
            pass
        self.cache.stats.count(self.kind, "uncacheable")
        return None

    def _open(self, entry: Entry | None) -> Any:
        if entry is not None:
            packed, value = self._read(entry.value)
            if packed is None:
                self.cache.stats.count(self.kind, "corrupt")
            elif packed.origin is None and packed.fresh_until > self.cache.now():
                self.cache.stats.looked_up(self.kind, 1, 0, saved=packed.cost)
                return value
        self.cache.stats.count(self.kind, "miss")
        return MISSING
