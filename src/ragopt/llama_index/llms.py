"""A language model that answers each prompt once, streamed or not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Literal, TypeAlias, cast

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM, ToolSelection

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.cache.answers import AnswerCache
from ragopt.cache.asking import Emit, asked, astream, pour, stream
from ragopt.cache.freshness import TimeToLive
from ragopt.cache.identity import identity
from ragopt.errors import InvalidInput
from ragopt.keys import encode as encode_key
from ragopt.llama_index.events import tell
from ragopt.llama_index.responses import (
    Response,
    Taken,
    decode,
    decode_stream,
    encode,
    has_files,
    key_of,
)
from ragopt.protocols import KVStore

Method: TypeAlias = Literal["chat", "complete"]

# What the wrapper takes over: the methods of ``LLM`` that make prompts look at it.
_TAKEN_OVER = (
    "callback_manager",
    "completion_to_prompt",
    "messages_to_prompt",
    "output_parser",
    "pydantic_program_mode",
    "query_wrapper_prompt",
    "system_prompt",
)


class CachedLLM(LLM):
    """Any language model with its answers cached: all of chat, complete and their streams.

    The key is the class of the model and its settings, as they are now and without its secrets;
    the prompt or the messages with all their blocks, files by their content; and all other
    arguments, such as tools. What has no key is answered by the model, and what cannot be kept
    exactly is passed on; both are counted as ``uncacheable``.

    A stream that misses hands each response on as it comes, and is kept when it has ended: not
    when it failed, was cancelled or was closed early. A hit on a stream hands on the same
    responses. An answer that was not streamed is one response, and a streamed one is found
    without streaming as well. Who asks for the same meanwhile waits for the first, and then gets
    its answer as a hit. Since a stream goes on only as it is read, who has waited for a minute
    asks for itself.

    A hit costs no tokens and says so in ``additional_kwargs``: counts of tokens are zero,
    ``ragopt_cached`` is there and, as ``ragopt_saved_usage``, what was paid the first time.
    ``raw`` comes back if it is plain, without the usage in it; it is None otherwise. Events fire
    as for any model: a miss fires the model's own, a hit those of the wrapper. LlamaIndex's
    ``TokenCountingHandler`` estimates what is zero, and so it counts tokens of hits too.

    Over a ``FunctionCallingLLM`` the wrapper is one too.

    Args:
        llm: The language model you use today.
        cache: A ``TieredCache`` or a store; one in memory of its own if None.
        name: Stands for settings that no key can hold. Change it when they change.
        ttl: Seconds that an answer is kept, None until it is evicted, or a ``Freshness``.
        namespace: Separates applications which share a store.
        tenant: Separates customers of one application.
        fields: Fields of ``LLM``, such as ``system_prompt``; those of the model otherwise.

    Raises:
        InvalidInput: What was given is no language model.
        UnkeyableValue: A setting cannot be part of a key, and no name was given.

    Examples:
        >>> Settings.llm = CachedLLM(OpenAI(model="gpt-5-mini"), cache)
    """

    _llm: Any = PrivateAttr()
    _answers: AnswerCache = PrivateAttr()
    _streams: AnswerCache = PrivateAttr()
    _name: str | None = PrivateAttr()

    def __new__(cls, llm: object = None, *_: Any, **__: Any) -> CachedLLM:
        """Make one that calls functions where the model does: LlamaIndex asks for the class."""
        if cls is CachedLLM and isinstance(llm, FunctionCallingLLM):
            cls = _CachedFunctionCallingLLM  # noqa: PLW0642
        return super().__new__(cls)

    def __init__(
        self,
        llm: LLM,
        cache: KVStore | None = None,
        *,
        name: str | None = None,
        ttl: TimeToLive = 3_600,
        namespace: str = "default",
        tenant: str | None = None,
        **fields: Any,
    ) -> None:
        if not isinstance(llm, LLM):
            raise InvalidInput(
                f"A {type(llm).__name__} was given as a language model.",
                fix="Pass a LlamaIndex LLM.",
            )
        identity(llm, name=name)  # raises for what no key can hold
        super().__init__(**{**{field: getattr(llm, field) for field in _TAKEN_OVER}, **fields})
        options: dict[str, Any] = {"namespace": namespace, "tenant": tenant}
        options |= {"kind": "llm", "ttl": ttl, "encode": encode}
        self._llm = llm
        self._name = name
        self._answers = AnswerCache(cache, decode=decode, **options)
        # The same entries, taken as they were cut: an answer can have hundreds of responses.
        self._streams = AnswerCache(self._answers.cache, decode=decode_stream, **options)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "callback_manager" and self.__pydantic_private__:
            # LlamaIndex gives a model its callbacks late; the wrapped one fires those of a miss.
            self._llm.callback_manager = value

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in serialised components."""
        return "CachedLLM"

    @property
    def answers(self) -> AnswerCache:
        """The answers; ``answers.cache`` is where they are kept, with its statistics."""
        return self._answers

    @property
    def metadata(self) -> LLMMetadata:
        """What the model says of itself."""
        metadata: LLMMetadata = self._llm.metadata
        return metadata

    def to_payload(self) -> dict[str, Any]:
        """Return what events tell of the model."""
        payload: dict[str, Any] = self._llm.to_payload()
        return payload

    def clear(self) -> None:
        """Forget the models' answers of this namespace and tenant."""
        self._answers.clear()

    async def aclear(self) -> None:
        """Forget the models' answers of this namespace and tenant."""
        await self._answers.aclear()

    # -- the eight methods ---------------------------------------------------------------------

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Return the answer to messages, from the cache where it is known."""
        return cast("ChatResponse", run(self._ask(SYNC, "chat", messages, kwargs)))

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Return the answer to messages, from the cache where it is known."""
        return cast("ChatResponse", await self._ask(ASYNC, "chat", messages, kwargs))

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Yield the answer to messages as the model makes it, or made it."""
        return stream(lambda emit: self._ask(SYNC, "chat", messages, kwargs, emit))

    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Yield the answer to messages as the model makes it, or made it."""
        made = astream(lambda emit: self._ask(ASYNC, "chat", messages, kwargs, emit))
        return cast("ChatResponseAsyncGen", made)

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Return the completion of a prompt, from the cache where it is known."""
        kwargs["formatted"] = formatted
        return cast("CompletionResponse", run(self._ask(SYNC, "complete", prompt, kwargs)))

    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """Return the completion of a prompt, from the cache where it is known."""
        kwargs["formatted"] = formatted
        return cast("CompletionResponse", await self._ask(ASYNC, "complete", prompt, kwargs))

    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Yield the completion of a prompt as the model makes it, or made it."""
        kwargs["formatted"] = formatted
        return stream(lambda emit: self._ask(SYNC, "complete", prompt, kwargs, emit))

    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Yield the completion of a prompt as the model makes it, or made it."""
        kwargs["formatted"] = formatted
        made = astream(lambda emit: self._ask(ASYNC, "complete", prompt, kwargs, emit))
        return cast("CompletionResponseAsyncGen", made)

    # -- one body for all of them --------------------------------------------------------------

    async def _ask(
        self, io: Runtime, method: Method, prompt: Any, kwargs: Any, emit: Emit | None = None
    ) -> Response | None:
        """Return the response, or emit responses where there is an ``emit``."""
        name = method if emit is None else f"stream_{method}"
        call, acall = getattr(self._llm, name), getattr(self._llm, f"a{name}")

        async def ask() -> Taken:
            found = await io.call(call, acall, prompt, **kwargs)
            if emit is None:
                return Taken(found)
            taken = Taken()

            async def take(response: Response) -> None:
                taken.add(response)
                await emit(response)

            await pour(found, take)
            return taken

        try:
            if has_files(prompt):
                key = await io.cpu(self._key, method, prompt, kwargs)
            else:
                key = self._key(method, prompt, kwargs)
        except (InvalidInput, OSError):  # a file that cannot be read is the model's to report
            self._answers.cache.stats.count(self._answers.kind, "uncacheable")
            return (await ask()).original
        answers = self._answers if emit is None else self._streams
        answer, hit = await asked(io, answers, key, ask)
        tell(self._answers.kind, hit=hit)
        if not hit:
            return cast("Taken", answer).original
        announced = _announced(io, method, answer)
        told = await io.call(announced, announced, self, prompt, **kwargs)
        if emit is None:
            return cast("Response", told)
        await pour(told, emit)
        return None

    def _key(self, method: Method, prompt: Any, kwargs: dict[str, Any]) -> bytes:
        settings = (identity(self._llm, name=self._name), self._llm.metadata.model_name)
        return encode_key((method, settings, key_of(prompt), key_of(kwargs)))


class _CachedFunctionCallingLLM(CachedLLM, FunctionCallingLLM):
    """A cached model that calls functions: it prepares and reads calls as the model does."""

    def _prepare_chat_with_tools(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        prepared: dict[str, Any] = self._llm._prepare_chat_with_tools(*args, **kwargs)
        return prepared

    def _prepare_chat_with_tools_compat(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        prepared: dict[str, Any] = self._llm._prepare_chat_with_tools_compat(*args, **kwargs)
        return prepared

    def _validate_chat_with_tools_response(self, *args: Any, **kwargs: Any) -> ChatResponse:
        valid: ChatResponse = self._llm._validate_chat_with_tools_response(*args, **kwargs)
        return valid

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """Return the calls in a response, as the model reads them."""
        calls: list[ToolSelection] = self._llm.get_tool_calls_from_response(
            response, error_on_no_tool_call=error_on_no_tool_call, **kwargs
        )
        return calls


def _announced(io: Runtime, method: Method, answer: Any) -> Any:
    """Return a method that returns an answer from the cache, and fires what a model fires."""
    streamed = isinstance(answer, list)
    callback: Any = llm_chat_callback() if method == "chat" else llm_completion_callback()

    def responses() -> Iterator[Response]:
        yield from answer

    async def aresponses() -> AsyncIterator[Response]:
        for response in answer:
            yield response

    def replay(*_: Any, **__: Any) -> Any:
        return responses() if streamed else answer

    async def areplay(*_: Any, **__: Any) -> Any:
        return aresponses() if streamed else answer

    return callback(replay if io is SYNC else areplay)
