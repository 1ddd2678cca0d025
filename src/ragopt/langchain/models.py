"""A chat model that answers each conversation once, streamed or not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableParallel, RunnableSequence
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.tools import BaseTool
from pydantic import BaseModel, Field, PrivateAttr

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.cache.answers import AnswerCache
from ragopt.cache.asking import Emit, asked, astream, pour, stream
from ragopt.cache.freshness import TimeToLive
from ragopt.cache.identity import identity
from ragopt.errors import InvalidInput
from ragopt.keys import encode
from ragopt.langchain.caches import decode_generations, encode_generations
from ragopt.langchain.events import tell
from ragopt.langchain.plain import PAID, as_chunk, spare, spare_all, to_plain
from ragopt.protocols import KVStore

# What the wrapper takes over from the model, for runs and for how they are streamed.
_TAKEN_OVER = (
    "callbacks",
    "custom_get_token_ids",
    "disable_streaming",
    "metadata",
    "output_version",
    "profile",
    "tags",
    "verbose",
)


class CachedChatModel(BaseChatModel):
    """Any chat model with its answers cached, for ``invoke`` and ``stream`` alike.

    The key is the class of the model and its settings, as they are now and without its secrets;
    the messages without their ids; ``stop`` and all other arguments, such as tools. What has no
    key is answered by the model, and what cannot be kept exactly is passed on; both are counted
    as ``uncacheable``.

    A stream that misses hands each chunk on as it comes, and is kept when it has ended: not when
    it failed, was cancelled or was closed early. A hit on a stream hands on the same chunks. An
    answer that was not streamed is one chunk, and a streamed one is found by ``invoke`` as well.
    Who asks for the same meanwhile waits for the first, and then gets its answer as a hit. Since
    a stream goes on only as it is read, who has waited for a minute asks for itself.

    A hit costs no tokens and says so: its ``usage_metadata`` is zero, ``response_metadata`` holds
    ``ragopt_cached`` and, as ``ragopt_saved_usage``, what was paid the first time. It has an id of
    its own. LangChain's own cache of answers (``set_llm_cache``) is not asked besides this one.

    Args:
        model: The chat model you use today.
        cache: A ``TieredCache`` or a store; one in memory of its own if None.
        name: Stands for settings that no key can hold. Change it when they change.
        ttl: Seconds that an answer is kept, None until it is evicted, or a ``Freshness``.
        namespace: Separates applications which share a store.
        tenant: Separates customers of one application.
        fields: Fields of ``BaseChatModel``, such as ``tags``; those of the model otherwise.

    Raises:
        InvalidInput: What was given is no chat model.
        UnkeyableValue: A setting cannot be part of a key, and no name was given.

    Examples:
        >>> model = CachedChatModel(ChatOpenAI(model="gpt-5-mini"), cache)
    """

    model: BaseChatModel
    cache: Any = Field(default=False, exclude=True)

    _answers: AnswerCache = PrivateAttr()
    _streams: AnswerCache = PrivateAttr()
    _stand_in: str | None = PrivateAttr()

    def __init__(
        self,
        model: BaseChatModel,
        cache: KVStore | None = None,
        *,
        name: str | None = None,
        ttl: TimeToLive = 3_600,
        namespace: str = "default",
        tenant: str | None = None,
        **fields: Any,
    ) -> None:
        if not isinstance(model, BaseChatModel):
            raise InvalidInput(
                f"A {type(model).__name__} was given as a chat model.",
                fix="Pass a LangChain chat model; wrap it before you bind or chain it. "
                "For a model that only completes texts, use LLMCache.",
            )
        inherited = {field: getattr(model, field) for field in _TAKEN_OVER}
        given: dict[str, Any] = {**inherited, "name": name or model.name, **fields, "model": model}
        super().__init__(**given, cache=False)
        self._stand_in = name
        self._settings()  # raises for what no key can hold
        options: dict[str, Any] = {"namespace": namespace, "tenant": tenant}
        options |= {"kind": "llm", "ttl": ttl, "encode": _encode}
        self._answers = AnswerCache(cache, decode=_decode, **options)
        # The same entries, taken as they were cut: an answer can have hundreds of chunks.
        self._streams = AnswerCache(self._answers.cache, decode=_decode_chunks, **options)

    @property
    def answers(self) -> AnswerCache:
        """The answers; ``answers.cache`` is where they are kept, with its statistics."""
        return self._answers

    def clear(self) -> None:
        """Forget the models' answers of this namespace and tenant."""
        self._answers.clear()

    async def aclear(self) -> None:
        """Forget the models' answers of this namespace and tenant."""
        await self._answers.aclear()

    # -- asking --------------------------------------------------------------------------------

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        result: ChatResult = run(self._ask(SYNC, messages, stop, run_manager, kwargs))
        return result

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        result: ChatResult = await self._ask(ASYNC, messages, stop, run_manager, kwargs)
        return result

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        return stream(lambda emit: self._ask(SYNC, messages, stop, run_manager, kwargs, emit))

    def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        return astream(lambda emit: self._ask(ASYNC, messages, stop, run_manager, kwargs, emit))

    async def _ask(
        self,
        io: Runtime,
        messages: list[BaseMessage],
        stop: list[str] | None,
        run_manager: Any,
        kwargs: dict[str, Any],
        emit: Emit | None = None,
    ) -> Any:
        """Return a ``ChatResult``, or emit chunks where there is an ``emit``."""
        model: Any = self.model
        # Its own hooks, not its public methods: these would open a second run, and count twice.
        options: dict[str, Any] = {"stop": stop, "run_manager": run_manager, **kwargs}
        pieces = emit is not None and self._can_stream(io, kwargs)

        async def ask() -> ChatResult | list[ChatGenerationChunk]:
            if (limiter := model.rate_limiter) is not None:
                await io.call(limiter.acquire, limiter.aacquire, blocking=True)
            if emit is None or not pieces:
                result: ChatResult = await io.call(
                    model._generate, model._agenerate, messages, **options
                )
                if emit is not None:
                    await emit(_only_chunk(result))
                return result
            chunks: list[ChatGenerationChunk] = []

            async def take(chunk: ChatGenerationChunk) -> None:
                chunks.append(chunk.model_copy(deep=True))  # LangChain writes into those it gets
                await emit(chunk)

            source = model._stream if io is SYNC else model._astream
            await pour(source(messages, **options), take)
            return chunks

        try:
            key = encode(("chat", self._settings(), to_plain(messages, ids=False), stop, kwargs))
        except InvalidInput:
            self._answers.cache.stats.count(self._answers.kind, "uncacheable")
            return await ask()
        answers = self._answers if emit is None else self._streams
        answer, hit = await asked(io, answers, key, ask)
        await tell(io, self._answers.kind, hit=hit)
        if emit is None or not hit:
            return answer
        for chunk in answer:
            if run_manager is not None:
                told = run_manager.on_llm_new_token
                await io.call(told, told, chunk.message.content, chunk=chunk)
            await emit(chunk)
        return answer

    def _settings(self) -> object:
        """Return what a key holds of the model.

        Fields that it keeps out of its serialised form are clients, callbacks and the like.
        """
        model = self.model
        fields = type(model).model_fields
        told: dict[str, Any] = {n: getattr(model, n) for n, f in fields.items() if not f.exclude}
        told.update(model.__pydantic_extra__ or {})
        described = SimpleNamespace(fields=told, params=dict(model._identifying_params))
        kind = type(model)
        path = f"{kind.__module__}.{kind.__qualname__}"
        return path, model._llm_type, identity(described, name=self._stand_in)

    def _can_stream(self, io: Runtime, kwargs: dict[str, Any]) -> bool:
        options = {**kwargs, "stream": True}
        return self.model._should_stream(async_api=io is ASYNC, run_manager=None, **options)

    # -- tools and structured output -----------------------------------------------------------

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Bind tools as the model itself does; what is bound is the cached model."""
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        return self._around(self.model.bind_tools(tools, **kwargs))

    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """Structure the output as the model itself does, with the cached model in its place."""
        made = self.model.with_structured_output(schema, include_raw=include_raw, **kwargs)
        return self._around(made)

    def _around(self, runnable: Runnable[Any, Any]) -> Runnable[Any, Any]:
        """Return what the model made of itself, with the cached model in its place."""
        if runnable is self.model:
            return self
        if isinstance(runnable, BaseChatModel):  # a copy of the model with other settings
            return self.model_copy(update={"model": runnable})
        if isinstance(runnable, RunnableBindingBase):
            return runnable.model_copy(update={"bound": self._around(runnable.bound)})
        if isinstance(runnable, RunnableSequence):
            return RunnableSequence(*map(self._around, runnable.steps), name=runnable.name)
        if isinstance(runnable, RunnableParallel):
            steps = {key: self._around(step) for key, step in runnable.steps__.items()}
            return RunnableParallel(steps)
        return runnable

    # -- what the model knows of itself --------------------------------------------------------

    @property
    def _llm_type(self) -> str:
        return self.model._llm_type

    @property
    def _identifying_params(self) -> Any:
        return self.model._identifying_params

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self.model._get_ls_params(stop=stop, **kwargs)

    def _combine_llm_outputs(self, llm_outputs: list[Any], /) -> dict[str, Any]:
        computed = [each for each in llm_outputs if each is not None]
        return self.model._combine_llm_outputs(computed) if computed else {}

    def _should_stream(self, *, async_api: bool, run_manager: Any = None, **kwargs: Any) -> bool:
        return self.model._should_stream(async_api=async_api, run_manager=run_manager, **kwargs)

    def get_num_tokens(self, text: str) -> int:
        """Return how many tokens the model makes of a text."""
        return self.model.get_num_tokens(text)

    def get_token_ids(self, text: str) -> list[int]:
        """Return the tokens that the model makes of a text."""
        return self.model.get_token_ids(text)

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Return how many tokens the model makes of messages."""
        return self.model.get_num_tokens_from_messages(messages, tools)


def _encode(answer: ChatResult | list[ChatGenerationChunk]) -> dict[str, Any]:
    if isinstance(answer, ChatResult):
        return {**_encode_result(answer), "chunks": None}
    chunks = encode_generations(_unnamed(answer))  # raises where there are none
    return {**_encode_result(generate_from_stream(iter(answer))), "chunks": chunks}


def _encode_result(result: ChatResult) -> dict[str, Any]:
    whole = encode_generations(_unnamed(result.generations))
    return {"whole": whole, "output": result.llm_output}


def _unnamed(generations: Sequence[ChatGeneration]) -> list[ChatGeneration]:
    """Drop ids: a second message of the same id would replace the first in a conversation."""
    return [
        each.model_copy(update={"message": each.message.model_copy(update={"id": None})})
        for each in generations
    ]


def _decode(stored: Any) -> ChatResult:
    """Return a stored answer as ``invoke`` returns it, at no cost.

    The model's own ``llm_output`` is where LangChain adds up costs, so a hit has none; what it
    tells else goes where LangChain itself would put it.
    """
    generations: Any = decode_generations(stored["whole"])
    for generation in generations:
        message = generation.message
        if len(generations) == 1:
            message.response_metadata = {**(stored["output"] or {}), **message.response_metadata}
        _spare(generation)
        spare(message)
    return ChatResult(generations=generations)


def _decode_chunks(stored: Any) -> list[ChatGenerationChunk]:
    """Return a stored answer as it is streamed, at no cost."""
    if stored["chunks"] is None:
        return [_only_chunk(_decode(stored))]
    chunks: Any = decode_generations(stored["chunks"])
    for chunk in chunks:
        _spare(chunk)
    spare_all([chunk.message for chunk in chunks])
    return list(chunks)


def _spare(generation: ChatGeneration) -> None:
    info = generation.generation_info
    if info is not None:
        generation.generation_info = {key: info[key] for key in info if key not in PAID}


def _only_chunk(result: ChatResult) -> ChatGenerationChunk:
    first = result.generations[0]
    message: Any = as_chunk(first.message)
    return ChatGenerationChunk(message=message, generation_info=first.generation_info)
