"""The same texts and vectors in every run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from langchain_core.embeddings import Embeddings

from ragopt._runtime import Runtime
from ragopt.embedders.base import BaseEmbedder
from ragopt.types import Dense, EmbedderSpec, EmbeddingBatch, Output, Role

DIMENSION = 1024
_WORDS = (
    *("cache", "vector", "query", "index", "store", "answer", "passage", "model", "token", "score"),
    *("recall", "latency", "memory", "disk", "batch", "shard", "graph", "filter", "tenant"),
)


def passages(number: int, words: int = 60) -> list[str]:
    """Return different texts of some 400 characters."""
    random = np.random.default_rng(7)
    picks = random.integers(len(_WORDS), size=(number, words))
    return [f"Passage {i}: " + " ".join(_WORDS[j] for j in row) for i, row in enumerate(picks)]


def vectors(number: int) -> Dense:
    """Return unit vectors, shape ``(number, DIMENSION)``."""
    rows = np.random.default_rng(11).standard_normal((number, DIMENSION), dtype=np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


class Known(BaseEmbedder):
    """A ragopt embedder whose vectors are known: it returns rows of one array, without a copy.

    The rows of a call are those from its first text on, so looking them up costs next to nothing.
    """

    def __init__(self, texts: Sequence[str], rows: Dense) -> None:
        self._row_of = {text: row for row, text in enumerate(texts)}
        self._rows = rows

    @property
    def spec(self) -> EmbedderSpec:
        return EmbedderSpec("benchmark", dimension=self._rows.shape[1])

    async def _embed(
        self, io: Runtime, texts: list[str], role: Role, outputs: frozenset[Output]
    ) -> EmbeddingBatch:
        first = self._row_of[texts[0]]
        return EmbeddingBatch(dense=self._rows[first : first + len(texts)])


class KnownLists(Embeddings):
    """LangChain embeddings whose vectors are known, as lists made beforehand."""

    model = "benchmark"

    def __init__(self, texts: Sequence[str], rows: Dense) -> None:
        self._row_of = {text: row for row, text in enumerate(texts)}
        self._lists: list[list[float]] = rows.tolist()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        first = self._row_of[texts[0]]
        return self._lists[first : first + len(texts)]

    def embed_query(self, text: str) -> list[float]:
        return self._lists[self._row_of[text]]
