"""Search results, which die when the index changes."""

from __future__ import annotations

from ragopt.cache.values import ValueCache
from ragopt.protocols import KVStore


class RetrievalCache(ValueCache):
    """Results of a retriever, keyed by its settings, the query and the version of the corpus.

    The version is part of the payload that the caller passes, so results that were found before
    a change are never found after it: nothing has to be deleted.

    Args:
        cache: A cache or a store; one in memory of its own if None.
        ttl: Seconds that a result is kept; None until it is evicted.
        settings: What identifies the retriever: its index, mode, k, filters.
        namespace: Separates applications which share a store.
        tenant: Separates customers of one application.
    """

    def __init__(
        self,
        cache: KVStore | None = None,
        *,
        ttl: float | None = 1_800,
        settings: object = None,
        namespace: str = "default",
        tenant: str | None = None,
    ) -> None:
        super().__init__(
            "retrieval", cache, ttl=ttl, settings=settings, namespace=namespace, tenant=tenant
        )
