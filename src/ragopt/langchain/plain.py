"""LangChain's documents and messages as plain values, for keys and for the cache."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    BaseMessageChunk,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    message_chunk_to_message,
)
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.runnables.utils import AddableDict

from ragopt._again import Again
from ragopt.errors import CorruptData, InvalidInput

CACHED = "ragopt_cached"
"""In the ``response_metadata`` of a message: it came from the cache."""

SAVED = "ragopt_saved_usage"
"""In the ``response_metadata`` of a message from the cache: the tokens that it once cost."""

# Where providers put tokens that were paid for, beside ``usage_metadata``.
PAID = ("token_usage", "usage")

# The only classes that stored data can bring to life.
_MESSAGES: dict[str, Again[BaseMessage]] = {
    type(blank).__name__: Again(blank)
    for blank in (
        AIMessage(content=""),
        AIMessageChunk(content=""),
        ChatMessage(content="", role=""),
        HumanMessage(content=""),
        SystemMessage(content=""),
        ToolMessage(content="", tool_call_id=""),
    )
}
_DOCUMENT = Again(Document(page_content=""))


def to_plain(value: Any, *, ids: bool = True) -> Any:
    """Return JSON-like values from which ``from_plain`` makes the same again.

    Every value is tagged with what it is, so no dict of the user's is taken for a document. In
    lists, since a tuple that is stored costs every reader of it.

    Args:
        value: Plain values, documents, messages, and lists and dicts of them.
        ids: Keep the ids of messages, and what they cost. A key leaves them out: they belong to
            one run of a model, and two conversations with the same words are the same.

    Raises:
        InvalidInput: It holds an object of another class, which could not be made again.
    """
    if isinstance(value, dict):
        kind = "addable" if ids and type(value) is AddableDict else "dict"
        return [kind, {key: to_plain(item, ids=ids) for key, item in value.items()}]
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, [to_plain(item, ids=ids) for item in value]]
    if type(value) is Document:
        return ["document", [value.id, value.page_content, value.metadata]]
    if isinstance(value, BaseMessage):
        name = type(value).__name__
        again = _MESSAGES.get(name)
        if again is None or type(value) is not again.cls:
            raise InvalidInput(
                f"A message of type {name} cannot be stored.",
                fix=f"Use one of: {', '.join(_MESSAGES)}.",
            )
        if not ids:
            return ["message", [name, _words(value)]]
        fields = value.model_dump(exclude_defaults=True)
        if again.make(dict(fields)) != value:
            raise InvalidInput(
                f"A message of type {name} holds an object that would not come back as it is.",
                fix="Use plain values in a message.",
            )
        return ["message", [name, fields]]
    return ["value", value]


def from_plain(plain: Any) -> Any:
    """Make the values from which ``to_plain`` came.

    Raises:
        CorruptData: It is nothing that ``to_plain`` makes.
    """
    kind, content = plain
    if kind in ("dict", "addable"):
        made = {key: from_plain(item) for key, item in content.items()}
        return made if kind == "dict" else AddableDict(made)
    if kind in ("list", "tuple"):
        items = [from_plain(item) for item in content]
        return items if kind == "list" else tuple(items)
    if kind == "document":
        id_, text, metadata = content
        return document(id_, text, metadata)
    if kind == "message":
        name, fields = content
        return _MESSAGES[name].make(fields)
    if kind == "value":
        return content
    raise CorruptData(f"A stored value is of the unknown kind {kind!r}.", fix="Compute it again.")


def document(id_: str | None, text: str, metadata: Mapping[str, Any]) -> Document:
    """Return a document of parts that are known to be right, and belong to it from now on."""
    return _DOCUMENT.make({"id": id_, "page_content": text, "metadata": metadata})


def _words(message: BaseMessage) -> dict[str, Any]:
    """Return a message without what belongs to the run that made it, or to the cache."""
    fields = message.model_dump(exclude={"id", "usage_metadata"}, exclude_defaults=True)
    metadata = fields.pop("response_metadata", {})
    told = {key: item for key, item in metadata.items() if key not in (CACHED, SAVED, *PAID)}
    return {**fields, "response_metadata": told} if told else fields


def spare(message: BaseMessage) -> None:
    """Write into a message from the cache that it cost no tokens now, and what it once cost.

    It must be the caller's own: the message itself is changed.
    """
    metadata = {key: item for key, item in message.response_metadata.items() if key not in PAID}
    paid = [message.response_metadata[key] for key in PAID if key in message.response_metadata]
    if isinstance(message, AIMessage):
        if message.usage_metadata is not None:
            paid.insert(0, dict(message.usage_metadata))
        message.usage_metadata = UsageMetadata(input_tokens=0, output_tokens=0, total_tokens=0)
    message.response_metadata = {**metadata, CACHED: True, **({SAVED: paid[0]} if paid else {})}


def spare_all(messages: Sequence[BaseMessage]) -> None:
    """Do ``spare`` for the pieces of one message: the last one tells it for all of them."""
    total: UsageMetadata | None = None
    for message in messages:
        if isinstance(message, AIMessage):
            if message.usage_metadata is not None:
                total = add_usage(total, message.usage_metadata)
            message.usage_metadata = None
    last = messages[-1]
    if isinstance(last, AIMessage):
        last.usage_metadata = total
    spare(last)


def as_message(chunk: BaseMessage) -> BaseMessage:
    """Return the whole message that a chunk stands for; another message as it is."""
    return message_chunk_to_message(chunk) if isinstance(chunk, BaseMessageChunk) else chunk


def as_chunk(message: BaseMessage) -> BaseMessage:
    """Return the answer of a model as its only chunk; another message as it is."""
    if not isinstance(message, AIMessage) or isinstance(message, AIMessageChunk):
        return message
    calls = [(call["name"], json.dumps(call["args"]), call["id"]) for call in message.tool_calls]
    calls += [(call["name"], call["args"], call["id"]) for call in message.invalid_tool_calls]  # type: ignore[misc]
    return AIMessageChunk(
        content=message.content,
        additional_kwargs=message.additional_kwargs,
        response_metadata=message.response_metadata,
        name=message.name,
        id=message.id,
        usage_metadata=message.usage_metadata,
        tool_call_chunks=[
            tool_call_chunk(name=name, args=args, id=id_, index=index)
            for index, (name, args, id_) in enumerate(calls)
        ],
        chunk_position="last",
    )
