"""What cached retrievers and query engines have in common: queries and versions."""

from __future__ import annotations

from typing import Any

from llama_index.core.indices.vector_store import VectorStoreIndex
from llama_index.core.schema import QueryBundle

from ragopt.llama_index.vector_stores import IndexVectorStore


def copy_query(query: QueryBundle) -> QueryBundle:
    """Return a bundle of one's own: LlamaIndex's retriever writes the embedding into it."""
    return QueryBundle(
        query_str=query.query_str,
        image_path=query.image_path,
        custom_embedding_strs=query.custom_embedding_strs,
        embedding=query.embedding,
    )


def query_key(query: QueryBundle) -> tuple[Any, ...]:
    """Return everything that a result depends on."""
    return query.query_str, query.image_path, query.custom_embedding_strs, query.embedding


def to_version(version: Any) -> Any:
    """Return the ragopt index behind a vector store or a ``VectorStoreIndex`` over one."""
    if isinstance(version, VectorStoreIndex):
        version = version.vector_store
    return version.client if isinstance(version, IndexVectorStore) else version
