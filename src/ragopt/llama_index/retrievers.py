"""A retriever that searches for each question once, until the index changes."""

from __future__ import annotations

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.indices.vector_store import VectorStoreIndex
from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.cache.asking import asked
from ragopt.cache.freshness import TimeToLive
from ragopt.cache.lineage import Lineage
from ragopt.cache.retrieval import RetrievalCache
from ragopt.cache.tiers import TieredCache
from ragopt.cache.version import Version, check, current
from ragopt.errors import InvalidInput
from ragopt.llama_index.embeddings import as_embedder
from ragopt.llama_index.events import tell
from ragopt.llama_index.filters import selection
from ragopt.llama_index.nodes import decode_nodes, encode_nodes, names_of
from ragopt.llama_index.queries import copy_query, query_key, to_version
from ragopt.llama_index.vector_stores import IndexVectorStore
from ragopt.protocols import KVStore, VectorIndex
from ragopt.sources import used


class CachedRetriever(BaseRetriever):
    """Any LlamaIndex retriever with its results cached.

    Over a ragopt vector store the results die by themselves when the index changes, and nothing
    needs to be said. Any other retriever cannot tell when its documents change: give ``name``,
    which keeps it apart from other retrievers, and ``version``, which you change (or which
    returns something else) when the documents do.

    Args:
        retriever: The retriever you use today.
        cache: A ``TieredCache`` or a store; one in memory of its own if None.
        ttl: Seconds that a result is kept, None until it is evicted, or a ``Freshness``.
        name: What identifies the retriever.
        version: The state of its documents: a string, a function that returns one, or an index.
        lineage: Instead of a version: a change of a document ends only the results that hold it.
            A document that is added is then found by new questions alone.
        namespace: Separates applications which share a store.
        tenant: Separates customers of one application.

    Raises:
        InvalidInput: ``name`` or ``version`` is missing for a retriever that needs them.

    Examples:
        >>> retriever = CachedRetriever(index.as_retriever(), cache)
        >>> engine = RetrieverQueryEngine.from_args(retriever)
    """

    def __init__(
        self,
        retriever: BaseRetriever,
        cache: KVStore | None = None,
        *,
        ttl: TimeToLive = 1_800,
        name: str | None = None,
        version: Version | IndexVectorStore | VectorStoreIndex | None = None,
        lineage: Lineage | None = None,
        namespace: str = "default",
        tenant: str | None = None,
    ) -> None:
        super().__init__(callback_manager=retriever.callback_manager)
        self._retriever = retriever
        index, settings = _identity(retriever)
        if version is None and lineage is None:
            version = index
        if (version is None and lineage is None) or (index is None and name is None):
            raise InvalidInput(
                f"A {type(retriever).__name__} cannot tell when its documents change.",
                fix='Pass name="..." and version="..." (or a function that returns the version), '
                "or a lineage.",
            )
        source = to_version(version)
        check(source, lineage, "The cached retriever")
        self._version: Version | None = source
        self._results = RetrievalCache(
            cache,
            ttl=ttl,
            settings=(name, settings),
            encode=encode_nodes,
            decode=decode_nodes,
            lineage=lineage,
            namespace=namespace,
            tenant=tenant,
        )

    @property
    def cache(self) -> TieredCache:
        """Where the results are kept, with its statistics."""
        return self._results.cache

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return run(self._cached(SYNC, query_bundle))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await self._cached(ASYNC, query_bundle)

    async def _cached(self, io: Runtime, query: QueryBundle) -> list[NodeWithScore]:
        own = copy_query(query)  # the wrapped retriever may write into it
        payload = (await current(io, self._version), *query_key(own))

        async def search() -> list[NodeWithScore]:
            return await io.call(self._retriever.retrieve, self._retriever.aretrieve, own)

        found: list[NodeWithScore]
        found, hit = await asked(io, self._results, payload, search, names_of)
        tell(self._results.kind, hit=hit)
        used(names_of(found))  # for an answer that is made from them
        return found


def _identity(retriever: BaseRetriever) -> tuple[VectorIndex | None, object]:
    """Return the index behind a retriever and everything else that its results depend on."""
    if not isinstance(retriever, VectorIndexRetriever):
        return None, None
    store = retriever._vector_store
    if not isinstance(store, IndexVectorStore) or retriever.object_map:
        return None, None
    spec = as_embedder(retriever._embed_model).spec
    settings = (
        (spec.model, spec.revision, spec.params),
        selection(retriever._filters, retriever._node_ids or None, retriever._doc_ids),
        retriever._similarity_top_k,
        retriever._vector_store_query_mode.value,
        retriever._alpha,
        retriever._sparse_top_k,
        retriever._hybrid_top_k,
        retriever._kwargs,
        store.hybrid_settings,
    )
    return store.client, settings
