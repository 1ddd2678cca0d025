"""Vector stores for LlamaIndex over any ragopt index."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.errors import InvalidInput
from ragopt.filters import Documents, Filter, to_filter
from ragopt.indexes.faiss import FaissIndex
from ragopt.llama_index.filters import selection
from ragopt.llama_index.nodes import from_record, to_records
from ragopt.protocols import VectorIndex
from ragopt.retrieval.mmr import mmr
from ragopt.types import EmbeddingBatch, Metric

_MMR_FETCH = 4  # candidates for each result, unless ``mmr_prefetch_factor`` says otherwise


class IndexVectorStore(BasePydanticVectorStore):
    """Any ragopt index as a LlamaIndex vector store, in both colours.

    All fourteen filter operators, nested AND, OR and NOT. Similarities are scores: higher is
    better.

    Args:
        index: Where the records are.
    """

    stores_text: bool = True
    is_embedding_query: bool = True

    _index: VectorIndex = PrivateAttr()

    def __init__(self, index: VectorIndex, **options: Any) -> None:
        super().__init__(stores_text=True, **options)
        self._index = index

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in serialised components."""
        return "IndexVectorStore"

    @property
    def client(self) -> VectorIndex:
        """The ragopt index."""
        return self._index

    # -- writing ---------------------------------------------------------------------------

    def add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:
        """Store nodes, replacing those whose id is there already; return the ids in order."""
        return self._index.add(to_records(list(nodes)))

    async def async_add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:
        """Store nodes; see ``add``."""
        return await self._index.aadd(to_records(list(nodes)))

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Remove the nodes of a document. A missing one is no error."""
        self._index.delete(Documents([ref_doc_id]))

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Remove the nodes of a document. A missing one is no error."""
        await self._index.adelete(Documents([ref_doc_id]))

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Remove the nodes that meet every condition given.

        Raises:
            InvalidInput: No condition was given; ``clear`` removes everything.
        """
        self._index.delete(_some(selection(filters, node_ids)))

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Remove the nodes that meet every condition given; see ``delete_nodes``."""
        await self._index.adelete(_some(selection(filters, node_ids)))

    def clear(self) -> None:
        """Remove every node."""
        self._index.clear()

    async def aclear(self) -> None:
        """Remove every node."""
        await self._index.aclear()

    # -- reading ---------------------------------------------------------------------------

    def get_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Return the nodes that meet every condition given; ids without a node are left out."""
        found = self._index.find(selection(filters, node_ids), embeddings=True)
        return _in_order([from_record(record) for record in found], node_ids)

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Return the nodes that meet every condition given; see ``get_nodes``."""
        found = await self._index.afind(selection(filters, node_ids), embeddings=True)
        return _in_order([from_record(record) for record in found], node_ids)

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Return the nodes nearest to the query's embedding.

        Args:
            query: Embedding, number of nodes, filters, mode.
            kwargs: ``where`` is one more filter: a ragopt ``Filter`` or a dict, for what
                LlamaIndex's own cannot say (booleans, dates). A retriever passes it on:
                ``as_retriever(vector_store_kwargs={"where": F("draft") == False})``.

        Raises:
            InvalidInput: The mode is not supported, or the query has no embedding.
        """
        return run(self._query(SYNC, query, kwargs))

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Return the nodes nearest to the query's embedding; see ``query``."""
        return await self._query(ASYNC, query, kwargs)

    async def _query(
        self, io: Runtime, query: VectorStoreQuery, options: dict[str, Any]
    ) -> VectorStoreQueryResult:
        varied = query.mode == VectorStoreQueryMode.MMR
        if not varied and query.mode != VectorStoreQueryMode.DEFAULT:
            raise InvalidInput(
                f"{self.class_name()} does not support the query mode {query.mode.value!r}.",
                fix="Use the mode 'default' or 'mmr'.",
            )
        if query.query_embedding is None:
            raise InvalidInput(
                "The query has no embedding.", fix="Give the index an embedding model."
            )
        vector = EmbeddingBatch.of_dense(query.query_embedding)
        k = query.similarity_top_k
        fetch = max(k, int(k * options.get("mmr_prefetch_factor", _MMR_FETCH))) if varied else k
        (hits,) = await io.call(
            self._index.search_batch,
            self._index.asearch_batch,
            vector,
            k=fetch,
            # LlamaIndex's own retriever says "no restriction" with an empty list of node ids.
            where=_both(
                selection(query.filters, query.node_ids or None, query.doc_ids),
                to_filter(options.get("where")),
            ),
            embeddings=varied,
        )
        if varied and hits and vector.dense is not None:
            found = [h.embedding.dense for h in hits if h.embedding]
            threshold = 0.5 if query.mmr_threshold is None else query.mmr_threshold
            vectors = np.stack([each for each in found if each is not None])
            hits = [hits[i] for i in mmr(vector.dense[0], vectors, k=k, lambda_mult=threshold)]
            for hit in hits:
                hit.embedding = None
        return VectorStoreQueryResult(
            nodes=[from_record(hit) for hit in hits],
            similarities=[hit.score for hit in hits],
            ids=[hit.id for hit in hits],
        )


class FaissVectorStore(IndexVectorStore):
    """FAISS with texts, metadata, filters, deletes and files without pickle.

    Args:
        index: A ``FaissIndex`` that is there already; a new one if None.
        metric: ``cosine``, ``ip`` or ``l2``; of a new index.
        kind: ``flat`` is exact, ``hnsw`` is fast from some ten thousand texts on.
        index_options: Other arguments of a new ``FaissIndex``.

    Examples:
        >>> storage = StorageContext.from_defaults(vector_store=FaissVectorStore())
        >>> index = VectorStoreIndex.from_documents(documents, storage_context=storage)
    """

    def __init__(
        self,
        index: FaissIndex | None = None,
        *,
        metric: Metric | str = Metric.COSINE,
        kind: Literal["flat", "hnsw"] = "flat",
        **index_options: Any,
    ) -> None:
        super().__init__(
            FaissIndex(metric=metric, kind=kind, **index_options) if index is None else index
        )

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
    def from_persist_path(cls, persist_path: str | os.PathLike[str]) -> FaissVectorStore:
        """Read an index that ``persist`` wrote."""
        return cls(FaissIndex.load(persist_path))


def _both(one: Filter | None, other: Filter | None) -> Filter | None:
    if one is None or other is None:
        return other if one is None else one
    return one & other


def _some(where: Filter | None) -> Filter:
    if where is None:
        raise InvalidInput(
            "A delete was asked for without ids and without filters.",
            fix="Pass node_ids or filters; clear() removes everything.",
        )
    return where


def _in_order(nodes: list[BaseNode], node_ids: list[str] | None) -> list[BaseNode]:
    if node_ids is None:
        return nodes
    by_id = {node.node_id: node for node in nodes}
    return [by_id[id_] for id_ in dict.fromkeys(node_ids) if id_ in by_id]
