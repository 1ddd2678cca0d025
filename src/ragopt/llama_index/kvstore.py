"""LlamaIndex's key-value store, over any ragopt store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llama_index.core.storage.kvstore.types import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_COLLECTION,
    BaseKVStore,
)

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.cache.named import NamedStore
from ragopt.cache.tiers import TieredCache
from ragopt.codecs import decode_value, encode_value
from ragopt.errors import CorruptData, InvalidInput
from ragopt.protocols import KVStore


class CacheKVStore(BaseKVStore):
    """Dicts under keys in collections: behind document stores, index stores, ingestion caches.

    A value is a dict of strings, numbers, booleans, None, dates, bytes, and lists and dicts of
    them. It comes back as it was, and as the caller's own copy.

    The errors of a store are raised; a ``TieredCache`` raises those of its layers if it was made
    with ``strict=True``, and goes on without a failing layer otherwise. Where nothing else holds
    the data, also mind the bound of the store (``max_bytes``): what does not fit puts out the
    oldest.

    Args:
        cache: A ``TieredCache`` or a store; one in memory of its own if None.
        ttl: Seconds that a value is kept; None until it is deleted or evicted.
        namespace: Separates applications which share a store.
        tenant: Separates customers of one application.

    Examples:
        >>> docstore = KVDocumentStore(CacheKVStore(SqliteStore("documents.db")))
        >>> cache = IngestionCache(cache=CacheKVStore(RedisStore("redis://localhost")))
    """

    def __init__(
        self,
        cache: KVStore | None = None,
        *,
        ttl: float | None = None,
        namespace: str = "default",
        tenant: str | None = None,
    ) -> None:
        self._options: dict[str, Any] = {"ttl": ttl, "namespace": namespace, "tenant": tenant}
        self._cache = NamedStore("kv", cache, **self._options).cache

    @property
    def cache(self) -> TieredCache:
        """Where the values are kept, with its statistics."""
        return self._cache

    def put(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        """Store a value, replacing an older one.

        Raises:
            InvalidInput: The key is no string, or the value is no dict of JSON-like values.
        """
        run(self._put(SYNC, [(key, val)], collection))

    async def aput(
        self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION
    ) -> None:
        """Store a value, replacing an older one; see ``put``."""
        await self._put(ASYNC, [(key, val)], collection)

    def put_all(
        self,
        kv_pairs: list[tuple[str, dict[str, Any]]],
        collection: str = DEFAULT_COLLECTION,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> None:
        """Store all pairs in one write; each store finds the size of its batches itself.

        Raises:
            InvalidInput: As from ``put``; nothing was stored.
        """
        run(self._put(SYNC, kv_pairs, collection))

    async def aput_all(
        self,
        kv_pairs: list[tuple[str, dict[str, Any]]],
        collection: str = DEFAULT_COLLECTION,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> None:
        """Store all pairs in one write; see ``put_all``."""
        await self._put(ASYNC, kv_pairs, collection)

    def get(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """Return the value of a key, or None."""
        return run(self._get(SYNC, key, collection))

    async def aget(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """Return the value of a key, or None."""
        return await self._get(ASYNC, key, collection)

    def get_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """Return every key of a collection with its value."""
        return run(self._get_all(SYNC, collection))

    async def aget_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """Return every key of a collection with its value."""
        return await self._get_all(ASYNC, collection)

    def delete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """Remove a key; return whether it was there."""
        return self._in(collection).delete_many([key]) > 0

    async def adelete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """Remove a key; return whether it was there."""
        return await self._in(collection).adelete_many([key]) > 0

    def _in(self, collection: str) -> NamedStore:
        return NamedStore("kv", self._cache, group=collection, **self._options)

    async def _put(
        self, io: Runtime, pairs: Iterable[tuple[str, dict[str, Any]]], collection: str
    ) -> None:
        items = {key: _encode(key, value) for key, value in pairs}
        values = self._in(collection)
        await io.call(values.set_many, values.aset_many, items)

    async def _get(self, io: Runtime, key: str, collection: str) -> dict[str, Any] | None:
        values = self._in(collection)
        return (await self._read(io, values, [key])).get(key)

    async def _get_all(self, io: Runtime, collection: str) -> dict[str, dict[str, Any]]:
        values = self._in(collection)
        return await self._read(io, values, await io.call(values.names, values.anames))

    async def _read(
        self, io: Runtime, values: NamedStore, keys: list[str]
    ) -> dict[str, dict[str, Any]]:
        found = {}
        stored = await io.call(values.get_many, values.aget_many, keys)
        for key, data in zip(keys, stored, strict=True):
            if data is not None:  # else it is not there, or ended since it was listed
                try:
                    found[key] = _decode(data)
                except CorruptData:
                    self.cache.stats.count(values.kind, "corrupt")
        return found


def _encode(key: str, value: dict[str, Any]) -> bytes:
    if not isinstance(value, dict):
        raise InvalidInput(
            f"The value of {key!r} is of type {type(value).__name__}. Nothing was stored.",
            fix="Pass a dict.",
        )
    return encode_value(value)


def _decode(stored: bytes) -> dict[str, Any]:
    value = decode_value(stored)
    if not isinstance(value, dict):
        raise CorruptData("A stored value is no dict.", fix="Write it again.")
    return value
