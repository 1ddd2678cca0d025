"""Prompts and responses of LlamaIndex's language models as plain values."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from enum import Enum
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any, TypeAlias

from llama_index.core.base.llms.types import (
    BaseContentBlock,
    ChatMessage,
    ChatResponse,
    CompletionResponse,
)
from llama_index.core.bridge.pydantic import AnyUrl, BaseModel
from llama_index.core.tools import BaseTool

from ragopt.codecs import decode_value, encode_value
from ragopt.errors import CorruptData, InvalidInput

Response: TypeAlias = ChatResponse | CompletionResponse

CACHED = "ragopt_cached"
SAVED = "ragopt_saved_usage"

# Where models put tokens that were paid for: in the additional arguments of a response, and
# in what the provider sent.
_COUNTS = (
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "input_tokens",
    "output_tokens",
)
_PAID = ("usage", "usage_metadata")


class Taken:
    """An answer of a model as it comes: one response, or the responses of a stream.

    Args:
        original: The one response, for the caller who waits for it; None for a stream.
    """

    def __init__(self, original: Response | None = None) -> None:
        self.original = original
        self.streamed = original is None
        self.plain: list[Any] | None = []
        if original is not None:
            self.add(original)

    def add(self, response: Response) -> None:
        """Take a copy of a response. One that has no plain form ends the taking."""
        if self.plain is not None:
            try:
                self.plain.append(_to_plain(response))
            except InvalidInput:
                self.plain = None


def encode(answer: Taken) -> dict[str, Any]:
    """Return an answer as JSON-like values.

    Raises:
        InvalidInput: It has no such form from which the same could be made again; or it is a
            stream whose last response does not hold the whole text.
    """
    plain = answer.plain
    if not plain or (answer.streamed and not _grows([_from_plain(each) for each in plain])):
        raise InvalidInput(
            "A response has no plain form that is exactly the same.", fix="It is not cached."
        )
    steps = [_difference(before, now) for before, now in zip([None, *plain], plain, strict=False)]
    return {"last": plain[-1], "steps": steps if answer.streamed else None}


def decode(stored: Any) -> Response:
    """Return a stored answer as one response, at no cost."""
    response: Response = _from_plain(stored["last"])
    if stored["steps"] is not None:
        response.delta = None
    _spare([response])
    return response


def decode_stream(stored: Any) -> list[Response]:
    """Return a stored answer as it is streamed, at no cost; a whole one as one response."""
    if stored["steps"] is None:
        response = _from_plain(stored["last"])
        if response.delta is None:
            response.delta = _text(response)
        responses = [response]
    else:
        plain: Any = None
        responses = []
        for step in stored["steps"]:
            plain = _apply(plain, step)
            responses.append(_from_plain(deepcopy(plain)))
    _spare(responses)
    return responses


def has_files(messages: Any) -> bool:
    """Return whether a key of these messages needs a file to be read."""
    if isinstance(messages, str):
        return False
    return any(getattr(block, "path", None) for message in messages for block in message.blocks)


def key_of(value: Any) -> Any:
    """Return what a key can hold of messages and arguments; files by their content.

    Raises:
        OSError: A file cannot be read.
    """
    kind = type(value)
    if isinstance(value, BaseModel):
        fields = {*kind.model_fields, *(value.__pydantic_extra__ or {})}
        told = {name: key_of(getattr(value, name)) for name in sorted(fields)}
        if isinstance(value, BaseContentBlock) and told.get("path") is not None:
            told["path"] = ("file", Path(value.path).read_bytes())  # type: ignore[attr-defined]
        return "model", f"{kind.__module__}.{kind.__qualname__}", told
    if isinstance(value, BaseTool):
        tool = value.metadata
        return "tool", tool.name, tool.description, tool.get_parameters_dict()
    if isinstance(value, type) and issubclass(value, BaseModel):
        return "class", f"{value.__module__}.{value.__qualname__}", value.model_json_schema()
    if isinstance(value, Enum):
        return "enum", value.name
    if isinstance(value, (AnyUrl, PurePath)):
        return "text", str(value)
    if isinstance(value, dict):
        # What a response from the cache says of itself is no part of the conversation.
        return {key: key_of(item) for key, item in value.items() if key not in (CACHED, SAVED)}
    if isinstance(value, (list, tuple)):
        return [key_of(item) for item in value]
    return value


# -- one response ------------------------------------------------------------------------------


def _to_plain(response: Response) -> Any:
    if type(response) is ChatResponse and type(response.message) is ChatMessage:
        message = response.message.model_dump()
        message["role"] = response.message.role.value
        body: dict[str, Any] = {"message": message}
    elif type(response) is CompletionResponse:
        body = {"text": response.text}
    else:
        raise InvalidInput(
            f"A {type(response).__name__} cannot be stored.", fix="It is passed on and not cached."
        )
    odds = (
        None
        if response.logprobs is None
        else [[each.model_dump() for each in row] for row in response.logprobs]
    )
    body |= {"delta": response.delta, "logprobs": odds, "raw": _raw(response.raw)}
    # By way of bytes: what the caller does to the response meanwhile must not be kept.
    plain = decode_value(encode_value({**body, "additional_kwargs": response.additional_kwargs}))
    if _from_plain(plain) != response.model_copy(update={"raw": plain["raw"]}):
        raise InvalidInput("A response does not come back as it was.", fix="It is not cached.")
    return plain


def _raw(raw: Any) -> Any:
    """Return what the provider sent if it is plain, or None: objects come and go with clients."""
    try:
        return raw if decode_value(encode_value(raw)) == raw else None
    except InvalidInput:
        return None


def _from_plain(plain: Any) -> Any:
    return (ChatResponse if "message" in plain else CompletionResponse)(**plain)


def _text(response: Response) -> str:
    if isinstance(response, ChatResponse):
        return response.message.content or ""
    return response.text


def _grows(responses: list[Response]) -> bool:
    """Return whether each response holds the text so far, so that the last holds all of it."""
    texts = [_text(response) for response in responses]
    return all(now.startswith(before) for before, now in pairwise(texts))


def _spare(responses: list[Any]) -> None:
    """Say in responses from the cache that they cost no tokens now, and what they once cost."""
    paid: dict[str, Any] = {}
    for response in responses:
        for name in _COUNTS:
            if name in response.additional_kwargs:
                paid[name] = response.additional_kwargs[name]
                response.additional_kwargs[name] = 0
        if isinstance(response.raw, dict):
            for name in _PAID:
                if isinstance(found := response.raw.pop(name, None), dict):
                    paid = paid or found
    responses[-1].additional_kwargs[CACHED] = True
    if paid:
        responses[-1].additional_kwargs[SAVED] = paid


# -- a stream: each response holds all the text so far, so only what was added is stored --------


def _difference(before: Any, now: Any) -> Any:
    """Return what makes ``now`` of ``before``."""
    if type(before) is type(now):
        if before == now and repr(before) == repr(now):  # 1, 1.0 and True are equal
            return ("same",)
        if isinstance(now, str) and now.startswith(before):
            return "more", now[len(before) :]
        if isinstance(now, dict) and list(before) == list(now):
            return "each", {key: _difference(before[key], now[key]) for key in now}
        if isinstance(now, list) and len(before) <= len(now):
            known = [_difference(*pair) for pair in zip(before, now, strict=False)]
            return "list", known, now[len(before) :]
    return "new", now


def _apply(before: Any, step: Any) -> Any:
    makers: dict[str, Callable[..., Any]] = {
        "same": lambda: before,
        "more": lambda added: before + added,
        "each": lambda steps: {key: _apply(before[key], steps[key]) for key in steps},
        "list": lambda known, added: [*map(_apply, before, known), *added],
        "new": lambda now: now,
    }
    name, *content = step
    if name not in makers:
        raise CorruptData(f"A stored step is of the unknown kind {name!r}.", fix="Ask again.")
    return makers[name](*content)
