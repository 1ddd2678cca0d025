"""A whole chain that answers each question once, until the documents change."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.cache.answers import AnswerCache
from ragopt.cache.asking import Emit, asked, astream, pour, stream
from ragopt.cache.freshness import TimeToLive
from ragopt.cache.keeping import Documents
from ragopt.cache.lineage import Lineage
from ragopt.cache.tiers import TieredCache
from ragopt.cache.version import Version, check, current
from ragopt.errors import InvalidInput
from ragopt.keys import encode
from ragopt.langchain import chunks
from ragopt.langchain.chunks import Pieces
from ragopt.langchain.events import tell
from ragopt.langchain.plain import to_plain
from ragopt.langchain.vectorstores import IndexVectorStore
from ragopt.protocols import KVStore


class CachedChain(Runnable[Any, Any]):
    """Any chain with its answers cached: a hit runs nothing of the chain.

    The key is the name, the version and the whole input. Input and output are texts, numbers,
    documents, messages, and lists and dicts of them. An input of another type is answered by the
    chain itself, and an output of another type is not kept; both are counted as ``uncacheable``.
    The config (tags, callbacks) takes no part in the key; a hit runs no callbacks.

    A stream that misses hands each chunk on as it comes, and is kept when it has ended: not when
    it failed, was cancelled or was closed early. A hit on a stream hands on the same chunks. An
    answer that was not streamed is one chunk. A streamed one is found by ``invoke`` as well, put
    together as LangChain does; lists that come in several chunks are not kept, since it depends
    on the chain what they add up to. Messages come back as they were, with what they once cost.

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
        options: dict[str, Any] = {"namespace": namespace, "tenant": tenant, "ttl": ttl}
        options |= {"lineage": lineage, "encode": chunks.encode}
        self._answers = AnswerCache(cache, decode=chunks.decode, **options)
        # The same entries, taken as they were cut: an answer can have hundreds of chunks.
        self._streams = AnswerCache(self.cache, decode=chunks.decode_chunks, **options)

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

    def stream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[Any]:
        """Yield the answer in the chunks in which the chain makes it, or made it."""
        return stream(lambda emit: self._answer(SYNC, input, config, kwargs, emit))

    def astream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """Yield the answer in the chunks in which the chain makes it, or made it."""
        return astream(lambda emit: self._answer(ASYNC, input, config, kwargs, emit))

    def forget(self, input: Any, **kwargs: Any) -> bool:
        """Forget the answer to one input, a bad one say; return whether there was one.

        Raises:
            StorageError: A layer of the cache could not be reached, and may still serve it.
        """
        return run(self._forget(SYNC, input, kwargs))

    async def aforget(self, input: Any, **kwargs: Any) -> bool:
        """Forget the answer to one input; see ``forget``."""
        return await self._forget(ASYNC, input, kwargs)

    def clear(self) -> None:
        """Forget the answers of this namespace and tenant."""
        self._answers.clear()

    async def aclear(self) -> None:
        """Forget the answers of this namespace and tenant."""
        await self._answers.aclear()

    async def _answer(
        self,
        io: Runtime,
        input: Any,
        config: RunnableConfig | None,
        kwargs: dict[str, Any],
        emit: Emit | None = None,
    ) -> Any:
        """Return the answer, or emit its chunks where there is an ``emit``."""
        chain: Any = self.chain

        async def answer() -> Any:
            if emit is None:
                return await io.call(chain.invoke, chain.ainvoke, input, config, **kwargs)
            pieces = Pieces()

            async def take(chunk: Any) -> None:
                pieces.add(chunk)
                await emit(chunk)

            source = chain.stream if io is SYNC else chain.astream
            await pour(source(input, config, **kwargs), take)
            return pieces

        version = await current(io, self._source)
        try:
            key = self._key(version, input, kwargs)
        except InvalidInput:
            self.cache.stats.count(self._answers.kind, "uncacheable")
            return await answer()
        answers = self._answers if emit is None else self._streams
        found, hit = await asked(io, answers, key, answer, self._named)
        await tell(io, self._answers.kind, hit=hit, config=config, name=self.name)
        if emit is None or not hit:
            return found
        for chunk in found:
            await emit(chunk)
        return None

    def _key(self, version: str | None, input: Any, kwargs: dict[str, Any]) -> bytes:
        return encode(["chain", self.name, version, to_plain(input, ids=False), kwargs])

    async def _forget(self, io: Runtime, input: Any, kwargs: dict[str, Any]) -> bool:
        key = self._key(await current(io, self._source), input, kwargs)
        return await io.call(self._answers.delete, self._answers.adelete, key)

    def _named(self, answer: Any) -> Iterable[str]:
        if self._documents is None:
            return ()
        try:
            return self._documents(answer.whole() if isinstance(answer, Pieces) else answer)
        except InvalidInput:  # such a stream is not kept
            return ()
