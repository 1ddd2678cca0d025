"""A whole query engine that answers each question once, until the documents change."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import RESPONSE_TYPE, Response
from llama_index.core.indices.vector_store import VectorStoreIndex
from llama_index.core.prompts.mixin import PromptMixinType
from llama_index.core.schema import QueryBundle

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.cache.answers import AnswerCache
from ragopt.cache.asking import asked
from ragopt.cache.freshness import TimeToLive
from ragopt.cache.lineage import Lineage
from ragopt.cache.tiers import TieredCache
from ragopt.cache.version import Version, check, current
from ragopt.errors import InvalidInput
from ragopt.llama_index.events import tell
from ragopt.llama_index.nodes import decode_nodes, encode_nodes, names_of
from ragopt.llama_index.queries import copy_query, query_key, to_version
from ragopt.llama_index.vector_stores import IndexVectorStore
from ragopt.protocols import KVStore


class CachedQueryEngine(BaseQueryEngine):
    """Any query engine with its answers cached: a hit neither retrieves nor asks the model.

    The key is the name, the version and the query. A response comes back with its source nodes
    and metadata. A streaming response is passed on and not kept.

    Args:
        query_engine: The query engine you use today.
        cache: A ``TieredCache`` or a store; one in memory of its own if None.
        name: What identifies the engine: its prompts, model and retriever. Change it when they do.
        version: The state of the documents; best the ``VectorStoreIndex`` or the vector store
            itself, so that every change of it makes the answers before it unreachable.
        lineage: Instead of a version, or with it: a change of a document makes only those
            answers unreachable that were built on it.
        ttl: Seconds that an answer is kept, None until it is evicted, or a ``Freshness``.
        namespace: Separates applications which share a store.
        tenant: Separates customers of one application.

    Raises:
        InvalidInput: The name is empty, or the version cannot be told.

    Examples:
        >>> engine = CachedQueryEngine(engine, cache, name="handbook-v1", version=index)
    """

    def __init__(
        self,
        query_engine: BaseQueryEngine,
        cache: KVStore | None = None,
        *,
        name: str,
        version: Version | IndexVectorStore | VectorStoreIndex | None = None,
        lineage: Lineage | None = None,
        ttl: TimeToLive = 3_600,
        namespace: str = "default",
        tenant: str | None = None,
    ) -> None:
        if not name:
            raise InvalidInput("A cached query engine has no name.", fix='Pass name="...".')
        source = to_version(version)
        check(source, lineage, f"The cached query engine {name!r}")
        super().__init__(query_engine.callback_manager)
        self._query_engine = query_engine
        self._name = name
        self._source: Version | None = source
        self._answers = AnswerCache(
            cache,
            ttl=ttl,
            encode=_encode,
            decode=_decode,
            lineage=lineage,
            namespace=namespace,
            tenant=tenant,
        )

    @property
    def cache(self) -> TieredCache:
        """Where the answers are kept, with its statistics."""
        return self._answers.cache

    def _get_prompt_modules(self) -> PromptMixinType:
        return {"query_engine": self._query_engine}

    def forget(self, query: str | QueryBundle) -> bool:
        """Forget the answer to one query, a bad one say; return whether there was one.

        Raises:
            StorageError: A layer of the cache could not be reached, and may still serve it.
        """
        return run(self._forget(SYNC, query))

    async def aforget(self, query: str | QueryBundle) -> bool:
        """Forget the answer to one query; see ``forget``."""
        return await self._forget(ASYNC, query)

    def clear(self) -> None:
        """Forget the answers of this namespace and tenant."""
        self._answers.clear()

    async def aclear(self) -> None:
        """Forget the answers of this namespace and tenant."""
        await self._answers.aclear()

    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        return run(self._answer(SYNC, query_bundle))

    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        return await self._answer(ASYNC, query_bundle)

    async def _answer(self, io: Runtime, query: QueryBundle) -> RESPONSE_TYPE:
        own = copy_query(query)  # the wrapped engine may write into it
        payload = await self._payload(io, own)

        async def ask() -> RESPONSE_TYPE:
            return await io.call(self._query_engine.query, self._query_engine.aquery, own)

        answer: RESPONSE_TYPE
        answer, hit = await asked(io, self._answers, payload, ask, _names)
        tell(self._answers.kind, hit=hit)
        return answer

    async def _payload(self, io: Runtime, query: QueryBundle) -> tuple[object, ...]:
        return "query_engine", self._name, await current(io, self._source), *query_key(query)

    async def _forget(self, io: Runtime, query: str | QueryBundle) -> bool:
        asked_for = QueryBundle(query) if isinstance(query, str) else query
        payload = await self._payload(io, asked_for)
        return await io.call(self._answers.delete, self._answers.adelete, payload)


def _names(answer: RESPONSE_TYPE) -> list[str]:
    return names_of(answer.source_nodes)


def _encode(answer: RESPONSE_TYPE) -> dict[str, Any]:
    if type(answer) is not Response:
        raise InvalidInput(
            f"A {type(answer).__name__} has no plain form.", fix="It is passed on and not cached."
        )
    return {
        "response": answer.response,
        "nodes": encode_nodes(answer.source_nodes),
        "metadata": answer.metadata,
    }


def _decode(stored: Any) -> Response:
    return Response(stored["response"], decode_nodes(stored["nodes"]), stored["metadata"])
