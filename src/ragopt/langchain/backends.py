"""The vector stores for LangChain by name: FAISS, PostgreSQL, Redis."""

from __future__ import annotations

import os
from typing import Any

from langchain_core.embeddings import Embeddings

from ragopt.errors import InvalidInput
from ragopt.fusion import By
from ragopt.indexes._faiss_kinds import Kind
from ragopt.indexes.faiss import FaissIndex
from ragopt.indexes.pgvector import PgvectorIndex
from ragopt.indexes.redis import RedisIndex
from ragopt.langchain.vectorstores import IndexVectorStore
from ragopt.protocols import Embedder
from ragopt.types import Metric


class FaissVectorStore(IndexVectorStore):
    """FAISS with texts, metadata, filters, deletes and files without pickle.

    Args:
        embedding: LangChain embeddings or a ragopt embedder.
        index: A ``FaissIndex`` that is there already; a new one if None.
        metric: ``cosine``, ``ip`` or ``l2``; of a new index.
        kind: ``flat`` is exact, ``auto`` becomes faster as it grows; see ``FaissIndex``.
        by: How to search; see ``IndexVectorStore``.
        index_options: Other arguments of a new ``FaissIndex``.

    Examples:
        >>> store = FaissVectorStore.from_texts(["a passage"], OpenAIEmbeddings())
    """

    index: FaissIndex

    def __init__(
        self,
        embedding: Embeddings | Embedder,
        *,
        index: FaissIndex | None = None,
        metric: Metric | str = Metric.COSINE,
        kind: Kind = "flat",
        by: By = "dense",
        **index_options: Any,
    ) -> None:
        super().__init__(
            FaissIndex(metric=metric, kind=kind, **index_options) if index is None else index,
            embedding,
            by=by,
        )

    def save_local(self, folder_path: str | os.PathLike[str]) -> None:
        """Write the index to a folder, atomically; see ``FaissIndex.save``."""
        self.index.save(folder_path)

    @classmethod
    def load_local(
        cls,
        folder_path: str | os.PathLike[str],
        embeddings: Embeddings | Embedder,
        *,
        by: By = "dense",
        mmap: bool = False,
    ) -> FaissVectorStore:
        """Read an index that ``save_local`` wrote. There is no pickle in it.

        With ``mmap`` its vectors are mapped into memory; see ``FaissIndex.load``.
        """
        return cls(embeddings, index=FaissIndex.load(folder_path, mmap=mmap), by=by)


class PGVectorStore(IndexVectorStore):
    """PostgreSQL with pgvector, over asyncpg: see ``PgvectorIndex``.

    Args:
        embedding: LangChain embeddings or a ragopt embedder.
        index: A ``PgvectorIndex`` that is there already; a new one if None.
        connection: ``postgresql://user:password@host:5432/database``, of a new index.
        table_name: Of a new index. The table is made if it is not there.
        metric: ``cosine``, ``ip`` or ``l2``; of a new index.
        by: How to search; see ``IndexVectorStore``.
        index_options: Other arguments of a new ``PgvectorIndex``.

    Raises:
        InvalidInput: Neither an index nor a connection was given.

    Examples:
        >>> store = PGVectorStore(
        ...     OpenAIEmbeddings(), connection="postgresql://me:secret@localhost/db"
        ... )
    """

    index: PgvectorIndex

    def __init__(
        self,
        embedding: Embeddings | Embedder,
        *,
        index: PgvectorIndex | None = None,
        connection: str | None = None,
        table_name: str = "langchain_passages",
        metric: Metric | str = Metric.COSINE,
        by: By = "dense",
        **index_options: Any,
    ) -> None:
        if index is None:
            if connection is None:
                raise InvalidInput(
                    "A PGVectorStore was made without a database.",
                    fix="Pass connection='postgresql://user:password@host:5432/database', or an "
                    "index.",
                )
            index = PgvectorIndex(connection, table_name, metric=metric, **index_options)
        super().__init__(index, embedding, by=by)


class RedisVectorStore(IndexVectorStore):
    """Redis with its query engine: see ``RedisIndex``.

    Args:
        embedding: LangChain embeddings or a ragopt embedder.
        index: A ``RedisIndex`` that is there already; a new one if None.
        redis_url: Of a new index.
        index_name: Of a new index. It is made if it is not there.
        metric: ``cosine``, ``ip`` or ``l2``; of a new index.
        by: How to search; see ``IndexVectorStore``.
        index_options: Other arguments of a new ``RedisIndex``.

    Examples:
        >>> store = RedisVectorStore(OpenAIEmbeddings(), redis_url="redis://localhost:6379")
    """

    index: RedisIndex

    def __init__(
        self,
        embedding: Embeddings | Embedder,
        *,
        index: RedisIndex | None = None,
        redis_url: str = "redis://localhost:6379",
        index_name: str = "langchain_passages",
        metric: Metric | str = Metric.COSINE,
        by: By = "dense",
        **index_options: Any,
    ) -> None:
        if index is None:
            index = RedisIndex(redis_url, index_name, metric=metric, **index_options)
        super().__init__(index, embedding, by=by)
