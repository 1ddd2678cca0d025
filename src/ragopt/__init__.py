"""ragopt: drop-in classes that make an existing RAG chain fast the second time.

Importing this package costs nothing: every public name is loaded from its module on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Public name -> the module that defines it.
_EXPORTS = {
    "AnswerCache": "ragopt.cache.answers",
    "CachedEmbedder": "ragopt.cache.embeddings",
    "CacheStats": "ragopt.metrics",
    "Embedding": "ragopt.types",
    "EmbeddingBatch": "ragopt.types",
    "F": "ragopt.filters",
    "FaissIndex": "ragopt.indexes.faiss",
    "Filter": "ragopt.filters",
    "HashingEmbedder": "ragopt.embedders.hashing",
    "Hit": "ragopt.types",
    "MemoryIndex": "ragopt.indexes.memory",
    "MemoryStore": "ragopt.stores.memory",
    "Metric": "ragopt.types",
    "MissingDependency": "ragopt.errors",
    "RagoptError": "ragopt.errors",
    "Record": "ragopt.types",
    "RecordBatch": "ragopt.types",
    "RedisStore": "ragopt.stores.redis",
    "RetrievalCache": "ragopt.cache.retrieval",
    "SparseVector": "ragopt.types",
    "SqliteStore": "ragopt.stores.sqlite",
    "TieredCache": "ragopt.cache.tiers",
    "TransformersEmbedder": "ragopt.embedders.transformers",
}

__all__ = [*_EXPORTS, "__version__"]  # noqa: PLE0604 - the table is the list of names

if TYPE_CHECKING:
    from ragopt.cache.answers import AnswerCache
    from ragopt.cache.embeddings import CachedEmbedder
    from ragopt.cache.retrieval import RetrievalCache
    from ragopt.cache.tiers import TieredCache
    from ragopt.embedders.hashing import HashingEmbedder
    from ragopt.embedders.transformers import TransformersEmbedder
    from ragopt.errors import MissingDependency, RagoptError
    from ragopt.filters import F, Filter
    from ragopt.indexes.faiss import FaissIndex
    from ragopt.indexes.memory import MemoryIndex
    from ragopt.metrics import CacheStats
    from ragopt.stores.memory import MemoryStore
    from ragopt.stores.redis import RedisStore
    from ragopt.stores.sqlite import SqliteStore
    from ragopt.types import (
        Embedding,
        EmbeddingBatch,
        Hit,
        Metric,
        Record,
        RecordBatch,
        SparseVector,
    )


def __getattr__(name: str) -> object:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'ragopt' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
