"""A retriever that searches for each question once, until the index changes."""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStoreRetriever
from pydantic import ConfigDict, PrivateAttr

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.cache.asking import asked
from ragopt.cache.retrieval import RetrievalCache
from ragopt.cache.version import Version, check, current
from ragopt.errors import InvalidInput
from ragopt.keys import encode
from ragopt.langchain.events import tell
from ragopt.langchain.plain import from_plain, to_plain
from ragopt.langchain.vectorstores import IndexVectorStore
from ragopt.protocols import KVStore
from ragopt.sources import used


class CachedRetriever(BaseRetriever):
    """Any LangChain retriever with its results cached.

    Over a ragopt vector store the results die by themselves when the index changes, and nothing
    needs to be said. Any other retriever cannot tell when its documents change: give ``name``,
    which keeps it apart from other retrievers, and ``version``, which you change (or which
    returns something else) when the documents do.

    Args:
        retriever: The retriever you use today.
        cache: A ``TieredCache`` or a store; one in memory of its own if None.
        k: Results to ask the retriever for, as its own ``k`` argument; None for its default.
        ttl: Seconds that a result is kept, None until it is evicted, or a ``Freshness``.
        name: What identifies the retriever.
        version: The state of its documents: a string, a function that returns one, or an index.
        lineage: Instead of a version: a change of a document ends only the results that hold it.
            A document that is added is then found by new questions alone.
        namespace: Separates applications which share a store.
        tenant: Separates customers of one application.

    Raises:
        InvalidInput: ``name`` or ``version`` is missing for a retriever that needs them.
        UnkeyableValue: The retriever has an argument that no key can be made of, such as a
            function as a filter.

    Examples:
        >>> retriever = CachedRetriever(store.as_retriever(), cache)
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    retriever: BaseRetriever
    cache: Any = None
    k: int | None = None
    ttl: Any = 1_800
    name: str | None = None
    version: Any = None
    lineage: Any = None
    namespace: str = "default"
    tenant: str | None = None

    _results: RetrievalCache = PrivateAttr()
    _source: Version | None = PrivateAttr()

    def __init__(
        self, retriever: BaseRetriever, cache: KVStore | None = None, **fields: Any
    ) -> None:
        given: dict[str, Any] = {"retriever": retriever, "cache": cache, **fields}
        super().__init__(**given)
        # Not in a validator: pydantic would wrap our sentences in its own.
        if self.cache is not None and not isinstance(self.cache, KVStore):
            raise InvalidInput(
                f"A cache of type {type(self.cache).__name__} was given.",
                fix="Pass a TieredCache, MemoryStore, SqliteStore or another KVStore.",
            )
        settings: object = None
        version = self.version
        inner = self.retriever
        if isinstance(inner, VectorStoreRetriever) and isinstance(
            inner.vectorstore, IndexVectorStore
        ):
            if version is None and self.lineage is None:
                version = inner.vectorstore.index
            spec = inner.vectorstore.embedder.spec
            settings = (
                inner.search_type,
                inner.search_kwargs,
                inner.vectorstore.by,
                (spec.model, spec.revision, spec.params),
            )
            encode(settings)  # raises for a filter that is a function
        elif self.name is None or (version is None and self.lineage is None):
            raise InvalidInput(
                f"A {type(inner).__name__} cannot tell when its documents change.",
                fix='Pass name="..." and version="..." (or a function that returns the version), '
                "or a lineage.",
            )
        if isinstance(version, IndexVectorStore):
            version = version.index
        check(version, self.lineage, "The cached retriever")
        self._source = version
        self._results = RetrievalCache(
            self.cache,
            ttl=self.ttl,
            settings=(self.name, settings),
            encode=to_plain,
            decode=from_plain,
            lineage=self.lineage,
            namespace=self.namespace,
            tenant=self.tenant,
        )
        self.cache = self._results.cache

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        return run(self._retrieve(SYNC, query, run_manager.get_child(), kwargs))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        return await self._retrieve(ASYNC, query, run_manager.get_child(), kwargs)

    async def _retrieve(
        self, io: Runtime, query: str, callbacks: Any, kwargs: dict[str, Any]
    ) -> list[Document]:
        if self.k is not None:
            kwargs = {"k": self.k, **kwargs}
        payload = (await current(io, self._source), query, kwargs)
        inner = self.retriever

        async def search() -> list[Document]:
            return await io.call(
                inner.invoke, inner.ainvoke, query, {"callbacks": callbacks}, **kwargs
            )

        found: list[Document]
        found, hit = await asked(io, self._results, payload, search, _names)
        await tell(io, self._results.kind, hit=hit, config={"callbacks": callbacks})
        used(_names(found))  # for an answer that is made from them
        return found


def _names(documents: list[Document]) -> list[str]:
    return [document.id for document in documents if document.id is not None]
