"""Search results, which die when the index changes."""

from __future__ import annotations

from typing import Any

from ragopt.cache.freshness import TimeToLive
from ragopt.cache.values import ValueCache
from ragopt.protocols import KVStore


class RetrievalCache(ValueCache):
    """Results of a retriever, keyed by its settings, the query and the version of the corpus.

    The version is part of the payload that the caller passes, so results that were found before
    a change are never found after it: nothing has to be deleted.

    Args:
        cache: A cache or a store; one in memory of its own if None.
        ttl: Seconds that a result is kept, None until it is evicted, or a ``Freshness``.
        options: Other arguments of ``ValueCache``; ``settings`` is what identifies the retriever.
    """

    def __init__(
        self, cache: KVStore | None = None, *, ttl: TimeToLive = 1_800, **options: Any
    ) -> None:
        super().__init__("retrieval", cache, ttl=ttl, **options)
