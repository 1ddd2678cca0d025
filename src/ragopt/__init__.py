"""ragopt: drop-in classes that make an existing RAG chain fast the second time.

Importing this package costs nothing: every public name is loaded from its module on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Public name -> the module that defines it.
_EXPORTS = {
    "AnswerCache": "ragopt.cache.answers",
    "BatchingEmbedder": "ragopt.embedders.batching",
    "BGEM3Embedder": "ragopt.embedders.bge_m3",
    "CachedEmbedder": "ragopt.cache.embeddings",
    "CacheStats": "ragopt.metrics",
    "cached": "ragopt.cache.decorator",
    "Documents": "ragopt.filters",
    "Embedding": "ragopt.types",
    "EmbeddingBatch": "ragopt.types",
    "F": "ragopt.filters",
    "FaissIndex": "ragopt.indexes.faiss",
    "Filter": "ragopt.filters",
    "Fusion": "ragopt.fusion",
    "HashingEmbedder": "ragopt.embedders.hashing",
    "Freshness": "ragopt.cache.freshness",
    "Hit": "ragopt.types",
    "Ids": "ragopt.filters",
    "IndexStats": "ragopt.types",
    "Lineage": "ragopt.cache.lineage",
    "MemoryIndex": "ragopt.indexes.memory",
    "MemoryStore": "ragopt.stores.memory",
    "Metric": "ragopt.types",
    "MissingDependency": "ragopt.errors",
    "PgvectorIndex": "ragopt.indexes.pgvector",
    "RagoptError": "ragopt.errors",
    "Record": "ragopt.types",
    "RecordBatch": "ragopt.types",
    "RedisAlias": "ragopt.indexes.redis_alias",
    "RedisIndex": "ragopt.indexes.redis",
    "RedisStore": "ragopt.stores.redis",
    "RetrievalCache": "ragopt.cache.retrieval",
    "SparseVector": "ragopt.types",
    "SqliteStore": "ragopt.stores.sqlite",
    "TieredCache": "ragopt.cache.tiers",
    "TransformersEmbedder": "ragopt.embedders.transformers",
    "ValueCache": "ragopt.cache.values",
}

__all__ = [*_EXPORTS, "__version__"]  # noqa: PLE0604 - the table is the list of names

if TYPE_CHECKING:
    from ragopt.cache.answers import AnswerCache as AnswerCache
    from ragopt.cache.decorator import cached as cached
    from ragopt.cache.embeddings import CachedEmbedder as CachedEmbedder
    from ragopt.cache.freshness import Freshness as Freshness
    from ragopt.cache.lineage import Lineage as Lineage
    from ragopt.cache.retrieval import RetrievalCache as RetrievalCache
    from ragopt.cache.tiers import TieredCache as TieredCache
    from ragopt.cache.values import ValueCache as ValueCache
    from ragopt.embedders.batching import BatchingEmbedder as BatchingEmbedder
    from ragopt.embedders.bge_m3 import BGEM3Embedder as BGEM3Embedder
    from ragopt.embedders.hashing import HashingEmbedder as HashingEmbedder
    from ragopt.embedders.transformers import TransformersEmbedder as TransformersEmbedder
    from ragopt.errors import MissingDependency as MissingDependency
    from ragopt.errors import RagoptError as RagoptError
    from ragopt.filters import Documents as Documents
    from ragopt.filters import F as F
    from ragopt.filters import Filter as Filter
    from ragopt.filters import Ids as Ids
    from ragopt.fusion import Fusion as Fusion
    from ragopt.indexes.faiss import FaissIndex as FaissIndex
    from ragopt.indexes.memory import MemoryIndex as MemoryIndex
    from ragopt.indexes.pgvector import PgvectorIndex as PgvectorIndex
    from ragopt.indexes.redis import RedisIndex as RedisIndex
    from ragopt.indexes.redis_alias import RedisAlias as RedisAlias
    from ragopt.metrics import CacheStats as CacheStats
    from ragopt.stores.memory import MemoryStore as MemoryStore
    from ragopt.stores.redis import RedisStore as RedisStore
    from ragopt.stores.sqlite import SqliteStore as SqliteStore
    from ragopt.types import Embedding as Embedding
    from ragopt.types import EmbeddingBatch as EmbeddingBatch
    from ragopt.types import Hit as Hit
    from ragopt.types import IndexStats as IndexStats
    from ragopt.types import Metric as Metric
    from ragopt.types import Record as Record
    from ragopt.types import RecordBatch as RecordBatch
    from ragopt.types import SparseVector as SparseVector


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
