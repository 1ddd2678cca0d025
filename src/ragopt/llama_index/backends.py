"""The vector stores for LlamaIndex by name: FAISS, PostgreSQL, Redis."""

from __future__ import annotations

import os
from typing import Any, Literal

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from llama_index.core.base.embeddings.base import BaseEmbedding

from ragopt.errors import InvalidInput
from ragopt.indexes._faiss_kinds import Kind
from ragopt.indexes._given import faiss_index, pgvector_index, redis_index
from ragopt.indexes.faiss import FaissIndex
from ragopt.indexes.pgvector import PgvectorIndex
from ragopt.indexes.redis import RedisIndex
from ragopt.llama_index.vector_stores import IndexVectorStore, SparseSource
from ragopt.types import Metric

_NAME = "llamaindex_nodes"


class FaissVectorStore(IndexVectorStore):
    """FAISS with texts, metadata, filters, deletes and files without pickle.

    Args:
        index: A ``FaissIndex`` that is there already; a new one if None.
        metric: ``cosine`` (the default), ``ip`` or ``l2``; of a new index.
        kind: ``flat`` (the default) is exact, ``auto`` becomes faster as it grows; see
            ``FaissIndex``.
        sparse: What makes sparse vectors; see ``IndexVectorStore``.
        fusion: Of the mode ``hybrid``; see ``IndexVectorStore``.
        embed_model: Whose vectors these are, to refuse another's; see ``IndexVectorStore``.
        index_options: Other arguments of a new ``FaissIndex``.

    Examples:
        >>> storage = StorageContext.from_defaults(vector_store=FaissVectorStore())
        >>> index = VectorStoreIndex.from_documents(documents, storage_context=storage)
    """

    def __init__(
        self,
        index: FaissIndex | None = None,
        *,
        metric: Metric | str | None = None,
        kind: Kind | None = None,
        sparse: SparseSource = None,
        fusion: Literal["rrf", "relative"] = "rrf",
        embed_model: BaseEmbedding | str | None = None,
        **index_options: Any,
    ) -> None:
        made = faiss_index(index, metric=metric, kind=kind, **index_options)
        super().__init__(made, sparse=sparse, fusion=fusion, embed_model=embed_model)

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in serialised components."""
        return "FaissVectorStore"

    def persist(self, persist_path: str, fs: AbstractFileSystem | None = None) -> None:
        """Write the index to a folder, atomically; see ``FaissIndex.save``.

        Raises:
            InvalidInput: The file system is not a local one.
        """
        if fs is not None and not isinstance(fs, LocalFileSystem):
            raise InvalidInput(
                f"A FAISS index cannot be saved to a {type(fs).__name__}.",
                fix="Save it to a local folder and copy that.",
            )
        assert isinstance(self._index, FaissIndex)
        self._index.save(persist_path)

    @classmethod
    def from_persist_path(
        cls, persist_path: str | os.PathLike[str], *, mmap: bool = False, **options: Any
    ) -> FaissVectorStore:
        """Read an index that ``persist`` wrote; ``options`` are those of the class.

        With ``mmap`` its vectors are mapped into memory; see ``FaissIndex.load``.
        """
        return cls(FaissIndex.load(persist_path, mmap=mmap), **options)


class PGVectorStore(IndexVectorStore):
    """PostgreSQL with pgvector, over asyncpg: see ``PgvectorIndex``.

    Args:
        index: A ``PgvectorIndex`` that is there already; a new one if None, or if it says what a
            new one is indexed with, such as ``"none"``.
        connection_string: ``postgresql://user:password@host:5432/database``, of a new index.
        table_name: Of a new index, ``llamaindex_nodes`` if None. The table is made if it is not
            there.
        metric: ``cosine`` (the default), ``ip`` or ``l2``; of a new index.
        sparse: What makes sparse vectors; see ``IndexVectorStore``.
        fusion: Of the mode ``hybrid``; see ``IndexVectorStore``.
        embed_model: Whose vectors these are, to refuse another's; see ``IndexVectorStore``.
        index_options: Other arguments of a new ``PgvectorIndex``.

    Raises:
        InvalidInput: Neither an index nor a connection string was given, or an index and what is
            for a new one.

    Examples:
        >>> store = PGVectorStore(connection_string="postgresql://me:secret@localhost/db")
    """

    def __init__(
        self,
        index: PgvectorIndex | str | None = None,
        *,
        connection_string: str | None = None,
        table_name: str | None = None,
        metric: Metric | str | None = None,
        sparse: SparseSource = None,
        fusion: Literal["rrf", "relative"] = "rrf",
        embed_model: BaseEmbedding | str | None = None,
        **index_options: Any,
    ) -> None:
        place = {"dsn": connection_string, "table": table_name, "metric": metric}
        made = pgvector_index(index, "connection_string", _NAME, **place, **index_options)
        super().__init__(made, sparse=sparse, fusion=fusion, embed_model=embed_model)

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in serialised components."""
        return "PGVectorStore"


class RedisVectorStore(IndexVectorStore):
    """Redis with its query engine: see ``RedisIndex``.

    Args:
        index: A ``RedisIndex`` that is there already; a new one if None.
        redis_url: Of a new index; ``redis://localhost:6379`` if None.
        index_name: Of a new index, ``llamaindex_nodes`` if None. It is made if it is not there.
        metric: ``cosine`` (the default), ``ip`` or ``l2``; of a new index.
        sparse: What makes sparse vectors; see ``IndexVectorStore``.
        fusion: Of the mode ``hybrid``; see ``IndexVectorStore``.
        embed_model: Whose vectors these are, to refuse another's; see ``IndexVectorStore``.
        index_options: Other arguments of a new ``RedisIndex``.

    Examples:
        >>> store = RedisVectorStore(redis_url="redis://localhost:6379")
    """

    def __init__(
        self,
        index: RedisIndex | None = None,
        *,
        redis_url: str | None = None,
        index_name: str | None = None,
        metric: Metric | str | None = None,
        sparse: SparseSource = None,
        fusion: Literal["rrf", "relative"] = "rrf",
        embed_model: BaseEmbedding | str | None = None,
        **index_options: Any,
    ) -> None:
        place = {"url": redis_url, "name": index_name, "metric": metric}
        made = redis_index(index, _NAME, **place, **index_options)
        super().__init__(made, sparse=sparse, fusion=fusion, embed_model=embed_model)

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in serialised components."""
        return "RedisVectorStore"
