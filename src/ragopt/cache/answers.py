"""Exact answers: the same prompt to the same model with the same parameters."""

from __future__ import annotations

from ragopt.cache.values import ValueCache
from ragopt.protocols import KVStore


class AnswerCache(ValueCache):
    """Answers of a language model, keyed by ``(prompt, model and parameters)``.

    Args:
        cache: A cache or a store; one in memory of its own if None.
        ttl: Seconds that an answer is kept; None until it is evicted.
        namespace: Separates applications which share a store.
        tenant: Separates customers of one application.
    """

    def __init__(
        self,
        cache: KVStore | None = None,
        *,
        ttl: float | None = 3_600,
        namespace: str = "default",
        tenant: str | None = None,
    ) -> None:
        super().__init__("answer", cache, ttl=ttl, namespace=namespace, tenant=tenant)
