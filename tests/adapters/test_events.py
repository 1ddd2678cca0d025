"""Each look-up in a cache is told through the framework's own channel."""

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.llms import MockLLM
from llama_index.core.schema import Document
from pydantic import PrivateAttr

from ragopt import HashingEmbedder, TieredCache
from ragopt.langchain import (
    CachedChain,
    CachedChatModel,
    CachedRetriever,
    EmbedderEmbeddings,
    FaissVectorStore,
)
from ragopt.llama_index import CachedLLM, CachedQueryEngine, CacheEvent
from ragopt.llama_index import CachedRetriever as LlamaRetriever


class Seen(BaseCallbackHandler):
    """Notes custom events, and the runs they belong to."""

    raise_error = True

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.runs: dict[Any, str] = {}

    def on_chain_start(self, *args: Any, run_id: Any, **kwargs: Any) -> None:
        self.runs[run_id] = "chain"

    def on_retriever_start(self, *args: Any, run_id: Any, **kwargs: Any) -> None:
        self.runs[run_id] = "retriever"

    def on_chat_model_start(self, *args: Any, run_id: Any, **kwargs: Any) -> None:
        self.runs[run_id] = "model"

    def on_custom_event(self, name: str, data: Any, *, run_id: Any, **kwargs: Any) -> None:
        assert name == "ragopt_cache"
        self.events.append((data, self.runs[run_id]))


class AsyncSeen(AsyncCallbackHandler):
    """The same, for handlers that are async."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    async def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        self.events.append(data)


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def retriever() -> BaseRetriever:
    store = FaissVectorStore.from_texts(["apples"], EmbedderEmbeddings(HashingEmbedder()))
    return CachedRetriever(store.as_retriever())


@pytest.fixture
def model() -> CachedChatModel:
    return CachedChatModel(FakeListChatModel(responses=["yes"]))


def event(kind: str, hit: bool, run: str, **more: Any) -> Any:
    return {"kind": kind, "hit": hit, **more}, run


class TestLangChain:
    async def test_a_retriever(self, seen: Seen, retriever: BaseRetriever) -> None:
        retriever.invoke("a", {"callbacks": [seen]})
        await retriever.ainvoke("a", {"callbacks": [seen]})
        assert seen.events == [
            event("retrieval", False, "retriever"),
            event("retrieval", True, "retriever"),
        ]

    async def test_a_chat_model_in_a_chain(self, seen: Seen, model: CachedChatModel) -> None:
        chain = model | StrOutputParser()
        config: Any = {"callbacks": [seen]}
        chain.invoke("a", config)
        list(chain.stream("a", config))
        await chain.ainvoke("a", config)
        assert [part async for part in chain.astream("b", config)]
        assert seen.events == [event("llm", hit, "chain") for hit in (False, True, True, False)]

    async def test_a_cached_chain_in_a_chain(self, seen: Seen) -> None:
        cached = CachedChain(RunnableLambda(str.upper), name="c", version="1")
        chain = RunnableLambda(str.strip) | cached
        config: Any = {"callbacks": [seen]}
        chain.invoke("a", config)
        await chain.ainvoke("a", config)
        assert list(chain.stream("a", config)) == ["A"]
        assert [part async for part in chain.astream("b", config)] == ["B"]
        assert seen.events == [
            event("answer", hit, "chain", name="c") for hit in (False, True, True, False)
        ]

    async def test_outside_of_a_run_nobody_is_told(
        self, seen: Seen, model: CachedChatModel
    ) -> None:
        chain = CachedChain(RunnableLambda(str.upper), name="c", version="1")
        config: Any = {"callbacks": [seen]}
        for _ in range(2):
            model.invoke("a", config)
            list(model.stream("a", config))
            chain.invoke("a", config)
            await chain.ainvoke("a")
            assert [part async for part in model.astream("a")]
        assert seen.events == []

    async def test_async_handlers_and_event_streams(self, model: CachedChatModel) -> None:
        handler = AsyncSeen()
        chain = model | StrOutputParser()
        await chain.ainvoke("a", {"callbacks": [handler]})
        assert handler.events == [{"kind": "llm", "hit": False}]
        told = [
            each["data"]
            async for each in chain.astream_events("a", version="v2")
            if each["event"] == "on_custom_event"
        ]
        assert told == [{"kind": "llm", "hit": True}]

    def test_what_has_no_key_is_no_look_up(self, seen: Seen, model: CachedChatModel) -> None:
        chain = model.bind(strange=object()) | StrOutputParser()
        chain.invoke("a", {"callbacks": [seen]})
        assert seen.events == []


class Heard(BaseEventHandler):
    """Notes the events of look-ups."""

    _events: list[CacheEvent] = PrivateAttr(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Heard"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        if isinstance(event, CacheEvent):
            self._events.append(event)

    def told(self) -> list[tuple[str, bool]]:
        return [(each.kind, each.hit) for each in self._events]


@pytest.fixture
def heard() -> Iterator[Heard]:
    root, handler = get_dispatcher(), Heard()
    root.add_event_handler(handler)
    yield handler
    root.event_handlers.remove(handler)


class TestLlamaIndex:
    async def test_a_language_model(self, heard: Heard) -> None:
        llm = CachedLLM(MockLLM())
        llm.complete("a")
        await llm.acomplete("a")
        list(llm.stream_chat([ChatMessage("a")]))
        assert [each async for each in await llm.astream_chat([ChatMessage("a")])]
        llm.complete("a", strange=object())
        assert heard.told() == [("llm", False), ("llm", True), ("llm", False), ("llm", True)]
        assert heard._events[0].model_dump()["class_name"] == "CacheEvent"

    async def test_retrievers_and_query_engines(self, heard: Heard) -> None:
        embed_model = MockEmbedding(embed_dim=4)
        index = VectorStoreIndex.from_documents([Document(text="a")], embed_model=embed_model)
        cache = TieredCache.over(None)
        retriever = LlamaRetriever(index.as_retriever(), cache, name="r", version="1")
        engine = CachedQueryEngine(
            index.as_query_engine(llm=MockLLM()), cache, name="e", version="1"
        )
        for _ in range(2):
            retriever.retrieve("q")
            await engine.aquery("q")
        assert heard.told() == [
            ("retrieval", False),
            ("answer", False),
            ("retrieval", True),
            ("answer", True),
        ]

    def test_events_name_their_span(self, heard: Heard) -> None:
        CachedLLM(MockLLM()).complete("a")
        (told,) = heard._events
        assert told.span_id is not None
        assert told.span_id.startswith("CachedLLM.complete")
