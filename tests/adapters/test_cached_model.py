"""A cached chat model and the streams of a cached chain."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import (
    BaseCallbackHandler,
    UsageMetadataCallbackHandler,
)
from langchain_core.documents import Document
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import (
    Runnable,
    RunnableGenerator,
    RunnableLambda,
    RunnablePassthrough,
)
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from pydantic import BaseModel, Field, PrivateAttr, SecretStr

from ragopt import MemoryStore, SqliteStore, TieredCache
from ragopt.cache import asking
from ragopt.cache.freshness import Freshness
from ragopt.errors import InvalidInput, UnkeyableValue
from ragopt.langchain import CachedChain, CachedChatModel, LLMCache

USAGE = UsageMetadata(input_tokens=3, output_tokens=4, total_tokens=7)
FREE = UsageMetadata(input_tokens=0, output_tokens=0, total_tokens=0)
WORDS = ["Two ", "weeks ", "ahead."]


class Talker(BaseChatModel):
    """A model that counts what it is asked, and can fail, wait and call tools."""

    model_name: str = "talker"
    temperature: float = 0.0
    api_key: SecretStr = SecretStr("hush")
    headers: dict[str, str] = Field(default_factory=dict)
    _asked: list[str] = PrivateAttr(default_factory=list)
    _closed: list[bool] = PrivateAttr(default_factory=list)
    _hooks: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def asked(self) -> list[str]:
        return self._asked

    @property
    def _llm_type(self) -> str:
        return "talker"

    def _note(self, how: str) -> None:
        self._asked.append(how)
        for hook in ("delay", "error"):
            value = self._hooks.get(hook)
            if isinstance(value, float):
                time.sleep(value)
            elif value is not None:
                raise value

    def _message(self, messages: list[BaseMessage], kwargs: dict[str, Any]) -> AIMessage:
        if "message" in self._hooks:
            return self._hooks["message"]  # type: ignore[no-any-return]
        if kwargs.get("tools") and not isinstance(messages[-1], ToolMessage):
            function = kwargs["tools"][0]["function"]
            wanted = function["parameters"].get("properties", {})
            values = {"integer": 3, "string": "你好, 株式会社"}
            args = {name: values.get(wanted[name].get("type")) for name in wanted}
            call = {"name": function["name"], "args": args, "id": "call-1"}
            return AIMessage("", tool_calls=[call], usage_metadata=USAGE)
        return AIMessage(
            "".join(WORDS),
            usage_metadata=USAGE,
            id="msg-1",
            response_metadata={"model_name": kwargs.get("model", self.model_name)},
        )

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        self._note("generate")
        output = {"token_usage": {"total_tokens": 7}, "system_fingerprint": "fp"}
        generation = ChatGeneration(message=self._message(messages, kwargs))
        return ChatResult(generations=[generation], llm_output=output)

    def _pieces(
        self, messages: list[BaseMessage], kwargs: dict[str, Any]
    ) -> list[ChatGenerationChunk]:
        message = self._message(messages, kwargs)
        if message.tool_calls:
            call = message.tool_calls[0]
            text = json.dumps(call["args"])
            cut = [(call["name"], text[:4], "call-1"), (None, text[4:], None)]
            parts = [
                AIMessageChunk(
                    content="",
                    tool_call_chunks=[tool_call_chunk(name=n, args=a, id=i, index=0)],
                )
                for n, a, i in cut
            ]
        else:
            parts = [AIMessageChunk(content=word, id="msg-1") for word in WORDS]
        parts[0].usage_metadata = UsageMetadata(input_tokens=3, output_tokens=0, total_tokens=3)
        parts[-1].usage_metadata = UsageMetadata(input_tokens=0, output_tokens=4, total_tokens=4)
        info = {"finish_reason": "stop", "model_name": kwargs.get("model", self.model_name)}
        chunks = [ChatGenerationChunk(message=part) for part in parts[:-1]]
        return [*chunks, ChatGenerationChunk(message=parts[-1], generation_info=info)]

    def _stream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        self._note("stream")
        try:
            for number, chunk in enumerate(self._pieces(messages, kwargs)):
                if number == 2 and "late" in self._hooks:
                    raise self._hooks["late"]
                yield chunk
        except GeneratorExit:
            self._closed.append(True)
            raise

    async def _agenerate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        await asyncio.sleep(self._hooks.get("nap", 0))
        result = self._generate(messages, **kwargs)
        self._asked[-1] = "agenerate"
        return result

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        self._note("astream")
        try:
            for number, chunk in enumerate(self._pieces(messages, kwargs)):
                if number == 2 and "late" in self._hooks:
                    raise self._hooks["late"]
                await asyncio.sleep(self._hooks.get("nap", 0))
                yield chunk
        except GeneratorExit:
            self._closed.append(True)
            raise

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | Any],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[Any, AIMessage]:
        formatted = [convert_to_openai_tool(tool) for tool in tools]
        return self.bind(tools=formatted, tool_choice=tool_choice, **kwargs)


def joined(chunks: list[Any]) -> Any:
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return whole


async def everything(stream: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in stream]


class Colour:
    """Asks in one colour."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def invoke(self, runnable: Runnable[Any, Any], question: Any, **options: Any) -> Any:
        if self.name == "sync":
            return runnable.invoke(question, **options)
        return await runnable.ainvoke(question, **options)

    async def stream(self, runnable: Runnable[Any, Any], question: Any, **options: Any) -> Any:
        if self.name == "sync":
            return list(runnable.stream(question, **options))
        return await everything(runnable.astream(question, **options))


@pytest.fixture(params=["sync", "async"])
def colour(request: pytest.FixtureRequest) -> Colour:
    return Colour(request.param)


@pytest.fixture
def talker() -> Talker:
    return Talker()


@pytest.fixture
def model(talker: Talker) -> CachedChatModel:
    return CachedChatModel(talker)


def counts(model: CachedChatModel | CachedChain, kind: str = "llm") -> Callable[[Any], int]:
    cache = model.answers.cache if isinstance(model, CachedChatModel) else model.cache
    return lambda event: cache.stats.total(kind, event)


class TestModel:
    async def test_a_question_is_asked_once(
        self, colour: Colour, model: CachedChatModel, talker: Talker
    ) -> None:
        first = await colour.invoke(model, "When?")
        second = await colour.invoke(model, "When?")
        assert len(talker.asked) == 1
        assert first.content == second.content == "Two weeks ahead."
        assert first.usage_metadata == USAGE
        assert "ragopt_cached" not in first.response_metadata
        assert second.usage_metadata == FREE
        assert second.response_metadata == {
            "model_name": "talker",
            "system_fingerprint": "fp",
            "ragopt_cached": True,
            "ragopt_saved_usage": USAGE,
        }
        assert second.id != first.id  # or it would replace the first in a conversation

    async def test_a_stream_is_passed_on_and_replayed(
        self, colour: Colour, model: CachedChatModel, talker: Talker
    ) -> None:
        first = await colour.stream(model, "When?")
        second = await colour.stream(model, "When?")
        assert talker.asked == ["stream" if colour.name == "sync" else "astream"]
        assert [c.content for c in first[:3]] == [c.content for c in second[:3]] == WORDS
        assert len(first) == len(second)
        assert joined(first).usage_metadata == USAGE
        whole = joined(second)
        assert whole.usage_metadata == FREE
        assert whole.response_metadata == {
            "finish_reason": "stop",
            "model_name": "talker",
            "ragopt_cached": True,
            "ragopt_saved_usage": USAGE,
        }
        assert len({chunk.id for chunk in second}) == 1
        assert second[0].id != first[0].id

    async def test_chunks_come_as_the_model_makes_them(self, model: CachedChatModel) -> None:
        stream = model.stream("When?")
        assert next(stream).content == "Two "
        assert counts(model)("miss") == 1
        assert counts(model)("write") == 0
        assert [chunk.content for chunk in stream][:2] == WORDS[1:]

    async def test_one_entry_serves_both(
        self, colour: Colour, model: CachedChatModel, talker: Talker
    ) -> None:
        await colour.stream(model, "one")
        answer = await colour.invoke(model, "one")
        assert type(answer) is AIMessage
        assert answer.content == "Two weeks ahead."
        assert answer.response_metadata["ragopt_saved_usage"] == USAGE
        await colour.invoke(model, "two")
        chunks = await colour.stream(model, "two")
        assert [chunk.content for chunk in chunks] == ["Two weeks ahead."]
        assert isinstance(chunks[0], AIMessageChunk)
        assert chunks[0].usage_metadata == FREE
        assert len(talker.asked) == 2

    async def test_both_colours_share(self, model: CachedChatModel, talker: Talker) -> None:
        list(model.stream("a"))
        assert (await model.ainvoke("a")).response_metadata["ragopt_cached"]
        assert len(await everything(model.astream("a"))) == 3 + 1
        assert talker.asked == ["stream"]

    def test_batches(self, model: CachedChatModel, talker: Talker) -> None:
        answers = model.batch(["a", "b", "a", "b"])
        assert len(answers) == 4
        assert len(talker.asked) == 2

    def test_what_was_handed_on_may_be_changed(
        self, model: CachedChatModel, talker: Talker
    ) -> None:
        for chunk in model.stream("a"):
            chunk.content = "changed"
            chunk.response_metadata["x"] = 1
        model.invoke("a").content = "changed"
        assert model.invoke("a").content == "Two weeks ahead."
        assert len(talker.asked) == 1

    def test_messages_are_not_changed(self, model: CachedChatModel) -> None:
        messages = [SystemMessage("Be brief.", id="s"), HumanMessage("When?", id="h")]
        before = [message.model_copy(deep=True) for message in messages]
        model.invoke(messages)
        list(model.stream(messages))
        assert messages == before

    def test_an_error_is_the_callers_and_not_kept(self, talker: Talker) -> None:
        model = CachedChatModel(talker)
        talker._hooks["error"] = RuntimeError("down")
        for ask in (model.invoke, lambda q: list(model.stream(q))):
            with pytest.raises(RuntimeError, match="down"):
                ask("a")
        talker._hooks.clear()
        assert model.invoke("a").usage_metadata == USAGE

    async def test_a_stream_that_fails_is_not_kept(
        self, colour: Colour, model: CachedChatModel, talker: Talker
    ) -> None:
        talker._hooks["late"] = RuntimeError("cut off")
        with pytest.raises(RuntimeError, match="cut off"):
            await colour.stream(model, "a")
        talker._hooks.clear()
        assert "ragopt_cached" not in joined(await colour.stream(model, "a")).response_metadata
        assert len(talker.asked) == 2

    def test_a_stream_that_is_closed_early_is_not_kept(
        self, model: CachedChatModel, talker: Talker
    ) -> None:
        stream: Any = model.stream("a")
        next(stream)
        stream.close()
        assert talker._closed == [True]
        assert model.invoke("a").usage_metadata == USAGE  # nobody waits for the first
        assert talker.asked == ["stream", "generate"]

    async def test_an_async_stream_that_is_closed_early_is_not_kept(
        self, model: CachedChatModel, talker: Talker
    ) -> None:
        stream: Any = model.astream("a")
        await anext(stream)
        await stream.aclose()
        answer = await asyncio.wait_for(model.ainvoke("a"), 5)
        assert answer.usage_metadata == USAGE
        assert talker._closed == [True]

    async def test_leaving_the_loop_is_enough(self, model: CachedChatModel) -> None:
        async for _ in model.astream("a"):
            break
        assert (await asyncio.wait_for(model.ainvoke("a"), 5)).usage_metadata == USAGE
        for _ in model.stream("b"):
            break
        assert model.invoke("b").usage_metadata == USAGE

    def test_a_stream_that_nobody_goes_on_with_blocks_nobody_in_its_thread(
        self, model: CachedChatModel, talker: Talker
    ) -> None:
        stream = model.stream("a")
        next(stream)
        assert model.invoke("a").usage_metadata == USAGE
        assert len(list(stream)) == 3
        assert len(talker.asked) == 2

    async def test_cancellation_ends_a_stream(self, model: CachedChatModel, talker: Talker) -> None:
        talker._hooks["nap"] = 0.05
        task = asyncio.create_task(everything(model.astream("a")))
        await asyncio.sleep(0.08)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await asyncio.wait_for(model.ainvoke("a"), 5)).usage_metadata == USAGE

    def test_streams_that_take_turns(self, model: CachedChatModel, talker: Talker) -> None:
        pairs = list(zip(model.stream("a"), model.stream("b"), strict=True))
        assert [(a.content, b.content) for a, b in pairs[:3]] == [(w, w) for w in WORDS]
        assert joined(list(model.stream("a"))).response_metadata["ragopt_cached"]
        assert joined(list(model.stream("b"))).response_metadata["ragopt_cached"]
        assert talker.asked == ["stream", "stream"]

    def test_a_stream_goes_on_in_another_thread(self, model: CachedChatModel) -> None:
        stream = model.stream("a")
        seen = [next(stream).content]
        thread = threading.Thread(target=lambda: seen.extend(chunk.content for chunk in stream))
        thread.start()
        thread.join()
        assert seen[:3] == WORDS
        assert model.invoke("a").response_metadata["ragopt_cached"]


class TestTogether:
    @pytest.mark.parametrize("how", ["invoke", "stream"])
    def test_threads_ask_once(self, how: str, model: CachedChatModel, talker: Talker) -> None:
        talker._hooks["delay"] = 0.2
        barrier = threading.Barrier(20)
        answers: list[Any] = []

        def ask() -> None:
            barrier.wait()
            got = model.invoke("a") if how == "invoke" else joined(list(model.stream("a")))
            answers.append(got)

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(talker.asked) == 1
        assert [answer.content for answer in answers] == ["Two weeks ahead."] * 20
        assert sum(answer.usage_metadata["total_tokens"] for answer in answers) == 7

    @pytest.mark.parametrize("how", ["ainvoke", "astream"])
    async def test_tasks_ask_once(self, how: str, model: CachedChatModel, talker: Talker) -> None:
        talker._hooks["nap"] = 0.05

        async def ask() -> Any:
            if how == "ainvoke":
                return await model.ainvoke("a")
            return joined(await everything(model.astream("a")))

        answers = await asyncio.gather(*(ask() for _ in range(20)))
        assert len(talker.asked) == 1
        assert [answer.content for answer in answers] == ["Two weeks ahead."] * 20
        assert sum(answer.usage_metadata["total_tokens"] for answer in answers) == 7

    async def test_who_waits_takes_over_when_the_first_leaves(
        self, model: CachedChatModel, talker: Talker
    ) -> None:
        first: Any = model.astream("a")
        await anext(first)
        others = [asyncio.create_task(everything(model.astream("a"))) for _ in range(5)]
        await asyncio.sleep(0.05)
        await first.aclose()
        answers = await asyncio.wait_for(asyncio.gather(*others), 5)
        assert {joined(answer).content for answer in answers} == {"Two weeks ahead."}
        assert len(talker.asked) == 2

    def test_a_waiting_thread_takes_over(self, model: CachedChatModel, talker: Talker) -> None:
        first: Any = model.stream("a")
        next(first)
        answers: list[Any] = []
        other = threading.Thread(target=lambda: answers.append(model.invoke("a")))
        other.start()
        time.sleep(0.1)
        assert not answers
        first.close()
        other.join(5)
        assert answers[0].usage_metadata == USAGE
        assert len(talker.asked) == 2

    async def test_a_claim_is_given_up_when_the_first_leaves(self, tmp_path: Any) -> None:
        async def ask(model: CachedChatModel) -> Any:
            return await asyncio.wait_for(model.ainvoke("a"), 5)

        # Two caches over one file, as two processes have them.
        with SqliteStore(tmp_path / "c.db") as one, SqliteStore(tmp_path / "c.db") as two:
            first = CachedChatModel(Talker(), TieredCache(MemoryStore(), one))
            second = CachedChatModel(Talker(), TieredCache(MemoryStore(), two))
            stream: Any = first.astream("a")
            await anext(stream)
            waits = asyncio.create_task(ask(second))
            await asyncio.sleep(0.2)
            assert not waits.done()
            await stream.aclose()
            assert (await waits).usage_metadata == USAGE
            closed: Any = first.stream("b")
            next(closed)
            closed.close()
            assert second.invoke("b").usage_metadata == USAGE
            assert (await first.ainvoke("a")).response_metadata["ragopt_cached"]


class TestKeys:
    def test_all_that_matters_is_in_the_key(self, talker: Talker) -> None:
        store = MemoryStore()
        model = CachedChatModel(talker, store)
        asks: list[Callable[[], Any]] = [
            lambda: model.invoke("a"),
            lambda: model.invoke("b"),
            lambda: model.invoke([SystemMessage("s"), HumanMessage("a")]),
            lambda: model.invoke([AIMessage("a")]),
            lambda: model.invoke("a", stop=["x"]),
            lambda: model.invoke("a", response_format={"type": "json_object"}),
            lambda: model.bind_tools([{"name": "f", "description": "", "parameters": {}}]).invoke(
                "a"
            ),
            lambda: CachedChatModel(Talker(model_name="other"), store).invoke("a"),
            lambda: CachedChatModel(FakeListChatModel(responses=["x"]), store).invoke("a"),
            lambda: CachedChatModel(talker, store, name="v2").invoke("a"),
            lambda: CachedChatModel(talker, store, tenant="t").invoke("a"),
        ]
        for ask in asks:
            assert "ragopt_cached" not in ask().response_metadata
        for ask in asks:
            assert ask().response_metadata["ragopt_cached"]

    def test_what_does_not_matter_is_not(self, talker: Talker) -> None:
        store = MemoryStore()
        CachedChatModel(talker, store).invoke([HumanMessage("a", id="1")])
        other = Talker(
            api_key=SecretStr("x"), headers={"Authorization": "y"}, tags=["t"], verbose=True
        )
        model = CachedChatModel(other, store)
        assert model.invoke([HumanMessage("a", id="2")]).response_metadata["ragopt_cached"]
        assert not other.asked

    def test_settings_count_as_they_are_now(self, talker: Talker) -> None:
        model = CachedChatModel(talker)
        model.invoke("a")
        talker.temperature = 0.9
        model.invoke("a")
        assert len(talker.asked) == 2

    def test_an_answer_from_the_cache_continues_the_same_conversation(
        self, model: CachedChatModel, talker: Talker
    ) -> None:
        for _ in range(3):
            turns: list[BaseMessage] = [HumanMessage("a")]
            turns.append(model.invoke(turns))
            turns.append(HumanMessage("b"))
            model.invoke(turns)
        assert len(talker.asked) == 2

    async def test_an_argument_without_a_key_goes_to_the_model(
        self, colour: Colour, model: CachedChatModel, talker: Talker
    ) -> None:
        for _ in range(2):
            await colour.invoke(model, "a", strange=object())
            assert len(await colour.stream(model, "a", strange=object())) == 4
        await colour.invoke(model, [FunctionMessage(content="x", name="f")])
        assert len(talker.asked) == 5
        assert counts(model)("uncacheable") == 5

    async def test_an_answer_without_a_plain_form_is_passed_on(
        self, colour: Colour, model: CachedChatModel, talker: Talker
    ) -> None:
        thing = object()
        talker._hooks["message"] = AIMessage("x", additional_kwargs={"parsed": thing})
        for _ in range(2):
            answer = await colour.invoke(model, "a")
            assert answer.additional_kwargs["parsed"] is thing
        assert counts(model)("uncacheable") == 2

    def test_a_model_that_no_key_can_hold_needs_a_name(self) -> None:
        model = GenericFakeChatModel(messages=iter(["a b", "c"]))
        with pytest.raises(UnkeyableValue, match="name="):
            CachedChatModel(model)
        cached = CachedChatModel(model, name="generic")
        assert [chunk.content for chunk in cached.stream("q")] == ["a", " ", "b"]
        assert [chunk.content for chunk in cached.stream("q")] == ["a", " ", "b"]

    def test_wrong_input(self, talker: Talker) -> None:
        wrong: list[Any] = [None, "gpt", RunnableLambda(str), talker.bind(stop=["x"])]
        for each in wrong:
            with pytest.raises(InvalidInput, match="wrap it before you bind"):
                CachedChatModel(each)
        with pytest.raises(InvalidInput):
            CachedChatModel(talker, cache="redis")  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match="tenant"):
            CachedChatModel(talker, tenant="")


class Question(BaseModel):
    """A question."""

    input: int


class TestTools:
    async def test_tools_are_bound_to_the_cached_model(
        self, colour: Colour, model: CachedChatModel, talker: Talker
    ) -> None:
        bound = model.bind_tools([Question], tool_choice="any")
        first = await colour.stream(bound, "a")
        second = await colour.stream(bound, "a")
        assert [c.tool_call_chunks for c in first] == [c.tool_call_chunks for c in second]
        assert joined(second).tool_calls[0]["args"] == {"input": 3}
        answer = await colour.invoke(bound, "a")
        assert answer.tool_calls[0]["name"] == "Question"
        assert len(talker.asked) == 1

    async def test_a_whole_tool_call_is_streamed(
        self, colour: Colour, model: CachedChatModel, talker: Talker
    ) -> None:
        bound = model.bind_tools([Question])
        first = await colour.invoke(bound, "a")
        chunks = await colour.stream(bound, "a")
        assert joined(chunks).tool_calls == first.tool_calls
        assert len(talker.asked) == 1

    @pytest.mark.parametrize("raw", [False, True])
    async def test_structured_output(
        self, raw: bool, colour: Colour, model: CachedChatModel, talker: Talker
    ) -> None:
        structured = model.with_structured_output(Question, include_raw=raw)
        for _ in range(2):
            answer: Any = await colour.invoke(structured, "a")
            assert (answer["parsed"] if raw else answer) == Question(input=3)
        assert len(talker.asked) == 1

    def test_a_model_that_binds_by_a_copy(self) -> None:
        class Copies(Talker):
            def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
                return self.model_copy(update={"model_name": "with tools"})

        model = CachedChatModel(Copies())
        bound: Any = model.bind_tools([])
        assert isinstance(bound, CachedChatModel)
        assert bound.answers is model.answers
        bound.invoke("a")
        assert bound.invoke("a").response_metadata["ragopt_cached"]
        assert "ragopt_cached" not in model.invoke("a").response_metadata


class TestLangChain:
    def test_the_runs_of_a_hit_are_seen_and_cost_nothing(self, model: CachedChatModel) -> None:
        class Seen(BaseCallbackHandler):
            def __init__(self) -> None:
                self.names: list[str] = []

            def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
                self.names.append("start")

            def on_llm_new_token(self, *args: Any, **kwargs: Any) -> None:
                self.names.append("token")

            def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
                self.names.append("end")

        usage = UsageMetadataCallbackHandler()
        seen = [Seen(), Seen(), Seen()]
        list(model.stream("a", {"callbacks": [seen[0], usage]}))
        list(model.stream("a", {"callbacks": [seen[1], usage]}))
        model.invoke("a", {"callbacks": [seen[2], usage]})
        assert seen[0].names == seen[1].names == ["start", *["token"] * 4, "end"]
        assert seen[2].names == ["start", "end"]
        assert sum(each["total_tokens"] for each in usage.usage_metadata.values()) == 7

    def test_langchains_own_cache_is_left_alone(self, talker: Talker) -> None:
        class Seen(InMemoryCache):
            def lookup(self, *args: Any) -> Any:
                raise AssertionError("asked")

        set_llm_cache(Seen())
        try:
            model = CachedChatModel(talker)
            model.invoke("a")
            assert model.invoke("a").response_metadata["ragopt_cached"]
        finally:
            set_llm_cache(None)

    def test_it_shares_a_store_with_the_llm_cache(self, talker: Talker) -> None:
        store = MemoryStore()
        cached = CachedChatModel(talker, store)
        plain = Talker(cache=LLMCache(store))
        cached.invoke("a")
        plain.invoke("a")
        assert plain.asked == ["generate"]

    async def test_events_of_a_stream(self, model: CachedChatModel) -> None:
        async def names() -> list[str]:
            return [e["event"] async for e in model.astream_events("a", version="v2")]

        first, second = await names(), await names()
        assert first == second
        assert first.count("on_chat_model_stream") == 4

    def test_in_a_chain(self, model: CachedChatModel, talker: Talker) -> None:
        chain = model | StrOutputParser()
        assert list(chain.stream("a")) == list(chain.stream("a"))
        assert chain.invoke("a") == "Two weeks ahead."
        assert len(talker.asked) == 1

    async def test_only_misses_are_limited(self) -> None:
        class Limiter(BaseRateLimiter):
            def __init__(self) -> None:
                self.taken = 0

            def acquire(self, *, blocking: bool = True) -> bool:
                self.taken += 1
                return True

            async def aacquire(self, *, blocking: bool = True) -> bool:
                return self.acquire()

        limiter = Limiter()
        model = CachedChatModel(Talker(rate_limiter=limiter))
        for _ in range(3):
            model.invoke("a")
            await everything(model.astream("b"))
        assert limiter.taken == 2

    def test_a_model_that_cannot_stream(self) -> None:
        class Silent(BaseChatModel):
            _asked: list[int] = PrivateAttr(default_factory=list)

            @property
            def _llm_type(self) -> str:
                return "silent"

            def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
                self._asked.append(1)
                return ChatResult(generations=[ChatGeneration(message=AIMessage("one piece"))])

        inner = Silent()
        model = CachedChatModel(inner)
        for _ in range(2):
            assert joined(list(model.stream("a"))).content == "one piece"
            assert [c.message.content for c in model._stream([HumanMessage("b")])] == ["one piece"]
        assert len(inner._asked) == 2

    def test_what_the_model_is_stays_visible(self, talker: Talker) -> None:
        model = CachedChatModel(Talker(tags=["t"], metadata={"m": 1}, disable_streaming=True))
        assert (model.tags, model.disable_streaming) == (["t"], True)
        assert model.metadata == model.model.metadata
        assert model._llm_type == "talker"
        assert model._get_ls_params() == talker._get_ls_params()
        assert len(list(model.stream("a"))) == 1
        assert CachedChatModel(talker, tags=["own"]).tags == ["own"]
        assert "hush" not in repr(model)

    def test_a_stale_stream_is_replayed_and_refreshed(self, talker: Talker) -> None:
        freshness = Freshness(0.05, stale=60)
        model = CachedChatModel(talker, ttl=freshness)
        list(model.stream("a"))
        time.sleep(0.1)
        assert joined(list(model.stream("a"))).response_metadata["ragopt_cached"]
        for _ in range(100):
            if counts(model)("refresh"):
                break
            time.sleep(0.02)
        assert counts(model)("refresh") + counts(model)("refresh_error") == len(talker.asked) - 1
        assert counts(model)("refresh_error") == 0

    def test_entries_outlive_the_process(self, talker: Talker, tmp_path: Any) -> None:
        with SqliteStore(tmp_path / "c.db") as store:
            list(CachedChatModel(talker, store).stream("a"))
        other = Talker()
        with SqliteStore(tmp_path / "c.db") as store:
            chunks = list(CachedChatModel(other, TieredCache(MemoryStore(), store)).stream("a"))
        assert [chunk.content for chunk in chunks][:3] == WORDS
        assert not other.asked

    async def test_clear(self, model: CachedChatModel, talker: Talker) -> None:
        model.invoke("a")
        model.clear()
        model.invoke("a")
        await model.aclear()
        model.invoke("a")
        assert len(talker.asked) == 3


class TestChain:
    def chain(self, runnable: Runnable[Any, Any], **options: Any) -> CachedChain:
        return CachedChain(runnable, **{"name": "c", "version": "1", **options})

    async def test_tokens_are_passed_on_and_replayed(self, colour: Colour, talker: Talker) -> None:
        chain = self.chain(talker | StrOutputParser())
        first = await colour.stream(chain, "a")
        second = await colour.stream(chain, "a")
        assert first == second
        assert first[:3] == WORDS
        assert await colour.invoke(chain, "a") == "Two weeks ahead."
        assert await colour.stream(chain, "a") == first
        assert len(talker.asked) == 1

    async def test_a_whole_answer_is_one_chunk(self, colour: Colour, talker: Talker) -> None:
        chain = self.chain(talker | StrOutputParser())
        await colour.invoke(chain, "a")
        assert await colour.stream(chain, "a") == ["Two weeks ahead."]
        assert len(talker.asked) == 1

    async def test_messages_are_put_together(self, colour: Colour, talker: Talker) -> None:
        chain = self.chain(talker)
        first = await colour.stream(chain, "a")
        assert await colour.stream(chain, "a") == first
        answer = await colour.invoke(chain, "a")
        assert type(answer) is AIMessage
        assert (answer.content, answer.usage_metadata) == ("Two weeks ahead.", USAGE)

    async def test_dicts_are_put_together_by_key(self, colour: Colour, talker: Talker) -> None:
        documents = [Document("d", id="1")]
        inner = RunnablePassthrough.assign(context=lambda _: documents) | {
            "answer": RunnableLambda(lambda x: x["q"]) | talker | StrOutputParser(),
            "context": RunnableLambda(lambda x: x["context"]),
        }
        chain = self.chain(inner)
        first = await colour.stream(chain, {"q": "a"})
        second = await colour.stream(chain, {"q": "a"})
        assert first == second
        expected = {"answer": "Two weeks ahead.", "context": documents}
        assert joined(first) == joined(second) == expected
        answer = await colour.invoke(chain, {"q": "a"})
        assert answer == expected
        assert type(answer) is dict
        assert len(talker.asked) == 1

    async def test_answers_so_far_are_not_added(self, colour: Colour) -> None:
        model = FakeListChatModel(responses=['{"a": 1, "b": [1, 2]}'])
        chain = self.chain(model | JsonOutputParser())
        first = await colour.stream(chain, "q")
        assert len(first) > 1
        assert await colour.stream(chain, "q") == first
        assert await colour.invoke(chain, "q") == {"a": 1, "b": [1, 2]}
        assert counts(chain, "answer")("hit") == 2

    async def test_what_cannot_be_put_together_is_passed_on(self, colour: Colour) -> None:
        def parts(_: Any) -> Iterator[Any]:
            yield from given

        async def aparts(_: Any) -> AsyncIterator[Any]:
            for each in given:
                yield each

        cases: list[list[Any]] = [[[1], [1, 2]], [object()], [1, 2], ["a", {"b": 1}], []]
        for given in cases:
            chain = self.chain(
                RunnableGenerator(parts, aparts), documents=lambda answer: [str(answer)]
            )
            for _ in range(2):
                assert await colour.stream(chain, "a") == given
            assert counts(chain, "answer")("uncacheable") == 2

    async def test_an_input_without_a_key(self, colour: Colour, talker: Talker) -> None:
        chain = self.chain(RunnableLambda(lambda _: "a") | talker | StrOutputParser())
        for _ in range(2):
            assert (await colour.stream(chain, object()))[:3] == WORDS
        assert counts(chain, "answer")("uncacheable") == 2

    async def test_what_ends_early_is_not_kept(self, talker: Talker) -> None:
        chain = self.chain(talker | StrOutputParser())
        stream: Any = chain.stream("a")
        next(stream)
        stream.close()
        astream: Any = chain.astream("a")
        await anext(astream)
        await astream.aclose()
        talker._hooks["late"] = RuntimeError("cut off")
        with pytest.raises(RuntimeError, match="cut off"):
            list(chain.stream("a"))
        talker._hooks.clear()
        assert counts(chain, "answer")("hit") == 0
        await asyncio.wait_for(chain.ainvoke("a"), 5)
        assert len(talker.asked) == 4

    def test_threads_ask_once(self, talker: Talker) -> None:
        talker._hooks["delay"] = 0.2
        chain = self.chain(talker | StrOutputParser())
        barrier = threading.Barrier(20)
        answers: list[str] = []

        def ask() -> None:
            barrier.wait()
            answers.append("".join(chain.stream("a")))

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == ["Two weeks ahead."] * 20
        assert len(talker.asked) == 1

    async def test_tasks_ask_once(self, talker: Talker) -> None:
        talker._hooks["nap"] = 0.05
        chain = self.chain(talker | StrOutputParser())
        answers = await asyncio.gather(*(everything(chain.astream("a")) for _ in range(20)))
        assert {"".join(answer) for answer in answers} == {"Two weeks ahead."}
        assert len(talker.asked) == 1

    async def test_batches_and_chains_around(self, talker: Talker) -> None:
        chain = self.chain(talker | StrOutputParser())
        assert chain.batch(["a", "a"]) == ["Two weeks ahead."] * 2
        assert await chain.abatch(["a", "b"]) == ["Two weeks ahead."] * 2
        around = RunnableLambda(lambda x: x) | chain | RunnableLambda(lambda x: x)
        assert "".join(around.stream("a")) == "Two weeks ahead."
        assert (await everything(around.astream("c")))[-1]
        assert len(talker.asked) == 3

    def test_a_cached_model_within(self, talker: Talker) -> None:
        model = CachedChatModel(talker)
        for name in ("one", "two"):
            chain = self.chain(model | StrOutputParser(), name=name)
            assert list(chain.stream("a"))[:3] == WORDS
        assert len(talker.asked) == 1


def test_a_stream_never_suspends_in_the_sync_colour() -> None:
    async def body(emit: Any) -> None:
        await emit(1)
        await asyncio.sleep(0)

    pieces = asking.stream(body)
    assert next(pieces) == 1
    with pytest.raises(RuntimeError, match="async port"):
        next(pieces)


class TestUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return CachedChatModel

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return {}

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": Talker()}


class TestStandard(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return CachedChatModel

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return {}

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": Talker()}

    @property
    def model_override_value(self) -> str:
        return "another"
