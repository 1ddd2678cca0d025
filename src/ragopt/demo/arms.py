"""What all arms of the comparison share: a chain that indexes passages and answers questions."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import wraps
from time import perf_counter
from typing import Any

from ragopt.cache.tiers import TieredCache
from ragopt.demo.answerer import Answerer
from ragopt.demo.passages import Passage
from ragopt.embedders.transformers import TransformersEmbedder
from ragopt.indexes.faiss import FaissIndex
from ragopt.keys import namespace_prefix
from ragopt.metrics import CacheStats
from ragopt.protocols import KVStore, VectorIndex

CACHES = ("answers", "model", "retrieval", "embeddings")


class Stopwatch:
    """Seconds and calls of the parts of a chain that were put under it."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()

    def over(self, part: str, owner: Any, method: str) -> None:
        """Measure a method of one object from now on."""
        inner = getattr(owner, method)

        @wraps(inner)
        def measured(*args: Any, **kwargs: Any) -> Any:
            start = perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds[part] += perf_counter() - start
                self.calls[part] += 1

        # Past the check of pydantic models, which admit declared fields only.
        object.__setattr__(owner, method, measured)


@dataclass(slots=True)
class Kit:
    """What an arm is made of.

    Args:
        model: The embedding model, the same one for every arm.
        answerer: Who answers.
        layers: Stores of the caches, nearest first.
        postgres: DSN and table where PostgreSQL takes the place of FAISS.
        stopwatch: Measures embedding, search and answerer.
    """

    model: TransformersEmbedder
    answerer: Answerer
    layers: Sequence[KVStore] = ()
    postgres: tuple[str, str] | None = None
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def index(self) -> VectorIndex:
        """Return an empty index whose searches are exact."""
        if self.postgres is None:
            return FaissIndex()
        from ragopt.indexes.pgvector import PgvectorIndex

        dsn, table = self.postgres
        index = PgvectorIndex(dsn, table, index="none")
        index.clear()
        return index


class Arm(ABC):
    """A chain of one framework, without ragopt or with it."""

    @abstractmethod
    def add(self, passages: Sequence[Passage]) -> None:
        """Index passages."""

    @abstractmethod
    def ask(self, question: str) -> str:
        """Return the chain's answer."""

    @abstractmethod
    async def aask(self, question: str) -> str:
        """Return the chain's answer."""

    def fresh(self) -> Arm:
        """Return the same chain over the same index, with empty caches."""
        return self

    @abstractmethod
    def anew(self) -> Arm:
        """Return the same chain over an empty index, with the same caches."""


class Caches:
    """The caches of one arm over the same stores, each counting for itself.

    Args:
        kit: Where the stores are.
        namespace: Of the entries.
    """

    def __init__(self, kit: Kit, namespace: str) -> None:
        self._kit = kit
        self.namespace = namespace
        made = {name: TieredCache(*kit.layers, stats=CacheStats()) for name in CACHES}
        self.answers, self.model = made["answers"], made["model"]
        self.retrieval, self.embeddings = made["retrieval"], made["embeddings"]
        self._kinds = {
            "answers": (self.answers, "answer"),
            "retrieval": (self.retrieval, "retrieval"),
            "embeddings": (self.embeddings, "embedding"),
        }

    def another(self) -> Caches:
        """Return empty caches over the same stores."""
        return Caches(self._kit, f"{self.namespace}-{secrets.token_hex(4)}")

    def clear(self) -> None:
        """Remove every entry of this namespace."""
        self.answers.clear(namespace_prefix(self.namespace))

    def hits(self) -> dict[str, tuple[int, int]]:
        """Return hits and look-ups of each kind since the last ``reset``."""
        counts = {}
        for name, (cache, kind) in self._kinds.items():
            hits = cache.stats.total(kind, "hit")
            counts[name] = hits, hits + cache.stats.total(kind, "miss")
        return counts

    def reset(self) -> None:
        """Count from now on."""
        for cache, _ in self._kinds.values():
            cache.stats.reset()
