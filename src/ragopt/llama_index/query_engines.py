"""A whole query engine that answers each question once, until the documents change."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import RESPONSE_TYPE, Response
from llama_index.core.prompts.mixin import PromptMixinType
from llama_index.core.schema import QueryBundle

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.cache.answers import AnswerCache
from ragopt.cache.values import MISSING
from ragopt.cache.version import Version, check, current
from ragopt.errors import CorruptData, InvalidInput
from ragopt.llama_index.nodes import decode_nodes, encode_nodes
from ragopt.protocols import KVStore


class CachedQueryEngine(BaseQueryEngine):
    """Any query engine with its answers cached: a hit neither retrieves nor asks the model.

    The key is the name, the version and the query. A response comes back with its source nodes
    and metadata. A streaming response is passed on and not kept.

    Args:
        query_engine: The query engine you use today.
        cache: A ``TieredCache`` or a store; one in memory of its own if None.
        name: What identifies the engine: its prompts, model and retriever. Change it when they do.
        version: The state of the documents; best the index itself (``vector_store.client``), so
            that every change of it makes the answers before it unreachable.
        ttl: Seconds that an answer is kept; None until it is evicted.
        namespace: Separates applications which share a store.
        tenant: Separates customers of one application.

    Raises:
        InvalidInput: The name is empty, or the version cannot be told.

    Example:
        >>> engine = CachedQueryEngine(engine, cache, name="handbook-v1", version=store.client)
    """

    def __init__(
        self,
        query_engine: BaseQueryEngine,
        cache: KVStore | None = None,
        *,
        name: str,
        version: Version,
        ttl: float | None = 3_600,
        namespace: str = "default",
        tenant: str | None = None,
    ) -> None:
        if not name:
            raise InvalidInput("A cached query engine has no name.", fix='Pass name="...".')
        check(version, f"The cached query engine {name!r}")
        super().__init__(query_engine.callback_manager)
        self._query_engine = query_engine
        self._name = name
        self._version = version
        self._answers = AnswerCache(cache, ttl=ttl, namespace=namespace, tenant=tenant)

    def _get_prompt_modules(self) -> PromptMixinType:
        return {"query_engine": self._query_engine}

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
        payload = (
            "query_engine",
            self._name,
            await current(io, self._version),
            query.query_str,
            query.image_path,
            query.custom_embedding_strs,
            query.embedding,
        )
        stored = await io.call(self._answers.get, self._answers.aget, payload)
        if stored is not MISSING and (response := _decode(stored)) is not None:
            return response
        answer = await io.call(self._query_engine.query, self._query_engine.aquery, query)
        await io.call(self._answers.set, self._answers.aset, payload, _encode(answer))
        return answer


def _encode(answer: RESPONSE_TYPE) -> object:
    if type(answer) is not Response:
        return object()  # a stream, or a class of its own: counted as uncacheable
    return {
        "response": answer.response,
        "nodes": encode_nodes(answer.source_nodes),
        "metadata": answer.metadata,
    }


def _decode(stored: Any) -> Response | None:
    try:
        return Response(stored["response"], decode_nodes(stored["nodes"]), stored["metadata"])
    except (CorruptData, KeyError, TypeError):
        return None
