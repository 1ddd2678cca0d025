"""Vector stores for LlamaIndex over any ragopt index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode, MetadataMode
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
from ragopt.fusion import By, Fusion, Way, vectors_for, ways_of
from ragopt.indexes.checks import check_known
from ragopt.llama_index.bge_m3 import BGEM3SparseEmbedding
from ragopt.llama_index.embeddings import EmbedderEmbedding
from ragopt.llama_index.filters import selection
from ragopt.llama_index.nodes import from_record, to_records
from ragopt.protocols import Embedder, VectorIndex
from ragopt.retrieval.mmr import mmr
from ragopt.types import EmbeddingBatch, SparseVector

SparseSource: TypeAlias = BaseSparseEmbedding | EmbedderEmbedding | Embedder | None

_FUSED = 4  # candidates of each kind for each result of a hybrid search
_OPTIONS = "where", "mmr_threshold", "mmr_prefetch_factor", "mmr_prefetch_k"  # of a query
_MMR_FETCH = 4  # candidates for each result, unless ``mmr_prefetch_factor`` says otherwise


class IndexVectorStore(BasePydanticVectorStore):
    """Any ragopt index as a LlamaIndex vector store, in both colours.

    All fourteen filter operators, nested AND, OR and NOT. Similarities are scores: higher is
    better.

    The mode ``text_search`` looks for the words of the query, ``semantic_hybrid`` for them and for
    the nearest vectors. With a model for sparse vectors, nodes are stored with both kinds: the mode
    ``sparse`` works, and ``hybrid`` is of dense and sparse vectors; without one it is of dense
    vectors and words. ``alpha`` is the weight of the dense vectors, 0.5 if it is not given.

    Args:
        index: Where the records are.
        sparse: What makes sparse vectors of nodes and queries: ``BGEM3SparseEmbedding`` or another
            ``BaseSparseEmbedding``, or an embedder that makes them.
        fusion: How the two lists of a hybrid search become one: ``rrf`` or ``relative``; see
            ``ragopt.fusion.Fusion``.
        embed_model: The model that LlamaIndex makes the dense vectors with, or its name. With it,
            an index that another model's vectors are in is refused, by every add and query.

    Raises:
        InvalidInput: There is no such fusion, or the model does not tell its name.
    """

    stores_text: bool = True
    is_embedding_query: bool = True

    _index: VectorIndex = PrivateAttr()
    _sparse: BaseSparseEmbedding | None = PrivateAttr()
    _fusion: Literal["rrf", "relative"] = PrivateAttr()
    _model: str | None = PrivateAttr()  # to be checked

    def __init__(
        self,
        index: VectorIndex,
        *,
        sparse: SparseSource = None,
        fusion: Literal["rrf", "relative"] = "rrf",
        embed_model: BaseEmbedding | str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(stores_text=True, **options)
        Fusion(method=fusion)  # which says what is wrong with it
        self._index = index
        self._fusion = fusion
        if sparse is not None and not isinstance(sparse, BaseSparseEmbedding):
            sparse = BGEM3SparseEmbedding(sparse)
        self._sparse = sparse
        self._model = None if embed_model is None else _name_of(embed_model)

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in serialised components."""
        return "IndexVectorStore"

    @property
    def client(self) -> VectorIndex:
        """The ragopt index."""
        return self._index

    @property
    def hybrid_settings(self) -> tuple[str | None, str]:
        """What results depend on beside the query and the records: the sparse model, the fusion."""
        return None if self._sparse is None else self._sparse.model_name, self._fusion

    # -- writing ---------------------------------------------------------------------------

    def add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:
        """Store nodes, replacing those whose id is there already; return the ids in order."""
        check_known(add_kwargs, "nodes")
        return run(self._add(SYNC, list(nodes)))

    async def async_add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:
        """Store nodes; see ``add``."""
        check_known(add_kwargs, "nodes")
        return await self._add(ASYNC, list(nodes))

    async def _add(self, io: Runtime, nodes: list[BaseNode]) -> list[str]:
        await self._check_model(io)
        records = to_records(nodes)
        if self._sparse is not None and nodes:
            texts = [node.get_content(MetadataMode.EMBED) for node in nodes]
            source = self._sparse
            found = await io.call(
                source.get_text_embedding_batch, source.aget_text_embedding_batch, texts
            )
            vectors = [SparseVector.from_dict(each) for each in found]
            records = replace(records, embeddings=replace(records.embeddings, sparse=vectors))
        return await io.call(self._index.add, self._index.aadd, records)

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Remove the nodes of a document. A missing one is no error."""
        check_known(delete_kwargs, "ref_doc_id")
        self._index.delete(Documents([ref_doc_id]))

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Remove the nodes of a document. A missing one is no error."""
        check_known(delete_kwargs, "ref_doc_id")
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
        check_known(delete_kwargs, "node_ids", "filters")
        self._index.delete(_some(selection(filters, node_ids)))

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Remove the nodes that meet every condition given; see ``delete_nodes``."""
        check_known(delete_kwargs, "node_ids", "filters")
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
                ``as_retriever(vector_store_kwargs={"where": F("draft") == False})``. In the mode
                ``mmr``, ``mmr_threshold`` is from 0, as different as can be, to 1, the nearest;
                ``mmr_prefetch_factor`` or ``mmr_prefetch_k`` says how many to choose from.

        Raises:
            InvalidInput: The mode is not supported, the query lacks what it needs, or there is no
                such option.
        """
        return run(self._query(SYNC, query, kwargs))

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Return the nodes nearest to the query's embedding; see ``query``."""
        return await self._query(ASYNC, query, kwargs)

    async def _query(
        self, io: Runtime, query: VectorStoreQuery, options: dict[str, Any]
    ) -> VectorStoreQueryResult:
        check_known({name: 0 for name in options if name not in _OPTIONS}, *_OPTIONS)
        varied = query.mode == VectorStoreQueryMode.MMR
        by = self._way(query)
        if "dense" in vectors_for(by):
            await self._check_model(io)
        vector = await self._vectors(io, query, by)
        k = query.similarity_top_k
        if isinstance(by, Fusion):
            k = query.hybrid_top_k or k
        elif by != "dense":
            k = query.sparse_top_k or k
        fetch = k
        if varied:
            most = options.get("mmr_prefetch_k")
            most = most or int(k * options.get("mmr_prefetch_factor", _MMR_FETCH))
            fetch = max(k, most)
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
            by=by,
            texts=self._texts(query, by),
        )
        if varied and hits and vector.dense is not None:
            found = [h.embedding.dense for h in hits if h.embedding]
            threshold = options.get("mmr_threshold", query.mmr_threshold)
            threshold = 0.5 if threshold is None else threshold
            vectors = np.stack([each for each in found if each is not None])
            hits = [hits[i] for i in mmr(vector.dense[0], vectors, k=k, lambda_mult=threshold)]
            for hit in hits:
                hit.embedding = None
        return VectorStoreQueryResult(
            nodes=[from_record(hit) for hit in hits],
            similarities=[hit.score for hit in hits],
            ids=[hit.id for hit in hits],
        )

    async def _check_model(self, io: Runtime) -> None:
        """Refuse an index of another model's vectors, before the first of ours meet them."""
        if self._model is not None:
            await io.call(self._index.check_model, self._index.acheck_model, self._model)
        self._model = None

    def _way(self, query: VectorStoreQuery) -> By:
        """Return how to search in a query's mode."""
        modes = VectorStoreQueryMode
        if query.mode in (modes.DEFAULT, modes.MMR):
            return "dense"
        if query.mode == modes.TEXT_SEARCH:
            return "text"
        if query.mode not in (modes.SPARSE, modes.HYBRID, modes.SEMANTIC_HYBRID):
            raise InvalidInput(
                f"{self.class_name()} does not support the query mode {query.mode.value!r}.",
                fix="Use the mode 'default', 'mmr', 'sparse', 'hybrid', 'semantic_hybrid' or "
                "'text_search'.",
            )
        if query.mode == modes.SPARSE:
            if self._sparse is None:
                raise InvalidInput(
                    f"The query mode 'sparse' needs sparse vectors, and the {self.class_name()} "
                    "was made without a model for them.",
                    fix="Pass sparse=BGEM3SparseEmbedding(...) and add the nodes again, or use the "
                    "mode 'text_search'.",
                )
            return "sparse"
        other: Way = "text" if self._sparse is None or query.mode != modes.HYBRID else "sparse"
        dense = 0.5 if query.alpha is None else query.alpha
        weights: dict[Way, float] = {"dense": dense, other: 1 - dense}
        return Fusion(
            {way: weight for way, weight in weights.items() if weight},
            method=self._fusion,
            candidates=max(query.similarity_top_k, query.sparse_top_k or 0) * _FUSED,
        )

    def _texts(self, query: VectorStoreQuery, by: By) -> list[str] | None:
        """Return the words of a query that a search needs."""
        if "text" not in ways_of(by):
            return None
        if query.query_str is None:
            raise InvalidInput(
                "The query has no text to look for.",
                fix="Pass query_str as well, as a retriever does.",
            )
        return [query.query_str]

    async def _vectors(self, io: Runtime, query: VectorStoreQuery, by: By) -> EmbeddingBatch:
        """Return the vectors of a query that a search needs."""
        dense, sparse, ways = None, None, vectors_for(by)
        if "dense" in ways:
            if query.query_embedding is None:
                raise InvalidInput(
                    "The query has no embedding.", fix="Give the index an embedding model."
                )
            dense = EmbeddingBatch.of_dense(query.query_embedding).dense
        if "sparse" in ways and self._sparse is not None:
            if query.query_str is None:
                raise InvalidInput(
                    "The query has no text, from which its sparse vector is made.",
                    fix="Pass query_str as well, as a retriever does.",
                )
            source = self._sparse
            weights = await io.call(
                source.get_query_embedding, source.aget_query_embedding, query.query_str
            )
            sparse = [SparseVector.from_dict(weights)]
        return EmbeddingBatch(dense, sparse)


def _name_of(model: BaseEmbedding | str) -> str:
    name = model if isinstance(model, str) else model.model_name
    if name in ("", "unknown"):
        raise InvalidInput(
            f"The {type(model).__name__} does not tell the name of its model.",
            fix="Give it a model_name, or pass the name: embed_model='all-MiniLM-L6-v2'.",
        )
    return name


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
