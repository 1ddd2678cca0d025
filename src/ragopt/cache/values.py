"""JSON-like values under structured keys: what answers and search results have in common."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Final, Literal

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.cache.tiers import TieredCache
from ragopt.codecs import decode_value, encode_value
from ragopt.errors import CorruptData, InvalidInput
from ragopt.keys import KeySpace
from ragopt.protocols import KVStore


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


class ValueCache:
    """A cache of values of one kind, which have a JSON-like form.

    Args:
        kind: Name in keys and statistics.
        cache: A cache or a store; one in memory of its own if None.
        ttl: Seconds that a value is kept; None until it is evicted.
        settings: Whatever all values depend on; part of every key.
        encode: Turns a value into its JSON-like form, or raises InvalidInput if it has none.
        decode: Turns that form back into the value, or raises if it is no such form.
        namespace: Separates applications which share a store.
        tenant: Separates customers of one application.
    """

    def __init__(
        self,
        kind: str,
        cache: KVStore | None = None,
        *,
        ttl: float | None,
        settings: object = None,
        encode: Callable[[Any], Any] = _as_it_is,
        decode: Callable[[Any], Any] = _as_it_is,
        namespace: str = "default",
        tenant: str | None = None,
    ) -> None:
        self.kind = kind
        self.cache = TieredCache.over(cache)
        self._ttl = ttl
        self._encode = encode
        self._decode = decode
        self._space = KeySpace(kind, settings, namespace=namespace, tenant=tenant)

    async def _get(self, io: Runtime, payload: object) -> Any:
        key = self._space.key(payload)
        (entry,) = await io.call(self.cache.get_many, self.cache.aget_many, [key])
        if entry is not None:
            try:
                value = self._decode(decode_value(entry.value))
            except _UNREADABLE:
                self.cache.stats.count(self.kind, "corrupt")
            else:
                self.cache.stats.count(self.kind, "hit")
                return value
        self.cache.stats.count(self.kind, "miss")
        return MISSING

    async def _set(self, io: Runtime, payload: object, value: object) -> None:
        try:
            encoded = encode_value(self._encode(value))
        except InvalidInput:
            # The chain has its value; that it cannot be kept is no reason to fail.
            self.cache.stats.count(self.kind, "uncacheable")
            return
        items = {self._space.key(payload): encoded}
        await io.call(self.cache.set_many, self.cache.aset_many, items, ttl=self._ttl)

    def get(self, payload: object) -> Any:
        """Return a fresh copy of the value for this payload, or ``MISSING``."""
        return run(self._get(SYNC, payload))

    async def aget(self, payload: object) -> Any:
        """Return a fresh copy of the value for this payload, or ``MISSING``."""
        return await self._get(ASYNC, payload)

    def set(self, payload: object, value: object) -> None:
        """Keep a value. One that has no JSON-like form is counted and not kept."""
        run(self._set(SYNC, payload, value))

    async def aset(self, payload: object, value: object) -> None:
        """Keep a value. One that has no JSON-like form is counted and not kept."""
        await self._set(ASYNC, payload, value)

    def clear(self) -> None:
        """Forget every value of this kind, namespace and tenant, and nothing else."""
        self.cache.clear(self._space.prefix)

    async def aclear(self) -> None:
        """Forget every value of this kind, namespace and tenant, and nothing else."""
        await self.cache.aclear(self._space.prefix)
