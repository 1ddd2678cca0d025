"""LangChain's byte store, over any ragopt store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence

from langchain_core.stores import BaseStore

from ragopt.cache.named import NamedStore
from ragopt.cache.tiers import TieredCache
from ragopt.protocols import KVStore


class CacheByteStore(BaseStore[str, bytes]):
    """Bytes under keys of your own, for whatever asks for a LangChain ``ByteStore``.

    Any string is a key. The errors of a store are raised; a ``TieredCache`` raises those of its
    layers if it was made with ``strict=True``, and goes on without a failing layer otherwise.
    Where nothing else holds the data, also mind the bound of the store (``max_bytes``): what does
    not fit puts out the oldest.

    Args:
        cache: A ``TieredCache`` or a store; one in memory of its own if None.
        ttl: Seconds that a value is kept; None until it is deleted or evicted.
        namespace: Separates applications, and byte stores, which share a store.
        tenant: Separates customers of one application.

    Examples:
        >>> store = CacheByteStore(SqliteStore("parents.db"))
        >>> retriever = MultiVectorRetriever(vectorstore=vectors, byte_store=store)
    """

    def __init__(
        self,
        cache: KVStore | None = None,
        *,
        ttl: float | None = None,
        namespace: str = "default",
        tenant: str | None = None,
    ) -> None:
        self._values = NamedStore("bytes", cache, ttl=ttl, namespace=namespace, tenant=tenant)

    @property
    def cache(self) -> TieredCache:
        """Where the values are kept, with its statistics."""
        return self._values.cache

    def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return a value, or None, for each key, in the order of the keys."""
        return self._values.get_many(keys)

    async def amget(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return a value, or None, for each key, in the order of the keys."""
        return await self._values.aget_many(keys)

    def mset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """Store all pairs, replacing older values.

        Raises:
            InvalidInput: A key is no string, or a value no bytes. Nothing was stored.
        """
        self._values.set_many(dict(key_value_pairs))

    async def amset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """Store all pairs, replacing older values; see ``mset``."""
        await self._values.aset_many(dict(key_value_pairs))

    def mdelete(self, keys: Sequence[str]) -> None:
        """Remove keys. A missing key is no error."""
        self._values.delete_many(keys)

    async def amdelete(self, keys: Sequence[str]) -> None:
        """Remove keys. A missing key is no error."""
        await self._values.adelete_many(keys)

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """Yield the keys that start with ``prefix``, as they were at the first step."""
        yield from self._values.names(prefix or "")

    async def ayield_keys(self, *, prefix: str | None = None) -> AsyncIterator[str]:
        """Yield the keys that start with ``prefix``, as they were at the first step."""
        for key in await self._values.anames(prefix or ""):
            yield key
