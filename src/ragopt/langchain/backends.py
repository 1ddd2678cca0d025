"""The vector stores for LangChain by name: FAISS, PostgreSQL, Redis."""

from __future__ import annotations

import os
from typing import Any

from langchain_core.embeddings import Embeddings

from ragopt.fusion import By, ways_of
from ragopt.indexes._faiss_kinds import Kind
from ragopt.indexes._given import faiss_index, pgvector_index, redis_index
from ragopt.indexes.faiss import FaissIndex
from ragopt.indexes.pgvector import PgvectorIndex
from ragopt.indexes.redis import RedisIndex
from ragopt.langchain.vectorstores import IndexVectorStore
from ragopt.protocols import Embedder, VectorIndex
from ragopt.types import Metric

_NAME = "langchain_passages"


class FaissVectorStore(IndexVectorStore):
    """FAISS with texts, metadata, filters, deletes and files without pickle.

    Args:
        embedding: LangChain embeddings or a ragopt embedder.
        index: A ``FaissIndex`` that is there already; a new one if None.
        metric: ``cosine`` (the default), ``ip`` or ``l2``; of a new index.
        kind: ``flat`` (the default) is exact, ``auto`` becomes faster as it grows; see
            ``FaissIndex``.
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
        metric: Metric | str | None = None,
        kind: Kind | None = None,
        by: By = "dense",
        **index_options: Any,
    ) -> None:
        made = faiss_index(index, metric=metric, kind=kind, **index_options)
        super().__init__(made, embedding, by=by)

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
        index: A ``PgvectorIndex`` that is there already; a new one if None, or if it says what a
            new one is indexed with, such as ``"none"``.
        connection: ``postgresql://user:password@host:5432/database``, of a new index.
        table_name: Of a new index, ``langchain_passages`` if None. The table is made if it is not
            there.
        metric: ``cosine`` (the default), ``ip`` or ``l2``; of a new index.
        by: How to search; see ``IndexVectorStore``.
        index_options: Other arguments of a new ``PgvectorIndex``.

    Raises:
        InvalidInput: Neither an index nor a connection was given, or an index and what is for a
            new one.

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
        index: PgvectorIndex | str | None = None,
        connection: str | None = None,
        table_name: str | None = None,
        metric: Metric | str | None = None,
        by: By = "dense",
        **index_options: Any,
    ) -> None:
        place = {"dsn": connection, "table": table_name, "metric": metric}
        options = {**place, **_text(index, by), **index_options}
        made = pgvector_index(index, "connection", _NAME, **options)
        super().__init__(made, embedding, by=by)


class RedisVectorStore(IndexVectorStore):
    """Redis with its query engine: see ``RedisIndex``.

    Args:
        embedding: LangChain embeddings or a ragopt embedder.
        index: A ``RedisIndex`` that is there already; a new one if None.
        redis_url: Of a new index; ``redis://localhost:6379`` if None.
        index_name: Of a new index, ``langchain_passages`` if None. It is made if it is not there.
        metric: ``cosine`` (the default), ``ip`` or ``l2``; of a new index.
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
        redis_url: str | None = None,
        index_name: str | None = None,
        metric: Metric | str | None = None,
        by: By = "dense",
        **index_options: Any,
    ) -> None:
        place = {"url": redis_url, "name": index_name, "metric": metric}
        options = {**place, **_text(index, by), **index_options}
        super().__init__(redis_index(index, _NAME, **options), embedding, by=by)


def _text(index: object, by: By) -> dict[str, Any]:
    """Return what a new index needs for what it is made for."""
    is_new = not isinstance(index, VectorIndex)
    return {"text_search": True} if is_new and "text" in ways_of(by) else {}
