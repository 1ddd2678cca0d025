"""Exact answers: the same prompt to the same model with the same parameters."""

from __future__ import annotations

from typing import Any

from ragopt.cache.freshness import TimeToLive
from ragopt.cache.values import ValueCache
from ragopt.protocols import KVStore


class AnswerCache(ValueCache):
    """Answers of a language model or a chain, keyed by all that they depend on.

    Args:
        cache: A cache or a store; one in memory of its own if None.
        kind: Name in keys and statistics: ``"answer"`` of a chain, ``"llm"`` of a model alone.
        ttl: Seconds that an answer is kept, None until it is evicted, or a ``Freshness``.
        options: Other arguments of ``ValueCache``.
    """

    def __init__(
        self,
        cache: KVStore | None = None,
        *,
        kind: str = "answer",
        ttl: TimeToLive = 3_600,
        **options: Any,
    ) -> None:
        super().__init__(kind, cache, ttl=ttl, **options)
