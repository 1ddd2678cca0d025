"""Vector stores for LangChain over any ragopt index."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.errors import InvalidInput
from ragopt.filters import And, Filter, Ids, to_filter
from ragopt.indexes.faiss import FaissIndex
from ragopt.langchain.embeddings import EmbedderEmbeddings, as_embedder
from ragopt.langchain.plain import document
from ragopt.protocols import Embedder, VectorIndex
from ragopt.retrieval.mmr import mmr
from ragopt.types import Dense, EmbeddingBatch, Hit, Metric, Record, RecordBatch

AnyFilter: TypeAlias = Filter | Mapping[str, Any] | Callable[[Mapping[str, Any]], bool] | None
Store = TypeVar("Store", bound="IndexVectorStore")


class IndexVectorStore(VectorStore):
    """Any ragopt index as a LangChain vector store, in both colours.

    ``filter`` is a ragopt ``Filter``, a dict (``{"year": {"$gte": 2020}}``) or, for an index in
    this process, a function of the metadata. Scores are similarities: higher is better.
    Relevance scores lie in [0, 1].

    Args:
        index: Where the records are.
        embedding: LangChain embeddings or a ragopt embedder.
    """

    def __init__(self, index: VectorIndex, embedding: Embeddings | Embedder) -> None:
        self.index = index
        self.embedder = as_embedder(embedding)
        self._embeddings = (
            embedding if isinstance(embedding, Embeddings) else EmbedderEmbeddings(embedding)
        )

    @property
    def embeddings(self) -> Embeddings:
        """The embeddings that texts and queries go through."""
        return self._embeddings

    # -- writing ---------------------------------------------------------------------------

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Embed texts and store them, replacing those whose id is there already.

        Args:
            texts: Any iterable, a generator too.
            metadatas: One for each text.
            ids: One for each text; a None in it, or no ids at all, means a new one.
            kwargs: Accepted for the interface (``batch_size``); not used.

        Returns:
            The ids, in order.
        """
        return run(self._add(SYNC, texts, metadatas, ids))

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Embed texts and store them; see ``add_texts``."""
        return await self._add(ASYNC, texts, metadatas, ids)

    async def _add(
        self,
        io: Runtime,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None,
        ids: Sequence[str | None] | None,
    ) -> list[str]:
        texts = list(texts)
        names = [id_ or str(uuid.uuid4()) for id_ in ids or [None] * len(texts)]
        if len(names) != len(texts):
            raise InvalidInput(
                f"{len(names)} ids came with {len(texts)} texts. Nothing was stored.",
                fix="Pass one id for each text.",
            )
        batch = await io.call(self.embedder.embed, self.embedder.aembed, texts, role="document")
        records = RecordBatch(names, texts, batch, metadatas)
        return await io.call(self.index.add, self.index.aadd, records)

    def delete(
        self, ids: list[str] | None = None, *, filter: AnyFilter = None, **kwargs: Any
    ) -> bool:
        """Remove records by id, by filter, or those that meet both. A missing id is no error.

        Raises:
            InvalidInput: Neither was given; ``index.clear()`` removes everything.
        """
        self.index.delete(_selection(ids, filter))
        return True

    async def adelete(
        self, ids: list[str] | None = None, *, filter: AnyFilter = None, **kwargs: Any
    ) -> bool:
        """Remove records; see ``delete``."""
        await self.index.adelete(_selection(ids, filter))
        return True

    # -- reading ---------------------------------------------------------------------------

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents with these ids, in their order; missing ones are left out."""
        return [_document(record) for record in self.index.get(ids) if record is not None]

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents with these ids, in their order; missing ones are left out."""
        return [_document(record) for record in await self.index.aget(ids) if record is not None]

    def similarity_search(
        self, query: str, k: int = 4, filter: AnyFilter = None, **kwargs: Any
    ) -> list[Document]:
        """Return the ``k`` documents nearest to the query."""
        return [_document(hit) for hit in run(self._search(SYNC, query, k, filter))]

    async def asimilarity_search(
        self, query: str, k: int = 4, filter: AnyFilter = None, **kwargs: Any
    ) -> list[Document]:
        """Return the ``k`` documents nearest to the query."""
        return [_document(hit) for hit in await self._search(ASYNC, query, k, filter)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: AnyFilter = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Return documents and their similarities: higher is better."""
        return [(_document(h), h.score) for h in run(self._search(SYNC, query, k, filter))]

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, filter: AnyFilter = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Return documents and their similarities: higher is better."""
        return [(_document(h), h.score) for h in await self._search(ASYNC, query, k, filter)]

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: AnyFilter = None, **kwargs: Any
    ) -> list[Document]:
        """Return the ``k`` documents nearest to a vector."""
        return [_document(hit) for hit in run(self._search(SYNC, embedding, k, filter))]

    async def asimilarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: AnyFilter = None, **kwargs: Any
    ) -> list[Document]:
        """Return the ``k`` documents nearest to a vector."""
        return [_document(hit) for hit in await self._search(ASYNC, embedding, k, filter)]

    def similarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, filter: AnyFilter = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Return the documents nearest to a vector and their similarities."""
        return [(_document(h), h.score) for h in run(self._search(SYNC, embedding, k, filter))]

    async def asimilarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, filter: AnyFilter = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Return the documents nearest to a vector and their similarities."""
        return [(_document(h), h.score) for h in await self._search(ASYNC, embedding, k, filter)]

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, filter: AnyFilter = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        return [(_document(h), h.relevance) for h in run(self._search(SYNC, query, k, filter))]

    async def _asimilarity_search_with_relevance_scores(
        self, query: str, k: int = 4, filter: AnyFilter = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        return [(_document(h), h.relevance) for h in await self._search(ASYNC, query, k, filter)]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: AnyFilter = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return ``k`` of the ``fetch_k`` nearest documents, near the query and not all alike."""
        return run(self._mmr(SYNC, query, k, fetch_k, lambda_mult, filter))

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: AnyFilter = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return ``k`` of the ``fetch_k`` nearest documents, near the query and not all alike."""
        return await self._mmr(ASYNC, query, k, fetch_k, lambda_mult, filter)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: AnyFilter = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Do ``max_marginal_relevance_search`` for a vector."""
        return run(self._mmr(SYNC, embedding, k, fetch_k, lambda_mult, filter))

    async def amax_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: AnyFilter = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Do ``max_marginal_relevance_search`` for a vector."""
        return await self._mmr(ASYNC, embedding, k, fetch_k, lambda_mult, filter)

    async def _search(
        self,
        io: Runtime,
        query: str | list[float] | Dense,
        k: int,
        filter: AnyFilter,
        *,
        embeddings: bool = False,
    ) -> list[Hit]:
        where = to_filter(filter)
        vector = await self._vector(io, query)
        search: Callable[..., list[list[Hit]]] = self.index.search_batch
        (hits,) = await io.call(
            search, self.index.asearch_batch, vector, k=k, where=where, embeddings=embeddings
        )
        return hits

    async def _mmr(
        self,
        io: Runtime,
        query: str | list[float] | Dense,
        k: int,
        fetch_k: int,
        lambda_mult: float,
        filter: AnyFilter,
    ) -> list[Document]:
        batch = await self._vector(io, query)
        assert batch.dense is not None
        vector = batch.dense[0]
        hits = await self._search(io, vector, max(k, fetch_k), filter, embeddings=True)
        found = [h.embedding.dense for h in hits if h.embedding and h.embedding.dense is not None]
        if not found:
            return []
        chosen = mmr(vector, np.stack(found), k=k, lambda_mult=lambda_mult)
        return [_document(hits[position]) for position in chosen]

    async def _vector(self, io: Runtime, query: str | list[float] | Dense) -> EmbeddingBatch:
        if isinstance(query, str):
            embedder = self.embedder
            return await io.call(embedder.embed, embedder.aembed, [query], role="query")
        return EmbeddingBatch.of_dense(query)

    # -- construction ----------------------------------------------------------------------

    @classmethod
    def from_texts(
        cls: type[Store],
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> Store:
        """Make a store and add texts to it; ``kwargs`` go to the constructor."""
        store = cls(embedding=embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    async def afrom_texts(
        cls: type[Store],
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> Store:
        """Make a store and add texts to it; ``kwargs`` go to the constructor."""
        store = cls(embedding=embedding, **kwargs)
        await store.aadd_texts(texts, metadatas, ids=ids)
        return store


class FaissVectorStore(IndexVectorStore):
    """FAISS with texts, metadata, filters, deletes and files without pickle.

    Args:
        embedding: LangChain embeddings or a ragopt embedder.
        index: A ``FaissIndex`` that is there already; a new one if None.
        metric: ``cosine``, ``ip`` or ``l2``; of a new index.
        kind: ``flat`` is exact, ``hnsw`` is fast from some ten thousand texts on.
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
        kind: Literal["flat", "hnsw"] = "flat",
        **index_options: Any,
    ) -> None:
        super().__init__(
            FaissIndex(metric=metric, kind=kind, **index_options) if index is None else index,
            embedding,
        )

    def save_local(self, folder_path: str | os.PathLike[str]) -> None:
        """Write the index to a folder, atomically; see ``FaissIndex.save``."""
        self.index.save(folder_path)

    @classmethod
    def load_local(
        cls, folder_path: str | os.PathLike[str], embeddings: Embeddings | Embedder
    ) -> FaissVectorStore:
        """Read an index that ``save_local`` wrote. There is no pickle in it."""
        return cls(embeddings, index=FaissIndex.load(folder_path))


def _selection(ids: list[str] | None, filter: AnyFilter) -> Filter:
    where = to_filter(filter)
    if ids is None:
        if where is None:
            raise InvalidInput(
                "A delete was asked for without ids and without a filter.",
                fix="Pass ids or a filter; to remove everything, call store.index.clear().",
            )
        return where
    return Ids(ids) if where is None else And((Ids(ids), where))


def _document(record: Record | Hit) -> Document:
    # A record is the caller's own copy, and nobody else holds this one.
    return document(record.id, record.text, record.metadata)
