"""LangChain's documents and messages as plain values, for keys and for the cache."""

from __future__ import annotations

from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from ragopt.errors import CorruptData, InvalidInput

# The only classes that stored data can bring to life.
_MESSAGES: dict[str, type[BaseMessage]] = {
    cls.__name__: cls
    for cls in (AIMessage, AIMessageChunk, ChatMessage, HumanMessage, SystemMessage, ToolMessage)
}


def to_plain(value: Any, *, ids: bool = True) -> Any:
    """Return JSON-like values from which ``from_plain`` makes the same again.

    Every value is tagged with what it is, so no dict of the user's is taken for a document.

    Args:
        value: Plain values, documents, messages, and lists and dicts of them.
        ids: Keep the ids of messages. A key leaves them out: they name one run of a model, and
            two conversations with the same words are the same.

    Raises:
        InvalidInput: It holds an object of another class, which could not be made again.
    """
    if isinstance(value, dict):
        return "dict", {key: to_plain(item, ids=ids) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [to_plain(item, ids=ids) for item in value]
    if type(value) is Document:
        return "document", (value.id, value.page_content, value.metadata)
    if isinstance(value, BaseMessage):
        name = type(value).__name__
        if type(value) is not _MESSAGES.get(name):
            raise InvalidInput(
                f"A message of type {name} cannot be stored.",
                fix=f"Use one of: {', '.join(_MESSAGES)}.",
            )
        left_out = None if ids else {"id"}
        return "message", (name, value.model_dump(exclude=left_out, exclude_defaults=True))
    return "value", value


def from_plain(plain: Any) -> Any:
    """Make the values from which ``to_plain`` came.

    Raises:
        CorruptData: It is nothing that ``to_plain`` makes.
    """
    kind, content = plain
    if kind == "dict":
        return {key: from_plain(item) for key, item in content.items()}
    if kind in ("list", "tuple"):
        items = [from_plain(item) for item in content]
        return items if kind == "list" else tuple(items)
    if kind == "document":
        id_, text, metadata = content
        return Document(id=id_, page_content=text, metadata=metadata)
    if kind == "message":
        name, fields = content
        return _MESSAGES[name](**fields)
    if kind == "value":
        return content
    raise CorruptData(f"A stored value is of the unknown kind {kind!r}.", fix="Compute it again.")
