"""A cached language model for LlamaIndex."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ImageBlock,
    LLMMetadata,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.bridge.pydantic import BaseModel, Field, PrivateAttr
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.llms import MockLLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import Document
from llama_index.core.tools import FunctionTool

from ragopt import MemoryStore, SqliteStore
from ragopt.errors import InvalidInput, UnkeyableValue
from ragopt.llama_index import CachedLLM

WORDS = ["Two ", "weeks ", "ahead."]
TEXT = "".join(WORDS)


class Talker(LLM):
    """A model that counts what it is asked, and can fail and wait."""

    model: str = "talker"
    temperature: float = 0.0
    api_key: str = "hush"
    options: dict[str, Any] = Field(default_factory=dict)
    _asked: list[str] = PrivateAttr(default_factory=list)
    _closed: list[bool] = PrivateAttr(default_factory=list)
    _hooks: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def asked(self) -> list[str]:
        return self._asked

    @property
    def hooks(self) -> dict[str, Any]:
        return self._hooks

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name=self.model, is_chat_model=True)

    def _note(self, how: str) -> None:
        self._asked.append(how)
        time.sleep(self._hooks.get("delay", 0))
        if "error" in self._hooks:
            raise self._hooks["error"]

    def _extra(self) -> dict[str, Any]:
        return {
            "additional_kwargs": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
            "raw": self._hooks.get("raw", {"id": "r", "usage": {"total_tokens": 7}}),
        }

    def _chat(self, text: str, delta: str | None = None) -> ChatResponse:
        if "special" in self._hooks:
            return self._hooks["special"]  # type: ignore[no-any-return]
        message = ChatMessage(role="assistant", content=text)
        return ChatResponse(message=message, delta=delta, **self._extra())

    def _complete(self, text: str, delta: str | None = None) -> CompletionResponse:
        if "special" in self._hooks:
            return self._hooks["special"]  # type: ignore[no-any-return]
        return CompletionResponse(text=text, delta=delta, **self._extra())

    def _pieces(self, make: Callable[..., Any]) -> Any:
        text = ""
        try:
            for number, word in enumerate(WORDS):
                if number == 2 and "late" in self._hooks:
                    raise self._hooks["late"]
                text = word if self._hooks.get("forgets") else text + word
                yield make(text, word)
        except GeneratorExit:
            self._closed.append(True)
            raise

    async def _apieces(self, make: Callable[..., Any]) -> Any:
        for piece in self._pieces(make):
            await asyncio.sleep(self._hooks.get("nap", 0))
            yield piece

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        self._note("chat")
        return self._chat(TEXT)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        self._note("achat")
        await asyncio.sleep(self._hooks.get("nap", 0))
        return self._chat(TEXT)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        self._note("stream_chat")
        return self._pieces(self._chat)

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        self._note("astream_chat")
        return self._apieces(self._chat)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        self._note("complete")
        return self._complete(TEXT)

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        self._note("acomplete")
        await asyncio.sleep(self._hooks.get("nap", 0))
        return self._complete(TEXT)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        self._note("stream_complete")
        return self._pieces(self._complete)

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        self._note("astream_complete")
        return self._apieces(self._complete)


class Asker:
    """Asks one of the eight methods, of one kind in one colour."""

    def __init__(self, colour: str, method: str) -> None:
        self.colour, self.method = colour, method

    def prompt(self, text: str) -> Any:
        return [ChatMessage(text)] if self.method == "chat" else text

    async def one(self, llm: LLM, prompt: Any, **kwargs: Any) -> Any:
        prompt = self.prompt(prompt) if isinstance(prompt, str) else prompt
        if self.colour == "sync":
            return getattr(llm, self.method)(prompt, **kwargs)
        return await getattr(llm, f"a{self.method}")(prompt, **kwargs)

    async def stream(self, llm: LLM, prompt: Any, **kwargs: Any) -> list[Any]:
        prompt = self.prompt(prompt) if isinstance(prompt, str) else prompt
        if self.colour == "sync":
            return list(getattr(llm, f"stream_{self.method}")(prompt, **kwargs))
        made = await getattr(llm, f"astream_{self.method}")(prompt, **kwargs)
        return [each async for each in made]


@pytest.fixture(params=["sync-chat", "sync-complete", "async-chat", "async-complete"])
def ask(request: pytest.FixtureRequest) -> Asker:
    return Asker(*request.param.split("-"))


@pytest.fixture
def talker() -> Talker:
    return Talker()


@pytest.fixture
def llm(talker: Talker) -> CachedLLM:
    return CachedLLM(talker)


def text_of(response: Any) -> str:
    return str(response.message.content if isinstance(response, ChatResponse) else response.text)


def is_hit(response: Any) -> bool:
    return "ragopt_cached" in response.additional_kwargs


class TestAnswers:
    async def test_a_prompt_is_answered_once(
        self, ask: Asker, llm: CachedLLM, talker: Talker
    ) -> None:
        first, second = await ask.one(llm, "When?"), await ask.one(llm, "When?")
        assert len(talker.asked) == 1
        assert text_of(first) == text_of(second) == TEXT
        assert type(first) is type(second)
        assert first.additional_kwargs["total_tokens"] == 7
        paid = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        assert second.additional_kwargs == {
            **dict.fromkeys(paid, 0),
            "ragopt_cached": True,
            "ragopt_saved_usage": paid,
        }
        assert first.raw == {"id": "r", "usage": {"total_tokens": 7}}
        assert second.raw == {"id": "r"}
        assert second.delta is None

    async def test_a_stream_is_passed_on_and_replayed(
        self, ask: Asker, llm: CachedLLM, talker: Talker
    ) -> None:
        first, second = await ask.stream(llm, "When?"), await ask.stream(llm, "When?")
        assert len(talker.asked) == 1
        assert [each.delta for each in first] == [each.delta for each in second] == WORDS
        assert [text_of(each) for each in second] == [text_of(each) for each in first]
        assert [is_hit(each) for each in second] == [False, False, True]
        assert {each.additional_kwargs["total_tokens"] for each in second} == {0}
        assert second[-1].additional_kwargs["ragopt_saved_usage"]["total_tokens"] == 7
        assert all(each.raw == {"id": "r"} for each in second)

    async def test_one_entry_serves_both(self, ask: Asker, llm: CachedLLM, talker: Talker) -> None:
        await ask.stream(llm, "one")
        answer = await ask.one(llm, "one")
        assert (text_of(answer), answer.delta) == (TEXT, None)
        await ask.one(llm, "two")
        (piece,) = await ask.stream(llm, "two")
        assert (text_of(piece), piece.delta) == (TEXT, TEXT)
        assert is_hit(answer)
        assert is_hit(piece)
        assert len(talker.asked) == 2

    async def test_both_colours_share(self, llm: CachedLLM, talker: Talker) -> None:
        llm.chat([ChatMessage("a")])
        assert is_hit(await llm.achat([ChatMessage("a")]))
        assert talker.asked == ["chat"]

    async def test_an_error_is_the_callers_and_not_kept(
        self, ask: Asker, llm: CachedLLM, talker: Talker
    ) -> None:
        talker.hooks["error"] = RuntimeError("down")
        for method in (ask.one, ask.stream):
            with pytest.raises(RuntimeError, match="down"):
                await method(llm, "a")
        talker.hooks.clear()
        talker.hooks["late"] = RuntimeError("cut off")
        with pytest.raises(RuntimeError, match="cut off"):
            await ask.stream(llm, "a")
        talker.hooks.clear()
        assert not is_hit(await ask.one(llm, "a"))

    async def test_a_stream_that_is_closed_early_is_not_kept(
        self, llm: CachedLLM, talker: Talker
    ) -> None:
        stream: Any = llm.stream_complete("a")
        next(stream)
        stream.close()
        assert talker._closed == [True]
        astream: Any = await llm.astream_complete("a")
        await anext(astream)
        await astream.aclose()
        assert not is_hit(await asyncio.wait_for(llm.acomplete("a"), 5))
        assert len(talker.asked) == 3

    async def test_what_was_handed_on_may_be_changed(
        self, ask: Asker, llm: CachedLLM, talker: Talker
    ) -> None:
        for _ in range(2):
            for piece in await ask.stream(llm, "a"):
                piece.additional_kwargs["x"] = 1
                piece.raw["x"] = 1
                piece.delta = ""
        assert [each.delta for each in await ask.stream(llm, "a")] == WORDS
        assert "x" not in (await ask.one(llm, "a")).additional_kwargs
        assert len(talker.asked) == 1

    async def test_what_the_provider_sent_is_kept_if_it_is_plain(
        self, ask: Asker, llm: CachedLLM, talker: Talker
    ) -> None:
        talker.hooks["raw"] = object()
        assert (await ask.one(llm, "a")).raw is talker.hooks["raw"]
        assert (await ask.one(llm, "a")).raw is None
        assert len(talker.asked) == 1

    async def test_a_stream_that_does_not_hold_its_text_is_passed_on(
        self, ask: Asker, llm: CachedLLM, talker: Talker
    ) -> None:
        talker.hooks["forgets"] = True
        for _ in range(2):
            assert [each.delta for each in await ask.stream(llm, "a")] == WORDS
        assert llm.answers.cache.stats.total("llm", "uncacheable") == 2

    async def test_an_answer_without_a_plain_form_is_passed_on(
        self, ask: Asker, llm: CachedLLM, talker: Talker
    ) -> None:
        class SpecialChat(ChatResponse):
            pass

        class SpecialText(CompletionResponse):
            pass

        special: Any = SpecialText(text="x")
        if ask.method == "chat":
            special = SpecialChat(message=ChatMessage("x"))
        talker.hooks["special"] = special
        for _ in range(2):
            assert await ask.one(llm, "a") is special
        assert llm.answers.cache.stats.total("llm", "uncacheable") == 2

    def test_long_streams_are_stored_once(self) -> None:
        store = MemoryStore(max_bytes=100_000)  # with the text so far in each it would be a million
        words = [f"word{number} " for number in range(500)]

        class Long(Talker):
            def _pieces(self, make: Callable[..., Any]) -> Any:
                for number in range(1, 501):
                    yield make("".join(words[:number]), words[number - 1])

        first = list(CachedLLM(Long(), store).stream_complete("a"))
        second = list(CachedLLM(Long(), store).stream_complete("a"))
        assert [(each.text, each.delta) for each in first] == [
            (each.text, each.delta) for each in second
        ]
        assert is_hit(second[-1])

    def test_entries_outlive_the_process(self, talker: Talker, tmp_path: Path) -> None:
        with SqliteStore(tmp_path / "c.db") as store:
            list(CachedLLM(talker, store).stream_chat([ChatMessage("a")]))
        with SqliteStore(tmp_path / "c.db") as store:
            other = Talker()
            assert is_hit(CachedLLM(other, store).chat([ChatMessage("a")]))
            assert not other.asked

    async def test_clear(self, llm: CachedLLM, talker: Talker) -> None:
        llm.complete("a")
        llm.clear()
        llm.complete("a")
        await llm.aclear()
        llm.complete("a")
        assert len(talker.asked) == 3


class TestTogether:
    @pytest.mark.parametrize("streamed", [False, True])
    def test_threads_ask_once(self, streamed: bool, llm: CachedLLM, talker: Talker) -> None:
        talker.hooks["delay"] = 0.2
        barrier = threading.Barrier(20)
        answers: list[Any] = []

        def ask() -> None:
            barrier.wait()
            answers.append(list(llm.stream_complete("a"))[-1] if streamed else llm.complete("a"))

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(talker.asked) == 1
        assert [answer.text for answer in answers] == [TEXT] * 20
        assert sum(answer.additional_kwargs["total_tokens"] for answer in answers) == 7

    @pytest.mark.parametrize("streamed", [False, True])
    async def test_tasks_ask_once(self, streamed: bool, llm: CachedLLM, talker: Talker) -> None:
        talker.hooks["nap"] = 0.05
        ask = Asker("async", "chat")
        method = ask.stream if streamed else ask.one
        answers = await asyncio.gather(*(method(llm, "a") for _ in range(20)))
        assert len(talker.asked) == 1
        assert {text_of(each[-1] if streamed else each) for each in answers} == {TEXT}


class TestKeys:
    def test_all_that_matters_is_in_the_key(self, talker: Talker, tmp_path: Path) -> None:
        store = MemoryStore()
        llm = CachedLLM(talker, store)
        image = tmp_path / "a.png"
        image.write_bytes(b"\x89PNG one")
        messages: list[ChatMessage] = [
            ChatMessage("a"),
            ChatMessage("a", role="system"),
            ChatMessage("a", additional_kwargs={"name": "x"}),
            ChatMessage([TextBlock(text="a"), TextBlock(text="b")]),
            ChatMessage([TextBlock(text="a\nb")]),
            ChatMessage([ImageBlock(image=b"one")]),
            ChatMessage([ImageBlock(image=b"two")]),
            ChatMessage([ImageBlock(url="http://a/one.png")]),
            ChatMessage([ImageBlock(path=image)]),
            ChatMessage([ToolCallBlock(tool_name="t", tool_kwargs={"a": 1})]),
        ]
        asks: list[Callable[[], Any]] = [
            *(lambda message=each: llm.chat([message]) for each in messages),
            lambda: llm.chat([ChatMessage("a"), ChatMessage("a")]),
            lambda: llm.chat([ChatMessage("a")], temperature=1),
            lambda: llm.chat([ChatMessage("a")], temperature=1.0),
            lambda: llm.complete("a"),
            lambda: llm.complete("a", formatted=True),
            lambda: CachedLLM(Talker(model="other"), store).complete("a"),
            lambda: CachedLLM(talker, store, name="v2").complete("a"),
            lambda: CachedLLM(talker, store, tenant="t").complete("a"),
            lambda: CachedLLM(MockLLM(), store).complete("a"),
        ]
        assert [is_hit(each()) for each in asks] == [False] * len(asks)
        assert [is_hit(each()) for each in asks] == [True] * len(asks)
        image.write_bytes(b"\x89PNG two")
        assert not is_hit(llm.chat([ChatMessage([ImageBlock(path=image)])]))

    async def test_files_are_read_in_both_colours(
        self, llm: CachedLLM, talker: Talker, tmp_path: Path
    ) -> None:
        image = tmp_path / "a.png"
        image.write_bytes(b"\x89PNG")
        messages = [ChatMessage([ImageBlock(path=image)])]
        llm.chat(messages)
        assert is_hit(await llm.achat(messages))
        image.unlink()
        assert not is_hit(await llm.achat(messages))
        assert llm.answers.cache.stats.total("llm", "uncacheable") == 1

    def test_what_does_not_matter_is_not(self, talker: Talker) -> None:
        store = MemoryStore()
        CachedLLM(talker, store).complete("a")
        assert is_hit(CachedLLM(Talker(api_key="other"), store).complete("a"))

    def test_settings_count_as_they_are_now(self, llm: CachedLLM, talker: Talker) -> None:
        llm.complete("a")
        talker.temperature = 0.9
        assert not is_hit(llm.complete("a"))

    async def test_an_argument_without_a_key_goes_to_the_model(
        self, ask: Asker, llm: CachedLLM, talker: Talker
    ) -> None:
        for _ in range(2):
            await ask.one(llm, "a", strange=object())
            assert len(await ask.stream(llm, "a", strange=object())) == 3
        assert len(talker.asked) == 4
        assert llm.answers.cache.stats.total("llm", "uncacheable") == 4

    def test_wrong_input(self, talker: Talker) -> None:
        wrong: list[Any] = [None, "gpt", MockEmbedding(embed_dim=2)]
        for each in wrong:
            with pytest.raises(InvalidInput, match="Pass a LlamaIndex LLM"):
                CachedLLM(each)
        odd = Talker(options={"client": object()})
        with pytest.raises(UnkeyableValue, match="name="):
            CachedLLM(odd)
        assert CachedLLM(odd, name="odd").complete("a").text == TEXT


class Answer(BaseModel):
    """An answer."""

    a: int = 1


def add(a: int = 1, b: int = 2) -> int:
    """Add two numbers."""
    return a + b


class TestLlamaIndex:
    def test_calls_of_functions(self) -> None:
        llm: Any = CachedLLM(MockFunctionCallingLLM())
        assert isinstance(llm, FunctionCallingLLM)
        assert isinstance(llm, CachedLLM)
        tool = FunctionTool.from_defaults(add)
        first, second = (llm.chat_with_tools([tool], "what?") for _ in range(2))
        assert is_hit(second)
        assert second.message == first.message
        assert llm.get_tool_calls_from_response(second)[0].tool_kwargs == {"a": 1, "b": 2}
        assert str(llm.predict_and_call([tool], "what?")) == "3"
        other = FunctionTool.from_defaults(add, description="Another.")
        assert not is_hit(llm.chat_with_tools([other], "what?"))

    async def test_calls_of_functions_async(self) -> None:
        llm: Any = CachedLLM(MockFunctionCallingLLM())
        tool = FunctionTool.from_defaults(add)
        first = await llm.achat_with_tools([tool], "what?")
        assert (await llm.achat_with_tools([tool], "what?")).message == first.message
        stream = await llm.astream_chat_with_tools([tool], "what?")
        assert [each.message async for each in stream] == [first.message]

    def test_a_model_without_functions_claims_none(self, llm: CachedLLM) -> None:
        assert not isinstance(llm, FunctionCallingLLM)
        assert llm.metadata == llm._llm.metadata
        assert llm.class_name() == "CachedLLM"
        assert "hush" not in llm.to_json()

    def test_structured_prediction(self) -> None:
        llm: Any = CachedLLM(MockFunctionCallingLLM())
        prompt = PromptTemplate("Say {what}.")
        for _ in range(2):
            assert llm.structured_predict(Answer, prompt, what="it") == Answer()
        assert llm.answers.cache.stats.total("llm", "hit") == 1

    def test_predict_uses_the_models_prompts(self) -> None:
        talker = Talker(system_prompt="Be brief.")
        llm = CachedLLM(talker)
        assert llm.system_prompt == "Be brief."
        for _ in range(2):
            assert llm.predict(PromptTemplate("Say {what}."), what="it") == TEXT
        assert "".join(llm.stream(PromptTemplate("Say {what}."), what="it")) == TEXT
        assert talker.asked == ["chat"]

    def test_a_query_engine_asks_once(self, talker: Talker) -> None:
        index = VectorStoreIndex.from_documents(
            [Document(text="apples")], embed_model=MockEmbedding(embed_dim=4)
        )
        engine = index.as_query_engine(llm=CachedLLM(talker))
        assert str(engine.query("q")) == str(engine.query("q")) == TEXT
        assert len(talker.asked) == 1

    async def test_each_call_fires_one_set_of_events(self, ask: Asker, talker: Talker) -> None:
        class Seen(BaseEventHandler):
            names: list[str] = Field(default_factory=list)

            def handle(self, event: BaseEvent, **kwargs: Any) -> None:
                if event.class_name().startswith("LLM"):
                    self.names.append(event.class_name())

        debug = LlamaDebugHandler(print_trace_on_end=False)
        talker.callback_manager = CallbackManager([debug])
        llm = CachedLLM(talker)
        seen, root = Seen(), get_dispatcher()
        root.add_event_handler(seen)
        try:
            runs = []
            for method in (ask.stream, ask.stream, ask.one):
                seen.names.clear()
                await method(llm, "a")
                runs.append([*seen.names])
        finally:
            root.event_handlers.remove(seen)
        assert runs[0] == runs[1]
        assert len(runs[0]) == 1 + 3 + 1
        assert runs[2] == [runs[0][0], runs[0][-1]]
        assert len(debug.get_event_pairs(CBEventType.LLM)) == 3

    def test_callbacks_that_come_late_reach_the_model(self, talker: Talker) -> None:
        debug = LlamaDebugHandler(print_trace_on_end=False)
        llm = CachedLLM(talker)
        before = Settings.callback_manager
        try:
            Settings.callback_manager = CallbackManager([debug])
            Settings.llm = llm
            for _ in range(2):
                Settings.llm.complete("a")
        finally:
            Settings.callback_manager = before
            Settings.llm = MockLLM()
        llm.callback_manager = CallbackManager([debug])
        llm.complete("b")
        assert len(debug.get_event_pairs(CBEventType.LLM)) >= 1
        assert talker.callback_manager is llm.callback_manager

    def test_messages_are_not_changed(self, llm: CachedLLM) -> None:
        messages = [ChatMessage([TextBlock(text="a")], additional_kwargs={"x": [1]})]
        before = [each.model_copy(deep=True) for each in messages]
        for _ in range(2):
            llm.chat(messages, option={"a": 1})
            list(llm.stream_chat(messages))
        assert messages == before
