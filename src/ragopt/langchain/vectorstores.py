"""Vector stores for LangChain over any ragopt index."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from ragopt._progress import Progress
from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC
from ragopt.fusion import By, check_outputs, ways_of
from ragopt.indexes.checks import check_known
from ragopt.langchain.adding import add
from ragopt.langchain.asking import Asking, document_of
from ragopt.langchain.embeddings import EmbedderEmbeddings, as_embedder
from ragopt.langchain.filters import AnyFilter, selection
from ragopt.protocols import Embedder, VectorIndex
from ragopt.types import Hit

Store = TypeVar("Store", bound="IndexVectorStore")

_ADDING = "metadatas", "ids", "batch_size", "progress"


class IndexVectorStore(Asking, VectorStore):
    """Any ragopt index as a LangChain vector store, in both colours.

    ``filter`` is a ragopt ``Filter``, a dict (``{"year": {"$gte": 2020}}``), a filter of RedisVL
    or, for an index in this process, a function of the metadata. Scores are similarities: higher
    is better.
    Relevance scores lie in [0, 1].

    With an embedder of sparse vectors, such as a ``BGEM3Embedder``, a store may search by them;
    with any embedder by the words of the text (``"text"``); or by several of these at once:
    ``by=Fusion()`` for the store, or for one search
    (``as_retriever(search_kwargs={"k": 5, "by": "sparse"})``). Searches by a vector are dense.

    Args:
        index: Where the records are.
        embedding: LangChain embeddings or a ragopt embedder.
        by: How to search; it also says which vectors are stored, the dense ones always.

    Raises:
        InvalidInput: The embedder makes no vectors of the kind that ``by`` needs. From every
            method: it does not know an option, which might have been a filter.
    """

    def __init__(
        self, index: VectorIndex, embedding: Embeddings | Embedder, *, by: By = "dense"
    ) -> None:
        self.index = index
        self.by = by
        self.embedder = as_embedder(embedding)
        # A spec may read files, and dense vectors are what every embedder makes.
        if ways_of(by) != {"dense"}:
            check_outputs(self.embedder.spec, by)
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
        batch_size: int = 1_000,
        progress: Progress | bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """Embed texts and store them, replacing those whose id is there already.

        Texts are taken, embedded and stored batch by batch, so a generator of any length needs the
        memory of one batch. When a batch fails, those before it are stored, and the error has a
        note that says which.

        Args:
            texts: Any iterable, a generator too.
            metadatas: One for each text.
            ids: One for each text; a None in it, or no ids at all, means a new one.
            batch_size: Texts that are embedded and stored at a time.
            progress: Called after each batch with the texts that are stored and with all of them
                (None where nobody knows); True for a bar on stderr.
            kwargs: None is known.

        Returns:
            The ids, in order.

        Raises:
            InvalidInput: The lengths differ, an id is given twice, or ``batch_size`` is below 1.
        """
        check_known(kwargs, *_ADDING)
        return run(add(SYNC, self._store, texts, metadatas, ids, batch_size, progress))

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int = 1_000,
        progress: Progress | bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """Embed texts and store them; see ``add_texts``."""
        check_known(kwargs, *_ADDING)
        return await add(ASYNC, self._store, texts, metadatas, ids, batch_size, progress)

    def add_documents(self, documents: Iterable[Document], **kwargs: Any) -> list[str]:
        """Embed documents and store them, a generator's too; see ``add_texts``."""
        return super().add_documents(list(documents), **kwargs)

    async def aadd_documents(self, documents: Iterable[Document], **kwargs: Any) -> list[str]:
        """Embed documents and store them, a generator's too; see ``add_texts``."""
        return await super().aadd_documents(list(documents), **kwargs)

    def delete(
        self, ids: list[str] | None = None, *, filter: AnyFilter = None, **kwargs: Any
    ) -> bool:
        """Remove records by id, by filter, or those that meet both. A missing id is no error.

        Raises:
            InvalidInput: Neither was given; ``index.clear()`` removes everything.
        """
        check_known(kwargs, "ids", "filter")
        self.index.delete(selection(ids, filter))
        return True

    async def adelete(
        self, ids: list[str] | None = None, *, filter: AnyFilter = None, **kwargs: Any
    ) -> bool:
        """Remove records; see ``delete``."""
        check_known(kwargs, "ids", "filter")
        await self.index.adelete(selection(ids, filter))
        return True

    # -- reading ---------------------------------------------------------------------------

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents with these ids, in their order; missing ones are left out."""
        return [document_of(record) for record in self.index.get(ids) if record is not None]

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents with these ids, in their order; missing ones are left out."""
        return [document_of(record) for record in await self.index.aget(ids) if record is not None]

    def similarity_search(
        self, query: str, k: int | None = 4, filter: AnyFilter = None, **kwargs: Any
    ) -> list[Document]:
        """Return the ``k`` documents nearest to the query.

        Args:
            query: What to look for.
            k: How many documents at most; None for all from ``min_score`` on.
            filter: Which documents take part.
            kwargs: ``by``, instead of the store's own, and ``min_score``, the least score.
        """
        return [document_of(hit) for hit in run(self._search(SYNC, query, k, filter, **kwargs))]

    async def asimilarity_search(
        self, query: str, k: int | None = 4, filter: AnyFilter = None, **kwargs: Any
    ) -> list[Document]:
        """Return the ``k`` documents nearest to the query."""
        return [document_of(hit) for hit in await self._search(ASYNC, query, k, filter, **kwargs)]

    def similarity_search_with_score(
        self, query: str, k: int | None = 4, filter: AnyFilter = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Return documents and their similarities: higher is better."""
        return _scored(run(self._search(SYNC, query, k, filter, **kwargs)))

    async def asimilarity_search_with_score(
        self, query: str, k: int | None = 4, filter: AnyFilter = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Return documents and their similarities: higher is better."""
        return _scored(await self._search(ASYNC, query, k, filter, **kwargs))

    def similarity_search_by_vector(
        self, embedding: list[float], k: int | None = 4, filter: AnyFilter = None, **kwargs: Any
    ) -> list[Document]:
        """Return the ``k`` documents nearest to a vector."""
        return [document_of(hit) for hit in run(self._search(SYNC, embedding, k, filter, **kwargs))]

    async def asimilarity_search_by_vector(
        self, embedding: list[float], k: int | None = 4, filter: AnyFilter = None, **kwargs: Any
    ) -> list[Document]:
        """Return the ``k`` documents nearest to a vector."""
        return [
            document_of(hit) for hit in await self._search(ASYNC, embedding, k, filter, **kwargs)
        ]

    def similarity_search_with_score_by_vector(
        self, embedding: list[float], k: int | None = 4, filter: AnyFilter = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Return the documents nearest to a vector and their similarities."""
        return _scored(run(self._search(SYNC, embedding, k, filter, **kwargs)))

    async def asimilarity_search_with_score_by_vector(
        self, embedding: list[float], k: int | None = 4, filter: AnyFilter = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Return the documents nearest to a vector and their similarities."""
        return _scored(await self._search(ASYNC, embedding, k, filter, **kwargs))

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int | None = 4, filter: AnyFilter = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        return _relevant(run(self._search(SYNC, query, k, filter, **kwargs)))

    async def _asimilarity_search_with_relevance_scores(
        self, query: str, k: int | None = 4, filter: AnyFilter = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        return _relevant(await self._search(ASYNC, query, k, filter, **kwargs))

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
        return run(self._mmr(SYNC, query, k, fetch_k, lambda_mult, filter, **kwargs))

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
        return await self._mmr(ASYNC, query, k, fetch_k, lambda_mult, filter, **kwargs)

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
        return run(self._mmr(SYNC, embedding, k, fetch_k, lambda_mult, filter, **kwargs))

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
        return await self._mmr(ASYNC, embedding, k, fetch_k, lambda_mult, filter, **kwargs)

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


def _scored(hits: Sequence[Hit]) -> list[tuple[Document, float]]:
    return [(document_of(hit), hit.score) for hit in hits]


def _relevant(hits: Sequence[Hit]) -> list[tuple[Document, float]]:
    return [(document_of(hit), hit.relevance) for hit in hits]
