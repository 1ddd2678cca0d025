"""A whole chain that answers each question once, until the documents change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.cache.answers import AnswerCache
from ragopt.cache.freshness import TimeToLive
from ragopt.cache.keeping import Documents
from ragopt.cache.lineage import Lineage
from ragopt.cache.tiers import TieredCache
from ragopt.cache.version import Version, check, current
from ragopt.errors import InvalidInput, UnkeyableValue
from ragopt.keys import encode
from ragopt.langchain.plain import from_plain, to_plain
from ragopt.langchain.vectorstores import IndexVectorStore
from ragopt.protocols import KVStore


class CachedChain(Runnable[Any, Any]):
    """Any chain with its answers cached: a hit runs nothing of the chain.

    The key is the name, the version and the whole input. Input and output are texts, numbers,
    documents, messages, and lists and dicts of them. An input of another type is answered by the
    chain itself, and an output of another type is not kept; both are counted as ``uncacheable``.
    The config (tags, callbacks) takes no part in the key; a hit runs no callbacks.

    Args:
        chain: The chain you use today.
        cache: A ``TieredCache`` or a store; one in memory of its own if None.
        name: What identifies the chain: its prompt, model and retriever. Change it when they do.
        version: The state of the documents; best the vector store itself, so that every change
            of it makes the answers before it unreachable.
        lineage: Instead of a version, or with it: a change of a document makes only those
            answers unreachable that were built on it.
        documents: Names the documents of an answer, for a chain whose retriever is not ragopt's.
        ttl: Seconds that an answer is kept, None until it is evicted, or a ``Freshness``.
        namespace: Separates applications which share a store.
        tenant: Separates customers of one application.

    Raises:
        InvalidInput: The name is empty, or the version cannot be told.

    Examples:
        >>> chain = CachedChain(chain, cache, name="handbook-v1", version=store)
    """

    def __init__(
        self,
        chain: Runnable[Any, Any],
        cache: KVStore | None = None,
        *,
        name: str,
        version: Version | IndexVectorStore | None = None,
        lineage: Lineage | None = None,
        documents: Documents | None = None,
        ttl: TimeToLive = 3_600,
        namespace: str = "default",
        tenant: str | None = None,
    ) -> None:
        if not name:
            raise InvalidInput("A cached chain has no name.", fix='Pass name="...".')
        source = version.index if isinstance(version, IndexVectorStore) else version
        check(source, lineage, f"The cached chain {name!r}")
        self._source: Version | None = source
        self.chain = chain
        self.name = name
        self._documents = documents
        self._answers = AnswerCache(
            cache,
            ttl=ttl,
            encode=to_plain,
            decode=from_plain,
            lineage=lineage,
            namespace=namespace,
            tenant=tenant,
        )

    @property
    def cache(self) -> TieredCache:
        """Where the answers are kept, with its statistics."""
        return self._answers.cache

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Return the answer to this input, from the cache where it is known."""
        return run(self._answer(SYNC, input, config, kwargs))

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Return the answer to this input, from the cache where it is known."""
        return await self._answer(ASYNC, input, config, kwargs)

    def clear(self) -> None:
        """Forget the answers of this namespace and tenant."""
        self._answers.clear()

    async def aclear(self) -> None:
        """Forget the answers of this namespace and tenant."""
        await self._answers.aclear()

    async def _answer(
        self, io: Runtime, input: Any, config: RunnableConfig | None, kwargs: dict[str, Any]
    ) -> Any:
        invoke: Callable[..., Any] = self.chain.invoke
        payload: list[Any] = ["chain", self.name, await current(io, self._source)]
        try:
            payload += [to_plain(input, ids=False), kwargs]
            encode(payload)
        except (InvalidInput, UnkeyableValue):
            self.cache.stats.count(self._answers.kind, "uncacheable")
            return await io.call(invoke, self.chain.ainvoke, input, config, **kwargs)

        async def answer() -> Any:
            return await io.call(invoke, self.chain.ainvoke, input, config, **kwargs)

        return await self._answers.once(io, payload, answer, self._documents)
