"""LlamaIndex classes over ragopt: cached embeddings, vector stores, retrievers."""

from ragopt._imports import require

require("llama_index.core", "llama-index")

from ragopt.llama_index.backends import (  # noqa: E402
    FaissVectorStore,
    PGVectorStore,
    RedisVectorStore,
)
from ragopt.llama_index.bge_m3 import BGEM3Embedding, BGEM3SparseEmbedding  # noqa: E402
from ragopt.llama_index.embeddings import CachedEmbedding, EmbedderEmbedding  # noqa: E402
from ragopt.llama_index.events import CacheEvent  # noqa: E402
from ragopt.llama_index.ingestion import CachedTransformation  # noqa: E402
from ragopt.llama_index.kvstore import CacheKVStore  # noqa: E402
from ragopt.llama_index.llms import CachedLLM  # noqa: E402
from ragopt.llama_index.query_engines import CachedQueryEngine  # noqa: E402
from ragopt.llama_index.retrievers import CachedRetriever  # noqa: E402
from ragopt.llama_index.vector_stores import IndexVectorStore  # noqa: E402

__all__ = [
    "BGEM3Embedding",
    "BGEM3SparseEmbedding",
    "CacheEvent",
    "CacheKVStore",
    "CachedEmbedding",
    "CachedLLM",
    "CachedQueryEngine",
    "CachedRetriever",
    "CachedTransformation",
    "EmbedderEmbedding",
    "FaissVectorStore",
    "IndexVectorStore",
    "PGVectorStore",
    "RedisVectorStore",
]
