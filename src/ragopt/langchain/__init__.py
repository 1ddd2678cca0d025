"""LangChain classes over ragopt: cached embeddings, vector stores, retrievers, answers."""

from ragopt._imports import require

require("langchain_core", "langchain")

from ragopt.langchain.backends import (  # noqa: E402
    FaissVectorStore,
    PGVectorStore,
    RedisVectorStore,
)
from ragopt.langchain.bge_m3 import BGEM3Embeddings  # noqa: E402
from ragopt.langchain.caches import LLMCache  # noqa: E402
from ragopt.langchain.chains import CachedChain  # noqa: E402
from ragopt.langchain.embeddings import CachedEmbeddings, EmbedderEmbeddings  # noqa: E402
from ragopt.langchain.models import CachedChatModel  # noqa: E402
from ragopt.langchain.retrievers import CachedRetriever  # noqa: E402
from ragopt.langchain.splitters import CachedSplitter  # noqa: E402
from ragopt.langchain.stores import CacheByteStore  # noqa: E402
from ragopt.langchain.vectorstores import IndexVectorStore  # noqa: E402

__all__ = [
    "BGEM3Embeddings",
    "CacheByteStore",
    "CachedChain",
    "CachedChatModel",
    "CachedEmbeddings",
    "CachedRetriever",
    "CachedSplitter",
    "EmbedderEmbeddings",
    "FaissVectorStore",
    "IndexVectorStore",
    "LLMCache",
    "PGVectorStore",
    "RedisVectorStore",
]
